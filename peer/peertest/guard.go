package peertest

import "fmt"

// What a source that has gone wrong looks like is held, and what only looks like
// it is not.

func testMassDeletion(f *Fixture) {
	f.Commit("refs/heads/main")
	refs := map[string]string{}
	for i := range 5 {
		refs[fmt.Sprintf("refs/heads/t%d", i)] = f.NewCommit(f.Refs()["refs/heads/main"])
	}
	f.SetAll(refs)
	f.MustSync()
	before := f.Copy.Refs()
	for ref := range refs {
		f.Delete(ref)
	}
	f.Commit("refs/heads/main")
	for range 2 {
		f.SyncHeld("5 of 6 refs", Repository)
		f.CheckRefs(before)
	}
	f.SetAll(refs)
	f.MustSync()
	f.Delete("refs/heads/t0") // two at a time are nobody's accident
	f.Delete("refs/heads/t1")
	f.MustSync()
	// Nor are branches that were merged.
	f.Set("refs/heads/main", f.NewCommit(f.Refs()["refs/heads/main"], refs["refs/heads/t2"], refs["refs/heads/t3"], refs["refs/heads/t4"]))
	for i := 2; i < 5; i++ {
		f.Delete(fmt.Sprintf("refs/heads/t%d", i))
	}
	f.MustSync()
}

func testRenamed(f *Fixture) {
	f.Commit("refs/heads/main")
	f.MustSync()
	f.Set("refs/heads/trunk", f.Refs()["refs/heads/main"])
	f.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	f.Delete("refs/heads/main")
	f.MustSync()
	// All at once, with new names that begin like the old ones.
	f.Commit("refs/heads/a")
	f.Commit("refs/heads/b")
	f.Commit("refs/heads/c")
	f.MustSync()
	for _, name := range []string{"a", "b", "c"} {
		f.Set("refs/heads/old-"+name, f.Refs()["refs/heads/"+name])
		f.Delete("refs/heads/" + name)
	}
	f.MustSync()
}

// Refs that return to their own past all at once are a restore; one of them is
// a user's force-push.
func testMovedBack(f *Fixture) {
	old := map[string]string{}
	for _, name := range []string{"main", "topic", "other"} {
		old["refs/heads/"+name] = f.Commit("refs/heads/" + name)
	}
	for ref := range old {
		f.Commit(ref)
		f.Commit(ref)
	}
	f.MustSync()
	before := f.Copy.Refs()
	f.SetAll(old)
	f.SyncHeld("refs/heads/main, refs/heads/other, refs/heads/topic would go back")
	f.CheckRefs(before)
	delete(before, "refs/heads/topic")
	f.SetAll(before) // topic alone stays back
	f.MustSync()
	// Two that are rewritten have not moved back.
	f.Set("refs/heads/main", f.NewCommit(old["refs/heads/main"]))
	f.Set("refs/heads/other", f.NewCommit(old["refs/heads/other"]))
	f.MustSync()
	// Nor has one whose past is gone here.
	f.Git("gc", "-q", "--prune=now")
	f.Commit("refs/heads/main")
	f.MustSync()
}
