package peer

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// speaker answers every command with a text.
type speaker struct {
	text  string
	asked int
}

func (s *speaker) Open(context.Context, string, string, io.Writer) (Stream, error) {
	s.asked++
	return &spoken{strings.NewReader(s.text)}, nil
}

type spoken struct{ io.Reader }

func (*spoken) Write(p []byte) (int, error) { return len(p), nil }
func (*spoken) CloseWrite() error           { return nil }
func (*spoken) Wait() error                 { return nil }

// Nothing is pushed to, or compared with, a server that is another than its alias says.
func TestIdentify(t *testing.T) {
	for text, want := range map[string]string{
		`{"hostname":"sam","verbs":[]}`:    "",
		`{"hostname":"gollum","verbs":[]}`: `the server that answers calls itself "gollum"`,
		"hello frodo, this is git\n":       "", // a foreign one has no name of its own
		"":                                 "",
	} {
		s := &speaker{text: text}
		p := &sshPeer{name: "sam", stall: time.Minute, transport: s, identities: &identities{}}
		for range 2 {
			err := p.identify(t.Context())
			if want == "" && err != nil || want != "" && (!errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), want)) {
				t.Errorf("%q: %v, want %q", text, err, want)
			}
		}
		if known := want == ""; known != (s.asked == 1) {
			t.Errorf("%q: asked %d times", text, s.asked)
		}
	}
	for text, want := range map[string]serverIdentity{
		`{"hostname":"sam","verbs":[]}`:                                  {make: mirrorShell},
		`{"GL_USER":"server-frodo","gitolite_version":"3.6","repos":{}}`: {make: gitolite, user: "server-frodo"},
		`{"GL_USER":"server-frodo"}`:                                     {make: foreign},
		"hello frodo, this is git@x running gitolite3 v3 on git 2\n":     {make: foreign}, // until it is asked otherwise
	} {
		p := &sshPeer{name: "sam", stall: time.Minute, transport: &speaker{text: text}, identities: &identities{}}
		err := p.identify(t.Context())
		if got := p.identities.of("sam"); err != nil || got.make != want.make || got.user != want.user {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	s := &speaker{text: "END 0 gollum\n"}
	p := &sshPeer{name: "sam", stall: time.Minute, transport: s, identities: &identities{}}
	if _, err := p.Compare(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("compared: %v", err)
	}
}
