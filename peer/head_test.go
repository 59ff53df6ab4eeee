package peer_test

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// A peer that is no mirror-shell server gets the refs; that it takes no HEAD is
// a note, and it is not asked again until HEAD changes.
func TestForeignPeer(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	transport.foreign = true
	f.Commit("refs/heads/main")
	for _, want := range []string{"git-receive-pack mirror-meta info info", "git-receive-pack"} {
		if out := f.MustSync(); out.Note != "HEAD was not sent: sam does not take it" {
			t.Errorf("note %q", out.Note)
		}
		if verbs := transport.verbs(); verbs != want {
			t.Errorf("commands sent: %s, want %s", verbs, want)
		}
	}
	f.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	f.Commit("refs/heads/trunk")
	f.MustSync()
	if verbs := transport.verbs(); verbs != "git-receive-pack mirror-meta info" {
		t.Errorf("commands sent: %s", verbs)
	}
	// Its own refs below refs/mirror/ are not hidden there, and not ours to delete.
	main := f.Refs()["refs/heads/main"]
	f.Copy.Repo.Set("refs/mirror/x", main)
	f.MustSync()
	if f.Copy.Refs()["refs/mirror/x"] != main {
		t.Error("refs/mirror/x is gone")
	}
	// The branch that its HEAD points to cannot be deleted, and that is said.
	f.Delete("refs/heads/main")
	f.SyncFails("refs/heads/main (deletion of the current branch prohibited): HEAD points to it on sam and does not travel: on sam, git symbolic-ref HEAD refs/heads/trunk")
}

// One connection is enough when HEAD is what it was.
func TestConnections(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	f.MustSync()
	for _, want := range []string{"git-receive-pack", "git-receive-pack mirror-meta", "mirror-push git-receive-pack", "git-receive-pack"} {
		if verbs := transport.verbs(); verbs != want {
			t.Errorf("commands sent: %s, want %s", verbs, want)
		}
		f.Commit("refs/heads/main")
		f.MustSync()
	}
}

// Between our own servers one command does it all, and refs are shown only when
// something is not as it was left.
func TestCommandsQuick(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	transport.quick = true
	f.Commit("refs/heads/main")
	old := f.Commit("refs/heads/topic")
	for i, c := range []struct {
		change func()
		want   string
	}{
		{func() {}, "git-receive-pack mirror-meta"},
		{func() {}, "mirror-push"},
		{func() { f.Commit("refs/heads/main"); f.Delete("refs/heads/topic") }, "mirror-push"},
		{func() { f.Set("refs/heads/main", f.NewCommit()) }, "mirror-push"},
		{func() { f.Set("refs/heads/other", old); f.Git("symbolic-ref", "HEAD", "refs/heads/other") }, "mirror-push"},
		{func() { f.Copy.Repo.Set("refs/heads/main", old); f.Commit("refs/heads/main") }, "mirror-push git-receive-pack"},
		{func() { f.Copy.Repo.Set("refs/heads/stray", old) }, "mirror-push git-receive-pack"},
		{func() { f.Commit("refs/heads/main") }, "mirror-push"},
	} {
		c.change()
		transport.verbs()
		f.MustSync()
		if verbs := transport.verbs(); verbs != c.want {
			t.Errorf("%d: commands sent: %s, want %s", i, verbs, c.want)
		}
		if f.Copy.Head() != f.Head() {
			t.Errorf("%d: HEAD is %s there and %s here", i, f.Copy.Head(), f.Head())
		}
	}
}

// A server in trouble, which answers nothing, is not taken for one that has no
// use for HEAD.
func TestHeadOfServerInTrouble(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	f.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	f.Commit("refs/heads/trunk")
	transport.wrap = func(_ context.Context, _ string, s *stream) {
		wait := s.wait
		s.Reader, s.wait = strings.NewReader(""), func() error {
			s.closeRead()
			s.closeWrite()
			_ = wait() // broken pipe
			return errors.New("exit status 1: fatal: no server configuration")
		}
	}
	f.SyncFails("no server configuration")
	transport.wrap = nil
	f.MustSync()
	if head := f.Copy.Head(); head != "refs/heads/trunk" {
		t.Errorf("HEAD of the copy is %s", head)
	}
}

// HEAD that is refused is a failure of its own.
func TestHeadRefused(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	f.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	f.Commit("refs/heads/trunk")
	transport.wrap = func(_ context.Context, verb string, s *stream) {
		if verb == "mirror-meta" {
			wait := s.wait
			s.wait = func() error { return cmp.Or(wait(), errors.New("exit status 1: fatal: no")) }
		}
	}
	f.SyncFails("HEAD: sam: exit status 1: fatal: no")
	f.CheckRefs(f.Refs())
	transport.wrap = nil
	transport.verbs()
	f.MustSync()
	if verbs := transport.verbs(); verbs != "git-receive-pack mirror-meta" {
		t.Errorf("commands sent: %s", verbs)
	}
}
