package bench_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"mirror-shell/internal/bench"
	"mirror-shell/internal/durable"
)

const (
	// smallRepos is how many repositories the case of small ones has.
	smallRepos = 1000
	// together is how many repositories are backed up at a time: of ours that is worker.jobs_per_peer as it is when not set.
	together = 4
)

// smallBackup is the first backup of many small repositories to a directory, against a bundle of each in a file of its own, as
// many at a time. One rival does what a backup has to: after a power cut the file is there. The other leaves that to luck.
// Neither keeps anything but objects and refs, nor reads what it has written.
func (a *arena) smallBackup(rounds int) bench.Case {
	v, t := a.openVaults(), a.t
	const group = "small"
	a.fill(a.frodo, group, a.commit(), smallRepos, nil)
	n := 0
	bundles := func(sync bool) func() time.Duration {
		return func() time.Duration {
			n++
			dir := filepath.Join(v.dir, fmt.Sprintf("bundles%d", n))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			return timed(func() { v.bundleEach(group, dir, sync) }) / smallRepos
		}
	}
	const ours, synced, plain = "mirror-shell backup", "git bundle create in a file each, fsync", "the same without fsync"
	return bench.Measure("backup, "+thousands(smallRepos)+" small repositories, first, per repository", min(rounds, 3),
		bench.Contestant{Name: ours, Run: func() time.Duration {
			peer := v.peer(toDirectory)
			defer v.remove(toDirectory, peer)
			return timed(func() { a.frodo.MustRun(t, "mirror-shell", "backup", group+"/**", "--to", peer) }) / smallRepos
		}},
		bench.Contestant{Name: synced, Run: bundles(true)},
		bench.Contestant{Name: plain, Run: bundles(false)}).
		Must(bench.AtMostTimes(ours, synced, 4))
}

// bundleEach bundles the repositories of a group into a directory.
func (v *vaults) bundleEach(group, dir string, sync bool) {
	var all errgroup.Group
	all.SetLimit(together)
	for i := range smallRepos {
		all.Go(func() error {
			name := fmt.Sprintf("r%d", i)
			cmd := v.frodo.Command(v.t.Context(), "git", "--git-dir="+v.frodo.RepoDir(group+"/"+name), "bundle", "create", "-q", "-", "--all")
			var out, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &stderr
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("git bundle: %w: %s", err, &stderr)
			}
			path := filepath.Join(dir, name+".bundle")
			if !sync {
				return os.WriteFile(path, out.Bytes(), 0o600)
			}
			if err := durable.Create(path, out.Bytes()); err != nil {
				return err
			}
			return durable.SyncDir(dir)
		})
	}
	if err := all.Wait(); err != nil {
		v.t.Fatal(err)
	}
}
