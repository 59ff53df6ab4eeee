package peer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/refset"
	"mirror-shell/peer"
	"mirror-shell/peer/peertest"
)

// The slave keeps what its master did not set: it is pushed over, and told.
func TestRescuedThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.received = func(string, string) bool { return false }
	w.Commit("refs/heads/main")
	w.Commit("refs/heads/other")
	w.MustSync()
	theirs := w.copy.Commit("refs/heads/main")
	extra := w.copy.Commit("refs/heads/extra")
	w.Commit("refs/heads/main")
	out := w.MustSync()
	want := "rescued on sam: refs/heads/extra at " + extra[:10] + ", rescued on sam: refs/heads/main at " + theirs[:10]
	if out.Note != want {
		t.Errorf("note %q, want %q", out.Note, want)
	}
	if out := w.MustSync(); out.Note != "" {
		t.Errorf("note %q", out.Note)
	}
	if err := w.approve(); !errors.Is(err, peer.ErrNothingHeld) {
		t.Errorf("nothing is held: %v", err)
	}
	w.verbs()
	w.Commit("refs/heads/main")
	w.MustSync()
	if got := w.verbs(); strings.Contains(got, "mirror-known") {
		t.Errorf("commands sent: %s", got)
	}
}

// The master came back from a backup: nothing is touched until somebody says what
// is right. Then pull-from makes everything newer again.
func TestRolledBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	remember := w.everReceived()
	w.uploads = true
	w.Commit("refs/heads/main")
	w.Commit("refs/heads/both")
	w.Commit("refs/heads/same")
	w.MustSync()
	copyDir(t, w.Dir, w.Dir+".backup")
	w.Commit("refs/heads/main")
	newest := w.Commit("refs/heads/main")
	lost := w.Commit("refs/heads/both")
	came := w.Commit("refs/heads/new")
	w.MustSync()
	remember()
	if err := errors.Join(os.RemoveAll(w.Dir), os.Rename(w.Dir+".backup", w.Dir)); err != nil {
		t.Fatal(err)
	}
	w.held("group/project was rolled back or replaced here", "mirror-shell sync --pull-from sam group/project")
	mine := w.Commit("refs/heads/both") // somebody goes on without noticing
	w.held("group/project was rolled back or replaced here")

	var said strings.Builder
	pulled, err := w.peers.PullFrom(context.Background(), peertest.Repository, peerName, &said)
	if err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	kept := pulled.Kept["refs/heads/both"]
	if !slices.Equal(pulled.Created, []string{"refs/heads/new"}) || !slices.Equal(pulled.Forwarded, []string{"refs/heads/main"}) || pulled.Equal != 1 || len(pulled.Kept) != 1 {
		t.Errorf("%+v\n%s", pulled, &said)
	}
	refs := w.Refs()
	if refs["refs/heads/main"] != newest || refs["refs/heads/new"] != came || refs["refs/heads/both"] != mine || refs[kept] != lost || len(refs) != 5 {
		t.Errorf("refs here: %v", refs)
	}
	if !strings.Contains(said.String(), "both stays as it is here; what sam has is kept as refs/mirror/rescued/sam/2") {
		t.Errorf("said: %s", &said)
	}
	w.MustSync()
	if again, err := w.peers.PullFrom(context.Background(), peertest.Repository, peerName, &said); err != nil || again.Equal != 4 || len(again.Kept)+len(again.Created)+len(again.Forwarded) > 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// Somebody who knows better approves: once, and for just that.
func TestApprove(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.received = func(string, string) bool { return true }
	w.Commit("refs/heads/main")
	fill := func() {
		for i := range 4 {
			w.Commit(fmt.Sprintf("refs/heads/t%d", i))
		}
		w.MustSync()
	}
	drop := func() {
		for i := range 4 {
			w.Delete(fmt.Sprintf("refs/heads/t%d", i))
		}
	}
	if err := w.approve(); !errors.Is(err, peer.ErrNothingHeld) {
		t.Errorf("nothing is held: %v", err)
	}
	fill()
	drop()
	w.held("4 of 5 refs on sam would be deleted", "refs/heads/t0, refs/heads/t1, refs/heads/t2 and 1 more")
	w.held("4 of 5 refs") // and again
	w.mustApprove()
	if err := w.approve(); !errors.Is(err, peer.ErrNothingHeld) || !strings.Contains(err.Error(), "has been approved") {
		t.Errorf("approved twice: %v", err)
	}
	w.MustSync()

	fill() // a second time is held anew
	drop()
	w.held("4 of 5 refs")
	w.mustApprove()
	w.Commit("refs/heads/main") // not what was approved
	w.held("4 of 5 refs")
	w.held("4 of 5 refs")
	w.mustApprove()
	w.copy.Commit("refs/heads/t0") // neither
	w.held("was rolled back")
	w.mustApprove()
	w.MustSync() // what we had set there, and do not know any more, is overwritten

	// An approval survives a push that could not be made.
	fill()
	drop()
	w.held("4 of 5 refs")
	w.mustApprove()
	w.local.wrap = func(_ context.Context, verb string, s *stream) { cutAfter(s, 0, 0) }
	w.SyncFails("cannot be reached")
	w.local.wrap = nil
	w.MustSync()
	entries, err := os.ReadDir(refset.Dir(w.Dir) + "/peers")
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "sam.refs") {
			t.Errorf("%s is left behind", e.Name())
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// An approval that was not used up is void when the states come back later.
func TestApprovalIsUsedUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.Commit("refs/heads/main")
	w.MustSync()
	full := w.Copy.Refs()
	w.Git("config", "receive.denyDeleteCurrent", "ignore")
	w.copy.Git("config", "receive.denyDeleteCurrent", "ignore")
	w.Delete("refs/heads/main")
	w.held("is empty here and has 1 refs on sam")
	w.mustApprove()
	w.MustSync()
	w.copy.SetAll(full)
	w.held("is empty here")
}

// Another repository of the same name.
func TestReplaced(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} {
		w := newWorld(t, "1m")
		if known {
			w.received = func(string, string) bool { return true }
		}
		w.Commit("refs/heads/main")
		w.Commit("refs/heads/topic")
		w.MustSync()
		other := peertest.NewRepo(t, "sha1")
		other.Commit("refs/heads/main")
		if err := errors.Join(os.Rename(w.Dir, w.Dir+".old"), os.Rename(other.Dir, w.Dir)); err != nil {
			t.Fatal(err)
		}
		if w.received != nil {
			w.held("group/project was rolled back or replaced here")
		} else {
			w.held("group/project has nothing in common with group/project on sam")
		}
		w.mustApprove()
		w.MustSync()
	}
}

// Marked by whoever restored it.
func TestRestored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.uploads = true
	base := w.Commit("refs/heads/main")
	tip := w.Commit("refs/heads/main")
	w.MustSync()
	mark := func() {
		if err := os.WriteFile(peer.RestoredMark(w.Dir), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mark()
	w.MustSync()
	w.Commit("refs/heads/topic") // ahead of the peer
	w.MustSync()
	w.Set("refs/heads/main", base) // after the peer was found to have nothing that is not here
	w.MustSync()
	w.Set("refs/heads/main", tip)
	w.MustSync()
	mark()
	w.Set("refs/heads/main", base)
	w.held("was restored from a backup here, and sam is ahead of it (refs/heads/main)")
	if _, err := w.peers.PullFrom(context.Background(), peertest.Repository, peerName, io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := w.Refs()["refs/heads/main"]; got != tip {
		t.Errorf("main is at %s", got)
	}
	w.MustSync()
	mark()
	w.Set("refs/heads/main", base)
	w.held("was restored")
	w.mustApprove()
	w.MustSync()
	w.Set("refs/heads/topic", base) // the mark is gone
	w.MustSync()
}

// A peer that only knows git: its commits are fetched before they are overwritten.
func TestRescuedHere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.foreign, w.uploads = true, true
	w.Commit("refs/heads/main")
	w.MustSync()
	rescued := func() (found []string) {
		for ref, oid := range w.Refs() {
			if rest, ok := strings.CutPrefix(ref, "refs/mirror/rescued/sam/"); ok {
				_, rest, _ = strings.Cut(rest, "-")
				found = append(found, strings.Replace(rest, oid[:8], "OID", 1)+" "+oid)
			}
		}
		slices.Sort(found)
		return found
	}
	theirs := w.copy.Commit("refs/heads/main")
	extra := w.copy.Commit("refs/heads/extra")
	w.Commit("refs/heads/main")
	hook := func(script string) { w.copy.Hook("pre-receive", script) }
	hook("exit 1") // the push fails after the rescue
	for range 3 {
		w.SyncFails("pre-receive hook declined")
	}
	hook("exit 0")
	out := w.MustSync()
	want := []string{"OID/refs/heads/extra " + extra, "OID/refs/heads/main " + theirs}
	if got := rescued(); !slices.Equal(got, want) {
		t.Errorf("rescued %q, want %q", got, want)
	}
	if len(w.Refs()) != 3 {
		t.Errorf("refs: %v", w.Refs())
	}
	if !w.Has(theirs) || out.Note == "" {
		t.Errorf("note %q", out.Note)
	}
	// Once kept, a value may be overwritten wherever it turns up.
	w.copy.Set("refs/heads/extra", extra)
	w.uploads = false
	w.MustSync()
}

// Where commits cannot be fetched, their refs are held and the others go on.
func TestCannotBeRescued(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.foreign, w.uploads = true, true
	w.Commit("refs/heads/main")
	w.Commit("refs/hidden/x")
	w.MustSync()
	w.copy.Git("config", "uploadpack.hideRefs", "refs/hidden")
	stuck := w.copy.Commit("refs/hidden/x")
	saved := w.copy.Commit("refs/heads/extra")
	w.Commit("refs/hidden/x")
	w.Commit("refs/heads/main")
	for range 2 {
		w.SyncHeld("refs/hidden/x on sam has commits that are not from frodo", "approve group/project sam")
		want := w.Refs()
		for ref := range want {
			if strings.HasPrefix(ref, "refs/mirror/") {
				delete(want, ref)
			}
		}
		want["refs/hidden/x"] = stuck
		w.CheckRefs(want)
	}
	if !w.Has(saved) || w.Has(stuck) {
		t.Error("extra should be here, and what is hidden not")
	}
	w.mustApprove()
	if _, said, err := w.Sync(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if w.Copy.Refs()["refs/hidden/x"] != w.Refs()["refs/hidden/x"] {
		t.Error("it was approved, and not done")
	}
}

// A slave that does not answer is given up, and nothing was sent.
func TestKnownHangs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1s")
	w.received = func(string, string) bool { return false }
	w.Commit("refs/heads/main")
	w.MustSync()
	w.copy.Commit("refs/heads/main")
	before := w.Copy.Refs()
	w.hang = true
	start := time.Now()
	if err := w.SyncFails("could not be asked", "stalled"); !errors.Is(err, peer.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	w.CheckRefs(before)
	w.hang = false
	w.MustSync()
}

// A pull is for the master and its own slaves, and leaves nothing behind.
func TestPullFromRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.Commit("refs/heads/main")
	pull := func(name, text string) {
		t.Helper()
		if _, err := w.peers.PullFrom(context.Background(), peertest.Repository, name, io.Discard); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("pull from %s: %v, want %q", name, err, text)
		}
	}
	pull("merry", "no list of group/project names merry")
	pull("-o", "host name")
	pull("sam", "exit status 128") // it gives nothing away
	w.uploads = true
	pull("sam", "has no refs of group/project")
	w.Set("refs/mirror/pull/sam/heads/left", w.Refs()["refs/heads/main"])
	w.copy.Commit("refs/heads/theirs")
	if _, err := w.peers.PullFrom(context.Background(), peertest.Repository, "sam", io.Discard); err != nil {
		t.Error(err)
	}
	if refs := w.Refs(); len(refs) != 2 || refs["refs/heads/theirs"] == "" {
		t.Errorf("refs: %v", refs)
	}
	w.Git("config", "gitolite.mirror.master", "gollum")
	pull("sam", "frodo is not the master of group/project")
}

// A source that is gone, or cannot be read to the end.
func TestBrokenSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.Fill(30)
	w.MustSync()
	before := w.Copy.Refs()
	packed, err := os.ReadFile(w.Dir + "/packed-refs")
	if err != nil {
		t.Fatal(err)
	}
	sync := func(text string) {
		t.Helper()
		_, err := w.peers.Sync(context.Background(), peer.Job{Repository: peertest.Repository, Peer: peerName}, io.Discard)
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %q", err, text)
		}
		w.CheckRefs(before)
	}
	write := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(w.Dir+"/packed-refs", data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(packed[:len(packed)/3]) // in the middle of a line
	sync("nothing is pushed or deleted until then")
	lines := strings.SplitAfter(string(packed), "\n")
	write([]byte(strings.Join(lines[:12], ""))) // git cannot tell
	sync("held: 19 of 30 refs on sam would be deleted")
	write(nil)
	sync("held: group/project is empty here and has 30 refs on sam")
	if err := os.Rename(w.Dir, w.Dir+".away"); err != nil {
		t.Fatal(err)
	}
	sync("no such repository: group/project: put it back, or run: mirror-shell forget group/project")
	if err := os.Rename(w.Dir+".away", w.Dir); err != nil {
		t.Fatal(err)
	}
	write(packed)
	w.MustSync()
}

// The guard costs no process in the usual case, of one ref or of a few.
func TestGuardProcesses(t *testing.T) {
	s := newSite(t)
	for i := range 6 {
		s.Commit(fmt.Sprintf("refs/heads/b%d", i))
	}
	s.mustSync()
	trace := s.dir + "/trace"
	s.program("git", fmt.Sprintf("for word; do case $word in -*) ;; *) echo $word >>%s; break;; esac; done\nexec %s \"$@\"\n", trace, s.git))
	lookedUp := func(name string, change func()) {
		t.Helper()
		change()
		_ = os.Remove(trace)
		if said, err := s.sync(context.Background(), ip1); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, said)
		}
		text, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		for _, program := range []string{"cat-file", "rev-list", "merge-base"} {
			if strings.Contains(string(text), program) {
				t.Errorf("%s: processes %q", name, strings.Fields(string(text)))
			}
		}
	}
	lookedUp("one commit", func() { s.Commit("refs/heads/b0") })
	lookedUp("three branches", func() {
		for i := range 3 {
			s.Commit(fmt.Sprintf("refs/heads/b%d", i))
			s.Commit(fmt.Sprintf("refs/heads/b%d", i))
		}
	})
	lookedUp("a merge, and a rewritten branch", func() {
		refs := s.Refs()
		s.Set("refs/heads/b0", s.NewCommit(s.NewCommit(refs["refs/heads/b0"]), refs["refs/heads/b1"]))
		s.Set("refs/heads/b1", s.NewCommit())
	})
	lookedUp("two deletions", func() {
		s.Delete("refs/heads/b4")
		s.Delete("refs/heads/b5")
	})
}
