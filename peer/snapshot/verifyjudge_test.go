package snapshot

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// What is damaged spoils all snapshots that need it: a restore goes back to the one before them, and prune keeps
// that one.
func TestAllDamagedSnapshotsAreBad(t *testing.T) {
	w := newMonths(t)
	whole := w.snapshot("old")
	for _, also := range []string{"two", "three", "four", "five", "six"} {
		w.pass(time.Hour)
		w.snapshot("old", "damaged", also)
	}
	key := w.object("damaged").Key
	good := w.store.blobs[key]
	w.store.blobs[key] = bytes.ToUpper(good)
	verify := func() Findings {
		t.Helper()
		w.pass(time.Minute)
		got, err := w.Verify(t.Context(), "ip1", VerifyOptions{ReadData: true})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	chosen := func() Choice {
		t.Helper()
		c, err := w.Choose(t.Context(), "ip1", time.Time{}, "")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if got := verify(); len(got.Faults) != 1 || len(got.Faults[0].Snapshots) != 5 {
		t.Fatalf("%+v", got)
	}
	if c := chosen(); c.Name != whole || len(c.Notes) != 3 || c.Notes[2] != "so were 3 more before it" {
		t.Errorf("to be restored: %+v", c)
	}
	bad := len(w.below("checks/"))
	if verify(); bad != 5 || len(w.below("checks/")) != bad {
		t.Errorf("%d records, then %v", bad, w.below("checks/"))
	}
	r, err := w.Prune(t.Context(), "ip1", Policy{Last: 1, DryRun: true})
	if err != nil || r.Kept != 2 {
		t.Errorf("prune: %+v, %v", r, err)
	}

	// somebody puts the data back: what was before the newest counts again, and the newest after a drill
	w.store.blobs[key] = good
	if got := verify(); len(got.Faults) != 1 || !strings.Contains(got.Faults[0].Problem, "known not to be whole") {
		t.Errorf("%+v", got)
	}
	if c := chosen(); len(c.Notes) != 1 || !c.Time.Equal(w.named(t, 1).Time) {
		t.Errorf("to be restored: %+v", c)
	}
	if verify(); len(w.below("checks/")) != bad+4 {
		t.Errorf("%v", w.below("checks/"))
	}
}

// named is the snapshot so many before the newest.
func (w *months) named(t *testing.T, before int) Name {
	t.Helper()
	for name, err := range w.Snapshots(t.Context(), "ip1") {
		if err != nil {
			t.Fatal(err)
		}
		if before--; before < 0 {
			return name
		}
	}
	t.Fatal("there are not so many")
	return Name{}
}

// A snapshot that lacks history stays bad, however right its data is.
func TestDataDoesNotAcquitHistory(t *testing.T) {
	w := newMonths(t)
	first := w.snapshot("old")
	w.pass(time.Hour)
	w.snapshot("old", "new")
	if err := w.recordVerdict(t.Context(), first, Check{Kind: checkBad, Snapshot: first.Sum, Error: "history is missing"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.pass(time.Hour)
		if got, err := w.Verify(t.Context(), "ip1", VerifyOptions{ReadData: true}); err != nil || !got.OK() {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if judged, err := w.verdicts(t.Context(), "ip1"); err != nil || judged[first.Sum] != checkBad {
		t.Errorf("%v, %v", judged, err)
	}
}
