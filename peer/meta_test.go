package peer_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// answering makes the peer answer mirror-meta as our servers do, and keeps what it got.
func answering(transport *local, answer string) (got *string) {
	got = new(string)
	transport.wrap = func(_ context.Context, verb string, s *stream) {
		if verb != "mirror-meta" && verb != "mirror-create" {
			return
		}
		in := s.Writer
		s.Writer = writerFunc(func(p []byte) (int, error) { *got += string(p); return in.Write(p) })
		s.Reader = io.MultiReader(s.Reader, strings.NewReader(answer))
	}
	return got
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

// Metadata costs a command when it has changed, with HEAD in the same one, and
// nothing at all when it has not.
func TestMetadata(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	transport.quick = true
	f.Commit("refs/heads/main")
	put := func(text string) {
		if err := os.WriteFile(filepath.Join(f.Dir, "description"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("one\n")
	got := answering(transport, `{"version":1,"not_taken":["hooks.x"]}`+"\n")
	for i, c := range []struct {
		change     func()
		want, sent string
	}{
		{func() {}, "git-receive-pack mirror-meta", `"head":"refs/heads/main","description":"one\n"`},
		{func() { f.Commit("refs/heads/main") }, "mirror-push", ""},
		{func() {}, "mirror-push", ""},
		{func() { put("two\n") }, "mirror-push mirror-meta", `"description":"two\n"`},
		{func() { f.Commit("refs/heads/main") }, "mirror-push", ""},
		{func() { put("") }, "mirror-push mirror-meta", `"description":""`},
	} {
		c.change()
		transport.verbs()
		*got = ""
		out := f.MustSync()
		if verbs := transport.verbs(); verbs != c.want {
			t.Errorf("%d: commands sent: %s, want %s", i, verbs, c.want)
		}
		if !strings.Contains(*got, c.sent) {
			t.Errorf("%d: sent %s, want %s", i, *got, c.sent)
		}
		if out.Note != "config not taken by sam (config under [accept] there): hooks.x" {
			t.Errorf("%d: note %q", i, out.Note)
		}
	}
}

// An older server takes HEAD alone, and says nothing: what it lacks is told.
func TestMetadataOlderServer(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	f.Commit("refs/heads/main")
	if err := os.WriteFile(filepath.Join(f.Dir, "gl-perms"), []byte("READERS x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"git-receive-pack mirror-meta", "mirror-push git-receive-pack"} {
		transport.verbs()
		if out := f.MustSync(); out.Note != "gl-perms not sent: sam does not take it" {
			t.Errorf("note %q", out.Note)
		}
		if verbs := transport.verbs(); verbs != want {
			t.Errorf("commands sent: %s, want %s", verbs, want)
		}
	}
}

// A repository that is missing is created when the peer says that it may be, once.
func TestCreateOnPeer(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	f.Commit("refs/heads/main")
	missing := true
	transport.wrap = func(_ context.Context, verb string, s *stream) {
		wait := s.wait
		switch {
		case verb == "git-receive-pack" && missing:
			s.Reader, s.wait = strings.NewReader(""), func() error {
				s.closeRead()
				s.closeWrite()
				_ = wait() // broken pipe
				return errors.New("exit status 1: fatal: sam <==//== frodo mirror-push rejected: ip1 does not exist here: frodo may create it (mirror-create)")
			}
		case verb == "mirror-create":
			s.Writer = io.Discard
			s.wait = func() error { _ = wait(); missing = false; return nil }
		}
	}
	f.MustSync()
	if verbs := transport.verbs(); verbs != "info git-receive-pack mirror-create git-receive-pack" && verbs != "git-receive-pack mirror-create git-receive-pack" {
		t.Errorf("commands sent: %s", verbs)
	}
	f.CheckRefs(f.Refs())

	// One that is refused again is a failure, and no loop.
	missing = true
	wrap := transport.wrap
	transport.wrap = func(ctx context.Context, verb string, s *stream) {
		wrap(ctx, verb, s)
		if verb == "mirror-create" {
			s.wait = func() error { return errors.New("exit status 1: fatal: no room") }
		}
	}
	f.SyncFails("no room")
}
