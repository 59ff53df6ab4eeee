package peertest

// A value that is not from us and that we do not have is not overwritten; the
// other refs go on.
func testDivergent(f *Fixture) {
	if f.Copy.Repo == nil {
		f.Skip("nobody else can change the copy")
	}
	f.Commit("refs/heads/main")
	f.Commit("refs/heads/other")
	f.MustSync()
	theirs := f.Copy.Repo.Commit("refs/heads/main")
	lost := f.Copy.Repo.Commit("refs/heads/only-there")
	f.Commit("refs/heads/main")
	f.Commit("refs/heads/other")
	for range 2 {
		f.SyncHeld("refs/heads/main", "refs/heads/only-there", theirs[:10])
		want := f.Refs()
		want["refs/heads/main"], want["refs/heads/only-there"] = theirs, lost
		f.CheckRefs(want)
	}
	// Once we have it, it can be overwritten.
	f.Git("fetch", "-q", f.Copy.Repo.Dir, "refs/heads/*:refs/kept/*")
	f.MustSync()
	f.Delete("refs/kept/main")
	f.Delete("refs/kept/only-there")
	f.Delete("refs/kept/other")
	f.MustSync()
}

// A divergent ref is not deleted either.
func testDivergentDeletion(f *Fixture) {
	if f.Copy.Repo == nil {
		f.Skip("nobody else can change the copy")
	}
	f.Commit("refs/heads/main")
	f.Commit("refs/heads/topic")
	f.MustSync()
	theirs := f.Copy.Repo.Commit("refs/heads/topic")
	f.Delete("refs/heads/topic")
	f.SyncHeld("refs/heads/topic")
	want := f.Refs()
	want["refs/heads/topic"] = theirs
	f.CheckRefs(want)
	f.Copy.Repo.Delete("refs/heads/topic")
	f.MustSync()
}

// A commit of the copy's that is here as well, but with its history pruned, is
// foreign, and no trouble for the rest.
func testRemains(f *Fixture) {
	if f.Copy.Repo == nil {
		f.Skip("nobody else can change the copy")
	}
	f.Commit("refs/heads/main")
	f.MustSync()
	parent := f.Copy.Repo.Commit("refs/heads/theirs")
	child := f.Copy.Repo.Commit("refs/heads/theirs")
	f.Git("fetch", "-q", f.Copy.Repo.Dir, "refs/heads/theirs")
	f.Damage(parent)
	if !f.Has(child) {
		f.Fatal("the child should be here")
	}
	back := f.NewCommit(f.Refs()["refs/heads/main"])
	f.Copy.Repo.Git("fetch", "-q", f.Dir, back+":refs/heads/known")
	f.Set("refs/heads/main", back)
	f.SyncHeld("refs/heads/theirs")
	want := f.Refs()
	want["refs/heads/theirs"] = child
	f.CheckRefs(want)
}

// The first sync of a peer that has a part of our history already.
func testContained(f *Fixture) {
	if f.Copy.Repo == nil {
		f.Skip("nobody else can change the copy")
	}
	old := f.Commit("refs/heads/main")
	middle := f.Commit("refs/heads/main")
	f.Git("tag", "-m", "one", "v1", middle)
	tip := f.Commit("refs/heads/main")
	f.Copy.Repo.Git("fetch", "-q", f.Dir, old+":refs/heads/main", tip+":refs/heads/ahead", middle+":refs/heads/gone", "refs/tags/v1:refs/tags/v0")
	f.MustSync()
}
