package bench_test

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"mirror-shell/internal/bench"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/testenv"
)

// fill makes n repositories, GROUP/r0 and so on, with one commit.
func (a *arena) fill(s *testenv.Server, group, oid string, n int, config map[string]string) {
	t := a.t
	a.CreateRepo(t, group+"/r0", config, s.Name)
	first := s.RepoDir(group + "/r0")
	a.alice.Git(t, a.alice.Dir, "--git-dir="+first, "fetch", "-q", a.work, oid+":refs/heads/main") // as root; no hook runs
	// git's templates are most of an empty repository's files.
	samples, _ := filepath.Glob(filepath.Join(first, "hooks/*.sample"))
	for _, file := range append(samples, filepath.Join(first, "FETCH_HEAD")) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	repo := a.load(first)
	for i := range n { // r0 again: its files are alice's, who is root
		a.store(repo, s, fmt.Sprintf("%s/r%d", group, i))
	}
}

// file is one file of a repository that is to be copied.
type file struct {
	path string // relative to the repository
	mode fs.FileMode
	text []byte // of a symbolic link where it points
}

// load reads a repository into memory: ten thousand runs of cp take minutes.
func (a *arena) load(dir string) (repo []file) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f := file{path: strings.TrimPrefix(path, dir), mode: info.Mode()}
		switch f.mode.Type() {
		case 0:
			f.text, err = os.ReadFile(path)
		case fs.ModeSymlink:
			var target string
			target, err = os.Readlink(path)
			f.text = []byte(target)
		}
		repo = append(repo, f)
		return err
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return repo
}

// store makes a repository of a server, in place of any that is there.
func (a *arena) store(repo []file, s *testenv.Server, name string) {
	uid, gid := a.owner(s)
	err := os.RemoveAll(s.RepoDir(name))
	for _, f := range repo {
		path := filepath.Join(s.RepoDir(name), f.path)
		if err == nil {
			switch f.mode.Type() {
			case fs.ModeDir:
				err = os.Mkdir(path, f.mode.Perm())
			case fs.ModeSymlink:
				err = os.Symlink(string(f.text), path)
			default:
				err = os.WriteFile(path, f.text, f.mode.Perm())
			}
		}
		if err == nil {
			err = os.Lchown(path, uid, gid)
		}
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// owner is a server's unix user.
func (a *arena) owner(s *testenv.Server) (uid, gid int) {
	info, err := os.Stat(s.Home())
	if err != nil {
		a.t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	return int(owner.Uid), int(owner.Gid)
}

// thousands is a number as people write it.
func thousands(n int) string { return fmt.Sprintf("%d,%03d", n/1000, n%1000) }

// unchanged is what a look at n unchanged repositories costs, per repository,
// against `git push --mirror` with a new connection and with a shared one.
func (a *arena) unchanged(rounds, n int) []bench.Case {
	t := a.t
	group := fmt.Sprintf("many%d", n)
	oid := a.commit()
	for _, s := range []*testenv.Server{a.frodo, a.sam} {
		a.fill(s, group, oid, n, map[string]string{"master": "frodo", "slaves": "sam"})
	}
	const ours, fresh, shared = "mirror-shell sync", "git push --mirror, new ssh", "git push --mirror, ControlMaster"
	all := bench.Sample{Name: ours}
	sync := func() time.Duration {
		began := time.Now()
		out := a.frodo.MustRun(t, "mirror-shell", "sync", group+"/**")
		took := time.Since(began)
		if want := fmt.Sprintf("%d copies compared: %d equal", n, n); !strings.Contains(out, want) {
			t.Fatalf("sync says %q, want %q", out, want)
		}
		all.Values = append(all.Values, float64(took))
		return took / time.Duration(n)
	}
	mirror := func(options []string) func() time.Duration {
		return func() time.Duration {
			const sample = 5
			began := time.Now()
			for i := range sample {
				repo := fmt.Sprintf("%s/r%d", group, i)
				a.frodo.MustRun(t, append(append([]string{"git"}, options...), "-C", a.frodo.RepoDir(repo), "push", "-q", "--mirror", "sam:"+repo)...)
			}
			return time.Since(began) / sample
		}
	}
	time.Sleep(3 * time.Second) // older than the grain of time stamps
	c := bench.Measure(thousands(n)+" unchanged repositories, per repository", rounds,
		bench.Contestant{Name: ours, Run: sync},
		bench.Contestant{Name: fresh, Run: mirror(a.newSSH())},
		bench.Contestant{Name: shared, Run: mirror(a.controlMaster())}).
		Must(bench.Faster(ours, fresh, 300), bench.Faster(ours, shared, 40))
	cases := []bench.Case{c}
	if n == 10000 {
		all.Values = all.Values[1:] // the turn that does not count
		cases = append(cases, bench.Case{Name: thousands(n) + " unchanged repositories, in all", Unit: bench.Nanoseconds, Samples: []bench.Sample{all}}.
			Must(bench.AtMost(ours, float64(10*time.Second))))
	}
	return cases
}

// memoryRepos is how many repositories the case of memory has.
const memoryRepos = 10000

// memory is that of serve after a sync of many repositories with three peers
// each: every copy on sam is one commit behind and has to be pushed, those on
// gollum are equal, and those of merry, who is paused and does not exist, wait
// in the jobs table.
func (a *arena) memory(int) bench.Case {
	t := a.t
	const group = "jobs"
	config := map[string]string{"master": "frodo", "slaves": "sam gollum merry"}
	before, after := a.commit(), a.commit()
	a.fill(a.sam, group, before, memoryRepos, config)
	a.fill(a.frodo, group, after, memoryRepos, config)
	a.fill(a.gollum, group, after, memoryRepos, config)
	a.frodo.Serve(t)
	defer a.frodo.StopServe(t)
	a.frodo.MustRun(t, "mirror-shell", "pause", "merry")
	for i := range memoryRepos {
		a.putAs(a.frodo, inbox.Event{Repository: fmt.Sprintf("%s/r%d", group, i), Peers: []string{"merry"}, Origin: inbox.OriginList})
	}
	a.wake(a.frodo)

	began := time.Now()
	r := a.frodo.Run(t, "mirror-shell", "sync", group+"/**") // exit status 1: merry does not answer
	want := fmt.Sprintf("%d copies compared: %d equal, %d pushed, 1 failures", 3*memoryRepos, memoryRepos, memoryRepos)
	if !strings.Contains(r.Stdout, want) {
		t.Fatalf("sync says %s, want %q", r, want)
	}
	fmt.Printf("sync of %s repositories with %s to be pushed: %.1f s\n", thousands(memoryRepos), thousands(memoryRepos), time.Since(began).Seconds())
	rows := a.frodo.Run(t, "mirror-shell", "status", "--json", group+"/**").Stdout
	if n := strings.Count(rows, `"peer":`); n != 3*memoryRepos {
		t.Fatalf("the jobs table has %d rows, want %d", n, 3*memoryRepos)
	}
	now, peak := a.serveMemory()
	const resident, highest = "resident (VmRSS)", "at most so far (VmHWM)"
	return bench.Case{
		Name: "memory of serve, " + thousands(memoryRepos) + " repositories × 3 peers", Unit: bench.Bytes,
		Samples: []bench.Sample{{Name: resident, Values: []float64{now}}, {Name: highest, Values: []float64{peak}}},
	}.Must(bench.AtMost(resident, 100<<20), bench.AtMost(highest, 100<<20))
}

// serveMemory reads what serve on frodo has in memory, and had at most, in bytes.
func (a *arena) serveMemory() (now, peak float64) {
	t := a.t
	holder, err := os.ReadFile(filepath.Join(a.frodo.StateDir(), "worker.lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _, _ := strings.Cut(string(holder), " ")
	file, err := os.Open(filepath.Join("/proc", pid, "status"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var kB float64
		switch {
		case scan(lines.Text(), "VmRSS: %f kB", &kB):
			now = kB * 1024
		case scan(lines.Text(), "VmHWM: %f kB", &kB):
			peak = kB * 1024
		}
	}
	if now == 0 || peak == 0 {
		t.Fatalf("no figures in %s", file.Name())
	}
	return now, peak
}

func scan(line, format string, value *float64) bool {
	n, err := fmt.Sscanf(line, format, value)
	return n == 1 && err == nil
}
