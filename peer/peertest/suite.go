package peertest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"
)

// Run runs the suite. newCopy makes an empty copy of Repository, in that object
// format, at a peer of its own.
func Run(t *testing.T, newCopy func(t testing.TB, format string) Copy) {
	for _, test := range []struct {
		name string
		run  func(*Fixture)
	}{
		{"equal", testEqual},
		{"many refs", testManyRefs},
		{"tags", testTags},
		{"force push", testForcePush},
		{"deletion", testDeletion},
		{"directory and file", testDirectoryFile},
		{"head", testHead},
		{"head is odd", testOddHead},
		{"empty source is held", testEmptySource},
		{"mass deletion is held", testMassDeletion},
		{"renamed", testRenamed},
		{"several refs move back", testMovedBack},
		{"unreadable ref", testUnreadableRef},
		{"unreadable objects", testUnreadableObjects},
		{"all unreadable", testAllUnreadable},
		{"unreadable object is mended", testMended},
		{"own refs", testOwnRefs},
		{"patterns", testPatterns},
		{"cancelled", testCancelled},
		{"divergent", testDivergent},
		{"divergent deletion", testDivergentDeletion},
		{"remains of history", testRemains},
		{"contained", testContained},
		{"made anew", testMadeAnew},
		{"record is lost", testRecordLost},
		{"nobody listens", testNobodyListens},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(NewFixture(t, "sha1", newCopy))
		})
	}
	t.Run("sha256", func(t *testing.T) {
		t.Parallel()
		for _, run := range []func(*Fixture){testEqual, testForcePush, testDivergent} {
			run(NewFixture(t, "sha256", newCopy))
		}
	})
}

func testEqual(f *Fixture) {
	f.MustSync() // empty to empty
	f.Commit("refs/heads/main")
	f.Commit("refs/heads/topic")
	first := f.MustSync()
	if f.Copy.Head != nil && first.Note != "" {
		f.Errorf("note %q", first.Note)
	}
	if again := f.MustSync(); again.Digest != first.Digest || again.Note != first.Note {
		f.Errorf("a sync with nothing to do: %+v, before it %+v", again, first)
	}
	f.Commit("refs/heads/main")
	f.MustSync()
	f.Set("refs/heads/topic", f.NewCommit(f.Refs()["refs/heads/main"], f.Refs()["refs/heads/topic"]))
	f.Set("refs/heads/new", f.Refs()["refs/heads/topic"])
	f.Git("repack", "-adq")
	f.Git("pack-refs", "--all")
	f.MustSync()
}

func testManyRefs(f *Fixture) {
	refs := f.Fill(1500)
	f.MustSync()
	changed := map[string]string{}
	for i := range 750 {
		changed[fmt.Sprintf("refs/heads/b%05d", i)] = refs["refs/heads/b01499"]
		changed[fmt.Sprintf("refs/tags/v%d", i)] = refs["refs/heads/b00001"]
	}
	f.SetAll(changed)
	_, said, err := f.Sync()
	if err != nil {
		f.Fatal(err)
	}
	if n := strings.Count(said, "\n"); n > 300 {
		f.Errorf("%d lines said about 1,500 changes", n)
	}
	f.MustSync()
	f.Commit("refs/heads/b01499")
	f.MustSync()
}

func testTags(f *Fixture) {
	main := f.Commit("refs/heads/main")
	f.Git("tag", "-m", "one", "v1", main)
	f.Git("tag", "-m", "a tag of a tag", "v1-again", "v1")
	f.Set("refs/tags/light", main)
	f.Set("refs/tags/tree", f.Git("rev-parse", main+"^{tree}"))
	f.Set("refs/tags/blob", f.Git("rev-parse", main+":file"))
	f.MustSync()
	f.Git("tag", "-f", "-m", "moved", "v1", main)
	f.Git("tag", "-d", "v1-again")
	f.MustSync()
}

func testForcePush(f *Fixture) {
	base := f.Commit("refs/heads/main")
	f.Commit("refs/heads/main")
	f.MustSync()
	f.Set("refs/heads/main", f.NewCommit(base)) // not divergence: we know what is there
	f.MustSync()
	f.Set("refs/heads/main", f.NewCommit()) // nothing in common
	f.Git("reflog", "expire", "--expire=now", "--all")
	f.Git("gc", "-q", "--prune=now") // nor is what the copy has still here
	f.MustSync()
	f.Set("refs/heads/main", f.Git("rev-parse", "main"))
	f.Set("refs/heads/main", f.NewCommit(f.Refs()["refs/heads/main"]))
	f.MustSync()
}

func testDeletion(f *Fixture) {
	f.Commit("refs/heads/main")
	for _, ref := range []string{"refs/heads/a", "refs/tags/b", "refs/notes/commits"} {
		f.Commit(ref)
	}
	f.MustSync()
	f.Delete("refs/heads/a")
	f.Delete("refs/notes/commits")
	f.Git("gc", "-q", "--prune=now")
	f.MustSync()
	f.Commit("refs/heads/a") // again, with another value
	f.MustSync()
}

func testDirectoryFile(f *Fixture) {
	f.Commit("refs/heads/main")
	f.Commit("refs/heads/x/y")
	f.Commit("refs/heads/x/z")
	f.MustSync()
	f.Delete("refs/heads/x/y")
	f.Delete("refs/heads/x/z")
	f.Commit("refs/heads/x")
	f.MustSync()
	f.Delete("refs/heads/x")
	f.Commit("refs/heads/x/y")
	f.Commit("refs/heads/main")
	f.MustSync()
}

func (f *Fixture) checkHead(want string) {
	f.Helper()
	if f.Copy.Head == nil {
		return
	}
	if got := f.Copy.Head(); got != want {
		f.Errorf("HEAD of the copy is %s, want %s", got, want)
	}
}

func testHead(f *Fixture) {
	f.Commit("refs/heads/main")
	f.MustSync()
	f.checkHead("refs/heads/main")
	// The default branch is renamed.
	f.Set("refs/heads/trunk", f.Refs()["refs/heads/main"])
	f.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	f.Delete("refs/heads/main")
	f.MustSync()
	f.checkHead("refs/heads/trunk")
	// To a branch that does not exist yet.
	f.Git("symbolic-ref", "HEAD", "refs/heads/unborn")
	f.MustSync()
	f.checkHead("refs/heads/unborn")
}

func testOddHead(f *Fixture) {
	main := f.Commit("refs/heads/main")
	f.MustSync()
	f.Commit("refs/heads/main")
	f.Write("HEAD", main+"\n")
	if out := f.MustSync(); f.Copy.Head != nil && !strings.Contains(out.Note, "detached") {
		f.Errorf("HEAD is detached, note %q", out.Note)
	}
	f.Commit("refs/heads/main")
	f.Git("symbolic-ref", "HEAD", "refs/meta/config")
	if out := f.MustSync(); f.Copy.Head != nil && !strings.Contains(out.Note, "refs/meta/config") {
		f.Errorf("HEAD is no branch, note %q", out.Note)
	}
	f.checkHead("refs/heads/main")
}

func testEmptySource(f *Fixture) {
	f.Commit("refs/heads/main")
	f.MustSync()
	before := f.Copy.Refs()
	f.Delete("refs/heads/main")
	f.SyncHeld(Repository)
	f.CheckRefs(before)
	f.Commit("refs/heads/main")
	f.MustSync()
}

// Whatever git cannot read is not taken for a deletion.
func testUnreadableRef(f *Fixture) {
	f.Commit("refs/heads/main")
	f.Commit("refs/heads/victim")
	f.MustSync()
	before := f.Copy.Refs()
	f.Commit("refs/heads/main")
	whole := f.Refs()["refs/heads/victim"]
	for _, content := range []string{"", "garbage\n", strings.Repeat("0", len(whole)) + "\n", whole[:20]} {
		f.Write("refs/heads/victim", content)
		f.SyncFails("refs/heads/victim")
		f.CheckRefs(before)
	}
	f.Write("refs/heads/victim", whole+"\n")
	f.Write("refs/heads/bad..name", whole+"\n")
	f.SyncFails("bad..name")
	f.CheckRefs(before)
	if err := os.Remove(f.Dir + "/refs/heads/bad..name"); err != nil {
		f.Fatal(err)
	}
	f.MustSync()
}

// A ref whose objects are not all here is named, and keeps no other back.
func testUnreadableObjects(f *Fixture) {
	for i := range 20 {
		f.Commit(fmt.Sprintf("refs/heads/b%02d", i))
	}
	f.MustSync()
	before := f.Copy.Refs()
	for i := range 20 {
		f.Commit(fmt.Sprintf("refs/heads/b%02d", i))
	}
	want := maps.Clone(f.Refs())
	bad := map[string]func(oid string){
		"refs/heads/b03": func(oid string) { f.Damage(oid) },
		"refs/heads/b07": func(oid string) { f.Damage(oid, "") },
		"refs/heads/b08": func(oid string) { f.Damage(f.Git("rev-parse", oid+":file")) },
		"refs/heads/b12": func(oid string) { f.Damage(f.Git("rev-parse", oid+":file"), "\x78\x9c not zlib") },
		"refs/heads/b19": func(oid string) { f.Damage(f.Git("rev-parse", oid+"^{tree}")) },
	}
	for ref, damage := range bad {
		damage(want[ref])
		want[ref] = before[ref]
	}
	f.Delete("refs/heads/b00")
	delete(want, "refs/heads/b00")
	f.SyncFails("b03", "b07", "b08", "2 more")
	f.CheckRefs(want)
	f.SyncFails("b03", "b07", "b08", "2 more") // and again, with nothing else to do
	f.CheckRefs(want)
}

func testAllUnreadable(f *Fixture) {
	main := f.Commit("refs/heads/main")
	f.MustSync()
	before := f.Copy.Refs()
	f.Commit("refs/heads/main")
	f.Damage(f.Git("rev-parse", "main:file"))
	f.Set("refs/heads/topic", f.NewCommit(f.Refs()["refs/heads/main"]))
	f.SyncFails("refs/heads/main", "refs/heads/topic")
	f.CheckRefs(before)
	f.Set("refs/heads/main", main)
	f.Delete("refs/heads/topic")
	f.MustSync()
}

// What the copy has and we lost needs no sending, once it is somewhere.
func testMended(f *Fixture) {
	base := f.Commit("refs/heads/main")
	f.MustSync()
	f.Damage(f.Git("rev-parse", base+":file")) // in old history, which the copy has
	f.Commit("refs/heads/main")
	f.MustSync()
}

func testOwnRefs(f *Fixture) {
	main := f.Commit("refs/heads/main")
	f.Set("refs/mirror/rescued/x/refs/heads/main", f.NewCommit())
	f.MustSync()
	for ref := range f.Copy.Refs() {
		if strings.HasPrefix(ref, "refs/mirror/") {
			f.Errorf("%s has travelled", ref)
		}
	}
	if f.Copy.Repo == nil {
		return
	}
	rescued := "refs/mirror/rescued/y/refs/heads/main"
	f.Copy.Repo.Set(rescued, main)
	f.Commit("refs/heads/main")
	f.MustSync()
	if f.Copy.Refs()[rescued] != main {
		f.Errorf("%s is gone from the copy", rescued)
	}
}

func testPatterns(f *Fixture) {
	f.Config["gitolite.mirror.refs"] = "refs/heads/* refs/tags/* !refs/heads/tmp/"
	main := f.Commit("refs/heads/main")
	f.Commit("refs/tags/v1")
	f.Commit("refs/heads/tmp/a")
	f.Commit("refs/pull/1/head")
	f.MustSync()
	if n := len(f.Copy.Refs()); n != 2 {
		f.Errorf("%d refs have travelled, want 2", n)
	}
	if f.Copy.Repo != nil {
		f.Copy.Repo.Set("refs/heads/tmp/theirs", main)
		f.Copy.Repo.Set("refs/pull/7/head", main)
		f.Commit("refs/heads/main")
		f.MustSync()
		if refs := f.Copy.Refs(); refs["refs/heads/tmp/theirs"] != main || refs["refs/pull/7/head"] != main {
			f.Errorf("excluded refs of the copy: %v", refs)
		}
	}
	delete(f.Config, "gitolite.mirror.refs")
	if f.Copy.Repo == nil {
		f.MustSync()
	}
}

func testCancelled(f *Fixture) {
	f.Commit("refs/heads/main")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	start := time.Now()
	if _, _, err := f.SyncContext(ctx); err == nil {
		f.Error("a cancelled sync succeeded")
	}
	if took := time.Since(start); took > 5*time.Second {
		f.Errorf("a cancelled sync took %s", took)
	}
	f.MustSync()
}

// A copy that was removed and made anew is filled again, HEAD included.
func testMadeAnew(f *Fixture) {
	if f.Copy.Repo == nil {
		f.Skip("nobody else can change the copy")
	}
	f.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	f.Commit("refs/heads/trunk")
	f.MustSync()
	if err := os.RemoveAll(f.Copy.Repo.Dir); err != nil {
		f.Fatal(err)
	}
	run(f, nil, "git", "init", "-q", "--bare", "--initial-branch=main", f.Copy.Repo.Dir)
	f.MustSync()
	f.checkHead("refs/heads/trunk")
}

// The record of a push is cut off at any line: as if we had been killed between
// the push and the record, or a power cut had taken the end of the file. With
// what was being sent on record (that much is synced before the push), nothing looks foreign.
func testRecordLost(f *Fixture) {
	if f.Copy.Record == nil {
		f.Skip("the kind keeps no record")
	}
	record := f.Copy.Record(f.Dir)
	read := func() string {
		data, err := os.ReadFile(record)
		if err != nil {
			f.Fatal(err)
		}
		return string(data)
	}
	base := f.Commit("refs/heads/main")
	f.Commit("refs/heads/topic")
	f.MustSync()
	f.Set("refs/heads/main", f.NewCommit(base))
	f.Commit("refs/heads/topic")
	f.MustSync()
	for cut := 0; ; cut += 5 {
		text := read()
		_, after, _ := cutLast(text, "\n> ")
		_, after, _ = strings.Cut(after, "\n") // what follows the last line about sending
		if cut > len(after) {
			break
		}
		if err := os.WriteFile(record, []byte(text[:len(text)-cut]), 0o600); err != nil {
			f.Fatal(err)
		}
		// Rewritten here in the meantime, and so not contained.
		f.Set("refs/heads/main", f.NewCommit(base))
		f.Set("refs/heads/topic", f.NewCommit(base))
		f.MustSync()
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// deaf is a writer that nobody reads.
type deaf struct{}

func (deaf) Write([]byte) (int, error) { return 0, os.ErrClosed }

func testNobodyListens(f *Fixture) {
	f.Commit("refs/heads/main")
	if f.Copy.Repo != nil {
		f.Copy.Repo.Hook("post-receive", "echo a word >&2")
	}
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	out, err := f.Copy.Peer.Sync(ctx, f.Source(), deaf{})
	if err != nil {
		f.Fatal(err)
	}
	f.CheckEqual(out)
}
