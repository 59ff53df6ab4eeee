package bench_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mirror-shell/internal/bench"
)

// timed is how long f takes.
func timed(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

// firstBackup is a backup of the big repository to an empty vault, against a bundle of everything that goes to the same place.
// The history of a first snapshot is walked through after it was published: both moments are measured.
func (a *arena) firstBackup(rounds int, to place) bench.Case {
	v := a.openVaults()
	const published, checked = "mirror-shell backup, until published", "the same, until it has ended, checked"
	const bundle, walked = "git bundle create - --all, which has a bitmap of the pack", "the same of a repository without bitmaps"
	until := bench.Sample{Name: checked}
	rival := func(bitmaps string) func() time.Duration {
		return func() time.Duration {
			return timed(func() {
				v.rival(to, "all"+bitmaps+".bundle", "-c", "pack.useBitmaps="+bitmaps, "bundle", "create", "-q", "-", "--all")
			})
		}
	}
	c := bench.Measure("backup, first, to "+string(to), rounds,
		bench.Contestant{Name: published, Run: func() time.Duration {
			peer := v.peer(to)
			atManifest, atEnd := v.firstTimes(to, peer)
			until.Values = append(until.Values, float64(atEnd))
			v.remove(to, peer)
			return atManifest
		}},
		bench.Contestant{Name: bundle, Run: rival("true")},
		bench.Contestant{Name: walked, Run: rival("false")})
	until.Values = until.Values[1:] // the turn that does not count
	c.Samples = append(c.Samples, until)
	return c.Must(bench.Faster(published, bundle, 5), bench.Faster(published, walked, 5))
}

// firstTimes takes a first backup and returns when its manifest was there and when the program had ended.
func (v *vaults) firstTimes(to place, peer string) (published, ended time.Duration) {
	began, stop := time.Now(), make(chan struct{})
	found := make(chan time.Duration, 1)
	go func() {
		defer close(found)
		for dir := v.manifests(to, peer); ; time.Sleep(time.Millisecond) {
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				found <- time.Since(began)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	v.frodo.MustRun(v.t, "mirror-shell", "backup", big, "--to", peer)
	ended = time.Since(began)
	close(stop)
	published, ok := <-found
	if !ok {
		v.t.Fatal("the program has ended, and nobody saw a manifest in ", v.manifests(to, peer))
	}
	return published, ended
}

// unchangedRepos is how many repositories the case of unchanged ones has.
const unchangedRepos = 1000

// unchangedBackup looks whether a thousand repositories are as they were.
func (a *arena) unchangedBackup(rounds int) []bench.Case {
	v, t := a.openVaults(), a.t
	const group = "saved"
	a.fill(a.frodo, group, a.commit(), unchangedRepos, nil)
	dir, s3 := v.peer(toDirectory), v.peer(toS3)
	counted := v.counted(s3)
	backup := func(peer, want string) {
		out := a.frodo.MustRun(t, "mirror-shell", "backup", group+"/**", "--to", peer)
		if !strings.Contains(out, want) {
			t.Fatalf("backup says %q, want %q", out, want)
		}
	}
	for _, peer := range []string{dir, s3} {
		took := timed(func() { backup(peer, fmt.Sprintf("%d backed up, 0 failures", unchangedRepos)) })
		fmt.Printf("first backup of %s repositories to %s: %.1f s\n", thousands(unchangedRepos), peer, took.Seconds())
	}
	same := fmt.Sprintf("%d unchanged, 0 backed up, 0 failures", unchangedRepos)
	time.Sleep(3 * time.Second) // older than the grain of time stamps
	look := func(peer string) func() time.Duration {
		return func() time.Duration { return timed(func() { backup(peer, same) }) }
	}
	const program = "mirror-shell backup to "
	inAll := bench.Measure("backup, unchanged, "+thousands(unchangedRepos)+" repositories, in all", rounds,
		bench.Contestant{Name: program + "a directory", Run: look(dir)},
		bench.Contestant{Name: program + "S3", Run: look(s3)}).
		Must(bench.AtMost(program+"a directory", float64(10*time.Second)), bench.AtMost(program+"S3", float64(10*time.Second)))

	const first, later, bytes = "requests, first look from here", "requests, later", "bytes of data put"
	figures := map[string]float64{}
	for _, name := range []string{first, later} {
		requests, data := v.counter.during(func() { backup(counted, same) })
		figures[name], figures[bytes] = float64(requests)/unchangedRepos, figures[bytes]+float64(data)
	}
	count := bench.Case{Name: "backup, unchanged, to S3, per repository", Unit: bench.Count}
	for _, name := range []string{later, first, bytes} {
		count.Samples = append(count.Samples, bench.Sample{Name: name, Values: []float64{figures[name]}})
	}
	return []bench.Case{inAll, count.Must(bench.AtMost(first, 2), bench.AtMost(later, 2), bench.AtMost(bytes, 0))}
}

// updateBackup backs one more commit of the big repository up: a few files of many directories were changed. Its rivals are
// bundles of what is new, by a tool that knows nothing but the refs that it saved last time, and by one that knows which ref moved; and for the
// size what git would pack.
func (a *arena) updateBackup(rounds int) []bench.Case {
	v, t := a.openVaults(), a.t
	saved := v.peer(toS3)
	peer := v.counted(saved)
	a.frodo.MustRun(t, "mirror-shell", "backup", big, "--to", peer)
	const ours, all, one = "mirror-shell backup", "git bundle create - --all, without all refs of before", "git bundle create - main, without main of before"
	const pack = "git pack-objects --revs (not thin), pack and index"
	requests := bench.Case{Name: "backup, one new commit, requests to S3", Unit: bench.Count, Samples: []bench.Sample{{Name: ours}}}
	data := bench.Case{Name: "backup, one new commit, data put to S3 without the manifest", Unit: bench.Bytes, Samples: []bench.Sample{{Name: ours}, {Name: pack}}}
	note := func(s *bench.Sample, value float64) { s.Values = append(s.Values, value) }
	before, n := "", 0
	name := func() string { n++; return fmt.Sprintf("increment%d.bundle", n) }
	times := bench.Measure("backup, one new commit, to S3", rounds,
		bench.Contestant{Name: ours, Run: func() (took time.Duration) {
			before = v.changeFiles()
			asked, put := v.counter.during(func() {
				took = timed(func() { a.frodo.MustRun(t, "mirror-shell", "backup", big, "--to", peer) })
			})
			note(&requests.Samples[0], float64(asked))
			note(&data.Samples[0], float64(put))
			note(&data.Samples[1], v.packed("main", before))
			return took
		}},
		bench.Contestant{Name: all, Run: func() time.Duration {
			refs := v.refFile(before)
			defer os.Remove(refs)
			return timed(func() { v.rivalFrom(refs, toS3, name(), "bundle", "create", "-q", "-", "--all", "--stdin") })
		}},
		bench.Contestant{Name: one, Run: func() time.Duration {
			return timed(func() { v.rival(toS3, name(), "bundle", "create", "-q", "-", "main", "^"+before) })
		}})
	return []bench.Case{times, requests.Must(bench.AtMost(ours, 6)), data.Must(bench.AtMostTimes(ours, pack, 1.2))}
}

// changeFiles adds a commit to the big repository's main that changes three files, and returns where main was.
func (v *vaults) changeFiles() (before string) {
	git := func(args ...string) string { return strings.TrimSpace(v.frodo.Git(v.t, big, args...)) }
	before = git("rev-parse", "main")
	files := strings.Split(git("ls-tree", "-r", "--name-only", "main"), "\n")
	v.commits++
	var in strings.Builder
	fmt.Fprintf(&in, "commit refs/heads/main\ncommitter A U Thor <author@example.com> %d +0000\ndata <<END\n%d\nEND\nfrom %s\n", 1800000000+v.commits, v.commits, before)
	random := rand.New(rand.NewPCG(uint64(v.commits), 3))
	for range 3 {
		path := files[random.IntN(len(files))]
		text := git("cat-file", "blob", "main:"+path) + fmt.Sprintf("\n// change %d\n", v.commits)
		fmt.Fprintf(&in, "M 100644 inline %s\ndata %d\n%s\n", path, len(text), text)
	}
	cmd := v.frodo.Command(v.t.Context(), "git", "--git-dir="+v.frodo.RepoDir(big), "fast-import", "--quiet")
	cmd.Stdin = strings.NewReader(in.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		v.t.Fatalf("%v: %s", err, out)
	}
	return before
}

// packed is how many bytes git needs for what a ref has and a commit has not, in a pack that stands alone.
func (v *vaults) packed(ref, without string) (size float64) {
	dir, err := os.MkdirTemp(v.dir, "pack")
	if err != nil {
		v.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	uid, gid := v.owner(v.frodo)
	if err := os.Chown(dir, uid, gid); err != nil {
		v.t.Fatal(err)
	}
	cmd := v.frodo.Command(v.t.Context(), "git", "--git-dir="+v.frodo.RepoDir(big), "pack-objects", "-q", "--revs", "--delta-base-offset", filepath.Join(dir, "pack"))
	cmd.Stdin = strings.NewReader(ref + "\n^" + without + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		v.t.Fatalf("%v: %s", err, out)
	}
	for _, pattern := range []string{"*.pack", "*.idx"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		if len(found) != 1 {
			v.t.Fatalf("git pack-objects made %q", found)
		}
		info, err := os.Stat(found[0])
		if err != nil {
			v.t.Fatal(err)
		}
		size += float64(info.Size())
	}
	return size
}

// refFile is a file with the values of all refs, main's as it was before, as negative revisions.
func (v *vaults) refFile(before string) string {
	text := "^" + before + "\n"
	for line := range strings.Lines(v.frodo.Git(v.t, big, "for-each-ref", "--format=%(objectname) %(refname)")) {
		if oid, name, _ := strings.Cut(strings.TrimSpace(line), " "); name != "refs/heads/main" {
			text += "^" + oid + "\n"
		}
	}
	path := filepath.Join(v.dir, "refs")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		v.t.Fatal(err)
	}
	return path
}

// restoreBackup brings the big repository back, against a clone from a bundle of it.
func (a *arena) restoreBackup(rounds int, from place) bench.Case {
	v, t := a.openVaults(), a.t
	const bundle = "restore.bundle"
	peer, into := v.peer(from), a.frodo.Home("restored")
	a.frodo.MustRun(t, "mirror-shell", "backup", big, "--to", peer)
	v.rival(from, bundle, "bundle", "create", "-q", "-", "--all")
	restore := func(check string) func() time.Duration {
		return func() time.Duration {
			defer os.RemoveAll(into)
			return timed(func() {
				a.frodo.MustRun(t, "mirror-shell", "restore", big, "--from", peer, "--into", into, "--check", check)
			})
		}
	}
	const quick, full, clone = "mirror-shell restore --check checksums", "mirror-shell restore --check full", "git clone --mirror from the bundle"
	return bench.Measure("backup, restore from "+string(from), rounds,
		bench.Contestant{Name: quick, Run: restore("checksums")},
		bench.Contestant{Name: full, Run: restore("full")},
		bench.Contestant{Name: clone, Run: func() time.Duration {
			defer os.RemoveAll(into)
			return timed(func() { v.clone(from, bundle, into) })
		}}).Must(bench.Faster(quick, clone, 10), bench.Faster(full, clone, 1.5))
}

// clone clones a bundle, which is downloaded first when it is not here.
func (v *vaults) clone(from place, bundle, into string) {
	path := filepath.Join(v.dir, bundle)
	if from == toS3 {
		path = filepath.Join(v.dir, "downloaded.bundle")
		defer os.Remove(path)
		if err := v.fetch(bundle, path); err != nil {
			v.t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		v.t.Fatal(err)
	}
	v.frodo.MustRun(v.t, "git", "clone", "-q", "--mirror", path, into)
}

// backupMemory is the most memory that mirrord had while it worked on the big repository.
func (a *arena) backupMemory(rounds int) bench.Case {
	v := a.openVaults()
	c := bench.Case{Name: "backup, memory of mirrord without git's (VmHWM)", Unit: bench.Bytes}
	note := func(name string, peak float64) {
		for i := range c.Samples {
			if c.Samples[i].Name == name {
				c.Samples[i].Values = append(c.Samples[i].Values, peak)
				return
			}
		}
		c.Samples = append(c.Samples, bench.Sample{Name: name, Values: []float64{peak}})
		c = c.Must(bench.AtMost(name, 64<<20))
	}
	for range min(rounds, 3) {
		for _, to := range []place{toDirectory, toS3} {
			peer, into := v.peer(to), v.frodo.Home("restored")
			note("first backup to "+string(to), v.runPeak("mirror-shell", "backup", big, "--to", peer))
			v.changeFiles()
			note("one new commit to "+string(to), v.runPeak("mirror-shell", "backup", big, "--to", peer))
			for _, check := range []string{"checksums", "full"} {
				note("restore from "+string(to)+" --check "+check, v.runPeak("mirror-shell", "restore", big, "--from", peer, "--into", into, "--check", check))
				if err := os.RemoveAll(into); err != nil {
					v.t.Fatal(err)
				}
			}
			v.remove(to, peer)
		}
	}
	return c
}
