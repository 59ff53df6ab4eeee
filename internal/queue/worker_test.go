package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

// bench is a worker on a fresh state directory, with short times.
type bench struct {
	*Worker
	t   *testing.T
	dir string
	log *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func newBench(t *testing.T, run Func) *bench {
	return newBenchOn(t, open(t, t.TempDir(), func(o *Options) {
		o.BackoffBase, o.RetryMax = 20*time.Millisecond, 200*time.Millisecond
	}), run)
}

func newBenchOn(t *testing.T, q *Queue, run Func) *bench {
	dir := q.stateDir
	log := &lockedBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return &bench{t: t, dir: dir, log: log, Worker: &Worker{
		Queue: q, Inbox: inbox.New(dir), Run: run, Log: slog.New(slog.NewTextHandler(log, nil)),
		Poll: time.Minute, // what a test waits for must come by itself
	}}
}

// push is what the hook does.
func (b *bench) push(repository string, peers ...string) error {
	b.t.Helper()
	if _, err := b.Inbox.Put(inbox.Event{Repository: repository, Peers: peers, Origin: inbox.OriginList}); err != nil {
		b.t.Error(err)
	}
	return inbox.Wake(b.dir)
}

// serve starts Serve and returns once it listens; stop ends it.
func (b *bench) serve() (stop func()) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx) }()
	b.until("the worker listens", func() bool { return inbox.Wake(b.dir) == nil })
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				b.t.Errorf("serve: %v", err)
			}
		})
	}
	b.t.Cleanup(stop)
	return stop
}

func (b *bench) until(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// state is a row's state, "" for no row.
func (b *bench) state(k Key) State {
	b.t.Helper()
	rows, err := b.Queue.Rows(context.Background(), Filter{Repository: k.Repository, Peer: k.Peer})
	if err != nil {
		b.t.Fatal(err)
	}
	if len(rows) == 0 {
		return ""
	}
	return rows[0].State
}

func (b *bench) untilState(k Key, want State) {
	b.t.Helper()
	b.until(fmt.Sprintf("%s is %s", k, want), func() bool { return b.state(k) == want })
}

func succeed(context.Context, Job) (Result, error) { return Result{Digest: "d"}, nil }

func TestServe(t *testing.T) { onBoth(t, testServe) }

func testServe(t *testing.T) {
	b := newBench(t, succeed)
	_ = b.push("early", "sam") // nobody listens yet
	stop := b.serve()
	b.untilState(Key{"early", "sam"}, StateOK)
	for i := range 5 {
		repository := fmt.Sprint("r", i)
		if err := b.push(repository, "sam", "gollum"); err != nil {
			t.Fatal(err)
		}
		b.untilState(Key{repository, "sam"}, StateOK)
		b.untilState(Key{repository, "gollum"}, StateOK)
	}
	h, running, err := WorkerHolder(b.dir)
	if err != nil || !running || h != (Holder{os.Getpid(), KindServe}) {
		t.Errorf("holder %v, %v, %v", h, running, err)
	}
	for kind, start := range map[string]func(context.Context) error{"serve": b.Serve, "drain": b.Drain} {
		if err := start(t.Context()); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("serve, process %d", os.Getpid())) {
			t.Errorf("a second worker, %s: %v", kind, err)
		}
	}
	stop()
	if h, running, err := WorkerHolder(b.dir); running || err != nil {
		t.Errorf("after the stop: %v, %v, %v", h, running, err)
	}
	if err := inbox.Wake(b.dir); !errors.Is(err, inbox.ErrNoWorker) {
		t.Errorf("wake after the stop: %v", err)
	}
	if _, running, err := WorkerHolder(t.TempDir()); running || err != nil {
		t.Errorf("where never anybody worked: %v, %v", running, err)
	}
}

// A look at the lock must never make a starting worker believe that it is the second.
func TestLookingDoesNotDisturb(t *testing.T) {
	b := newBench(t, succeed)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, _, err := WorkerHolder(b.dir); err != nil {
				t.Error(err)
			}
		}
	})
	for range 20 {
		if err := b.Drain(t.Context()); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
}

func TestHundredPushesFewRuns(t *testing.T) { onBoth(t, testHundredPushesFewRuns) }

func testHundredPushesFewRuns(t *testing.T) {
	var runs atomic.Int64
	begun, release := make(chan struct{}, 100), make(chan struct{})
	b := newBench(t, func(context.Context, Job) (Result, error) {
		runs.Add(1)
		begun <- struct{}{}
		<-release
		return Result{}, nil
	})
	b.serve()
	_ = b.push("ip1", "sam")
	<-begun
	for range 100 {
		if err := b.push("ip1", "sam"); err != nil {
			t.Fatal(err)
		}
	}
	b.until("all pushes are in the table", func() bool { return row(t, b.Queue, samKey).Want == 101 })
	close(release)
	b.untilState(samKey, StateOK)
	if n := runs.Load(); n != 2 {
		t.Errorf("%d runs", n)
	}
}

// A hung job holds up neither the inbox nor other jobs; a stop ends it without counting an attempt.
func TestHungJobAndStop(t *testing.T) { onBoth(t, testHungJobAndStop) }

func testHungJobAndStop(t *testing.T) {
	hung := make(chan struct{})
	b := newBench(t, func(ctx context.Context, job Job) (Result, error) {
		if job.Peer != "sam" {
			return Result{}, nil
		}
		close(hung)
		<-ctx.Done()
		return Result{}, errors.New("signal: killed") // what a child process of a cancelled context says
	})
	stop := b.serve()
	_ = b.push("ip1", "sam")
	<-hung
	_ = b.push("ip1", "gollum")
	b.untilState(gollumKey, StateOK)
	stop()
	r := row(t, b.Queue, samKey)
	if r.State != StateWaiting || r.Attempt != 0 || r.Error != "" || r.Owner != "" {
		t.Errorf("after the stop: %+v", r)
	}
	mustClaim(t, b.Queue, samKey) // at once, not after the lease
}

// Two peers whose jobs all hang fill the worker; when they are known to be down, they no longer do.
func TestProbesHaveRoomOfTheirOwn(t *testing.T) { onBoth(t, testProbesHaveRoomOfTheirOwn) }

func testProbesHaveRoomOfTheirOwn(t *testing.T) {
	b := newBench(t, func(ctx context.Context, job Job) (Result, error) {
		switch {
		case !job.Probe && job.Peer == "down":
			return Result{}, ErrPeerDown
		case job.Peer == "down", job.Peer == "slow":
			<-ctx.Done()
			return Result{}, ctx.Err()
		}
		return Result{}, nil
	})
	b.Jobs, b.JobsPerPeer = 2, 1
	b.serve()
	_ = b.push("ip1", "down")
	b.until("the probe hangs", func() bool {
		r, err := b.Queue.Rows(t.Context(), Filter{Peer: "down"})
		return err == nil && len(r) == 1 && r[0].State == StateRunning && !r[0].PeerDownSince.IsZero()
	})
	_ = b.push("ip1", "slow")
	b.untilState(Key{"ip1", "slow"}, StateRunning)
	_ = b.push("ip1", "sam")
	b.untilState(samKey, StateOK)
}

func TestWorkerSurvivesPanic(t *testing.T) {
	var once sync.Once
	b := newBench(t, func(context.Context, Job) (Result, error) {
		once.Do(func() { panic("boom") })
		return Result{}, nil
	})
	b.serve()
	_ = b.push("ip1", "sam")
	b.untilState(samKey, StateOK)
	b.until("the log tells where the panic was", func() bool {
		log := b.log.String()
		return strings.Contains(log, "panic: boom") && strings.Contains(log, "worker_test.go")
	})
}

func TestRetriesUntilSuccess(t *testing.T) { onBoth(t, testRetriesUntilSuccess) }

func testRetriesUntilSuccess(t *testing.T) {
	var calls atomic.Int64
	b := newBench(t, func(_ context.Context, job Job) (Result, error) {
		switch calls.Add(1) {
		case 1, 2, 3:
			return Result{}, errors.New("not yet")
		case 4, 5:
			return Result{}, ErrPeerDown
		}
		return Result{}, nil
	})
	b.serve()
	_ = b.push("ip1", "sam")
	b.untilState(samKey, StateOK)
	if n := calls.Load(); n != 6 {
		t.Errorf("%d calls", n)
	}
}

func TestCorruptedInboxFile(t *testing.T) {
	b := newBench(t, succeed)
	_ = b.push("ip1", "sam")
	if err := os.WriteFile(filepath.Join(b.Inbox.Dir(), "0000000000000000001-00000001.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := b.state(samKey); s != StateOK {
		t.Errorf("the good event: %s", s)
	}
	bad, err := b.Inbox.Bad()
	if err != nil || len(bad) != 1 || !strings.Contains(b.log.String(), bad[0]) {
		t.Errorf("bad: %v, %v", bad, err)
	}
}

func TestReplayAtStart(t *testing.T) {
	b := newBench(t, succeed)
	_ = b.push("ip1", "sam")
	func() { // a worker killed between taking and committing
		defer func() { _ = recover() }()
		_, _ = b.Inbox.Take(func([]inbox.Event) error { panic("killed") })
	}()
	if err := b.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := b.state(samKey); s != StateOK {
		t.Errorf("got %s", s)
	}
}

// The disk fills up under the database while pushes go on, and is cleared later.
func TestDatabaseFull(t *testing.T) {
	b := newBench(t, succeed)
	stop := b.serve()
	_ = b.push("ip1", "sam")
	b.untilState(samKey, StateOK)
	var pages int
	if err := b.Queue.db.QueryRow("PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	limit := func(n int) {
		if err := b.Queue.db.QueryRow(fmt.Sprintf("PRAGMA max_page_count = %d", n)).Scan(&n); err != nil {
			t.Error(err)
		}
	}
	limit(pages)
	var keys []Key
	for i := range 60 {
		k := Key{strings.Repeat("long/", 40) + fmt.Sprint(i), "sam"}
		keys = append(keys, k)
		_ = b.push(k.Repository, k.Peer)
	}
	b.until("the problem is logged", func() bool { return strings.Contains(b.log.String(), "full") })
	b.until("the events are back in the inbox", func() bool {
		names, err := b.Inbox.List()
		return err == nil && len(names) > 1
	})
	limit(1 << 20)
	for _, k := range keys {
		b.untilState(k, StateOK)
	}
	stop()
}

func TestHeartbeatKeepsTheLease(t *testing.T) { onBoth(t, testHeartbeatKeepsTheLease) }

func testHeartbeatKeepsTheLease(t *testing.T) {
	dir := t.TempDir()
	short := func(o *Options) { o.Lease = 400 * time.Millisecond }
	q, other := open(t, dir, short), open(t, dir, short)
	enqueue(t, q, samKey)
	end := time.Now().Add(1500 * time.Millisecond)
	e := q.execute(t.Context(), mustClaim(t, q, samKey), func(ctx context.Context, _ Job) (Result, error) {
		for time.Now().Before(end) {
			noClaim(t, other, limits{})
			time.Sleep(20 * time.Millisecond)
		}
		return Result{}, ctx.Err()
	})
	if e.err != nil || !e.current {
		t.Errorf("%+v", e)
	}
}

func TestLostLeaseCancelsTheRun(t *testing.T) { onBoth(t, testLostLeaseCancelsTheRun) }

func testLostLeaseCancelsTheRun(t *testing.T) {
	for name, breakIt := range map[string]string{
		"stolen":           `UPDATE jobs SET owner = 'another'`,
		"database failing": `ALTER TABLE jobs RENAME TO gone`,
	} {
		t.Run(name, func(t *testing.T) {
			q := open(t, t.TempDir(), func(o *Options) { o.Lease = 400 * time.Millisecond })
			enqueue(t, q, samKey)
			e := q.execute(t.Context(), mustClaim(t, q, samKey), func(ctx context.Context, _ Job) (Result, error) {
				if _, err := q.db.Exec(breakIt); err != nil {
					t.Error(err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Second):
				}
				return Result{}, context.Cause(ctx)
			})
			if !errors.Is(e.err, ErrLeaseLost) || e.current {
				t.Errorf("%+v", e)
			}
		})
	}
}
