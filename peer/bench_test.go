package peer_test

import (
	"context"
	"io"
	"os/exec"
	"testing"
	"time"

	"mirror-shell/peer/peertest"
)

// BenchmarkOneRef is a sync of one new commit in a repository of 2 and of 50,000
// refs, over pipes to a receive-pack on this machine, next to git push --mirror
// of the same.
func BenchmarkOneRef(b *testing.B) {
	for _, size := range []struct {
		name string
		refs int
	}{{"2 refs", 2}, {"50000 refs", 50_000}} {
		b.Run(size.name, func(b *testing.B) {
			f, _ := newFixture(b, time.Minute)
			f.Fill(size.refs)
			f.MustSync()
			f.Copy.Repo.Git("repack", "-adq")
			f.Copy.Repo.Git("pack-refs", "--all")
			b.Run("sync", func(b *testing.B) { eachCommit(b, f, "refs/heads/b00001", func() { syncOnce(b, f) }) })
			b.Run("new branch", func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					f.Set("refs/heads/new/"+time.Now().Format("150405.000000000"), f.Refs()["refs/heads/b00001"])
					b.StartTimer()
					syncOnce(b, f)
				}
			})
			b.Run("nothing to do", func(b *testing.B) {
				for b.Loop() {
					syncOnce(b, f)
				}
			})
			b.Run("git push --mirror", func(b *testing.B) {
				eachCommit(b, f, "refs/heads/b00001", func() {
					cmd := exec.Command("git", "--git-dir="+f.Dir, "push", "-q", "--mirror", f.Copy.Repo.Dir)
					cmd.Env = peertest.Environ()
					if out, err := cmd.CombinedOutput(); err != nil {
						b.Fatalf("%v: %s", err, out)
					}
				})
			})
		})
	}
}

func syncOnce(b *testing.B, f *peertest.Fixture) {
	if _, err := f.Copy.Peer.Sync(context.Background(), f.Source(), io.Discard); err != nil {
		b.Fatal(err)
	}
}

func eachCommit(b *testing.B, f *peertest.Fixture, ref string, push func()) {
	for b.Loop() {
		b.StopTimer()
		f.Commit(ref)
		b.StartTimer()
		push()
	}
}
