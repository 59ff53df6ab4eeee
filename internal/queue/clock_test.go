package queue

import (
	"errors"
	"testing"
	"time"
)

const day = 24 * time.Hour

// claimDue claims everything that is due and settles it with what results say, or leaves it running.
func claimDue(t *testing.T, q *Queue, results map[Key]error) map[Key]bool {
	t.Helper()
	got := map[Key]bool{}
	for {
		c, err := q.claim(t.Context(), limits{})
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			return got
		}
		got[c.Key] = true
		if result, settled := results[c.Key]; settled {
			settle(t, q, c, result)
		}
	}
}

// The clock goes forward by a day and comes back, as it does on a machine that asks the wrong server for the time. While it is
// wrong and when it is right again nothing waits for a day, and nothing lasts since tomorrow.
func TestClockGoesForwardAndBack(t *testing.T) { onBoth(t, testClockGoesForwardAndBack) }

func testClockGoesForwardAndBack(t *testing.T) {
	q, clock := openFake(t)
	failed, held, down, running, waiting := Key{"failed", "a"}, Key{"held", "b"}, Key{"down", "c"}, Key{"running", "d"}, Key{"waiting", "e"}
	all := []Key{failed, held, down, running}
	results := map[Key]error{failed: errors.New("x"), held: ErrHeld, down: ErrPeerDown}
	enqueue(t, q, all...)
	claimDue(t, q, results)
	for _, jump := range []time.Duration{day, -day} {
		clock.add(jump)
		got := claimDue(t, q, results)
		for _, k := range []Key{failed, down} {
			if !got[k] {
				t.Errorf("after %v %s waits", jump, k)
			}
		}
		enqueue(t, q, waiting)
		for _, r := range rowsOf(t, q) {
			if r.Lag < 0 || r.Lag > day || !r.NextTry.IsZero() && r.NextTry.Sub(clock.now()) > 15*time.Minute {
				t.Errorf("after %v %s: lag %v, next try %v", jump, r.Key, r.Lag, r.NextTry.Sub(clock.now()))
			}
		}
		if got := claimDue(t, q, map[Key]error{waiting: nil}); !got[waiting] {
			t.Errorf("after %v a push waits", jump)
		}
	}
	clock.add(15 * time.Minute)
	if got := claimDue(t, q, results); !got[running] || !got[held] {
		t.Errorf("later: %v", got)
	}
	for _, r := range rowsOf(t, q) { // since the clock came back, and not since it was wrong
		if r.Lag < 15*time.Minute && r.State != StateOK {
			t.Errorf("%s: lag %v", r.Key, r.Lag)
		}
	}
}

func rowsOf(t *testing.T, q *Queue) []Row {
	t.Helper()
	rows, err := q.Rows(t.Context(), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// What was recorded while the clock was wrong does not keep a comparison from counting for a day.
func TestVerifiedAfterTheClockCameBack(t *testing.T) { onBoth(t, testVerifiedAfterTheClockCameBack) }

func testVerifiedAfterTheClockCameBack(t *testing.T) {
	q, clock := openFake(t)
	clock.add(day)
	enqueue(t, q, samKey)
	settle(t, q, mustClaim(t, q, samKey), ErrHeld)
	clock.add(-day)
	verify := func() int {
		clock.add(time.Second)
		n, err := q.Verified(t.Context(), []Verification{{Key: samKey, Digest: someDigest}}, clock.now())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := verify(); n != 0 { // it may have been recorded a moment ago
		t.Errorf("%d were satisfied", n)
	}
	if n := verify(); n != 1 {
		t.Errorf("%d were satisfied", n)
	}
	checkState(t, q, samKey, StateOK)
	if r := row(t, q, samKey); r.LastSuccess.After(clock.now()) {
		t.Errorf("equal since %v", r.LastSuccess)
	}
}

// The clock is set during a comparison: a change that was made meanwhile is not taken for one that was compared.
func TestClockIsSetDuringAComparison(t *testing.T) {
	for _, jump := range []time.Duration{day, -day} {
		shift := time.Duration(0)
		q := open(t, t.TempDir(), func(o *Options) { o.Now = func() time.Time { return time.Now().Round(0).Add(shift) } })
		began := time.Now()
		time.Sleep(5 * time.Millisecond)
		enqueue(t, q, samKey)
		shift = jump
		if n, err := q.Verified(t.Context(), []Verification{{Key: samKey, Digest: someDigest}}, began); n != 0 || err != nil {
			t.Errorf("the clock was set by %v: %d satisfied, %v", jump, n, err)
		}
		if r := row(t, q, samKey); r.Want == r.Done || r.Lag < 0 {
			t.Errorf("the clock was set by %v: %+v", jump, r)
		}
	}
}
