package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/inbox"
)

// childEnv makes the test binary a worker process: "serve" (the real thing, under the worker lock) or
// "claim" (one that only claims and runs, like the foreground pushes that run beside the worker).
const (
	childEnv = "QUEUE_TEST_CHILD"
	childDir = "QUEUE_TEST_DIR"
	// childLease is short enough for a test, and long against what a loaded machine
	// may delay a heartbeat.
	childLease = 1200 * time.Millisecond
)

func childOptions(dir string) Options {
	return Options{StateDir: dir, Server: "frodo", Lease: childLease, BackoffBase: 20 * time.Millisecond, RetryMax: 100 * time.Millisecond}
}

func childMain() {
	dir := os.Getenv(childDir)
	q, err := Open(context.Background(), childOptions(dir))
	if err != nil {
		complain(dir, "open: %v", err)
		os.Exit(1)
	}
	run := func(ctx context.Context, job Job) (Result, error) { return exclusively(ctx, dir, job) }
	for ctx := context.Background(); ; time.Sleep(20 * time.Millisecond) {
		if os.Getenv(childEnv) == KindServe {
			w := &Worker{Queue: q, Inbox: inbox.New(dir), Run: run, Jobs: 4, Poll: 200 * time.Millisecond}
			if err := w.Serve(ctx); !errors.Is(err, ErrBusy) {
				complain(dir, "serve: %v", err)
			}
			continue
		}
		c, err := q.claim(ctx, limits{perPeer: 3})
		if err != nil {
			complain(dir, "claim: %v", err)
		}
		if c != nil {
			q.execute(ctx, c, run)
		}
	}
}

func complain(dir, format string, args ...any) {
	f, err := os.OpenFile(filepath.Join(dir, "complaints"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		fmt.Fprintf(f, format+"\n", args...)
		f.Close()
	}
}

// exclusively is a run that would notice another one of the same job, in any process: it owns a file while it
// runs. A file left by a process that was killed is no overlap.
func exclusively(ctx context.Context, dir string, job Job) (Result, error) {
	path := filepath.Join(dir, "running", job.Repository+"~"+job.Peer)
	mine := []byte(strconv.Itoa(os.Getpid()))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		data, _ := os.ReadFile(path)
		pid, perr := strconv.Atoi(string(data))
		// An empty file is one whose owner was killed before it could sign; a live one signs at once, and the
		// lease it took is fresh, so nobody else gets here meanwhile.
		if perr == nil && unix.Kill(pid, 0) == nil {
			complain(dir, "%s runs in process %d and in %d", job.Key, pid, os.Getpid())
		}
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o600)
	}
	if err != nil {
		return Result{}, err
	}
	defer os.Remove(path)
	_, err = f.Write(mine)
	f.Close()
	if err != nil {
		return Result{}, err
	}
	if err := sleep(ctx, rand.N(60*time.Millisecond)); err != nil {
		return Result{}, err
	}
	switch rand.IntN(20) {
	case 0:
		return Result{}, errors.New("now and then")
	case 1:
		return Result{}, fmt.Errorf("now and then: %w", ErrPeerDown)
	}
	return Result{}, nil
}

type children struct {
	t   *testing.T
	dir string
	all []*exec.Cmd
}

func (c *children) start(kind string) *exec.Cmd {
	c.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+kind, childDir+"="+c.dir)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	return cmd
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // reaped: its number no longer names a process
}

// Workers are killed again and again while pushes come in; at the end everything has arrived, and at
// no time did two processes run the same job.
func TestKilledWorkers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "running"), 0o700); err != nil {
		t.Fatal(err)
	}
	o := childOptions(dir)
	q := open(t, dir, func(options *Options) { *options = o })
	box := inbox.New(dir)
	c := &children{t: t, dir: dir}
	for _, kind := range []string{KindServe, KindServe, "claim"} { // the second server takes over when the first is killed
		c.all = append(c.all, c.start(kind))
	}
	t.Cleanup(func() {
		for _, cmd := range c.all {
			kill(cmd)
		}
	})
	pushes := map[Key]int64{}
	nextKill := time.Now().Add(700 * time.Millisecond)
	kills := 0
	for end := time.Now().Add(3500 * time.Millisecond); time.Now().Before(end); time.Sleep(rand.N(25 * time.Millisecond)) {
		repository := fmt.Sprint("r", rand.IntN(8))
		if _, err := box.Put(inbox.Event{Repository: repository, Peers: []string{"sam", "gollum"}, Origin: inbox.OriginList}); err != nil {
			t.Fatal(err)
		}
		pushes[Key{repository, "sam"}]++
		pushes[Key{repository, "gollum"}]++
		_ = inbox.Wake(dir) // perhaps nobody is alive
		if time.Now().After(nextKill) {
			victim := kills % len(c.all)
			kind := []string{KindServe, KindServe, "claim"}[victim]
			kill(c.all[victim])
			c.all[victim] = c.start(kind)
			kills++
			nextKill = time.Now().Add(200*time.Millisecond + rand.N(300*time.Millisecond))
		}
	}
	if kills < 3 {
		t.Errorf("only %d kills", kills)
	}
	runs := awaitArrival(t, q, box, pushes)
	if data, err := os.ReadFile(filepath.Join(dir, "complaints")); err == nil {
		t.Errorf("complaints:\n%s", data)
	}
	var total int64
	for _, n := range pushes {
		total += n
	}
	t.Logf("%d changes, %d runs, %d kills", total, runs, kills)
}

// awaitArrival waits until nothing is left anywhere and returns how many runs it took.
func awaitArrival(t *testing.T, q *Queue, box *inbox.Inbox, pushes map[Key]int64) (runs int64) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		waiting, err := box.List()
		if err != nil {
			t.Fatal(err)
		}
		rows, err := q.Rows(t.Context(), Filter{})
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, r := range rows {
			// A replayed event counts twice, never not at all.
			if r.State != StateOK || r.Want < pushes[r.Key] {
				left = append(left, fmt.Sprintf("%s %s want %d of %d, %s", r.Key, r.State, r.Want, pushes[r.Key], r.Error))
			}
		}
		if len(waiting) == 0 && len(left) == 0 && len(rows) == len(pushes) {
			if err := q.db.QueryRow(`SELECT SUM(run) FROM jobs`).Scan(&runs); err != nil {
				t.Fatal(err)
			}
			return runs
		}
		if time.Now().After(deadline) {
			t.Fatalf("lost: %d events in the inbox, %d rows of %d, left:\n%s", len(waiting), len(rows), len(pushes), strings.Join(left, "\n"))
		}
	}
}
