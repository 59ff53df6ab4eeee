package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"mirror-shell/internal/bench"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/testenv"
)

// putAs stores an event in a server's inbox as its unix user, and not root's,
// would. The files must be the user's, and be so before serve looks.
func (a *arena) putAs(s *testenv.Server, e inbox.Event) {
	uid, gid := a.owner(s)
	// What the kernel takes this one thread for when it touches files. The thread
	// must not end: sshd and serve end with the thread that has started them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	syscall.Setfsgid(gid)
	syscall.Setfsuid(uid)
	_, err := inbox.New(s.StateDir()).Put(e)
	syscall.Setfsuid(0)
	syscall.Setfsgid(0)
	if err != nil {
		a.t.Fatal(err)
	}
}

// wake wakes a server's serve, which then finds what putAs has stored, and
// returns the moment before.
func (a *arena) wake(s *testenv.Server) time.Time {
	began := time.Now()
	if err := inbox.Wake(s.StateDir()); err != nil {
		a.t.Fatal(err)
	}
	return began
}

// settled waits until serve on frodo says that it has recorded a success,
// later than what its log has already.
func (a *arena) settled(logged int) {
	for deadline := time.Now().Add(testenv.Timeout); ; time.Sleep(200 * time.Microsecond) {
		news := a.serveLog()[logged:]
		if bytes.Contains(news, []byte("msg=equal")) {
			return
		}
		if bytes.Contains(news, []byte(`msg="not equal"`)) || time.Now().After(deadline) {
			a.t.Fatalf("serve does not push: %s", news)
		}
	}
}

// serveLog is what serve on frodo has said since the world was made.
func (a *arena) serveLog() []byte {
	text, err := os.ReadFile(filepath.Join(a.Root, "servers/frodo/serve.log"))
	if err != nil {
		a.t.Fatal(err)
	}
	return text
}

// syncs returns contestants that bring one new commit of repo to sam by serve:
// one until the job is settled, one until the ref stands there.
func (a *arena) syncs(repo string) (whole, ref func() time.Duration) {
	begin := func() (oid string, logged int, began time.Time) {
		oid = a.commitIn(a.frodo, repo)
		logged = len(a.serveLog())
		a.putAs(a.frodo, inbox.Event{Repository: repo, Peers: []string{"sam"}, Origin: inbox.OriginList})
		return oid, logged, a.wake(a.frodo)
	}
	whole = func() time.Duration {
		_, logged, began := begin()
		a.settled(logged)
		return time.Since(began)
	}
	ref = func() time.Duration {
		oid, logged, began := begin()
		a.arrived(repo, oid, a.sam)
		took := time.Since(began)
		a.settled(logged)
		return took
	}
	return whole, ref
}

// pushes is syncs for git push: one new commit in repo on a server, which cmd,
// called beforehand, brings to sam.
func (a *arena) pushes(from *testenv.Server, source, repo string, cmd func() *exec.Cmd) (whole, ref func() time.Duration) {
	run := func(until func(oid string, push *exec.Cmd)) time.Duration {
		oid := a.commitIn(from, source)
		push := cmd()
		var said bytes.Buffer
		push.Stdout, push.Stderr = &said, &said
		began := time.Now()
		if err := push.Start(); err != nil {
			a.t.Fatal(err)
		}
		until(oid, push)
		took := time.Since(began)
		if push.ProcessState == nil {
			push.Wait()
		}
		if !push.ProcessState.Success() {
			a.t.Fatalf("%s: %v\n%s", strings.Join(push.Args, " "), push.ProcessState, said.String())
		}
		return took
	}
	whole = func() time.Duration { return run(func(_ string, push *exec.Cmd) { push.Wait() }) }
	ref = func() time.Duration { return run(func(oid string, _ *exec.Cmd) { a.arrived(repo, oid, a.sam) }) }
	return whole, ref
}

// oneCommit is a sync of one commit over a connection that is kept. It is that of
// the worker that really runs, another unix user's: the time is taken from its
// being woken, with the event in the inbox, so that the worker's collecting,
// recording and claiming are part of it.
//
// The rival is a git push to a path, by the slave's own unix user, with the hooks
// that a mirror push runs there. It ends when git push does, which on our side is
// when the job is settled; and, as a case of its own, when the ref is there.
func (a *arena) oneCommit(rounds int) []bench.Case {
	t := a.t
	config := map[string]string{"master": "frodo", "slaves": "sam"}
	for _, repo := range []string{"one-serve", "one-cm", "one-ssh"} {
		a.CreateRepo(t, repo, config, "frodo", "sam")
	}
	a.CreateRepo(t, "one-local", config, "sam")
	a.sam.MustRun(t, "git", "init", "-q", "--bare", a.sam.RepoDir("one-source"))
	a.frodo.Serve(t)
	defer a.frodo.StopServe(t)

	ourWhole, ourRef := a.syncs("one-serve")
	localWhole, localRef := a.pushes(a.sam, "one-source", "one-local", func() *exec.Cmd {
		cmd := a.sam.Command(context.Background(), "git", "-C", a.sam.RepoDir("one-source"), "push", "-q", a.sam.RepoDir("one-local"), "refs/heads/main")
		cmd.Env = append(cmd.Env, "MIRROR_SHELL_PEER=frodo") // what the forced command tells the hooks
		return cmd
	})
	over := func(repo string, options []string) (whole, ref func() time.Duration) {
		return a.pushes(a.frodo, repo, repo, func() *exec.Cmd {
			argv := append(append([]string{"git"}, options...), "-C", a.frodo.RepoDir(repo), "push", "-q", "sam:"+repo, "refs/heads/main")
			return a.frodo.Command(context.Background(), argv...)
		})
	}
	sharedWhole, sharedRef := over("one-cm", a.controlMaster())
	newWhole, newRef := over("one-ssh", a.newSSH())

	const ours, local, shared, fresh = "serve, from its wake", "git push to a path", "git push, ControlMaster", "git push, new ssh"
	race := func(name string, runs ...func() time.Duration) bench.Case {
		var contestants []bench.Contestant
		for i, contestant := range []string{ours, local, shared, fresh} {
			contestants = append(contestants, bench.Contestant{Name: contestant, Run: runs[i]})
		}
		return bench.Measure("one-commit sync, same hooks, until "+name, rounds*2, contestants...).Must(bench.AtMostTimes(ours, local, 1.5))
	}
	return []bench.Case{
		race("the job is settled", ourWhole, localWhole, sharedWhole, newWhole),
		race("the slave's ref stands", ourRef, localRef, sharedRef, newRef),
	}
}

// refCount is how many refs the case of many refs has.
const refCount = 50000

// manyRefs is one changed ref in a repository with many, each at a commit of its
// own, packed on both sides. The rivals' slaves are without hooks.
func (a *arena) manyRefs(rounds int) bench.Case {
	t := a.t
	a.CreateRepo(t, "refs-serve", map[string]string{"master": "frodo", "slaves": "sam"}, "frodo")
	a.fillRefs(a.frodo.RepoDir("refs-serve"))
	full := a.load(a.frodo.RepoDir("refs-serve"))
	a.store(full, a.sam, "refs-serve")
	for _, repo := range []string{"refs-ssh", "refs-cm"} {
		a.store(full, a.frodo, repo)
		a.store(full, a.sam, repo)
		a.removeHooks(a.sam, repo)
	}
	a.frodo.Serve(t)
	defer a.frodo.StopServe(t)

	whole, _ := a.syncs("refs-serve")
	mirror := func(repo string, options []string) func() time.Duration {
		whole, _ := a.pushes(a.frodo, repo, repo, func() *exec.Cmd {
			argv := append(append([]string{"git"}, options...), "-C", a.frodo.RepoDir(repo), "push", "-q", "--mirror", "sam:"+repo)
			return a.frodo.Command(context.Background(), argv...)
		})
		return whole
	}
	const ours, fresh, shared = "serve, from its wake", "git push --mirror, new ssh", "git push --mirror, ControlMaster"
	return bench.Measure("one of 50,000 refs changed, until the job is settled", rounds,
		bench.Contestant{Name: ours, Run: whole},
		bench.Contestant{Name: fresh, Run: mirror("refs-ssh", a.newSSH())},
		bench.Contestant{Name: shared, Run: mirror("refs-cm", a.controlMaster())}).
		Must(bench.Faster(ours, fresh, 5))
}

// fillRefs gives frodo's repository refCount commits, and as many refs.
func (a *arena) fillRefs(dir string) {
	var in bytes.Buffer
	for i := range refCount {
		fmt.Fprintf(&in, "commit refs/heads/main\nmark :%d\ncommitter f <f@example.org> %d +0000\ndata 1\nc\n", i+1, 1700000000+i)
	}
	for i := range refCount - 1 {
		fmt.Fprintf(&in, "reset refs/tags/v%05d\nfrom :%d\n\n", i, i+1)
	}
	load := a.frodo.Command(context.Background(), "git", "--git-dir="+dir, "fast-import", "--quiet")
	load.Stdin = &in
	if out, err := load.CombinedOutput(); err != nil {
		a.t.Fatalf("fast-import: %v\n%s", err, out)
	}
	a.frodo.MustRun(a.t, "git", "--git-dir="+dir, "pack-refs", "--all")
}
