// Package peertest is the suite that every kind of peer passes, and what tests of
// one kind need besides.
//
// The suite says what "equal" means: after a Sync without error, the copy's mirrored
// refs are the source's, each with all its history; and what a Sync may never do,
// whatever the kind: destroy what it does not know, take a source that it cannot
// read for an empty one, or call a failure a success.
//
//	func TestConformance(t *testing.T) { peertest.Run(t, newCopy) }
package peertest

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
)

// Repository is the name of the repository in the suite.
const Repository = "group/project"

// Copy is an empty copy of Repository at a peer.
type Copy struct {
	Peer peer.Peer
	// Refs returns what the copy holds.
	Refs func() map[string]string
	// Head returns what the copy's HEAD points to; nil for a kind that keeps none.
	Head func() string
	// Repo is the copy where it is a git repository that others may change; else
	// nil, and what is said of divergent refs is not asked of the kind.
	Repo *Repo
	// Record is the file in which the kind remembers the copy's refs, line by
	// line as in package refset, for a source in that directory; nil for a kind
	// that has none.
	Record func(source string) string
}

// Fixture is a source and its copy.
type Fixture struct {
	testing.TB
	*Repo // the source
	Copy  Copy
	// Config are settings of the source, "gitolite.mirror.refs" → value.
	Config map[string]string
}

// NewFixture makes an empty source and its copy.
func NewFixture(t testing.TB, format string, newCopy func(t testing.TB, format string) Copy) *Fixture {
	t.Helper()
	return &Fixture{TB: t, Repo: NewRepo(t, format), Copy: newCopy(t, format), Config: map[string]string{}}
}

// Timeout bounds every Sync of the suite.
const Timeout = 60 * time.Second

// Sync makes the copy equal. It returns what was said, too.
func (f *Fixture) Sync() (peer.Outcome, string, error) {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	return f.SyncContext(ctx)
}

// SyncContext is Sync with a context.
func (f *Fixture) SyncContext(ctx context.Context) (peer.Outcome, string, error) {
	f.Helper()
	var said bytes.Buffer
	out, err := f.Copy.Peer.Sync(ctx, f.Source(), &said)
	if err != nil && strings.Contains(err.Error(), "\n") {
		f.Errorf("an error of several lines: %q", err)
	}
	return out, said.String(), err
}

// Source is what a Sync gets.
func (f *Fixture) Source() peer.Source {
	f.Helper()
	return peer.Source{Config: f.config(), Repo: f.Mirror()}
}

func (f *Fixture) config() *mirrorcfg.Repo {
	f.Helper()
	entries := []git.ConfigEntry{{Key: "gitolite.mirror.master", Value: "frodo"}}
	for key, value := range f.Config {
		entries = append(entries, git.ConfigEntry{Key: key, Value: value})
	}
	cfg, err := mirrorcfg.ParseRepo(Repository, entries)
	if err != nil {
		f.Fatal(err)
	}
	return cfg
}

// MustSync syncs and checks that the copy is equal.
func (f *Fixture) MustSync() peer.Outcome {
	f.Helper()
	out, said, err := f.Sync()
	if err != nil {
		f.Fatalf("sync: %v\n%s", err, said)
	}
	f.CheckEqual(out)
	return out
}

// CheckEqual checks what a Sync without error promises.
func (f *Fixture) CheckEqual(out peer.Outcome) {
	f.Helper()
	cfg := f.config()
	ours := cfg.MirroredRefs(f.Repo.Refs())
	f.CheckRefs(ours)
	if want := digest.Of(ours); out.Digest != want {
		f.Errorf("digest %s, want %s", out.Digest, want)
	}
	if f.Copy.Repo != nil {
		f.Copy.Repo.Fsck()
	}
}

// CheckRefs checks the copy's mirrored refs.
func (f *Fixture) CheckRefs(want map[string]string) {
	f.Helper()
	if diff := cmp.Diff(want, f.config().MirroredRefs(f.Copy.Refs())); diff != "" {
		f.Errorf("refs of the copy (-want +got):\n%s", diff)
	}
}

// SyncFails syncs, wants an error that contains each of the texts, and returns it.
func (f *Fixture) SyncFails(texts ...string) error {
	f.Helper()
	_, said, err := f.Sync()
	if err == nil {
		f.Fatalf("sync succeeded, want an error with %q\n%s", texts, said)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			f.Errorf("error %q does not contain %q\n%s", err, text, said)
		}
	}
	return err
}

// SyncHeld is SyncFails with an error that wraps peer.ErrHeld.
func (f *Fixture) SyncHeld(texts ...string) {
	f.Helper()
	if err := f.SyncFails(texts...); !errors.Is(err, peer.ErrHeld) {
		f.Errorf("error %q is not ErrHeld", err)
	}
}
