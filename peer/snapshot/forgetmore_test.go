package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"testing"
	"time"

	"mirror-shell/peer/store"
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

// What is found out about a snapshot counts also when the clock that its time is from was ahead, and was put right since.
func TestVerdictsAfterAClockWasPutBack(t *testing.T) {
	w := newMonths(t)
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	w.pass(1000 * time.Hour)
	first := take1(t, w.Vault, src).Name
	w.pass(-1000 * time.Hour)
	src.Memory = "" // another server looks
	if got := take1(t, w.Vault, src); !got.Unchanged {
		t.Fatalf("%+v", got)
	}
	w.store.spoilPacks()
	if found, err := w.Verify(t.Context(), src.Repository, VerifyOptions{ReadData: true}); err != nil || found.OK() {
		t.Fatalf("%+v, %v", found, err)
	}
	if judged, err := w.Judged(t.Context(), src.Repository); err != nil || !judged.Bad[first.Sum] {
		t.Errorf("the damage of %s does not count", first.Key())
	}
	commitTo(t, r, "refs/heads/main", "2 second")
	takeNow(t, w.Vault, src)
}

// Nothing that is said afterwards makes a forgotten snapshot one to begin from.
func TestForgottenIsFinal(t *testing.T) {
	w := newMonths(t)
	w.Retain = 240 * time.Hour
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	first := take1(t, w.Vault, src).Name
	w.pass(time.Minute)
	if _, err := w.Forget(t.Context(), src.Repository, ForgetOptions{Note: w.toForget.note}); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Minute)
	// The server that made it has walked through its history only now.
	if err := w.recordVerdict(t.Context(), first, Check{Kind: checkGood, Snapshot: first.Sum}); err != nil {
		t.Fatal(err)
	}
	commitTo(t, r, "refs/heads/main", "2 second")
	got := takeNow(t, w.Vault, src)
	if got.Note == "" {
		t.Errorf("the next backup is built on what is forgotten: %+v", got)
	}
}

// A first backup was killed while it walked through its history, and meanwhile its data was found to be damaged in the store: nothing
// of that is used again.
func TestDamageBeforeTheWalk(t *testing.T) {
	w := newMonths(t)
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	run(t, r.Dir, "repack", "-adq") // so that the same pack is to be put
	first := take1(t, w.Vault, src).Name
	memoryDir(src.Memory).remember(recalled{Sum: first.Sum, Repository: src.Repository, Unchecked: true})
	w.pass(time.Minute)
	w.store.spoilPacks()
	if found, err := w.Verify(t.Context(), src.Repository, VerifyOptions{ReadData: true}); err != nil || found.OK() {
		t.Fatalf("%+v, %v", found, err)
	}
	w.pass(time.Minute)
	takeNow(t, w.Vault, src)
}

// What is retained is prolonged also when snapshots are named after a clock that was months ahead once.
func TestLockAfterAClockWasPutBack(t *testing.T) {
	w := newMonths(t)
	w.Retain = 240 * time.Hour
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	w.pass(2000 * time.Hour)
	take1(t, w.Vault, src)
	w.pass(-2000 * time.Hour)
	commitTo(t, r, "refs/heads/main", "2 second")
	take1(t, w.Vault, src)
	src.Repository = "group/ip2" // that nobody prunes
	w.pass(2000 * time.Hour)
	take1(t, w.Vault, src)
	w.pass(-2000 * time.Hour)
	commitTo(t, r, "refs/heads/main", "3 third")
	take1(t, w.Vault, src)
	for range 40 {
		w.pass(24 * time.Hour)
		if _, err := w.Prune(t.Context(), "group/ip1", Policy{Last: 10}); err != nil {
			t.Fatal(err)
		}
		if got := take1(t, w.Vault, src); !got.Unchanged {
			t.Fatalf("%+v", got)
		}
		latest, err := w.Latest(t.Context(), src.Repository)
		if err != nil {
			t.Fatal(err)
		}
		m, err := w.Load(t.Context(), latest)
		if err != nil {
			t.Fatal(err)
		}
		needed := append(w.below(snapshotsOf("group/ip1")), latest.Key())
		for _, o := range m.Objects() {
			needed = append(needed, o.Key)
		}
		for _, key := range needed {
			if !w.store.retained[key].After(w.clock) {
				t.Fatalf("on %s %s is not retained any more", w.clock, key)
			}
		}
	}
	if n := len(w.below(snapshotsOf("group/ip2"))); n > 12 {
		t.Errorf("%d snapshots in 40 days", n)
	}
}

// Names that begin like others, in a directory as in a bucket: each is forgotten alone.
func TestForgetLeavesOthers(t *testing.T) {
	all := []string{"a", "a/b", "A", "a/b/c", "ab", "a.b", "a+", "a-", "a_/b", "b/a", "lease-00000000000000000000000000000000", "a/lease-00000000000000000000000000000000", "snapshots", "snapshots/a", "data/a", "a/git", "a.gi", "agit"}
	place, err := store.Open(t.Context(), store.Options{URL: "file://" + t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []store.Store{newMemory(), place} {
		w := newMonths(t)
		w.Store, w.Now = s, nil
		for _, name := range all {
			m := w.manifest()
			m.Repository, m.Time = name, time.Now().UTC().Truncate(time.Millisecond)
			key := dataOf(name) + "file-x"
			if err := s.Put(t.Context(), key, w.blob([]byte("x"))); err != nil {
				t.Fatal(name, err)
			}
			sum := sha256.Sum256([]byte("x"))
			w.snapshotOf(m, Object{Key: key, Size: 1, SHA256: hex.EncodeToString(sum[:])})
		}
		for i, name := range all {
			if i%2 == 0 { // the data waits, and another one's end does not touch it
				if r, err := w.Forget(t.Context(), name, ForgetOptions{}); err != nil || r.Removed != 1 || r.Waiting.Blobs != 1 {
					t.Fatalf("%s: %+v, %v", name, r, err)
				}
			}
			forgotten, err := w.Forgotten(t.Context())
			if want := i%2 == 0; err != nil || slices.Contains(forgotten, name) != want || len(forgotten) > 1 {
				t.Errorf("%s: %v, %v", name, forgotten, err)
			}
			if r, err := w.Forget(t.Context(), name, ForgetOptions{AtOnce: true}); err != nil || !r.Gone || r.Deleted.Blobs != 1 {
				t.Fatalf("%s: %+v, %v", name, r, err)
			}
			left, err := w.Repositories(t.Context())
			if want := slices.Sorted(slices.Values(all[i+1:])); err != nil || !slices.Equal(left, want) {
				t.Fatalf("after %s: %v, %v", name, left, err)
			}
			for _, other := range left {
				if found, err := w.Verify(t.Context(), other, VerifyOptions{ReadData: true}); err != nil || !found.OK() {
					t.Fatalf("after %s: %+v, %v", name, found, err)
				}
			}
		}
		for info, err := range s.List(t.Context(), "", "", 0) {
			t.Errorf("left: %s (%v)", info.Key, err)
		}
	}
}

// A first backup that takes longer than half the grace period, of a repository that was forgotten and is there again, is not told by each
// run of prune that what it has just put is about to go.
func TestForgottenBeginsAnewSlowly(t *testing.T) {
	w := newMonths(t)
	w.snapshot("old")
	w.forget(ForgetOptions{})
	w.pass(10 * time.Hour)
	began := w.manifest()
	k := w.object("K")
	for range 2 {
		w.pass(time.Hour)
		if r, err := w.FinishForgetting(t.Context(), "ip1"); err != nil || r.Waiting.Blobs != 2 || r.After.Before(w.clock.Add(20*time.Hour)) {
			t.Errorf("%+v, %v", r, err)
		}
	}
	w.pass(18 * time.Hour)
	if doomed, err := w.doomed(t.Context(), "ip1"); err != nil || doomed[k.Key] || len(doomed) != 1 {
		t.Errorf("it has to put everything again: %v, %v", doomed, err)
	}
	w.snapshotOf(began, k)
	for range 3 {
		w.pass(40 * time.Hour)
		w.prune(Policy{Last: 1})
	}
	if !w.has("K") || w.has("old") {
		t.Errorf("left: %v", w.area())
	}
	// What one that never ended has left goes as well.
	w.forget(ForgetOptions{})
	w.pass(10 * time.Hour)
	w.object("of no snapshot")
	for range 3 {
		w.pass(31 * time.Hour)
		if _, err := w.FinishForgetting(t.Context(), "ip1"); err != nil && !errors.Is(err, ErrNoSnapshot) {
			t.Fatal(err)
		}
	}
	if len(w.area()) != 0 {
		t.Errorf("left: %v", w.area())
	}
}

// A server whose clock begins in 1970 when it starts takes nothing for young that is not.
func TestOldDataIsNotYoungIn1970(t *testing.T) {
	w := newMonths(t)
	w.snapshot("K")
	w.pass(time.Hour)
	w.snapshot("b")
	w.prune(Policy{Last: 1})
	w.pass(29 * time.Hour)
	early := *w.Vault
	early.Now = func() time.Time { return time.Unix(60, 0) }
	for key, info := range map[string]time.Time{"K": w.clock.Add(-30 * time.Hour), "just now": w.clock} {
		if (&putter{v: &early}).young(store.Info{Time: info}) {
			t.Errorf("%s is young", key)
		}
	}
	if doomed, err := early.doomed(t.Context(), "ip1"); err != nil || len(doomed) != 1 {
		t.Errorf("what is about to be deleted is not: %v, %v", doomed, err)
	}
	if !(&putter{v: w.Vault}).young(store.Info{Time: w.clock.Add(5 * time.Hour)}) {
		t.Error("a clock that is somewhat behind")
	}
}
