package bench_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/bench"
	"mirror-shell/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// entry is something to measure, which may be more than one case.
type entry struct {
	name string
	slow bool // takes many minutes, most of them to make repositories
	run  func(rounds int) []bench.Case
}

// entries are all there is to measure. Names of cases begin with the entry's.
func (a *arena) entries() []entry {
	one := func(run func(int) bench.Case) func(int) []bench.Case {
		return func(rounds int) []bench.Case { return []bench.Case{run(rounds)} }
	}
	return []entry{
		{"start-up", false, one(a.startUp)},
		{"hooks", false, one(a.hooks)},
		{"push returned → two slaves equal", false, one(a.slavesEqual)},
		{"one-commit sync", false, a.oneCommit},
		{"burst", false, a.burst},
		{"one of 50,000 refs changed", false, one(a.manyRefs)},
		{"1,000 unchanged repositories", false, func(rounds int) []bench.Case { return a.unchanged(rounds, 1000) }},
		{"10,000 unchanged repositories", true, func(rounds int) []bench.Case { return a.unchanged(min(rounds, 3), 10000) }},
		{"memory of serve", true, one(a.memory)},
		{"backup, first, to a directory", false, one(func(rounds int) bench.Case { return a.firstBackup(rounds, toDirectory) })},
		{"backup, first, to S3", false, one(func(rounds int) bench.Case { return a.firstBackup(rounds, toS3) })},
		{"backup, 1,000 small repositories, first", true, one(a.smallBackup)},
		{"backup, unchanged", false, a.unchangedBackup},
		{"backup, one new commit", false, a.updateBackup},
		{"backup, restore from a directory", false, one(func(rounds int) bench.Case { return a.restoreBackup(rounds, toDirectory) })},
		{"backup, restore from S3", false, one(func(rounds int) bench.Case { return a.restoreBackup(rounds, toS3) })},
		{"backup, memory", false, one(a.backupMemory)},
	}
}

// TestBench prints the tables. A target missed is no failure: that is for a
// person to judge, who knows how noisy the machine was.
func TestBench(t *testing.T) {
	if os.Getenv("MIRROR_SHELL_BENCH") == "" {
		t.Skip("run it with make bench")
	}
	rounds := 15
	if v := os.Getenv("MIRROR_SHELL_BENCH_ROUNDS"); v != "" {
		var err error
		if rounds, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	a := &arena{t: t}
	chosen := choose(t, a.entries(), os.Getenv("MIRROR_SHELL_BENCH_ONLY"))
	a.setUp()
	var cases []bench.Case
	for _, e := range chosen {
		for _, c := range e.run(rounds) {
			if err := c.Print(os.Stdout); err != nil {
				t.Fatal(err)
			}
			cases = append(cases, c)
		}
	}
	if err := bench.PrintTargets(os.Stdout, cases); err != nil {
		t.Fatal(err)
	}
	if file := os.Getenv("MIRROR_SHELL_BENCH_JSON"); file != "" {
		out, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if err := bench.JSON(out, cases); err != nil {
			t.Fatal(err)
		}
	}
}

// choose returns the entries whose names contain a text.
func choose(t *testing.T, all []entry, text string) []entry {
	var chosen []entry
	names := ""
	for _, e := range all {
		names += "\n\t" + e.name
		if strings.Contains(e.name, text) && !(e.slow && testing.Short()) {
			chosen = append(chosen, e)
		}
	}
	if len(chosen) == 0 {
		t.Fatalf("MIRROR_SHELL_BENCH_ONLY=%s: no case has that in its name; there are (some not with -short):%s", text, names)
	}
	return chosen
}

// arena is the servers and people of all cases.
type arena struct {
	*testenv.Env
	t                  *testing.T
	frodo, sam, gollum *testenv.Server
	alice              *testenv.Client
	work               string // alice's clone
	commits            int
	sockets            string // directory of ControlMaster's sockets
	vaults             *vaults
}

func (a *arena) setUp() {
	t := a.t
	a.Env = testenv.New(t, "frodo", "sam", "gollum")
	a.frodo, a.sam, a.gollum = a.Server(t, "frodo"), a.Server(t, "sam"), a.Server(t, "gollum")
	a.alice = a.AddUser(t, "alice")
	a.work = filepath.Join(a.alice.Dir, "work")
	a.alice.Git(t, a.alice.Dir, "init", "-q", a.work)
	var err error
	if a.sockets, err = os.MkdirTemp("/tmp", "cm"); err != nil { // a socket's path must be short
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(a.sockets) })
	if err := os.Chmod(a.sockets, 0o1777); err != nil {
		t.Fatal(err)
	}
}

// newSSH and controlMaster are the two ways to push with OpenSSH: git's
// arguments before "push".
func (a *arena) newSSH() []string { return []string{"-c", "core.sshCommand=ssh"} }
func (a *arena) controlMaster() []string {
	return []string{"-c", "core.sshCommand=ssh -oControlMaster=auto -oControlPersist=20 -oControlPath=" + a.sockets + "/%C"}
}

// commit adds a commit to alice's clone and returns its id.
func (a *arena) commit() string {
	a.commits++
	a.alice.Git(a.t, a.work, "commit", "-q", "--allow-empty", "-m", fmt.Sprint(a.commits))
	return strings.TrimSpace(a.alice.Git(a.t, a.work, "rev-parse", "HEAD"))
}

// push pushes alice's HEAD and returns how long that took.
func (a *arena) push(url string) time.Duration {
	began := time.Now()
	a.alice.Git(a.t, a.work, "push", "-q", url, "HEAD:refs/heads/main")
	return time.Since(began)
}

// commitIn adds a commit to main of a repository on a server, without a push and
// so without hooks, and returns its id.
func (a *arena) commitIn(s *testenv.Server, repo string) string {
	a.commits++
	tree := strings.TrimSpace(s.Git(a.t, repo, "hash-object", "-t", "tree", "-w", "/dev/null"))
	argv := []string{"commit-tree", tree, "-m", fmt.Sprint(a.commits)}
	if r := s.Run(a.t, "git", "--git-dir="+s.RepoDir(repo), "rev-parse", "-q", "--verify", "refs/heads/main"); r.Status == 0 {
		argv = append(argv, "-p", strings.TrimSpace(r.Stdout))
	}
	oid := strings.TrimSpace(s.Git(a.t, repo, argv...))
	s.Git(a.t, repo, "update-ref", "refs/heads/main", oid)
	return oid
}

// removeHooks makes a repository of a server one that anybody could have.
func (a *arena) removeHooks(s *testenv.Server, repo string) {
	for _, hook := range []string{"pre-receive", "post-receive"} {
		if err := os.Remove(filepath.Join(s.RepoDir(repo), "hooks", hook)); err != nil {
			a.t.Fatal(err)
		}
	}
}

// arrived waits until servers have oid, and returns how long that took.
func (a *arena) arrived(repo, oid string, servers ...*testenv.Server) time.Duration {
	began := time.Now()
	for _, s := range servers {
		for deadline := began.Add(testenv.Timeout); !holds(s, repo, oid); time.Sleep(200 * time.Microsecond) {
			if time.Now().After(deadline) {
				a.t.Fatalf("%s does not get %s", s.Name, repo)
			}
		}
	}
	return time.Since(began)
}

// holds reports whether the server's main is at oid, looking at the file.
func holds(s *testenv.Server, repo, oid string) bool {
	data, err := os.ReadFile(filepath.Join(s.RepoDir(repo), "refs/heads/main"))
	return err == nil && strings.TrimSpace(string(data)) == oid
}

// rest lets what runs in the background after a contestant's time has been taken
// come to its end, so that it does not take the processor from the next one.
func (a *arena) rest() { time.Sleep(500 * time.Millisecond) }

// emptyProgram builds a Go program that does nothing.
func (a *arena) emptyProgram() string {
	dir := filepath.Join(a.Root, "empty")
	os.MkdirAll(dir, 0o755)
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		a.t.Fatal(err)
	}
	program := filepath.Join(dir, "empty")
	if out, err := exec.Command("go", "build", "-o", program, src).CombinedOutput(); err != nil {
		a.t.Fatalf("%v: %s", err, out)
	}
	return program
}

// startUp is what each program costs before it does anything.
func (a *arena) startUp(rounds int) bench.Case {
	contestants := []bench.Contestant{}
	add := func(name string, cmd func() *exec.Cmd) {
		contestants = append(contestants, bench.Contestant{Name: name, Run: func() time.Duration {
			c := cmd()
			began := time.Now()
			if err := c.Run(); err != nil {
				a.t.Fatalf("%s: %v", name, err)
			}
			return time.Since(began)
		}})
	}
	empty := a.emptyProgram()
	add("empty Go program", func() *exec.Cmd { return exec.Command(empty) })
	add("mirror-shell peer: info", func() *exec.Cmd {
		cmd := a.frodo.Command(context.Background(), "mirror-shell", "peer", "sam")
		cmd.Env = append(cmd.Env, "SSH_ORIGINAL_COMMAND=info")
		return cmd
	})
	add("mirror-shell --version", func() *exec.Cmd { return a.frodo.Command(context.Background(), "mirror-shell", "--version") })
	add("mirrord --version", func() *exec.Cmd { return a.frodo.Command(context.Background(), "mirrord", "--version") })
	add("git version", func() *exec.Cmd { return exec.Command("git", "version") })
	for _, name := range []string{"mirror-shell", "mirrord", "pre-receive", "post-receive"} {
		if info, err := os.Stat(filepath.Join(a.Programs, name)); err == nil {
			fmt.Printf("size of %s: %.1f MB\n", name, float64(info.Size())/1e6)
		}
	}
	if info, err := os.Stat(empty); err == nil {
		fmt.Printf("size of an empty Go program: %.1f MB\n", float64(info.Size())/1e6)
	}
	return bench.Measure("start-up", rounds*2, contestants...)
}
