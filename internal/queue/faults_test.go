package queue

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

func TestStaleOwner(t *testing.T) { onBoth(t, testStaleOwner) }

func testStaleOwner(t *testing.T) {
	q, clock := openFake(t)
	enqueue(t, q, samKey)
	first := mustClaim(t, q, samKey)
	clock.add(30 * time.Second)
	second := mustClaim(t, q, samKey)
	before := row(t, q, samKey)
	for _, err := range []error{nil, errors.New("x"), ErrPeerDown, ErrHeld, ErrDropped, ErrGone} {
		if settle(t, q, first, err) {
			t.Errorf("the former owner's %v was recorded", err)
		}
	}
	if ours, err := q.renew(t.Context(), first); ours || err != nil {
		t.Errorf("the former owner renewed: %v, %v", ours, err)
	}
	if after := row(t, q, samKey); after != before {
		t.Errorf("changed:\n%+v\n%+v", before, after)
	}
	if ours, err := q.renew(t.Context(), second); !ours || err != nil {
		t.Errorf("renew: %v, %v", ours, err)
	}
	if !settle(t, q, second, nil) {
		t.Error("the owner's result was not recorded")
	}
	checkState(t, q, samKey, StateOK)
}

// The clock is set back by a day: nothing waits for a day.
func TestClockJumpsBack(t *testing.T) { onBoth(t, testClockJumpsBack) }

func testClockJumpsBack(t *testing.T) {
	q, clock := openFake(t)
	other := Key{"ip2", "sam"}
	failed, dead, down := Key{"failed", "merry"}, Key{"dead", "pippin"}, Key{"down", "gimli"}
	enqueue(t, q, failed, dead, down)
	for range 3 {
		c, err := q.claim(t.Context(), limits{})
		if err != nil || c == nil {
			t.Fatal(c, err)
		}
		switch c.Key {
		case failed:
			settle(t, q, c, errors.New("x"))
		case down:
			settle(t, q, c, ErrPeerDown)
		}
	}
	enqueue(t, q, other)
	clock.add(-24 * time.Hour)
	if r := row(t, q, other); r.Lag != 0 {
		t.Errorf("lag %v", r.Lag)
	}
	got := map[Key]bool{}
	claimAll := func() {
		for {
			c, err := q.claim(t.Context(), limits{})
			if err != nil {
				t.Fatal(err)
			}
			if c == nil {
				return
			}
			got[c.Key] = true
		}
	}
	claimAll()
	if !got[other] || !got[failed] || !got[down] || got[dead] {
		t.Errorf("at once: %v", got)
	}
	clock.add(30 * time.Second) // the dead owner's lease was shortened, not ended: it might have been alive
	claimAll()
	if !got[dead] {
		t.Error("the dead worker's job is wedged")
	}
}

func TestSeveralServersShareATable(t *testing.T) { onBoth(t, testSeveralServersShareATable) }

func testSeveralServersShareATable(t *testing.T) {
	dir := t.TempDir()
	frodo := open(t, dir, nil)
	sam := open(t, dir, func(o *Options) { o.Server = "sam" })
	enqueue(t, frodo, gollumKey)
	noClaim(t, sam, limits{})
	if rows, err := sam.Rows(t.Context(), Filter{}); err != nil || rows != nil {
		t.Errorf("rows %v, %v", rows, err)
	}
	if n, err := sam.Forget(t.Context(), "ip1"); n != 0 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	mustClaim(t, frodo, gollumKey)
}

func TestDatabaseLocked(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir, nil)
	other := open(t, dir, nil)
	hold, err := other.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	go func() {
		defer close(released)
		time.Sleep(300 * time.Millisecond)
		_ = hold.Rollback()
	}()
	enqueue(t, q, samKey) // waits
	<-released
	checkState(t, q, samKey, StateWaiting)
}

// One run with ten thousand others in line: what a first synchronisation of a large server looks like.
func BenchmarkRunInALongLine(b *testing.B) {
	q := open(b, b.TempDir(), nil)
	var changes []Change
	for i := range 10_000 {
		changes = append(changes, Change{Key: Key{fmt.Sprint("projects/r", i), "sam"}, Origin: inbox.OriginList})
	}
	if _, err := q.Enqueue(b.Context(), changes); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := q.claim(b.Context(), limits{perPeer: 4})
		if err != nil {
			b.Fatal(err)
		}
		if c == nil {
			b.StopTimer()
			if _, err := q.Enqueue(b.Context(), changes); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			continue
		}
		if _, err := q.settle(b.Context(), c, judge(Result{}, nil, false)); err != nil {
			b.Fatal(err)
		}
	}
}

// The row of a name that is not in use any more goes when its last run ends, and not before: a change during
// that run has a run of its own.
func TestGone(t *testing.T) { onBoth(t, testGone) }

func testGone(t *testing.T) {
	q, _ := openFake(t)
	enqueue(t, q, samKey)
	c := mustClaim(t, q, samKey)
	enqueue(t, q, samKey)
	if !settle(t, q, c, ErrGone) {
		t.Error("not recorded")
	}
	if r := row(t, q, samKey); r.Want <= r.Done {
		t.Errorf("a change was lost: %+v", r)
	}
	c = mustClaim(t, q, samKey)
	enqueue(t, q, gollumKey)
	if !settle(t, q, c, fmt.Errorf("%w: x", ErrGone)) {
		t.Error("not recorded")
	}
	rows, err := q.Rows(t.Context(), Filter{})
	if err != nil || len(rows) != 1 || rows[0].Key != gollumKey {
		t.Errorf("%+v, %v", rows, err)
	}
}

// What was recorded after the rows were read stays: the name may be another repository's by then.
func TestForgetSeen(t *testing.T) { onBoth(t, testForgetSeen) }

func testForgetSeen(t *testing.T) {
	q, clock := openFake(t)
	busy, again, gone := Key{"ip1", "busy"}, Key{"ip1", "again"}, Key{"ip1", "gone"}
	enqueue(t, q, busy)
	mustClaim(t, q, busy)
	enqueue(t, q, samKey, gollumKey, again, gone)
	seen, err := q.Rows(t.Context(), Filter{})
	if err != nil || len(seen) != 5 {
		t.Fatal(seen, err)
	}
	enqueue(t, q, gollumKey)
	if _, err := q.ForgetSeen(t.Context(), []Row{row(t, q, again), row(t, q, gone)}); err != nil {
		t.Fatal(err)
	}
	clock.add(time.Second)
	enqueue(t, q, again) // its first change, as it was when seen
	running, err := q.ForgetSeen(t.Context(), seen)
	if err != nil || len(running) != 1 || running[0].Key != busy {
		t.Errorf("%+v, %v", running, err)
	}
	var left []string
	rows, err := q.Rows(t.Context(), Filter{})
	for _, r := range rows {
		left = append(left, r.Peer)
	}
	if want := []string{"again", "busy", "gollum"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("left %q, want %q, %v", left, want, err)
	}
	if running, err := q.ForgetSeen(t.Context(), nil); running != nil || err != nil {
		t.Error(running, err)
	}
}
