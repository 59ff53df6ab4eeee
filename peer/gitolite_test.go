package peer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/meta"
	"mirror-shell/internal/refset"
	"mirror-shell/peer"
	"mirror-shell/peer/peertest"
)

// fakeGitolite answers as a gitolite 3 does, in front of a copy.
type fakeGitolite struct {
	copy    *peertest.Repo
	user    string // whom it takes us for
	missing bool   // the copy is not there
	refuses string // what it says to perms -c, if it refuses
	// enabled has the commands for HEAD and the description, with what they refuse by.
	enabled map[string]string

	head, description string   // as they were set
	got               []string // commands that set permissions, each with what it read
}

func (g *fakeGitolite) run(command string, in io.Reader, out, stderr io.Writer) error {
	verb, _, _ := strings.Cut(command, " ")
	switch {
	case command == "info":
		fmt.Fprintf(out, "hello %s, this is git@host running gitolite3 3.6.12-1 (Debian) on git 2.39.5\n\n R W\ttesting\n", g.user)
		return nil
	case verb == "git-receive-pack":
		fmt.Fprintln(stderr, "fatal: '/home/git/repositories/x.git' does not appear to be a git repository")
		return errors.New("exit status 128: fatal: '/home/git/repositories/x.git' does not appear to be a git repository")
	case strings.HasPrefix(verb, "CREATOR="):
		fmt.Fprintln(stderr, "'batch' mode started, waiting for input (run with '-h' for details).")
		perms, err := io.ReadAll(in)
		if g.got = append(g.got, command+" < "+string(perms)); g.refuses != "" {
			fmt.Fprintln(stderr, g.refuses)
			return errors.New("exit status 25")
		}
		g.missing = false
		return err
	}
	if refuses, ok := g.enabled[verb]; ok && refuses != "" {
		fmt.Fprintln(stderr, refuses)
		return errors.New("exit status 1")
	} else if ok {
		args := strings.SplitN(command, " ", 3)
		if head, ok := strings.CutPrefix(args[2], "HEAD "); ok && verb == "symbolic-ref" {
			g.copy.Git("symbolic-ref", "HEAD", head)
			g.head = head
		} else {
			g.description = args[2]
		}
		return nil
	}
	fmt.Fprintf(stderr, "FATAL: unknown git/gitolite command: '%s'\n", command)
	return errors.New("exit status 25")
}

// newGitolite is a repository of alice's, and a gitolite to which it is mirrored.
func newGitolite(t *testing.T) (*peertest.Fixture, *local) {
	f, transport := newFixture(t, time.Minute)
	transport.foreign, transport.wild = true, &fakeGitolite{copy: transport.copy, user: "server-frodo", missing: true}
	f.Write("gl-creator", "alice")
	f.Commit("refs/heads/main")
	return f, transport
}

const sets = "CREATOR=alice perms -c '" + peertest.Repository + "' < "

// A copy of a wild repository is made before the first push, its permissions travel when they
// have changed, and a push costs nothing more.
func TestGitoliteWild(t *testing.T) {
	t.Parallel()
	f, transport := newGitolite(t)
	for i, c := range []struct {
		change          func()
		verbs, got, not string
	}{
		{func() {}, "info CREATOR=alice git-receive-pack symbolic-ref", sets, "HEAD"},
		{func() { f.Commit("refs/heads/main") }, "git-receive-pack", "", "HEAD"},
		{func() { f.Write("gl-perms", "READERS bob\n") }, "git-receive-pack CREATOR=alice", sets + "READERS bob\n", "HEAD"},
		{func() { f.Commit("refs/heads/main") }, "git-receive-pack", "", "HEAD"},
		{func() { f.Write("description", "x\n") }, "git-receive-pack CREATOR=alice desc", sets + "READERS bob\n", "HEAD description"},
		{func() { transport.wild.missing = true; f.Copy.Repo.Git("update-ref", "-d", "refs/heads/main") },
			"git-receive-pack CREATOR=alice git-receive-pack symbolic-ref desc", sets + "READERS bob\n", "HEAD description"},
		{func() { os.Remove(filepath.Join(f.Dir, "gl-perms")) }, "git-receive-pack CREATOR=alice", sets, "HEAD description"},
	} {
		c.change()
		transport.verbs()
		transport.wild.got = nil
		out := f.MustSync()
		if verbs := transport.verbs(); verbs != c.verbs {
			t.Errorf("%d: commands sent: %s, want %s", i, verbs, c.verbs)
		}
		if got := strings.Join(transport.wild.got, "|"); got != c.got {
			t.Errorf("%d: sent %q, want %q", i, got, c.got)
		}
		if strings.Contains(out.Note, "gl-") || strings.Contains(out.Note, "description") != strings.Contains(c.not, "description") || !strings.Contains(out.Note, "HEAD") {
			t.Errorf("%d: note %q", i, out.Note)
		}
		f.CheckRefs(f.Refs())
	}
}

// What it refuses is a note where the copy is there, and part of the failure where it is not; it
// is sent again some time later.
func TestGitoliteRefuses(t *testing.T) {
	t.Parallel()
	const say = "FATAL: repo does not exist, or you are not authorised"
	const advice = "for " + peertest.Repository + " gitolite.conf on sam needs `C = alice`; a copy that is there already needs alice in its gl-creator"
	f, transport := newGitolite(t)
	transport.wild.refuses = say
	f.SyncFails("does not appear to be a git repository", "sam says: repo does not exist, or you are not authorised: "+advice)
	if n := len(transport.wild.got); n != 1 {
		t.Errorf("sent %d times", n)
	}
	transport.wild.missing = false
	want := noHead + "; gl-creator and gl-perms were not taken: sam says: repo does not exist, or you are not authorised: " + advice
	for _, verbs := range []string{"CREATOR=alice git-receive-pack symbolic-ref", "git-receive-pack"} {
		transport.verbs()
		if out := f.MustSync(); out.Note != want {
			t.Errorf("note %q, want %q", out.Note, want)
		}
		if got := transport.verbs(); got != verbs {
			t.Errorf("commands sent: %s, want %s", got, verbs)
		}
	}
	record := meta.Known(f.Dir, peerName)
	record.Again -= int64(time.Hour / time.Second)
	if err := record.Save(f.Dir, peerName); err != nil {
		t.Fatal(err)
	}
	transport.wild.refuses = ""
	if out := f.MustSync(); out.Note != noHead {
		t.Errorf("note %q", out.Note)
	}
}

// Creator and permissions come from users. Nothing is sent of what is not sound.
func TestGitoliteUnsound(t *testing.T) {
	t.Parallel()
	f, transport := newGitolite(t)
	for _, creator := range []string{"@all", "x;id", "alice perms", "x\ny", "al'ice", "-x", "$(id)"} {
		f.Write("gl-creator", creator)
		f.SyncFails("does not appear to be a git repository")
		if len(transport.wild.got) > 0 {
			t.Fatalf("%q: sent %q", creator, transport.wild.got)
		}
	}
	f.Write("gl-creator", "alice\n")
	f.Write("gl-perms", "READERS $(id)\n")
	if out := f.MustSync(); !strings.Contains(out.Note, `gl-perms was not sent: "READERS $(id)" is not a role`) || len(transport.wild.got) != 1 || transport.wild.got[0] != sets {
		t.Errorf("note %q, sent %q", out.Note, transport.wild.got)
	}
	f.Write("gl-perms", "READERS bob | x\n") // the copy keeps what it has
	if out := f.MustSync(); !strings.Contains(out.Note, "gl-creator and gl-perms were not sent: ") || len(transport.wild.got) != 1 {
		t.Errorf("note %q, sent %q", out.Note, transport.wild.got)
	}
}

// A gitolite that takes us for a user is not told who somebody else is.
func TestGitoliteUser(t *testing.T) {
	t.Parallel()
	f, transport := newGitolite(t)
	transport.wild.user, transport.wild.missing = "frodo", false
	if out := f.MustSync(); !strings.Contains(out.Note, "sam takes us for the user frodo: our key is to be keydir/server-frodo.pub there") || len(transport.wild.got) > 0 {
		t.Errorf("note %q, sent %q", out.Note, transport.wild.got)
	}
}

// newParts is a gitolite that gets at most so many refs at once, and a repository with main and so many other refs, n00 and so
// on, none of which is there yet. All have the same value, and refs are all of them.
func newParts(t *testing.T, part, others int) (f *peertest.Fixture, transport *local, refs map[string]string) {
	f, transport = newFixture(t, time.Minute)
	transport.foreign, transport.wild = true, &fakeGitolite{user: "server-frodo"}
	peer.SetPart(f.Copy.Peer, part)
	oid := f.Commit("refs/heads/main")
	refs = map[string]string{"refs/heads/main": oid}
	for i := range others {
		refs[fmt.Sprintf("refs/heads/n%02d", i)] = oid
	}
	f.SetAll(refs)
	return f, transport, refs
}

// Many refs go to a gitolite in parts. A ref that is refused, or cannot be sent, keeps no other back.
func TestGitoliteParts(t *testing.T) {
	t.Parallel()
	f, transport, refs := newParts(t, 10, 34)
	oid := refs["refs/heads/main"]
	f.MustSync()
	if verbs := transport.verbs(); verbs != "git-receive-pack info symbolic-ref git-receive-pack git-receive-pack git-receive-pack" {
		t.Errorf("commands sent: %s", verbs)
	}
	f.CheckRefs(f.Refs())

	// n00 gives way to n00/x, and n33 is not taken.
	log := filepath.Join(f.Copy.Repo.Dir, "update.log")
	f.Copy.Repo.Hook("update", "echo $1 >>"+log+"\ncase $1 in */n01-2) exit 1;; esac")
	two := f.NewCommit(oid)
	for i := range 17 {
		f.Delete(fmt.Sprintf("refs/heads/n%02d", i))
		f.Set(fmt.Sprintf("refs/heads/n%02d-2", i), oid)
	}
	f.Set("refs/heads/n00/x", two)
	f.SyncFails("sam refused 1 of 35 refs: refs/heads/n01-2 (hook declined)")
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(string(text))
	if len(lines) != 17+17+1 || lines[0] != "refs/heads/n00" || !strings.HasSuffix(lines[34], "/n16") {
		t.Errorf("in this order: %q", lines)
	}
	want := f.Refs()
	delete(want, "refs/heads/n01-2")
	f.CheckRefs(want)
	f.Copy.Repo.Hook("update", "exit 0")
	f.MustSync()
	f.CheckRefs(f.Refs())
}

// A part that fails leaves what was done before on record, and the rest for the next time.
func TestGitolitePartFails(t *testing.T) {
	t.Parallel()
	f, transport, _ := newParts(t, 5, 14)
	sessions := 0
	transport.wrap = func(_ context.Context, verb string, s *stream) {
		if verb != "git-receive-pack" {
			return
		}
		if sessions++; sessions == 2 {
			cutAfter(s, 0, 0)
		}
	}
	if _, _, err := f.Sync(); !errors.Is(err, peer.ErrUnreachable) || sessions != 2 {
		t.Fatalf("%v after %d sessions", err, sessions)
	}
	log, err := refset.Open(refset.Path(f.Dir, peerName))
	if err != nil {
		t.Fatal(err)
	}
	if refs, _ := log.Guess(); len(refs) != 5 || len(f.Copy.Refs()) != 5 {
		t.Errorf("on record: %d refs, there: %d", len(refs), len(f.Copy.Refs()))
	}
	log.Close()
	f.MustSync()
	f.CheckRefs(f.Refs())
	if sessions != 4 {
		t.Errorf("%d sessions", sessions)
	}
}

// Refs that cannot be read here keep back nobody else's, in whatever parts they are.
func TestGitolitePartsUnreadable(t *testing.T) {
	t.Parallel()
	f, _, want := newParts(t, 5, 24)
	for _, name := range []string{"refs/heads/n03-bad", "refs/heads/n11-bad", "refs/heads/n22-bad"} {
		f.Write(name, strings.Repeat("1", 39)+fmt.Sprint(len(name)%10)+"\n")
	}
	f.SyncFails("cannot be read here, and was not sent: refs/heads/n03-bad, refs/heads/n11-bad, refs/heads/n22-bad")
	f.CheckRefs(want)
}

// What is refused is counted over all parts.
func TestGitolitePartsRefused(t *testing.T) {
	t.Parallel()
	f, _, want := newParts(t, 5, 19)
	f.Copy.Repo.Hook("update", "case $1 in */n01|*/n09|*/n17) exit 1;; esac")
	f.SyncFails("sam refused 3 of 20 refs: refs/heads/n01 (hook declined), refs/heads/n09 (hook declined), refs/heads/n17 (hook declined): look at its hooks")
	for _, name := range []string{"n01", "n09", "n17"} {
		delete(want, "refs/heads/"+name)
	}
	f.CheckRefs(want)
}

// A copy that was made anew is told creator and permissions again, in however many parts its
// refs travel.
func TestGitolitePartsAnew(t *testing.T) {
	t.Parallel()
	f, transport := newGitolite(t)
	peer.SetPart(f.Copy.Peer, 5)
	for i := range 14 {
		f.Set(fmt.Sprintf("refs/heads/n%02d", i), f.Refs()["refs/heads/main"])
	}
	f.MustSync()
	for ref := range f.Copy.Refs() {
		f.Copy.Repo.Git("update-ref", "-d", ref)
	}
	transport.wild.got = nil
	f.Commit("refs/heads/main")
	f.MustSync()
	if got := strings.Join(transport.wild.got, "|"); got != sets {
		t.Errorf("sent %q, want %q", got, sets)
	}
	f.CheckRefs(f.Refs())
}

// What was approved and goes to a gitolite in parts needs no second approval for the rest, unless
// somebody else has changed something between two parts.
func TestApproveParts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "1m")
	w.local.foreign, w.local.wild = true, &fakeGitolite{user: "server-frodo"}
	peer.SetPart(w.Copy.Peer, 3)
	w.Commit("refs/heads/main")
	approved := func() {
		for i := range 8 {
			w.Commit(fmt.Sprintf("refs/heads/t%d", i))
		}
		w.MustSync()
		for i := range 8 {
			w.Delete(fmt.Sprintf("refs/heads/t%d", i))
		}
		w.held("8 of 9 refs")
		w.mustApprove()
	}
	approved()
	sessions := 0
	w.local.wrap = func(_ context.Context, verb string, s *stream) {
		if verb != "git-receive-pack" {
			return
		}
		if sessions++; sessions == 3 {
			cutAfter(s, 0, 0)
		}
	}
	w.SyncFails("cannot be reached")
	if n := len(w.Copy.Refs()); n != 3 {
		t.Errorf("%d refs are left", n)
	}
	w.local.wrap = nil
	w.MustSync()

	approved()
	foreign := w.NewCommit() // which is here, and belongs to nothing
	w.copy.Git("fetch", "-q", w.Dir, foreign)
	w.copy.Hook("post-receive", "git update-ref refs/heads/new "+foreign)
	w.SyncFails("refs on sam have changed since the part before was sent")
	if n := len(w.Copy.Refs()); n != 7 {
		t.Errorf("%d refs are left", n)
	}
	w.copy.Hook("post-receive", "exit 0")
	w.held("5 of 7 refs on sam would be deleted")
}

// A ref that is another name of one in a part before has been changed by that.
func TestGitolitePartsAlias(t *testing.T) {
	t.Parallel()
	f, _, refs := newParts(t, 5, 9)
	oid := refs["refs/heads/main"]
	refs["refs/heads/z"] = oid
	for range 2 {
		for ref := range refs {
			f.Set(ref, oid)
		}
		f.MustSync()
		f.CheckRefs(f.Refs())
		f.Copy.Repo.Git("symbolic-ref", "refs/heads/z", "refs/heads/main")
		oid = f.NewCommit(oid)
	}
}
