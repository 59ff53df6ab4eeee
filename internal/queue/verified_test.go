package queue

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

func TestVerifiedRow(t *testing.T) {
	const now, before = 10_000_000, 9_999_000
	key := Key{"ip1", "sam"}
	ok := job{Key: key, want: 3, seen: 3, done: 3, run: 5, settled: 5, state: StateOK, digest: "d", note: "n",
		lastSuccess: now - 1000, changed: before - 1, created: 1}
	change := func(f func(*job)) job { j := ok; f(&j); return j }
	pending := change(func(j *job) {
		j.want, j.oldest, j.later, j.laterOrigin, j.attempt, j.state, j.err = 5, 7, 8, inbox.OriginList, 3, StateFailed, "x"
	})
	satisfied := change(func(j *job) { j.want, j.seen, j.done, j.note, j.lastSuccess = 5, 5, 5, "", now })
	with := func(j job, f func(*job)) job { f(&j); return j }
	for name, c := range map[string]struct{ before, want job }{
		"new":                 {job{Key: key}, job{Key: key, state: StateOK, digest: "d", lastSuccess: now, created: now}},
		"equal":               {ok, ok},
		"equal, long ago":     {change(func(j *job) { j.lastSuccess = now - 600_000 }), change(func(j *job) { j.lastSuccess, j.note = now, "" })},
		"other digest":        {change(func(j *job) { j.digest = "old" }), change(func(j *job) { j.lastSuccess, j.note = now, "" })},
		"dropped":             {change(func(j *job) { j.state, j.err = StateDropped, "in no list" }), change(func(j *job) { j.lastSuccess, j.note = now, "" })},
		"failed":              {pending, satisfied},
		"held":                {with(pending, func(j *job) { j.state = StateHeld }), satisfied},
		"waiting":             {with(pending, func(j *job) { j.state = "" }), satisfied},
		"changed since":       {with(pending, func(j *job) { j.changed = before }), with(pending, func(j *job) { j.changed = before })},
		"equal to a newer":    {change(func(j *job) { j.changed, j.digest = before, "newer" }), change(func(j *job) { j.changed, j.digest = before, "newer" })},
		"running":             {with(pending, func(j *job) { j.owner, j.lease = "x", now+1 }), with(pending, func(j *job) { j.owner, j.lease = "x", now+1 })},
		"run by a dead owner": {with(pending, func(j *job) { j.owner, j.lease, j.probe = "x", now, true }), satisfied},
	} {
		if got := c.before.verified(Verification{Key: key, Digest: "d"}, before, now); got != c.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
	// What a comparison found worth telling is told, at once when it is new.
	for name, c := range map[string]struct {
		before, want job
		note         string
		exact        bool
	}{
		"as before":           {ok, ok, "n", false},
		"as before, long ago": {change(func(j *job) { j.lastSuccess = now - 600_000 }), change(func(j *job) { j.lastSuccess = now }), "n", false},
		"another":             {ok, change(func(j *job) { j.lastSuccess, j.note = now, "m" }), "m", false},
		"none any more":       {ok, change(func(j *job) { j.lastSuccess, j.note = now, "" }), "", true},
		"exactly as before":   {ok, ok, "n", true},
		"of a new row":        {job{Key: key}, job{Key: key, state: StateOK, digest: "d", note: "m", lastSuccess: now, created: now}, "m", false},
		"while it runs":       {change(func(j *job) { j.owner, j.lease = "x", now+1 }), change(func(j *job) { j.owner, j.lease = "x", now+1 }), "m", false},
	} {
		if got := c.before.verified(Verification{Key: key, Digest: "d", Note: c.note, ExactNote: c.exact}, before, now); got != c.want {
			t.Errorf("note %s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
}

func TestVerified(t *testing.T) { onBoth(t, testVerified) }

func testVerified(t *testing.T) {
	q, clock := openFake(t)
	failed, held, down, running, late, equal := Key{"failed", "a"}, Key{"held", "b"}, Key{"down", "c"}, Key{"running", "d"}, Key{"late", "e"}, Key{"equal", "f"}
	enqueue(t, q, failed, held, down, running, equal)
	results := map[Key]error{failed: errors.New("x"), held: ErrHeld, down: ErrPeerDown, equal: nil}
	for range 5 {
		c, err := q.claim(t.Context(), limits{})
		if err != nil || c == nil {
			t.Fatal(c, err)
		}
		if c.Key != running {
			settle(t, q, c, results[c.Key])
		}
	}
	if err := q.Pause(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	clock.add(time.Second)
	since := clock.now()
	clock.add(time.Second)
	enqueue(t, q, late)
	known(t, q, tickets(t, q, failed, held), map[Key]State{failed: StateFailed, held: StateHeld})
	unknown := Key{"unknown", "g"}
	var copies []Verification
	for _, k := range []Key{failed, held, down, running, late, equal, unknown} {
		copies = append(copies, Verification{Key: k, Digest: "d"})
	}
	if n, err := q.Verified(t.Context(), copies, since); n != 3 || err != nil {
		t.Errorf("satisfied %d, %v", n, err)
	}
	known(t, q, tickets(t, q, failed, held), map[Key]State{failed: StateOK, held: StateOK})
	for k, want := range map[Key]State{failed: StateOK, held: StateOK, down: StateOK, running: StateRunning, late: StateWaiting, equal: StateOK, unknown: StateOK} {
		r := row(t, q, k)
		if r.State != want || want == StateOK && (r.Digest != "d" || r.Lag != 0 || r.Attempt != 0 || r.Error != "") {
			t.Errorf("%+v, want %s", r, want)
		}
	}
	if r := row(t, q, equal); !r.LastSuccess.Before(since) {
		t.Errorf("written for nothing: %+v", r)
	}
	peers, err := q.Peers(t.Context())
	if err != nil || len(peers) != 7 {
		t.Errorf("%d peers, %v", len(peers), err)
	}
	for _, p := range peers {
		if !p.DownSince.IsZero() || p.Attempt != 0 || !p.RetryAt.IsZero() {
			t.Errorf("it answered: %+v", p)
		}
	}
	mustClaim(t, q, late)
	noClaim(t, q, limits{})
	enqueue(t, q, failed) // pushed again
	mustClaim(t, q, failed)
}

func TestVerifiedRefuses(t *testing.T) {
	q, clock := openFake(t)
	for _, k := range []Key{{"", "sam"}, {"ip1", ""}, {"a\x00b", "sam"}, {"ip1", "\xff"}} {
		if _, err := q.Verified(t.Context(), []Verification{{Key: samKey, Digest: "d"}, {Key: k, Digest: "d"}}, clock.now()); err == nil {
			t.Errorf("accepted %q", k)
		}
	}
	if rows, err := q.Rows(t.Context(), Filter{}); err != nil || rows != nil {
		t.Errorf("%v, %v", rows, err)
	}
}

// More copies than one statement takes, of several peers, most of them known.
func TestVerifiedMany(t *testing.T) { onBoth(t, testVerifiedMany) }

func testVerifiedMany(t *testing.T) {
	q, clock := openFake(t)
	var keys []Key
	for i := range chunk + chunk/2 {
		keys = append(keys, Key{fmt.Sprint("r", i), "sam"}, Key{fmt.Sprint("r", i), "gollum"})
	}
	enqueue(t, q, keys[:chunk]...)
	clock.add(time.Second)
	for _, round := range []struct {
		pass time.Duration
		n    int
	}{{0, chunk}, {time.Minute, 0}, {time.Hour, 0}} {
		clock.add(round.pass)
		if n, err := q.Verified(t.Context(), verifications(keys, "d"), clock.now()); n != round.n || err != nil {
			t.Fatalf("after %v: %d, %v", round.pass, n, err)
		}
	}
	rows, err := q.Rows(t.Context(), Filter{})
	if err != nil || len(rows) != len(keys) {
		t.Fatal(len(rows), err)
	}
	for _, r := range rows {
		if r.State != StateOK || r.Digest != "d" || !r.LastSuccess.Equal(clock.now()) {
			t.Fatalf("%+v", r)
		}
	}
	if r := row(t, q, keys[0]); r.Want != r.Done || r.Seen != r.Done {
		t.Errorf("%+v", r)
	}
}

// While runs go on: what runs is left alone, and nothing that is pushed meanwhile is taken for equal.
func TestVerifiedBesideRuns(t *testing.T) { onBoth(t, testVerifiedBesideRuns) }

func testVerifiedBesideRuns(t *testing.T) {
	dir := t.TempDir()
	q, other := open(t, dir, nil), open(t, dir, nil)
	keys := []Key{{"r0", "sam"}, {"r1", "sam"}, {"r2", "gollum"}, {"r3", "gollum"}}
	enqueue(t, q, keys...)
	end := time.Now().Add(time.Second)
	compared := make(chan error, 1)
	go func() {
		for time.Now().Before(end) {
			since := time.Now().Add(-time.Hour) // everything has changed since
			if n, err := other.Verified(t.Context(), verifications(keys, "stale"), since); err != nil || n != 0 {
				compared <- fmt.Errorf("satisfied %d: %w", n, err)
				return
			}
		}
		compared <- nil
	}()
	runs := 0
	for time.Now().Before(end) {
		c, err := q.claim(t.Context(), limits{})
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			t.Fatal("a pushed job was taken for equal")
		}
		if !settle(t, q, c, nil) {
			t.Fatal("the result of a run was lost")
		}
		if r := row(t, q, c.Key); r.Digest != "d" {
			t.Fatalf("an older digest hides the run's: %+v", r)
		}
		enqueue(t, q, c.Key)
		runs++
	}
	if err := <-compared; err != nil {
		t.Error(err)
	}
	t.Logf("%d runs", runs)
}

// A run that did not find all out keeps a part of the note, and only when it ends well.
func TestRenote(t *testing.T) {
	before := job{Key: Key{"ip1", "sam"}, want: 1, seen: 1, run: 1, note: "old"}
	r := Result{Digest: "d", Note: "new", Renote: func(before string) string { return "new\n" + before }}
	if got := before.settledWith(result{state: StateOK, Result: r}, nil, 0, 1).note; got != "new old" {
		t.Errorf("equal: %q", got)
	}
	if got := before.settledWith(result{state: StateHeld, Result: r}, nil, 0, 1).note; got != "new" {
		t.Errorf("held: %q", got)
	}
}
