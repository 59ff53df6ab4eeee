package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

func TestRunNow(t *testing.T) { onBoth(t, testRunNow) }

func testRunNow(t *testing.T) {
	q, clock := openFake(t)
	// Backoff, pause and a peer that is down: none of it keeps a person from pushing.
	enqueue(t, q, samKey)
	settle(t, q, mustClaim(t, q, samKey), ErrPeerDown)
	if err := q.Pause(t.Context(), "sam"); err != nil {
		t.Fatal(err)
	}
	rejected := errors.New("rejected")
	for _, want := range []error{rejected, nil, nil} { // the last one has nothing to do, and is run all the same
		calls := 0
		res, err := q.RunNow(t.Context(), samKey, inbox.OriginExplicit, func(_ context.Context, job Job) (Result, error) {
			calls++
			if job.Key != samKey || job.Origin != inbox.OriginExplicit || row(t, q, samKey).State != StateRunning {
				t.Errorf("job %+v", job)
			}
			return Result{Digest: "abc"}, want
		})
		if err != want || calls != 1 || res.Digest != "abc" {
			t.Errorf("got %+v, %v after %d calls, want %v", res, err, calls, want)
		}
		clock.add(time.Second)
	}
	if r := row(t, q, samKey); r.State != StateOK || r.Digest != "abc" || !r.PeerDownSince.IsZero() {
		t.Errorf("%+v", r)
	}
}

func TestRunNowWaitsItsTurn(t *testing.T) { onBoth(t, testRunNowWaitsItsTurn) }

func testRunNowWaitsItsTurn(t *testing.T) {
	q, _ := openFake(t)
	enqueue(t, q, samKey)
	c := mustClaim(t, q, samKey)
	var settled atomic.Bool
	go func() {
		time.Sleep(100 * time.Millisecond)
		settled.Store(true)
		settle(t, q, c, nil)
	}()
	_, err := q.RunNow(t.Context(), samKey, inbox.OriginExplicit, func(context.Context, Job) (Result, error) {
		if !settled.Load() {
			t.Error("two runs at a time")
		}
		return Result{}, nil
	})
	if err != nil {
		t.Error(err)
	}
	checkState(t, q, samKey, StateOK)
}

func TestRunNowInterrupted(t *testing.T) { onBoth(t, testRunNowInterrupted) }

func testRunNowInterrupted(t *testing.T) {
	q, _ := openFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := q.RunNow(ctx, samKey, inbox.OriginExplicit, func(ctx context.Context, _ Job) (Result, error) {
		cancel()
		<-ctx.Done()
		return Result{}, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c := mustClaim(t, q, samKey) // left for the worker, with no attempt counted
	if c.Attempt != 0 || c.Origin != inbox.OriginExplicit {
		t.Errorf("%+v", c.Job)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = q.RunNow(ctx, samKey, inbox.OriginExplicit, func(context.Context, Job) (Result, error) {
		t.Error("run while somebody else has it")
		return Result{}, nil
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// A transaction in the middle of which ctx ends says that, and not that somebody has rolled it back.
func TestUpdateInterrupted(t *testing.T) { onBoth(t, testUpdateInterrupted) }

func testUpdateInterrupted(t *testing.T) {
	q, _ := openFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := q.update(ctx, func(*tx) error {
		cancel()
		time.Sleep(50 * time.Millisecond) // for the roll-back
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPanicIsAFailure(t *testing.T) {
	q, _ := openFake(t)
	_, err := q.RunNow(t.Context(), samKey, inbox.OriginList, func(context.Context, Job) (Result, error) { panic("boom") })
	if err == nil || err.Error() != "panic: boom" {
		t.Errorf("got %v", err)
	}
	if r := row(t, q, samKey); r.State != StateFailed || r.Error != "panic: boom" || r.Attempt != 1 {
		t.Errorf("%+v", r)
	}
}

// awaiting starts Await and collects the outcomes.
type awaiting struct {
	mu   sync.Mutex
	got  map[Key]State
	done chan error
}

func await(ctx context.Context, q *Queue, tickets []Ticket) *awaiting {
	a := &awaiting{got: map[Key]State{}, done: make(chan error, 1)}
	go func() {
		a.done <- q.Await(ctx, tickets, func(r Row) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.got[r.Key] = r.State
		})
	}()
	return a
}

func (a *awaiting) state(k Key) State { a.mu.Lock(); defer a.mu.Unlock(); return a.got[k] }

func (a *awaiting) wait(t *testing.T, want map[Key]State) {
	t.Helper()
	select {
	case err := <-a.done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("still waiting; so far %v", a.got)
	}
	if fmt.Sprint(a.got) != fmt.Sprint(want) {
		t.Errorf("outcomes %v, want %v", a.got, want)
	}
}

func TestAwait(t *testing.T) { onBoth(t, testAwait) }

func testAwait(t *testing.T) {
	q, _ := openFake(t)
	keys := []Key{{"ok", "a"}, {"failed", "b"}, {"held", "c"}, {"dropped", "d"}, {"down", "e"}, {"beside", "e"}, {"forgotten", "f"}, {"paused", "g"}}
	tickets := enqueue(t, q, keys...)
	if err := q.Pause(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	a := await(t.Context(), q, tickets)
	if _, err := q.Forget(t.Context(), "forgotten"); err != nil {
		t.Fatal(err)
	}
	results := map[string]error{"failed": errors.New("x"), "held": ErrHeld, "dropped": ErrDropped, "down": ErrPeerDown, "beside": ErrPeerDown}
	for {
		c, err := q.claim(t.Context(), limits{perPeer: 1})
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			break
		}
		settle(t, q, c, results[c.Repository])
	}
	a.wait(t, map[Key]State{keys[0]: StateOK, keys[1]: StateFailed, keys[2]: StateHeld, keys[3]: StateDropped,
		keys[4]: StateDown, keys[5]: StateDown, keys[6]: StateDropped, keys[7]: StatePaused})
}

// What a run that had begun before the change reports says nothing about the change.
func TestAwaitIgnoresEarlierRuns(t *testing.T) { onBoth(t, testAwaitIgnoresEarlierRuns) }

func testAwaitIgnoresEarlierRuns(t *testing.T) {
	for _, early := range []error{errors.New("x"), ErrHeld, ErrDropped, ErrGone, ErrPeerDown, nil} {
		t.Run(fmt.Sprint(early), func(t *testing.T) {
			q, clock := openFake(t)
			enqueue(t, q, samKey, Key{"ip2", "sam"})
			first, err := q.claim(t.Context(), limits{})
			if err != nil {
				t.Fatal(err)
			}
			second, err := q.claim(t.Context(), limits{})
			if err != nil {
				t.Fatal(err)
			}
			key := first.Key
			a := await(t.Context(), q, enqueue(t, q, key))
			settle(t, q, first, early)
			settle(t, q, second, early)
			time.Sleep(150 * time.Millisecond)
			if s := a.state(key); s != "" {
				t.Fatalf("reported %s of an earlier run", s)
			}
			clock.add(time.Hour)
			for a.state(key) == "" {
				c, err := q.claim(t.Context(), limits{})
				if err != nil {
					t.Fatal(err)
				}
				if c != nil {
					settle(t, q, c, nil)
				}
				time.Sleep(10 * time.Millisecond)
			}
			a.wait(t, map[Key]State{key: StateOK})
		})
	}
}

func TestAwaitMany(t *testing.T) { onBoth(t, testAwaitMany) }

func testAwaitMany(t *testing.T) {
	q, clock := openFake(t)
	var keys []Key
	for i := range chunk + 60 {
		keys = append(keys, Key{fmt.Sprint("r", i), "sam"})
	}
	tickets := enqueue(t, q, keys...)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := q.Await(ctx, tickets, func(r Row) { t.Errorf("reported %+v", r) }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	a := await(t.Context(), q, tickets)
	want := map[Key]State{}
	for _, k := range keys {
		want[k] = StateOK
	}
	clock.add(time.Second)
	if n, err := q.Verified(t.Context(), verifications(keys, "d"), clock.now()); err != nil || n != len(keys) {
		t.Fatal(n, err)
	}
	a.wait(t, want)
	if err := q.Await(t.Context(), nil, nil); err != nil {
		t.Error(err)
	}
}
