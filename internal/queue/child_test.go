package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/inbox"
)

// childEnv makes the test binary another process; it holds a child as JSON.
const childEnv = "QUEUE_TEST_CHILD"

// child is what another process does.
type child struct {
	Kind string // "serve" and "drain": exit code 0, or 3 for ErrBusy; "serve again and again"; "claim": like foreground pushes; "foreground": one such push
	Dir  string // state directory; complaints and the log are in it
	URL  string
	Run  string // "exclusively", "hang" until told to stop, "wait" for the file go and nothing else, "fail", "" for success
	With string // directory that all runs share; "" for Dir

	Lease time.Duration // 0: childLease
}

const (
	serveForEver = "serve again and again"
	// childLease is short enough for a test, and long against what a loaded machine
	// may delay a heartbeat.
	childLease = 1200 * time.Millisecond
)

func (c child) options() Options {
	return Options{StateDir: c.Dir, URL: c.URL, Server: "frodo", Patient: true,
		Lease: orDefault(c.Lease, childLease), BackoffBase: 20 * time.Millisecond, RetryMax: 100 * time.Millisecond}
}

func childMain() (code int) {
	var c child
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &c); err != nil {
		panic(err)
	}
	if c.With == "" {
		c.With = c.Dir
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	log, err := os.OpenFile(filepath.Join(c.Dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		panic(err)
	}
	q, err := Open(ctx, c.options())
	if err != nil {
		complain(c.With, "open: %v", err)
		return 1
	}
	defer q.Close()
	w := &Worker{Queue: q, Inbox: inbox.New(c.Dir), Run: c.run, Jobs: 4, Poll: 200 * time.Millisecond, Log: slog.New(slog.NewTextHandler(log, nil))}
	switch c.Kind {
	case KindServe:
		err = w.Serve(ctx)
	case KindDrain:
		err = w.Drain(ctx)
	case "foreground":
		_, err = q.RunNow(ctx, samKey, inbox.OriginExplicit, c.run)
	default:
		c.forEver(ctx, w)
	}
	switch {
	case errors.Is(err, ErrBusy):
		return 3
	case err != nil:
		complain(c.With, "%s: %v", c.Kind, err)
		return 1
	}
	return 0
}

func (c child) forEver(ctx context.Context, w *Worker) {
	for ; ; time.Sleep(20 * time.Millisecond) {
		if c.Kind == serveForEver {
			if err := w.Serve(ctx); !errors.Is(err, ErrBusy) {
				complain(c.With, "serve: %v", err)
			}
			continue
		}
		claimed, err := w.Queue.claim(ctx, limits{perPeer: 3})
		if err != nil {
			complain(c.With, "claim: %v", err)
		}
		if claimed != nil {
			w.Queue.execute(ctx, claimed, w.Run)
		}
	}
}

func (c child) run(ctx context.Context, job Job) (Result, error) {
	switch c.Run {
	case "exclusively":
		return exclusively(ctx, c.With, job)
	case "hang":
		<-ctx.Done()
		return Result{}, errors.New("signal: killed") // what a child of its own would say
	case "wait":
		for {
			if _, err := os.Stat(filepath.Join(c.Dir, "go")); err == nil {
				return Result{}, nil
			}
			time.Sleep(10 * time.Millisecond)
		}
	case "fail":
		return Result{}, errors.New("rejected")
	case "at once":
		return Result{Digest: someDigest}, nil
	}
	return Result{}, sleep(ctx, 10*time.Millisecond)
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

// start starts a child; it is killed when the test ends.
func (c child) start(t testing.TB) *exec.Cmd {
	t.Helper()
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // reaped: its number no longer names a process
}

// ended returns a child's exit code.
func ended(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

func noComplaints(t *testing.T, dir string) {
	t.Helper()
	if data, err := os.ReadFile(filepath.Join(dir, "complaints")); err == nil {
		t.Errorf("complaints:\n%s", data)
	}
}

// Workers are killed again and again while pushes come in; at the end everything has arrived, and at
// no time did two processes run the same job. Over PostgreSQL they are two nodes.
func TestKilledWorkers(t *testing.T) { onBoth(t, testKilledWorkers) }

func testKilledWorkers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "running"), 0o700); err != nil {
		t.Fatal(err)
	}
	address := databaseURL(t, dir)
	first := child{Kind: serveForEver, Dir: dir, URL: address, Run: "exclusively", With: dir}
	second, third := first, first // the second server takes over when the first is killed
	third.Kind = "claim"
	if onPostgres(t) {
		second.Dir = t.TempDir()
	}
	boxes := []*inbox.Inbox{inbox.New(first.Dir), inbox.New(second.Dir)}
	q := open(t, dir, func(o *Options) { *o = first.options() })
	all := []child{first, second, third}
	var running []*exec.Cmd
	for _, c := range all {
		running = append(running, c.start(t))
	}
	pushes := map[Key]int64{}
	nextKill := time.Now().Add(700 * time.Millisecond)
	kills := 0
	for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(rand.N(25 * time.Millisecond)) {
		repository, at := fmt.Sprint("r", rand.IntN(8)), rand.IntN(2)
		if _, err := boxes[at].Put(inbox.Event{Repository: repository, Peers: []string{"sam", "gollum"}, Origin: inbox.OriginList}); err != nil {
			t.Fatal(err)
		}
		pushes[Key{repository, "sam"}]++
		pushes[Key{repository, "gollum"}]++
		_ = inbox.Wake(all[at].Dir) // perhaps nobody is alive
		if time.Now().After(nextKill) {
			victim := kills % len(all)
			kill(running[victim])
			running[victim] = all[victim].start(t)
			kills++
			nextKill = time.Now().Add(200*time.Millisecond + rand.N(300*time.Millisecond))
		}
	}
	if kills < 3 {
		t.Errorf("only %d kills", kills)
	}
	runs := awaitArrival(t, q, boxes, pushes)
	noComplaints(t, dir)
	var total int64
	for _, n := range pushes {
		total += n
	}
	t.Logf("%d changes, %d runs, %d kills", total, runs, kills)
}

// awaitArrival waits until nothing is left anywhere and returns how many runs it took.
func awaitArrival(t *testing.T, q *Queue, boxes []*inbox.Inbox, pushes map[Key]int64) (runs int64) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var waiting []string
		for _, box := range boxes {
			names, err := box.List()
			if err != nil {
				t.Fatal(err)
			}
			waiting = append(waiting, names...)
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
