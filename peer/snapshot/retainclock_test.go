package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/git"
)

// A clock that was a year ahead for one backup: what is taken after it has been set right is named right behind that one, for a
// year. Each day still has its snapshot, whatever else prune has removed by then. A clock that was set back likewise.
func TestPruneAfterTheClockWasWrong(t *testing.T) {
	for what, wrong := range map[string]time.Duration{"ahead": 365 * 24 * time.Hour, "back": -365 * 24 * time.Hour, "back, and not the store's": -365 * 24 * time.Hour} {
		t.Run(what, func(t *testing.T) {
			v, m := testVault(t)
			v.Grace = time.Hour
			r := newSource(t)
			source := Source{Repository: "ip1", Repo: git.Repo{Dir: r.Dir}}
			clock := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
			v.Now = func() time.Time { return clock }
			var offset time.Duration
			m.now = func() time.Time {
				if strings.Contains(what, "store's") {
					return clock.Add(-offset)
				}
				return clock
			}
			var taken []Name // of the last of each day
			for day := range 30 {
				commitTo(t, r, "refs/heads/main", fmt.Sprint(day, " early"))
				offset = 0
				if day == 8 || what != "ahead" && day > 8 && day < 25 {
					offset = wrong
				}
				clock = clock.Add(offset)
				take1(t, v, source)
				clock = clock.Add(time.Hour)
				commitTo(t, r, "refs/heads/main", fmt.Sprint(day, " late"))
				late := take1(t, v, source)
				if told := strings.Contains(late.Note, "the clock was ahead then, or is behind now"); told != (late.Name.Time.Sub(clock) > clocksDiffer) {
					t.Errorf("day %d: of %s at %s: %q", day, late.Name.Time, clock, late.Note)
				}
				taken = append(taken, late.Name)
				clock = clock.Add(-offset).Add(23 * time.Hour)
				offset = 0
				if day%10 == 9 {
					if _, err := v.Prune(t.Context(), "ip1", Policy{Daily: 14}); err != nil {
						t.Fatal(err)
					}
				}
			}
			left := map[string]bool{}
			names, err := v.manifests(t.Context(), "ip1")
			for _, n := range names {
				left[n.Sum] = true
			}
			for day, n := range taken[30-13:] { // one place may be that of the wrong time
				if !left[n.Sum] {
					t.Errorf("nothing of the %d. day of the last 13 is left", day+1)
				}
			}
			if err != nil || len(names) > 20 {
				t.Errorf("%d are left, %v", len(names), err)
			}
		})
	}
}

// A prune that was killed while the clock was a year ahead, and the marks of one that was not, hold nobody up for a year.
func TestPruneAfterTheClockWasAhead(t *testing.T) {
	const year = 365 * 24 * time.Hour
	w := newMonths(t)
	w.snapshot("a", "old")
	w.pass(time.Hour)
	w.snapshot("a")
	w.pass(year)
	if r := w.prune(Policy{Last: 1}); len(r.Removed) != 1 || r.Waiting.Blobs != 1 {
		t.Errorf("%+v", r)
	}
	killed, err := w.lease(t.Context(), "ip1")
	if err != nil {
		t.Fatal(err)
	}
	w.pass(-year)
	if _, err := w.Prune(t.Context(), "ip1", Policy{Last: 1}); !errors.Is(err, ErrBusy) {
		t.Errorf("it may be alive, and renew its lease: %v", err)
	}
	if keys := w.below("marks/"); slices.Contains(keys, killed.keys[0]) {
		t.Errorf("its lease still is of next year: %q", keys)
	}
	w.pass(21 * time.Minute)
	for range 2 { // it is too young to be announced again, and then is
		w.prune(Policy{Last: 1})
		w.pass(31 * time.Hour)
	}
	if r := w.prune(Policy{Last: 1}); r.Deleted.Blobs != 1 {
		t.Errorf("what nobody needs stays: %+v, %q", r, w.below("marks/"))
	}
}

// A store's clock that is years behind, or a vault that was copied, moves nothing: snapshots that were taken within a minute are of the day that
// they are named after.
func TestPolicyWhereTheStoresClockIsBehind(t *testing.T) {
	var names []Name
	put, copied := map[string]time.Time{}, map[string]time.Time{}
	for day := range 30 {
		for push := range 3 {
			n := Name{Repository: "ip1", Time: time.Date(2026, 11, 1+day, 12, 0, push*10, 0, time.UTC), Digest: strings.Repeat("d", 64), State: strings.Repeat("0", 32), Sum: fmt.Sprintf("%032x", day*3+push)}
			names = append(names, n)
			put[n.Key()] = n.Time.AddDate(-20, 0, 0).Add(time.Duration(push) * time.Second) // when its upload was at its end
			copied[n.Key()] = time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(len(names)) * time.Second)
		}
	}
	slices.SortFunc(names, newestFirst)
	kept := func(p Policy) string {
		stay, _ := p.choose(names, nil, nil, names[0].Time)
		var days []string
		for _, n := range stay {
			days = append(days, n.Time.Format("2 15:04:05"))
		}
		return strings.Join(days, ", ")
	}
	for _, p := range []Policy{{Daily: 7}, {Weekly: 3}, {Hourly: 5}, {Daily: 14, Monthly: 2}} {
		named := kept(p)
		for what, put := range map[string]map[string]time.Time{"behind": put, "copied": copied} {
			p.put = put
			if got := kept(p); got != named {
				t.Errorf("%s, %d hourly, %d daily, %d weekly, %d monthly: kept are %s and not %s", what, p.Hourly, p.Daily, p.Weekly, p.Monthly, got, named)
			}
		}
	}
}

// What was forgotten while the clock was a year ahead is gone a grace period after that clock has been set right.
func TestForgetAfterTheClockWasAhead(t *testing.T) {
	const year = 365 * 24 * time.Hour
	w := newMonths(t)
	w.snapshot("a", "old")
	w.pass(48*time.Hour + year)
	if r, err := w.Forget(t.Context(), "ip1", ForgetOptions{}); err != nil || r.Waiting.Blobs != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	w.pass(-year)
	r, err := w.FinishForgetting(t.Context(), "ip1")
	if err != nil || r.Waiting.Blobs != 2 || r.After.Sub(w.clock) > 48*time.Hour {
		t.Errorf("%+v, %v", r, err)
	}
	marks := len(w.below("marks/"))
	if _, err := w.FinishForgetting(t.Context(), "ip1"); err != nil || len(w.below("marks/")) != marks {
		t.Errorf("each run makes more marks: %q, %v", w.below("marks/"), err)
	}
	w.pass(31 * time.Hour)
	if r, err := w.FinishForgetting(t.Context(), "ip1"); err != nil || !r.Gone || len(w.below("")) > 0 {
		t.Errorf("%+v, %v; left are %q", r, err, w.below(""))
	}
}

// What is kept within a time is what came within it, also when it is named after an older snapshot because the clock here was put back.
func TestWithinAfterTheClockWasPutBack(t *testing.T) {
	var names []Name
	put := map[string]time.Time{}
	began, day := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), 24*time.Hour
	for i := range 21 {
		n := Name{Repository: "ip1", Time: began.Add(time.Duration(i) * time.Millisecond), Digest: strings.Repeat("d", 64), State: strings.Repeat("0", 32), Sum: fmt.Sprintf("%032x", i)}
		if i == 20 { // it is right again
			n.Time = began.Add(20 * day)
		}
		names, put[n.Key()] = append(names, n), began.Add(time.Duration(i)*day)
	}
	p := Policy{Within: 10*day + time.Hour, put: put}
	if stay, _ := p.choose(names, nil, nil, began.Add(20*day)); len(stay) != 12 {
		t.Errorf("%d of the last eleven days are kept, with the one before them", len(stay))
	}
}
