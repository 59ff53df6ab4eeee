package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

func TestDrainLeaves(t *testing.T) { onBoth(t, testDrainLeaves) }

func testDrainLeaves(t *testing.T) {
	results := map[string]error{"held": ErrHeld, "dropped": ErrDropped}
	b := newBench(t, func(_ context.Context, job Job) (Result, error) { return Result{}, results[job.Repository] })
	if err := b.Queue.Pause(t.Context(), "paused"); err != nil {
		t.Fatal(err)
	}
	_ = b.push("good", "sam", "gollum", "paused")
	_ = b.push("held", "sam")
	_ = b.push("dropped", "sam")
	if err := b.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[Key]State{{"good", "sam"}: StateOK, {"good", "gollum"}: StateOK, {"good", "paused"}: StatePaused,
		{"held", "sam"}: StateHeld, {"dropped", "sam"}: StateDropped} {
		if got := b.state(k); got != want {
			t.Errorf("%s is %s, want %s", k, got, want)
		}
	}
}

func TestDrainStaysForRetries(t *testing.T) { onBoth(t, testDrainStaysForRetries) }

func testDrainStaysForRetries(t *testing.T) {
	var calls atomic.Int64
	b := newBench(t, func(_ context.Context, job Job) (Result, error) {
		if calls.Add(1) < 5 {
			return Result{}, []error{errors.New("x"), ErrPeerDown}[calls.Load()%2]
		}
		return Result{}, nil
	})
	_ = b.push("ip1", "sam")
	if err := b.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := b.state(samKey); s != StateOK {
		t.Errorf("got %s", s)
	}
}

func TestDrainGivesUpAfterLinger(t *testing.T) { onBoth(t, testDrainGivesUpAfterLinger) }

func testDrainGivesUpAfterLinger(t *testing.T) {
	for name, failure := range map[string]error{"failing": errors.New("x"), "down": ErrPeerDown} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			b := newBench(t, func(context.Context, Job) (Result, error) { calls.Add(1); return Result{}, failure })
			b.Linger = 500 * time.Millisecond
			for i := range 10 {
				_ = b.push(fmt.Sprint("r", i), "sam", "gollum")
			}
			began := time.Now()
			if err := b.Drain(t.Context()); !errors.Is(err, ErrUnfinished) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took < b.Linger || took > 10*b.Linger {
				t.Errorf("left after %v", took)
			}
			if n := calls.Load(); n < 5 {
				t.Errorf("%d attempts only", n)
			}
		})
	}
}

// A long run is not cut off because nothing succeeded for a while, and not restarted for ever.
func TestDrainWaitsForWhatRuns(t *testing.T) {
	var calls atomic.Int64
	b := newBench(t, func(context.Context, Job) (Result, error) {
		calls.Add(1)
		time.Sleep(400 * time.Millisecond)
		return Result{}, errors.New("x")
	})
	b.Linger = 100 * time.Millisecond
	_ = b.push("ip1", "sam")
	if err := b.Drain(t.Context()); !errors.Is(err, ErrUnfinished) {
		t.Errorf("got %v", err)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func TestDrainStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := newBench(t, func(ctx context.Context, _ Job) (Result, error) {
		cancel()
		<-ctx.Done()
		return Result{}, ctx.Err()
	})
	_ = b.push("ip1", "sam")
	if err := b.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	checkState(t, b.Queue, samKey, StateWaiting)
}

// Hooks ring at any moment of a drain's end. Each starts a drain of its own when it hears that nobody
// listens; one of the two must do the work, always.
func TestDrainExitRace(t *testing.T) { onBoth(t, testDrainExitRace) }

func testDrainExitRace(t *testing.T) {
	b := newBench(t, succeed)
	var drains sync.WaitGroup
	hook := func(repository string) {
		if err := b.push(repository, "sam"); errors.Is(err, inbox.ErrNoWorker) {
			drains.Go(func() {
				if err := b.Drain(context.Background()); err != nil && !errors.Is(err, ErrBusy) {
					t.Error(err)
				}
			})
		} else if err != nil {
			t.Error(err)
		}
	}
	deadline := time.Now().Add(2 * time.Second)
	pushes := 0
	for ; pushes < 300 && time.Now().Before(deadline); pushes++ {
		hook(fmt.Sprint("r", pushes))
		time.Sleep(rand.N(12 * time.Millisecond))
		if pushes%40 == 39 {
			drains.Wait() // nobody is at work now: nothing may be left
			checkAllDone(t, b, pushes+1)
		}
	}
	drains.Wait()
	checkAllDone(t, b, pushes)
}

func checkAllDone(t *testing.T, b *bench, pushes int) {
	t.Helper()
	if names, err := b.Inbox.List(); err != nil || len(names) > 0 {
		t.Fatalf("left in the inbox: %v, %v", names, err)
	}
	rows, err := b.Queue.Rows(t.Context(), Filter{})
	if err != nil || len(rows) != pushes {
		t.Fatalf("%d rows of %d, %v", len(rows), pushes, err)
	}
	for _, r := range rows {
		if r.State != StateOK {
			t.Fatalf("left: %+v", r)
		}
	}
}

// The look after letting go, step by step.
func TestMissed(t *testing.T) { onBoth(t, testMissed) }

func testMissed(t *testing.T) {
	b := newBench(t, succeed)
	l := &loop{w: b.withDefaults(), kind: KindDrain, progress: time.Now()}
	missed := func(want bool, what string) {
		t.Helper()
		if got := l.missed(t.Context()); got != want {
			t.Errorf("%s: missed %v", what, got)
		}
	}
	if !l.mayLeave(t.Context()) {
		t.Fatal("an empty queue keeps a drain")
	}
	missed(false, "nothing happened")
	_ = b.push("ip1", "sam")
	missed(true, "a push")
	l.left, _ = b.Inbox.List()
	missed(false, "an event that was there before")
	enqueue(t, b.Queue, gollumKey) // by a sync, past the inbox
	missed(true, "a job")
	l.gaveUp = true
	missed(true, "a job, though it gave up")
	l.changes = 1
	missed(false, "only what it gave up")
}

func TestTwoWorkersStartedAtOnce(t *testing.T) {
	var running, most atomic.Int64
	b := newBench(t, func(context.Context, Job) (Result, error) {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		time.Sleep(30 * time.Millisecond)
		return Result{}, nil
	})
	b.Jobs = 1
	for i := range 5 {
		_ = b.push(fmt.Sprint("r", i), "sam")
	}
	var busy, fine atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			switch err := b.Drain(t.Context()); {
			case err == nil:
				fine.Add(1)
			case errors.Is(err, ErrBusy):
				busy.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if fine.Load() < 1 || most.Load() != 1 {
		t.Errorf("%d worked, %d were refused, %d runs at a time", fine.Load(), busy.Load(), most.Load())
	}
	checkAllDone(t, b, 5)
}
