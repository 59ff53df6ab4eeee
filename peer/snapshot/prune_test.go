package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"go.uber.org/goleak"

	"mirror-shell/peer/store"
)

// months is a vault with a clock of its own.
type months struct {
	*Vault
	store    *memory
	clock    time.Time
	toForget noted
	t        testing.TB
}

func newMonths(t testing.TB) *months {
	v, m := testVault(t)
	w := &months{Vault: v, store: m, clock: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), t: t}
	m.now = func() time.Time { return w.clock }
	v.Now, v.Grace, v.ToForget = m.now, 24*time.Hour, w.toForget.of
	return w
}

// object puts content as a kept file.
func (w *months) object(content string) Object {
	w.t.Helper()
	sum := sha256.Sum256([]byte(content))
	o := Object{Key: dataOf("ip1") + "file-" + hex.EncodeToString(sum[:]), Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	b := w.blob([]byte(content))
	o.Retained = b.Retain
	if err := w.Store.Put(w.t.Context(), o.Key, b); err != nil && !errors.Is(err, store.ErrExists) {
		w.t.Fatal(err)
	}
	return o
}

// manifest is one of now, without files.
func (w *months) manifest() *Manifest {
	m := &Manifest{Format: Format, Repository: "ip1", Time: w.clock.UTC(), Server: "frodo", Program: "test", ObjectFormat: "sha1", Head: "refs/heads/main", Digest: strings.Repeat("d", 64), Refs: map[string]string{}, Packs: []Pack{}}
	if last, err := w.Latest(w.t.Context(), "ip1"); err == nil {
		m.Previous = last.Sum
	}
	return m
}

// snapshot makes one with files of those contents, which are put unless they are there.
func (w *months) snapshot(contents ...string) Name {
	w.t.Helper()
	m := w.manifest()
	var objects []Object
	for _, c := range contents {
		objects = append(objects, w.object(c))
	}
	return w.snapshotOf(m, objects...)
}

func (w *months) snapshotOf(m *Manifest, objects ...Object) Name {
	w.t.Helper()
	for i, o := range objects {
		m.Files = append(m.Files, File{Path: fmt.Sprintf("hooks/f%d", i), Mode: 0o644, Object: o})
	}
	name, _, err := w.publish(w.t.Context(), m)
	if err != nil {
		w.t.Fatal(err)
	}
	return name
}

func (w *months) has(content string) bool {
	sum := sha256.Sum256([]byte(content))
	_, ok := w.store.blobs[dataOf("ip1")+"file-"+hex.EncodeToString(sum[:])]
	return ok
}

func (w *months) prune(p Policy) PruneReport {
	w.t.Helper()
	r, err := w.Prune(w.t.Context(), "ip1", p)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *months) pass(d time.Duration) { w.clock = w.clock.Add(d) }

func (w *months) below(prefix string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(w.store.blobs)), func(k string) bool { return !strings.HasPrefix(k, prefix) })
}

func TestPruneTakesTwoRunsAndAGracePeriod(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newMonths(t)
	first := w.snapshot("old", "both")
	w.record1("bad", first)
	w.pass(48 * time.Hour)
	second := w.snapshot("both", "new")
	keepOne := Policy{Last: 1}

	dry := w.prune(Policy{Last: 1, DryRun: true})
	if len(dry.Removed) != 1 || dry.Removed[0] != first.Key() || dry.Waiting.Blobs != 1 || len(w.below("marks/")) != 0 || len(w.below("snapshots/")) != 2 {
		t.Errorf("dry run: %+v, %v", dry, w.below(""))
	}
	r := w.prune(keepOne)
	if r.Kept != 1 || len(r.Removed) != 1 || r.Deleted.Blobs != 0 || r.Waiting != (Amount{1, 3}) {
		t.Errorf("%+v", r)
	}
	if got := w.below("snapshots/"); len(got) != 1 || got[0] != second.Key() || !w.has("old") || len(w.below("checks/")) != 0 {
		t.Errorf("left: %v", w.below(""))
	}
	marks := len(w.below("marks/"))
	w.pass(29 * time.Hour)
	if r := w.prune(keepOne); r.Deleted.Blobs != 0 || r.Waiting.Blobs != 1 || len(w.below("marks/")) != marks {
		t.Errorf("in the grace period: %+v, %v", r, w.below("marks/"))
	}
	w.pass(2 * time.Hour)
	if r := w.prune(Policy{Last: 1, DryRun: true}); r.Deleted != (Amount{1, 3}) || !w.has("old") {
		t.Errorf("dry run: %+v", r)
	}
	if r := w.prune(keepOne); r.Deleted != (Amount{1, 3}) || w.has("old") || !w.has("both") || !w.has("new") {
		t.Errorf("after it: %+v, %v", r, w.below("data/"))
	}
	gone, err := w.removed(t.Context(), "ip1")
	if err != nil || !gone[first.Sum] || len(gone) != 1 {
		t.Errorf("what the latest snapshot follows is not known as removed: %v, %v", gone, err)
	}
	puts := w.store.puts
	w.pass(100 * 24 * time.Hour)
	w.prune(keepOne)
	if w.store.puts != puts+1 { // the lease
		t.Errorf("a run without anything to do wrote %d blobs", w.store.puts-puts)
	}
	w.snapshot("new")
	w.prune(keepOne)
	w.pass(100 * 24 * time.Hour)
	w.prune(keepOne)
	w.pass(100 * 24 * time.Hour)
	w.prune(keepOne)
	if gone, _ = w.removed(t.Context(), "ip1"); !gone[second.Sum] || !gone[first.Sum] || len(gone) != 2 || len(w.below("marks/")) != 1 {
		t.Errorf("marks pile up: %v, %v", gone, w.below("marks/"))
	}
}

// record1 stores an empty check of that kind.
func (w *months) record1(kind string, n Name) {
	w.t.Helper()
	name := checkName{Repository: n.Repository, Time: w.clock, Kind: kind, Sum: n.Sum}
	if err := w.Store.Put(w.t.Context(), name.key(), w.blob([]byte("{}"))); err != nil {
		w.t.Fatal(err)
	}
}

// Data that came into use again after it was marked, and out of it once more, has another grace period: a backup
// may have begun while it was in use. The mark is young while that happens, or old and cannot be deleted.
func TestPruneOldMarksForgetWhatCameBack(t *testing.T) {
	for _, locked := range []bool{false, true} {
		w := newMonths(t)
		last := Policy{Last: 1}
		w.snapshot("K")
		k := w.object("K") // a backup begins, which goes by the first snapshot
		w.pass(time.Hour)
		w.snapshot("b")
		w.prune(last)
		if locked {
			for _, key := range w.below("marks/") {
				w.store.retained[key] = w.clock.Add(1000 * time.Hour)
			}
		}
		w.pass(9 * time.Hour)
		w.snapshotOf(w.manifest(), k) // it ends
		w.pass(19 * time.Hour)
		if locked {
			w.pass(40 * time.Hour) // the mark is old
		}
		began := w.manifest() // another one begins
		w.pass(time.Minute)
		w.snapshot("d")
		w.prune(last)
		w.pass(4 * time.Hour)
		w.prune(last)
		if began.Time = w.clock; !w.has("K") {
			t.Fatalf("locked %v: what a backup relies on is deleted", locked)
		}
		w.snapshotOf(began, k)
		w.pass(100 * time.Hour)
		if w.prune(last); !w.has("K") || w.has("d") && !locked {
			w.pass(100 * time.Hour)
			w.prune(last)
		}
		if !w.has("K") {
			t.Fatalf("locked %v: a snapshot lost what it needs", locked)
		}
	}
}

// The list of what was removed does not grow for ever, and forgets nothing that is followed.
func TestPruneTrim(t *testing.T) {
	p := &pruning{named: &inventory{follows: map[string]bool{fmt.Sprintf("%032x", 3): true}}}
	p.gone = []Name{named(time.Unix(0, 0), 5, "")}
	var m mark
	said := map[string]bool{}
	for i := range 3000 {
		for range 2 {
			m.remove(removed{fmt.Sprintf("%032x", i), time.Unix(int64(i), 0)}, said)
		}
	}
	if p.trim(&m); len(m.Removed) != keepRemoved+2 || m.Removed[0].Time.Unix() != 2999 || m.Removed[keepRemoved].Time.Unix() != 5 || m.Removed[keepRemoved+1].Time.Unix() != 3 {
		t.Errorf("%d: %v", len(m.Removed), m.Removed[max(0, len(m.Removed)-3):])
	}
}

func TestPruneOrphans(t *testing.T) {
	w := newMonths(t)
	w.object("killed")
	w.snapshot("a")
	w.pass(23 * time.Hour)
	if r := w.prune(Policy{Last: 1}); r.Waiting.Blobs != 0 || len(w.below("marks/")) != 0 {
		t.Errorf("what a backup may still be about to use is a candidate: %+v", r)
	}
	w.pass(2 * time.Hour)
	if r := w.prune(Policy{Last: 1}); r.Waiting.Blobs != 1 {
		t.Errorf("%+v", r)
	}
	w.pass(31 * time.Hour)
	if r := w.prune(Policy{Last: 1}); r.Deleted.Blobs != 1 || w.has("killed") || !w.has("a") || len(w.below("marks/")) != 0 {
		t.Errorf("%+v %v", r, w.below(""))
	}
}

// Checks that nothing had changed, and drills, are thinned like snapshots; verdicts stay with their snapshot.
func TestPruneThinsChecks(t *testing.T) {
	w := newMonths(t)
	n := w.snapshot("a")
	w.record1("good", n)
	for range 48 {
		w.pass(time.Hour)
		w.record1("same", n)
		w.record1("drill", n)
	}
	w.prune(Policy{Daily: 7})
	if got := w.below("checks/"); len(got) != 7 { // twice three days, and the verdict
		t.Errorf("%v", got)
	}
}

func TestPruneStopsOnDoubt(t *testing.T) {
	tests := []struct {
		name   string
		damage func(*months, Name)
		want   error
		says   string
	}{
		{"a damaged manifest", func(w *months, n Name) { w.store.blobs[n.Key()][9] ^= 1 }, ErrDamaged, "nothing of ip1 is deleted"},
		{"a manifest of another format", func(w *months, n Name) { w.store.blobs[snapshotsOf("ip1")+"00-v2.json"] = []byte("x") }, nil, "newer version"},
		{"the store does not answer", func(w *months, n Name) {
			w.store.before = func(op, key string) error {
				if op == "get" && key == n.Key() {
					return store.ErrUnreachable
				}
				return nil
			}
		}, store.ErrUnreachable, ""},
		{"a damaged mark", func(w *months, n Name) {
			w.store.blobs[marksOf("ip1")+"9999999999999-19700101T000000.000Z-"+strings.Repeat("0", 32)+".json"] = []byte("{}")
		}, ErrDamaged, "delete every mark"},
		{"no snapshot at all", func(w *months, n Name) {
			for _, k := range w.below("snapshots/") {
				delete(w.store.blobs, k)
			}
		}, ErrNoSnapshot, ""},
		{"no identity", func(w *months, n Name) {
			id, _ := age.GenerateX25519Identity()
			w.Recipients = []age.Recipient{id.Recipient()}
		}, ErrKey, "identity_file"},
		{"a wrong identity", func(w *months, n Name) {
			id, _ := age.GenerateX25519Identity()
			other, _ := age.GenerateX25519Identity()
			w.Recipients = []age.Recipient{id.Recipient()}
			w.snapshot("c")
			w.Identities = []age.Identity{other}
		}, ErrKey, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			w := newMonths(t)
			w.object("orphan")
			n := w.snapshot("a")
			w.pass(48 * time.Hour)
			w.snapshot("b")
			w.prune(Policy{Last: 9})
			w.pass(48 * time.Hour)
			tt.damage(w, n)
			before := w.below("")
			_, err := w.Prune(t.Context(), "ip1", Policy{Last: 1})
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if after := w.below(""); !slices.Equal(before, after) {
				t.Errorf("changed: %v → %v", before, after)
			}
		})
	}
}

func TestPruneRefuses(t *testing.T) {
	w := newMonths(t)
	w.snapshot("a")
	if _, err := w.Prune(t.Context(), "ip1", Policy{}); !errors.Is(err, ErrNoPolicy) {
		t.Errorf("no policy: %v", err)
	}
	if _, err := w.Prune(t.Context(), "../ip1", Policy{Last: 1}); err == nil {
		t.Error("a name that is none")
	}
	l, err := w.lease(t.Context(), "ip1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Prune(t.Context(), "ip1", Policy{Last: 1}); !errors.Is(err, ErrBusy) || len(w.below("marks/")) != 1 {
		t.Errorf("beside another: %v", err)
	}
	w.prune(Policy{Last: 1, DryRun: true}) // needs none
	w.pass(11 * time.Minute)
	if _, _, err := l.hold(t.Context()); err == nil {
		t.Error("a lease is held although it was not renewed")
	}
	w.pass(10 * time.Minute) // it was killed
	w.prune(Policy{Last: 1})
	if len(w.below("marks/")) != 0 {
		t.Errorf("left: %v", w.below("marks/"))
	}
}

func TestPruneCancelled(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := newMonths(t)
	for i := range 30 {
		w.snapshot("all", fmt.Sprint(i))
		w.pass(time.Hour)
	}
	ctx, cancel := context.WithCancel(t.Context())
	deletes := 0
	w.store.before = func(op, key string) error {
		if op == "delete" && strings.HasPrefix(key, "snapshots/") {
			if deletes++; deletes == 5 {
				cancel()
			}
		}
		return nil
	}
	r, err := w.Prune(ctx, "ip1", Policy{Last: 2})
	if !errors.Is(err, context.Canceled) || len(r.Removed) != 5 || len(w.below("snapshots/")) != 25 {
		t.Errorf("%+v, %v", r, err)
	}
	if slices.ContainsFunc(w.below("marks/"), func(k string) bool { return strings.Contains(k, "lease") }) {
		t.Error("the lease stays")
	}
	w.prune(Policy{Last: 2}) // goes on where it was
	w.pass(31 * time.Hour)
	if r := w.prune(Policy{Last: 2}); r.Deleted.Blobs != 28 {
		t.Errorf("%+v", r)
	}
}

func TestPruneLocked(t *testing.T) {
	w := newMonths(t)
	w.Retain = 30 * 24 * time.Hour
	first := w.snapshot("old", "both")
	until := w.retainUntil()
	w.pass(time.Hour)
	second := w.snapshot("both")
	r := w.prune(Policy{Last: 1})
	if len(r.Removed) != 0 || len(r.Locked) != 1 || r.Locked[0] != (LockedBlob{first.Key(), until}) {
		t.Fatalf("%+v", r)
	}
	for range 29 * 24 / 7 { // marks neither pile up nor do they let go
		w.pass(7 * time.Hour)
		if r := w.prune(Policy{Last: 1}); len(r.Removed) != 0 || r.Deleted.Blobs != 0 {
			t.Fatalf("%+v", r)
		}
	}
	if n := len(w.below("marks/")); n > 2 {
		t.Errorf("%d marks", n)
	}
	if w.store.retained[second.Key()].Before(w.clock.Add(w.Retain/2-8*time.Hour)) || w.store.retained[first.Key()].After(until) {
		t.Errorf("retained until %v and %v", w.store.retained[second.Key()], w.store.retained[first.Key()])
	}
	w.pass(48 * time.Hour)
	if r := w.prune(Policy{Last: 1}); len(r.Removed) != 1 {
		t.Fatalf("%+v", r)
	}
	w.pass(31 * time.Hour)
	if r := w.prune(Policy{Last: 1}); r.Deleted.Blobs != 1 || w.has("old") || !w.has("both") {
		t.Fatalf("%+v", r)
	}
}

func TestExtend(t *testing.T) {
	w := newMonths(t)
	w.Retain = 10 * 24 * time.Hour
	w.snapshot("a", "b")
	if n, err := w.Extend(t.Context(), "ip1"); n != 0 || err != nil {
		t.Errorf("fresh: %d, %v", n, err)
	}
	w.pass(6 * 24 * time.Hour)
	if n, err := w.Extend(t.Context(), "ip1"); n != 3 || err != nil {
		t.Errorf("old: %d, %v", n, err)
	}
	if n, err := w.Extend(t.Context(), "ip1"); n != 0 || err != nil {
		t.Errorf("again: %d, %v", n, err)
	}
	// What was written when the vault retained for less, or nothing, is not taken for what it would get now.
	w.Retain = 0
	w.pass(6 * 24 * time.Hour)
	bare := w.snapshot("a")
	if w.Retain = 10 * 24 * time.Hour; !w.store.retained[bare.Key()].IsZero() {
		t.Fatal("retained already")
	}
	if n, err := w.Extend(t.Context(), "ip1"); n != 4 || err != nil || w.store.retained[bare.Key()].Sub(w.clock) < 9*24*time.Hour {
		t.Errorf("without retention: %d, %v, until %v", n, err, w.store.retained[bare.Key()])
	}
	w.Retain = 100 * 24 * time.Hour
	if n, err := w.Extend(t.Context(), "ip1"); n != 4 || err != nil || w.store.retained[bare.Key()].Sub(w.clock) < 99*24*time.Hour {
		t.Errorf("for longer: %d, %v, until %v", n, err, w.store.retained[bare.Key()])
	}
	w.pass(60 * 24 * time.Hour)
	delete(w.store.blobs, w.object("b").Key)
	n, err := w.Extend(t.Context(), "ip1")
	if n != 3 || !errors.Is(err, ErrDamaged) {
		t.Errorf("one is gone: %d, %v", n, err)
	}
}

func FuzzParseMark(f *testing.F) {
	seed := func(m mark) {
		m.Format, m.Time = Format, time.Date(2026, 11, 22, 3, 55, 57, 123e6, time.UTC)
		data, _ := json.Marshal(m)
		f.Add(data)
	}
	seed(mark{Removed: []removed{{strings.Repeat("a", 32), time.Now()}}})
	seed(mark{Candidates: []string{"data/ip1.git/file-1"}, Retires: []string{"marks/ip1.git/x.json"}})
	f.Add([]byte(`{"format":1,"candidates":["data/ip1.git/../x"]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		sum := sha256.Sum256(data)
		at := time.Date(2026, 11, 22, 3, 55, 57, 123e6, time.UTC)
		key := marksOf("ip1") + countdown(at) + "-" + at.Format(timeLayout) + "-" + hex.EncodeToString(sum[:16]) + ".json"
		m, err := parseMark("ip1", key, data)
		if err != nil {
			return
		}
		for _, k := range m.Candidates {
			if !strings.HasPrefix(k, "data/ip1.git/") || strings.Contains(k, "..") && strings.Contains(k, "/../") {
				t.Errorf("candidate %q", k)
			}
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var back mark
		if err := json.Unmarshal(again, &back); err != nil || len(back.Candidates) != len(m.Candidates) || len(back.Removed) != len(m.Removed) {
			t.Errorf("%v: %+v", err, back)
		}
	})
}
