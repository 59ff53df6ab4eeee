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

// arena is the servers and people of all cases.
type arena struct {
	*testenv.Env
	t                  *testing.T
	frodo, sam, gollum *testenv.Server
	alice              *testenv.Client
	work               string // alice's clone
	commits            int
}

// TestBench prints the table. It checks nothing: a noisy machine is no failure.
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
	env := testenv.New(t, "frodo", "sam", "gollum")
	a := &arena{Env: env, t: t, frodo: env.Server(t, "frodo"), sam: env.Server(t, "sam"), gollum: env.Server(t, "gollum"), alice: env.AddUser(t, "alice")}
	a.work = filepath.Join(a.alice.Dir, "work")
	a.alice.Git(t, a.alice.Dir, "init", "-q", a.work)

	cases := []bench.Case{a.startUp(rounds * 2), a.hooks(rounds), a.slavesEqual(rounds)}
	cases = append(cases, a.burst(max(1, rounds/5))...)
	cases = append(cases, a.unchanged(rounds, 1000))
	if !testing.Short() { // making twenty thousand repositories takes minutes
		cases = append(cases, a.unchanged(3, 10000))
	}
	if err := bench.Print(os.Stdout, cases); err != nil {
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
			c.Run()
			return time.Since(began)
		}})
	}
	empty := a.emptyProgram()
	local := filepath.Join(a.Root, "local.git")
	exec.Command("git", "init", "-q", "--bare", local).Run()
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
	return bench.Measure("start-up", rounds, contestants...)
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

// hooks is what our two hooks add to a user's push, against two hooks that are
// empty Go programs. The push is to a path, so that no ssh login hides the
// difference; the peers are paused, so that nothing else runs beside it.
func (a *arena) hooks(rounds int) bench.Case {
	t := a.t
	a.frodo.Serve(t)
	defer a.frodo.StopServe(t)
	for _, peer := range []string{"sam", "gollum"} {
		a.frodo.MustRun(t, "mirror-shell", "pause", peer)
		defer a.frodo.MustRun(t, "mirror-shell", "resume", peer)
	}
	a.CreateRepo(t, "hooked", map[string]string{"master": "frodo", "slaves": "sam gollum"}, "frodo")
	a.CreateRepo(t, "emptyhooks", nil, "frodo")
	a.CreateRepo(t, "plain", nil, "frodo")
	empty := a.emptyProgram()
	for _, repo := range []string{"emptyhooks", "plain"} {
		for _, hook := range []string{"pre-receive", "post-receive"} {
			path := filepath.Join(a.frodo.RepoDir(repo), "hooks", hook)
			os.Remove(path)
			if repo == "emptyhooks" {
				if err := os.Symlink(empty, path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	local := filepath.Join(a.frodo.Home(), "work")
	a.frodo.MustRun(t, "git", "init", "-q", local)
	n := 0
	push := func(repo string) func() time.Duration {
		return func() time.Duration {
			n++
			a.frodo.MustRun(t, "git", "-C", local, "-c", "user.name=f", "-c", "user.email=f@example.org", "commit", "-q", "--allow-empty", "-m", fmt.Sprint(n))
			began := time.Now()
			a.frodo.MustRun(t, "git", "-C", local, "push", "-q", a.frodo.RepoDir(repo), "HEAD:refs/heads/main")
			return time.Since(began)
		}
	}
	return bench.Measure("hooks: added to a push", rounds,
		bench.Contestant{Name: "ours, two slaves", Run: push("hooked")},
		bench.Contestant{Name: "two empty Go hooks", Run: push("emptyhooks")},
		bench.Contestant{Name: "push without hooks", Run: push("plain")}).Above()
}

// unchanged is what a look at n unchanged repositories costs, per repository,
// against `git push --mirror` with a new connection and with a shared one.
func (a *arena) unchanged(rounds, n int) bench.Case {
	t := a.t
	group := fmt.Sprintf("many%d", n)
	oid := a.commit()
	for _, s := range []*testenv.Server{a.frodo, a.sam} {
		a.fill(s, group, oid, n)
	}
	perRepo := func(d time.Duration, n int) time.Duration { return d / time.Duration(n) }
	sync := func() time.Duration {
		began := time.Now()
		out := a.frodo.MustRun(t, "mirror-shell", "sync", group+"/**")
		took := time.Since(began)
		if want := fmt.Sprintf("%d copies compared: %d equal", n, n); !strings.Contains(out, want) {
			t.Fatalf("sync says %q, want %q", out, want)
		}
		return perRepo(took, n)
	}
	mirror := func(options string) func() time.Duration {
		return func() time.Duration {
			const sample = 5
			began := time.Now()
			for i := range sample {
				a.frodo.MustRun(t, "git", "-c", "core.sshCommand=ssh "+options, "-C", a.frodo.RepoDir(fmt.Sprintf("%s/r%d", group, i)),
					"push", "-q", "--mirror", fmt.Sprintf("sam:%s/r%d", group, i))
			}
			return perRepo(time.Since(began), sample)
		}
	}
	sockets, err := os.MkdirTemp("/tmp", "cm") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(sockets)
	if err := os.Chmod(sockets, 0o1777); err != nil {
		t.Fatal(err)
	}
	shared := "-oControlMaster=auto -oControlPersist=5 -oControlPath=" + sockets + "/%C"
	time.Sleep(3 * time.Second) // older than the grain of time stamps
	return bench.Measure(fmt.Sprintf("look at %d unchanged repositories, per repository", n), rounds,
		bench.Contestant{Name: "mirror-shell sync", Run: sync},
		bench.Contestant{Name: "git push --mirror, new ssh", Run: mirror("")},
		bench.Contestant{Name: "git push --mirror, ControlMaster", Run: mirror(shared)})
}

// fill makes n repositories with one commit, as fast as the disk allows.
func (a *arena) fill(s *testenv.Server, group, oid string, n int) {
	t := a.t
	a.CreateRepo(t, group+"/r0", map[string]string{"master": "frodo", "slaves": "sam"}, s.Name)
	first := s.RepoDir(group + "/r0")
	a.alice.Git(t, a.alice.Dir, "--git-dir="+first, "fetch", "-q", a.work, oid+":refs/heads/main") // as root; no hook runs
	script := fmt.Sprintf("cd %s/.. && for i in $(seq 1 %d); do cp -a r0.git r$i.git; done && chown -R --reference=%s .", first, n-1, s.Home())
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// naiveHook is what people write: mirror pushes in the background, nothing kept.
const naiveHook = `#!/bin/sh
for slave in sam gollum; do
	git push -q --mirror $slave:rival >/dev/null 2>&1 </dev/null &
done
`

// slavesEqual is the time from the end of a user's push until both slaves have it.
func (a *arena) slavesEqual(rounds int) bench.Case {
	t := a.t
	a.CreateRepo(t, "ip1", map[string]string{"master": "frodo", "slaves": "sam gollum"})
	a.CreateRepo(t, "rival", map[string]string{"master": "frodo"}, "sam", "gollum")
	a.CreateRepo(t, "rival", nil, "frodo")
	hook := filepath.Join(a.frodo.RepoDir("rival"), "hooks/post-receive")
	os.Remove(hook)
	if err := os.WriteFile(hook, []byte(naiveHook), 0o755); err != nil {
		t.Fatal(err)
	}
	arrive := func(repo string) time.Duration {
		oid := a.commit()
		a.push("frodo:" + repo)
		took := a.arrived(repo, oid)
		if repo == "ip1" {
			a.settle()
		}
		return took
	}
	return bench.Measure("push returned → two slaves equal", rounds,
		bench.Contestant{Name: "serve", Run: func() time.Duration {
			a.frodo.Serve(t)
			defer a.frodo.StopServe(t)
			arrive("ip1") // a daemon has been running for a while, and has its connections
			return arrive("ip1")
		}},
		bench.Contestant{Name: "no daemon", Run: func() time.Duration { return arrive("ip1") }},
		bench.Contestant{Name: "git push --mirror in a hook", Run: func() time.Duration { return arrive("rival") }},
	)
}

// burst is what mirroring costs somebody who pushes a hundred times in a row,
// and how long after the last push both slaves are equal.
func (a *arena) burst(rounds int) []bench.Case {
	t := a.t
	const pushes = 100
	a.CreateRepo(t, "burst", map[string]string{"master": "frodo", "slaves": "sam gollum"})
	a.CreateRepo(t, "calm", nil, "frodo")
	a.frodo.Serve(t)
	defer a.frodo.StopServe(t)
	settled := bench.Sample{Name: "equal after the last push"}
	many := func(repo string, after func(oid string)) func() time.Duration {
		return func() time.Duration {
			var took time.Duration
			oid := ""
			for range pushes {
				oid = a.commit()
				took += a.push("frodo:" + repo)
			}
			after(oid)
			return took / pushes
		}
	}
	c := bench.Measure(fmt.Sprintf("%d pushes in a row, per push", pushes), rounds,
		bench.Contestant{Name: "mirrored to two slaves", Run: many("burst", func(oid string) {
			settled.Times = append(settled.Times, a.arrived("burst", oid))
		})},
		bench.Contestant{Name: "not mirrored", Run: many("calm", func(string) {})})
	return []bench.Case{c, {Name: "after that burst", Samples: []bench.Sample{settled}}}
}

// arrived waits until both slaves have oid, and returns how long that took.
func (a *arena) arrived(repo, oid string) time.Duration {
	began := time.Now()
	for _, s := range []*testenv.Server{a.sam, a.gollum} {
		for deadline := began.Add(testenv.Timeout); !holds(s, repo, oid); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				a.t.Fatalf("%s does not get %s", s.Name, repo)
			}
		}
	}
	return time.Since(began)
}

// settle waits until frodo's worker has nothing left to do and, if it is a
// drain, has gone.
func (a *arena) settle() {
	testenv.Poll(func() bool {
		return !strings.Contains(a.frodo.MustRun(a.t, "mirror-shell", "status", "ip1"), "running")
	})
	time.Sleep(300 * time.Millisecond)
}

// holds reports whether the server's main is at oid, looking at the file.
func holds(s *testenv.Server, repo, oid string) bool {
	data, err := os.ReadFile(filepath.Join(s.RepoDir(repo), "refs/heads/main"))
	return err == nil && strings.TrimSpace(string(data)) == oid
}
