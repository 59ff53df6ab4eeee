package peer_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/meta"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/peer/peertest"
)

const noHead = "HEAD was not sent: sam has not enabled gitolite's symbolic-ref: add 'symbolic-ref' to ENABLE in ~/.gitolite.rc there, and for " +
	peertest.Repository + " `RW = server-frodo` to its gitolite.conf"

// newGiven is a repository, and a gitolite that takes HEAD and the description for it.
func newGiven(t *testing.T) (*peertest.Fixture, *local) {
	f, transport := newFixture(t, time.Minute)
	transport.foreign, transport.wild = true, &fakeGitolite{copy: transport.copy, user: "server-frodo", enabled: map[string]string{"symbolic-ref": "", "desc": ""}}
	f.Git("symbolic-ref", "HEAD", "refs/heads/main")
	f.Commit("refs/heads/main")
	return f, transport
}

// HEAD and the description travel when they have changed, and HEAD ahead of the refs.
func TestGitoliteGiven(t *testing.T) {
	t.Parallel()
	f, transport := newGiven(t)
	for i, c := range []struct {
		change            func()
		verbs             string
		description, note string
	}{
		{func() {}, "git-receive-pack mirror-meta info info symbolic-ref", "", ""},
		{func() { f.Commit("refs/heads/main") }, "git-receive-pack", "", ""},
		{func() { f.Write("description", "The first: 10% of all\n") }, "git-receive-pack desc", "The first: 10% of all", ""},
		{func() { f.Commit("refs/heads/main") }, "git-receive-pack", "The first: 10% of all", ""},
		{func() {
			f.Set("refs/heads/trunk", f.Refs()["refs/heads/main"])
			f.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
			f.Delete("refs/heads/main")
		}, "git-receive-pack symbolic-ref", "The first: 10% of all", ""},
		{func() { f.Write("description", "it's\n") }, "git-receive-pack", "The first: 10% of all", "description was not sent: gitolite's command takes"},
		{func() { f.Commit("refs/heads/trunk") }, "git-receive-pack", "The first: 10% of all", "description was not sent: gitolite's command takes"},
		{func() { f.Write("description", "Two\n") }, "git-receive-pack desc", "Two", ""},
		{func() { f.Write("description", "") }, "git-receive-pack", "Two", "description was not taken away: on sam gitolite's desc can only change it"},
		{func() { f.Commit("refs/heads/trunk") }, "git-receive-pack", "Two", "description was not taken away"},
		{func() { f.Write("description", "Two\n") }, "git-receive-pack desc", "Two", ""},
		{func() { f.Write("gl-perms", "READERS bob\n") }, "git-receive-pack", "Two", "gl-perms not sent: sam does not take it"},
		{func() { f.Write("gl-perms", ""); f.Copy.Repo.Git("update-ref", "-d", "refs/heads/trunk") }, "git-receive-pack symbolic-ref desc", "Two", ""},
	} {
		c.change()
		transport.verbs()
		out := f.MustSync()
		if verbs := transport.verbs(); verbs != c.verbs {
			t.Errorf("%d: commands sent: %s, want %s", i, verbs, c.verbs)
		}
		if g := transport.wild; g.description != c.description || f.Copy.Head() != f.Head() {
			t.Errorf("%d: description is %q there, HEAD is %s there and %s here", i, g.description, f.Copy.Head(), f.Head())
		}
		if !strings.HasPrefix(out.Note, c.note) || c.note == "" && out.Note != "" {
			t.Errorf("%d: note %q", i, out.Note)
		}
		f.CheckRefs(f.Refs())
	}
}

// What is refused is a note that names the lines which are missing there, costs no push anything,
// and is sent again after a day.
func TestGitoliteGivenRefused(t *testing.T) {
	t.Parallel()
	f, transport := newGiven(t)
	f.Write("description", "One\n")
	transport.wild.enabled = map[string]string{"symbolic-ref": "You are not authorised", "desc": "FATAL: you are not authorized"}
	const want = "HEAD was not taken: sam says: You are not authorised: for " + peertest.Repository + " gitolite.conf there needs `RW = server-frodo`; " +
		"description was not taken: sam says: you are not authorized: for " + peertest.Repository + " gitolite.conf there needs `RW = server-frodo`, `option writer-is-owner = 1`"
	for i, verbs := range []string{"git-receive-pack mirror-meta info info symbolic-ref desc", "git-receive-pack", "git-receive-pack"} {
		f.Commit("refs/heads/main")
		out := f.MustSync()
		if out.Note != want {
			t.Errorf("%d: note %q, want %q", i, out.Note, want)
		}
		// A comparison, which looks at the record alone, comes to the same.
		if note, foreign, err := (&peer.Peers{Server: &mirrorcfg.Server{}}).MetaNote(f.Dir, peerName, f.Source().Config, out.Digest, "refs/heads/main"); note != want || !foreign || err != nil {
			t.Errorf("%d: on record is %q, %v, %v", i, note, foreign, err)
		}
		if got := transport.verbs(); got != verbs {
			t.Errorf("%d: commands sent: %s, want %s", i, got, verbs)
		}
	}
	record := meta.Known(f.Dir, peerName)
	record.Head.Again -= int64(24 * time.Hour / time.Second)
	if err := record.Save(f.Dir, peerName); err != nil {
		t.Fatal(err)
	}
	if !record.Due("refs/heads/main") {
		t.Error("not due")
	}
	transport.wild.enabled["symbolic-ref"] = ""
	if out := f.MustSync(); strings.Contains(out.Note, "HEAD") || !strings.Contains(out.Note, "description was not taken") {
		t.Errorf("note %q", out.Note)
	}
	if got := transport.verbs(); got != "git-receive-pack symbolic-ref" || f.Copy.Head() != f.Head() {
		t.Errorf("commands sent: %s, HEAD is %s", got, f.Copy.Head())
	}
	if record = meta.Known(f.Dir, peerName); record.Due("refs/heads/main") || !record.Due("refs/heads/trunk") {
		t.Errorf("%+v", record)
	}
}

// A default branch that was renamed: its deletion fails, with what to do, while HEAD is refused,
// and the try after somebody has done it carries both.
func TestGitoliteGivenStuck(t *testing.T) {
	t.Parallel()
	f, transport := newGiven(t)
	f.MustSync()
	transport.wild.enabled = nil
	f.Set("refs/heads/trunk", f.Refs()["refs/heads/main"])
	f.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	f.MustSync()
	f.Delete("refs/heads/main")
	for i, verbs := range []string{"git-receive-pack", "git-receive-pack symbolic-ref", "git-receive-pack symbolic-ref"} {
		transport.verbs()
		f.SyncFails("refs/heads/main (deletion of the current branch prohibited): HEAD points to it there: " + noHead + "; or, on sam, git symbolic-ref HEAD refs/heads/trunk")
		if got := transport.verbs(); got != verbs {
			t.Errorf("%d: commands sent: %s, want %s", i, got, verbs)
		}
	}
	transport.wild.enabled = map[string]string{"symbolic-ref": ""}
	f.MustSync()
	f.CheckRefs(f.Refs())

	// Somebody has changed HEAD there.
	f.Commit("refs/heads/new")
	f.MustSync()
	f.Copy.Repo.Git("symbolic-ref", "HEAD", "refs/heads/new")
	f.Delete("refs/heads/new")
	f.SyncFails("refs/heads/new (deletion of the current branch prohibited): HEAD points to it there: HEAD was changed on sam")
	f.MustSync()
	f.CheckRefs(f.Refs())

	// And when HEAD here has no other branch, either.
	f.Set("refs/heads/other", f.Refs()["refs/heads/trunk"])
	f.MustSync()
	f.Delete("refs/heads/trunk")
	f.SyncFails("HEAD points to it on sam: make another branch the default here")
	f.Copy.Repo.Git("config", "receive.denyDeleteCurrent", "ignore")
	f.MustSync()
	f.CheckRefs(f.Refs())
}

// A connection that is cut while HEAD or the description is sent is a failure, and the next
// try sends it.
func TestGitoliteGivenCut(t *testing.T) {
	t.Parallel()
	f, transport := newGiven(t)
	f.Write("description", "One\n")
	for _, c := range []struct{ verb, again string }{{"symbolic-ref", "symbolic-ref desc"}, {"desc", "desc"}} {
		if c.verb == "desc" {
			f.Write("description", "Two\n")
		}
		transport.wrap = func(_ context.Context, verb string, s *stream) {
			if verb == c.verb {
				cutAfter(s, 0, 0)
			}
		}
		f.SyncFails("cannot be reached")
		transport.verbs()
		transport.wrap = nil
		f.MustSync()
		if got := transport.verbs(); got != "git-receive-pack "+c.again {
			t.Errorf("commands sent: %s, want %s", got, c.again)
		}
	}
	if transport.wild.description != "Two" || f.Copy.Head() != f.Head() {
		t.Errorf("description is %q, HEAD is %s", transport.wild.description, f.Copy.Head())
	}
	f.CheckRefs(f.Refs())
}

// When nothing is left to be told, that is on record, too: each comparison would else push the copy again.
func TestNothingLeft(t *testing.T) {
	t.Parallel()
	f, transport := newGiven(t)
	f.Write("description", "One\n")
	transport.wild.enabled = nil
	f.MustSync()
	f.Write("description", "")
	f.Git("update-ref", "--no-deref", "HEAD", f.Refs()["refs/heads/main"])
	for range 2 {
		f.MustSync()
	}
	record := meta.Known(f.Dir, peerName)
	record.Head.Again = 1 // a day later
	if record.New("") || record.Due("") || !record.Due("refs/heads/main") {
		t.Errorf("%+v", record)
	}
}
