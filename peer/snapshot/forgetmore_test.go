package snapshot

import (
	"testing"
	"time"
)

// A server with a longer grace period may be at work although it did not make the latest snapshot; who forgets waits for it,
// and so does prune when there is a new beginning meanwhile.
func TestForgetWaitsForTheSlowest(t *testing.T) {
	for _, again := range []bool{false, true} {
		w := newMonths(t)
		m := w.manifest()
		m.Grace = int64(7 * 24 * time.Hour / time.Second)
		slow := w.object("K")
		w.snapshotOf(m, slow)
		w.pass(time.Hour)
		w.snapshot("K", "b")
		began := w.manifest() // the slow server begins a backup
		began.Previous = ""
		w.pass(time.Hour)
		if r := w.forget(ForgetOptions{}); r.After.Before(w.clock.Add(7 * 24 * time.Hour)) {
			t.Errorf("it waits until %s", r.After)
		}
		w.pass(35 * time.Hour)
		if again {
			w.snapshot("new")
			w.prune(Policy{Last: 1})
		} else {
			w.forget(ForgetOptions{})
		}
		w.pass(35 * time.Hour) // less than half of its grace period since it began
		began.Time = w.clock
		if again {
			w.prune(Policy{Last: 1})
		}
		if !w.has("K") {
			t.Fatalf("again %v: what a backup relies on is deleted", again)
		}
		w.snapshotOf(began, slow)
		for range 3 {
			w.pass(300 * time.Hour)
			w.prune(Policy{Last: 1})
		}
		if !w.has("K") || w.has("b") || w.has("new") {
			t.Errorf("again %v: left: %v", again, w.area())
		}
		w.forget(ForgetOptions{})
		w.pass(300 * time.Hour)
		if r := w.forget(ForgetOptions{}); !r.Gone {
			t.Errorf("again %v: %+v", again, r)
		}
	}
}
