package queue

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestLimits(t *testing.T) { onBoth(t, testLimits) }

func testLimits(t *testing.T) {
	q, clock := openFake(t)
	var keys []Key
	for _, repository := range []string{"a", "b", "c"} {
		k := Key{repository, "sam"}
		keys = append(keys, k)
		enqueue(t, q, k)
		clock.add(time.Millisecond)
	}
	enqueue(t, q, gollumKey)
	lim := limits{perPeer: 2}
	for _, want := range []Key{keys[0], keys[1], gollumKey} {
		c, err := q.claim(t.Context(), lim)
		if err != nil || c == nil || c.Key != want {
			t.Fatalf("claimed %v, %v, want %v", c, err, want)
		}
	}
	noClaim(t, q, lim)
	noClaim(t, q, limits{probesOnly: true})
	if wait, ok, err := q.nextRun(t.Context(), lim); err != nil || !ok || wait < 29*time.Second {
		t.Errorf("next run in %v, %v, %v: with all peers saturated only the end of a lease counts", wait, ok, err)
	}
	mustClaim(t, q, keys[2])
}

func TestNextRun(t *testing.T) { onBoth(t, testNextRun) }

func testNextRun(t *testing.T) {
	q, clock := openFake(t)
	q.random = func() float64 { return 0 }
	next := func() time.Duration {
		t.Helper()
		wait, ok, err := q.nextRun(t.Context(), limits{perPeer: 4})
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return -1
		}
		return wait
	}
	if d := next(); d != -1 {
		t.Errorf("nothing: %v", d)
	}
	enqueue(t, q, samKey)
	if d := next(); d != 0 {
		t.Errorf("due: %v", d)
	}
	c := mustClaim(t, q, samKey)
	if d := next(); d != 30*time.Second {
		t.Errorf("running: %v", d)
	}
	settle(t, q, c, errors.New("x"))
	if d := next(); d != 500*time.Millisecond {
		t.Errorf("failed: %v", d)
	}
	clock.add(time.Second)
	settle(t, q, mustClaim(t, q, samKey), ErrPeerDown)
	if d := next(); d != 500*time.Millisecond {
		t.Errorf("down: %v", d)
	}
	if err := q.Pause(t.Context(), "sam"); err != nil {
		t.Fatal(err)
	}
	if d := next(); d != -1 {
		t.Errorf("paused: %v", d)
	}
	if err := q.Resume(t.Context(), "sam"); err != nil {
		t.Fatal(err)
	}
	if d := next(); d != 0 {
		t.Errorf("resumed: %v", d)
	}
}

func TestPauseResume(t *testing.T) { onBoth(t, testPauseResume) }

func testPauseResume(t *testing.T) {
	q, _ := openFake(t)
	if err := q.Pause(t.Context(), "sam"); err != nil { // before its first job
		t.Fatal(err)
	}
	enqueue(t, q, samKey, gollumKey)
	mustClaim(t, q, gollumKey)
	noClaim(t, q, limits{})
	checkState(t, q, samKey, StatePaused)
	if err := q.Resume(t.Context(), "sam"); err != nil {
		t.Fatal(err)
	}
	mustClaim(t, q, samKey)
	if err := q.Pause(t.Context(), ""); err == nil {
		t.Error("paused nobody")
	}
}

func TestForget(t *testing.T) { onBoth(t, testForget) }

func testForget(t *testing.T) {
	q, clock := openFake(t)
	enqueue(t, q, samKey, gollumKey, Key{"ip2", "sam"})
	c := mustClaim(t, q, gollumKey)
	if n, err := q.Forget(t.Context(), "ip1"); n != 0 || !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "gollum") {
		t.Errorf("while running: %d, %v", n, err)
	}
	checkState(t, q, samKey, StateWaiting)
	clock.add(31 * time.Second) // its worker died
	if n, err := q.Forget(t.Context(), "ip1"); n != 2 || err != nil {
		t.Errorf("forgot %d, %v", n, err)
	}
	if settle(t, q, c, nil) {
		t.Error("the result of a forgotten job was recorded")
	}
	rows, err := q.Rows(t.Context(), Filter{})
	if err != nil || len(rows) != 1 || rows[0].Repository != "ip2" {
		t.Errorf("left: %+v, %v", rows, err)
	}
}
