package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

func (w *months) forget(o ForgetOptions) ForgetReport {
	w.t.Helper()
	o.Note = w.toForget.note
	r, err := w.Forget(w.t.Context(), "ip1", o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// noted is what a machine remembers that it was to forget of its only repository.
type noted map[string]bool

func (n *noted) note(sums []string) error {
	*n = noted{}
	for _, s := range sums {
		(*n)[s] = true
	}
	return nil
}

func (n *noted) of(string) map[string]bool { return *n }

// A mark in the vault alone has nothing deleted: whoever may only add to a vault can put one.
func TestForgedForgetting(t *testing.T) {
	w := newMonths(t)
	var m mark
	for range 3 {
		n := w.snapshot("x")
		m.Removed = append(m.Removed, removed{n.Sum, n.Time})
		w.record1(checkForgotten, n)
		w.pass(time.Hour)
	}
	m.Forgotten = true
	if err := w.putMark(t.Context(), "ip1", &m); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.pass(1000 * time.Hour)
		if r, err := w.Prune(t.Context(), "ip1", Policy{Last: 3}); err != nil || r.Kept != 3 || len(r.Removed) > 0 || r.Deleted.Blobs > 0 {
			t.Errorf("%+v, %v", r, err)
		}
		if r, err := w.FinishForgetting(t.Context(), "ip1"); err != nil || r.Removed+r.Deleted.Blobs > 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

func (w *months) forgottenNow() []string {
	w.t.Helper()
	all, err := w.Forgotten(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// area is what the vault has of ip1.
func (w *months) area() []string {
	return slices.DeleteFunc(w.below(""), func(key string) bool { return !strings.Contains(key, "/ip1.git/") })
}

func TestForget(t *testing.T) {
	w := newMonths(t)
	first := w.snapshot("old", "both")
	w.record1(checkGood, first)
	w.pass(48 * time.Hour)
	second := w.snapshot("both", "new")
	other := w.manifest()
	other.Repository = "ip1/x"
	w.snapshotOf(other)

	dry := w.forget(ForgetOptions{DryRun: true})
	if dry.Snapshots != 2 || !dry.Oldest.Equal(first.Time) || !dry.Newest.Equal(second.Time) || dry.Data != (Amount{3, 10}) || dry.Removed != 0 || dry.Retained != 0 || dry.Gone || len(w.below("marks/")) != 0 || len(w.area()) != 6 {
		t.Errorf("%+v, %v", dry, w.area())
	}
	r := w.forget(ForgetOptions{})
	if r.Removed != 2 || r.Deleted.Blobs != 0 || r.Waiting != (Amount{3, 10}) || !r.After.Equal(w.clock.Add(30*time.Hour)) || r.Gone {
		t.Errorf("%+v", r)
	}
	if _, err := w.Latest(t.Context(), "ip1"); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("there is a snapshot: %v", err)
	}
	if got := w.forgottenNow(); !slices.Equal(got, []string{"ip1"}) {
		t.Errorf("%v", got)
	}
	w.pass(29 * time.Hour)
	if r := w.forget(ForgetOptions{}); r.Deleted.Blobs != 0 || r.Waiting.Blobs != 3 || !r.After.Equal(w.clock.Add(time.Hour)) {
		t.Errorf("in the grace period: %+v", r)
	}
	w.pass(2 * time.Hour)
	r, err := w.FinishForgetting(t.Context(), "ip1")
	if err != nil || !r.Gone || r.Deleted != (Amount{3, 10}) || r.Waiting.Blobs != 0 || len(w.area()) != 0 || len(w.below("snapshots/")) != 1 {
		t.Errorf("%+v, %v: %v", r, err, w.below(""))
	}
	if got := w.forgottenNow(); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if _, err := w.Forget(t.Context(), "ip1", ForgetOptions{}); !errors.Is(err, ErrNoSnapshot) || len(w.area()) != 0 {
		t.Errorf("once more: %v, %v", err, w.area())
	}
	if _, err := w.Forget(t.Context(), "../x", ForgetOptions{}); err == nil {
		t.Error("a name that is none")
	}
}

func TestForgetAtOnce(t *testing.T) {
	w := newMonths(t)
	w.snapshot("a", "b")
	w.object("of no snapshot")
	if r := w.forget(ForgetOptions{AtOnce: true}); !r.Gone || r.Deleted.Blobs != 3 || len(w.area()) != 0 {
		t.Errorf("%+v, %v", r, w.area())
	}
}

// What the store retains stays, whole, is not prolonged, and goes when it may, by prune alone.
func TestForgetLocked(t *testing.T) {
	w := newMonths(t)
	w.Retain = 240 * time.Hour
	w.snapshot("a")
	w.pass(200 * time.Hour)
	latest := w.snapshot("a", "b")
	if n, err := w.Extend(t.Context(), "ip1"); err != nil || n == 0 {
		t.Fatal(n, err)
	}
	w.pass(time.Hour)
	if r := w.forget(ForgetOptions{DryRun: true}); r.Retained != 4 || !r.Until.Equal(w.clock.Add(239*time.Hour)) {
		t.Errorf("%+v", r)
	}
	for range 2 { // once more changes nothing
		r := w.forget(ForgetOptions{AtOnce: true})
		if r.Removed != 0 || r.Retained != 4 || !r.Until.Equal(w.clock.Add(239*time.Hour)) || r.Waiting.Blobs != 0 || r.Gone || !w.has("a") || !w.has("b") {
			t.Errorf("%+v", r)
		}
		if n := len(w.below("checks/")); n != 2 {
			t.Errorf("%d records", n)
		}
	}
	c, err := w.Choose(t.Context(), "ip1", time.Time{}, "")
	if err != nil || !c.Forgotten || c.Name != latest || len(c.Notes) != 1 || !strings.Contains(c.Notes[0], "is forgotten") {
		t.Errorf("%+v, %v", c, err)
	}
	if found, err := w.Verify(t.Context(), "ip1", VerifyOptions{}); err != nil || !found.OK() {
		t.Errorf("%+v, %v", found, err)
	}
	if got := w.forgottenNow(); len(got) != 0 { // prune comes by because of the snapshots
		t.Errorf("%v", got)
	}
	retained := fmt.Sprint(w.store.retained)
	if r := w.prune(Policy{Last: 10}); r.Kept != 0 || r.Extended != 0 || len(r.Removed) != 0 || fmt.Sprint(w.store.retained) != retained {
		t.Errorf("%+v", r)
	}
	w.pass(240 * time.Hour)
	if r := w.prune(Policy{Last: 10}); r.Kept != 0 || len(r.Removed) != 2 || r.Waiting.Blobs != 2 {
		t.Errorf("%+v", r)
	}
	for range 2 {
		w.pass(40 * time.Hour)
		if got := w.forgottenNow(); len(got) == 1 {
			if _, err := w.FinishForgetting(t.Context(), "ip1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(w.area()) != 0 {
		t.Errorf("left: %v", w.area())
	}
}

// Whatever request fails, each snapshot that is there is whole, and the next runs end it.
func TestForgetCutAnywhere(t *testing.T) {
	for fail := 0; ; fail++ {
		w := newMonths(t)
		w.snapshot("a")
		w.pass(time.Hour)
		w.snapshot("a", "b")
		w.record1(checkGood, w.snapshot("a", "b", "c"))
		broken := errors.New("cut")
		var left atomic.Int64 // manifests are read side by side
		left.Store(int64(fail))
		w.store.before = func(string, string) error {
			if left.Add(-1) < 0 {
				return broken
			}
			return nil
		}
		_, err := w.Forget(t.Context(), "ip1", ForgetOptions{AtOnce: true})
		w.store.before = nil
		for name, err := range w.Snapshots(t.Context(), "ip1") {
			if err != nil {
				t.Fatal(err)
			}
			m, err := w.Load(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range m.Objects() {
				if w.store.blobs[o.Key] == nil {
					t.Fatalf("request %d: %s lacks %s", fail, name.Key(), o.Key)
				}
			}
		}
		if len(w.below("snapshots/")) == 0 && len(w.area()) > 0 && slices.ContainsFunc(w.below("marks/"), func(k string) bool { return !strings.Contains(k, "lease") }) && len(w.forgottenNow()) != 1 {
			t.Errorf("request %d: nobody knows that it is forgotten: %v", fail, w.area())
		}
		w.pass(48 * time.Hour) // a lease that was left
		if r, err := w.Forget(t.Context(), "ip1", ForgetOptions{AtOnce: true}); err != nil && !errors.Is(err, ErrNoSnapshot) || len(w.area()) != 0 {
			t.Fatalf("request %d: %+v, %v: %v", fail, r, err, w.area())
		}
		if err == nil {
			if fail < 10 {
				t.Errorf("%d requests", fail)
			}
			return
		}
	}
}

// A backup of a repository that was forgotten starts anew, also while the store retains the old snapshots.
func TestTakeAfterForget(t *testing.T) {
	for _, retain := range []time.Duration{0, 240 * time.Hour} {
		w := newMonths(t)
		w.Retain = retain
		r := newSource(t)
		src := sourceOf(t, r)
		commitTo(t, r, "refs/heads/main", "1 first")
		first := compare(t, w.Vault, take1(t, w.Vault, src).Name, r)
		w.pass(time.Hour)
		if report, err := w.Forget(t.Context(), src.Repository, ForgetOptions{Note: w.toForget.note}); err != nil || (report.Removed == 1) != (retain == 0) {
			t.Fatalf("%+v, %v", report, err)
		}
		LookAgain(src.Memory)
		w.pass(13 * time.Hour)
		got := take1(t, w.Vault, src)
		if got.Unchanged {
			t.Fatalf("%+v", got)
		}
		again := compare(t, w.Vault, got.Name, r)
		for _, o := range again.Objects() {
			if slices.ContainsFunc(first.Objects(), func(old Object) bool { return old.Key == o.Key }) {
				t.Errorf("%s is used again", o.Key)
			}
		}
		for range 4 {
			w.pass(300 * time.Hour)
			if _, err := w.Prune(t.Context(), src.Repository, Policy{Last: 5}); err != nil {
				t.Fatal(err)
			}
		}
		if found, err := w.Verify(t.Context(), src.Repository, VerifyOptions{ReadData: true}); err != nil || !found.OK() || found.Snapshots != 1 || found.Unreferenced != 0 {
			t.Errorf("%+v, %v", found, err)
		}
	}
}

// Data that came into use again after it was marked has another grace period when the repository is forgotten: a backup may have
// begun while it was in use.
func TestForgetEndsOldMarks(t *testing.T) {
	w := newMonths(t)
	w.snapshot("K")
	k := w.object("K") // a backup begins, which goes by the first snapshot
	w.pass(time.Hour)
	w.snapshot("b")
	w.prune(Policy{Last: 1})
	w.pass(9 * time.Hour)
	w.snapshotOf(w.manifest(), k) // it ends
	w.pass(50 * time.Hour)        // the mark with K is old
	began := w.manifest()         // another one begins
	w.pass(time.Minute)
	for range 2 {
		if r := w.forget(ForgetOptions{}); r.Deleted.Blobs != 0 {
			t.Fatalf("what a backup relies on is deleted: %+v", r)
		}
		w.pass(4 * time.Hour)
	}
	began.Time = w.clock
	w.snapshotOf(began, k)
	w.pass(100 * time.Hour)
	if r, err := w.FinishForgetting(t.Context(), "ip1"); err != nil || r.Snapshots != 1 || r.Deleted.Blobs != 0 || !w.has("K") {
		t.Errorf("%+v, %v", r, err)
	}
	for range 3 {
		w.prune(Policy{Last: 1})
		w.pass(100 * time.Hour)
	}
	if !w.has("K") || w.has("b") {
		t.Errorf("left: %v", w.area())
	}
	if len(w.below("marks/")) > 1 {
		t.Errorf("marks pile up: %v", w.below("marks/"))
	}
}

// Nothing of it has to be read: what is encrypted for others, and what is damaged, goes as well.
func TestForgetUnread(t *testing.T) {
	w := newMonths(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	w.Recipients = []age.Recipient{id.Recipient()}
	w.snapshot("a")
	w.Recipients = nil
	w.pass(time.Hour)
	w.store.blobs[w.snapshot("b").Key()][20] ^= 1
	if r := w.forget(ForgetOptions{AtOnce: true}); !r.Gone || r.Removed != 2 || len(w.area()) != 0 {
		t.Errorf("%+v, %v", r, w.area())
	}
}

// On a real server, with locks that end.
func TestForgetInS3(t *testing.T) {
	t.Parallel()
	s3 := storetest.S3(t)
	v, _ := testVault(t)
	v.Store = s3.Open(t, s3.Bucket(t, true), store.Options{LockMode: "compliance"})
	v.Retain, v.Grace = 4*time.Second, 30*time.Second
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	take1(t, v, src)
	began := time.Now()
	commitTo(t, r, "refs/heads/main", "2 second")
	take1(t, v, src)
	report, err := v.Forget(t.Context(), src.Repository, ForgetOptions{AtOnce: true})
	if err != nil || report.Removed != 0 || report.Retained < 6 || report.Until.Before(began) || report.Until.After(began.Add(10*time.Second)) {
		t.Errorf("%+v, %v", report, err)
	}
	for time.Since(report.Until) < time.Second {
		time.Sleep(100 * time.Millisecond)
	}
	report, err = v.Forget(t.Context(), src.Repository, ForgetOptions{AtOnce: true})
	if err != nil || report.Removed != 2 || !report.Gone {
		t.Errorf("%+v, %v", report, err)
	}
	for info, err := range v.Store.List(t.Context(), "", "", 0) {
		t.Errorf("left: %s (%v)", info.Key, err)
	}
}
