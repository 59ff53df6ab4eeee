package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Policy says which snapshots of a repository stay. Each rule keeps some; what no rule keeps goes.
// Whatever the rules, the latest snapshot stays, and so does the latest that is not known to be bad.
type Policy struct {
	Last int // so many newest snapshots
	// The newest snapshot of each of the so many latest hours, days, ISO weeks, months and years
	// that have a snapshot: a server that was off for a month loses nothing by it.
	Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps all that are at most so much older than now, or than the latest snapshot
	// if that is older, and the one before them: a snapshot stands for the time until the next.
	Within time.Duration
	// IDs keeps the snapshots of these runs.
	IDs []string
	// Location is where days begin; nil: UTC.
	Location *time.Location
	// DryRun has Prune say what it would do, and write and delete nothing.
	DryRun bool

	// put is when the store got the manifests, by their keys; nil: not known. See times.
	put map[string]time.Time
}

// ErrNoPolicy: the policy would keep nothing but the latest snapshot, because nothing in it is set.
var ErrNoPolicy = errors.New("the policy says nothing about what to keep: set at least one of keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly and keep_within (for nothing but the latest snapshot, keep_last = 1)")

// Check refuses a policy that says nothing, or something that cannot be meant.
func (p Policy) Check() error {
	set := p.Within > 0 || len(p.IDs) > 0
	for _, rule := range p.rules() {
		if rule.count < 0 {
			return fmt.Errorf("keep_%s = %d: write a number that is not negative", rule.name, rule.count)
		}
		set = set || rule.count > 0
	}
	if p.Within < 0 {
		return fmt.Errorf("keep_within = %s: write a duration that is not negative", p.Within)
	}
	for _, id := range p.IDs {
		if err := CheckID(id); err != nil {
			return err
		}
	}
	if !set {
		return ErrNoPolicy
	}
	return nil
}

// rule keeps one snapshot of each of the count newest periods.
type rule struct {
	name   string
	count  int
	period func(time.Time) [3]int // equal for two times of the same period
}

func (p Policy) rules() []rule {
	return []rule{
		{"last", p.Last, nil}, // each snapshot is a period of its own
		{"hourly", p.Hourly, func(t time.Time) [3]int {
			// Hours of a clock that is put back are told apart by their offset.
			_, offset := t.Zone()
			return [3]int{t.Year(), t.YearDay()*24 + t.Hour(), offset}
		}},
		{"daily", p.Daily, func(t time.Time) [3]int { return [3]int{t.Year(), t.YearDay()} }},
		{"weekly", p.Weekly, func(t time.Time) [3]int { y, w := t.ISOWeek(); return [3]int{y, w} }},
		{"monthly", p.Monthly, func(t time.Time) [3]int { return [3]int{t.Year(), int(t.Month())} }},
		{"yearly", p.Yearly, func(t time.Time) [3]int { return [3]int{t.Year()} }},
	}
}

// choose splits the snapshots of one repository, in any order, into those that stay and those that go, each
// newest first. A snapshot whose Sum is in bad is not the one kept for its period when the period has
// another. Runs are those that found a snapshot unchanged, by its Sum. It needs nothing but its arguments, and never lets the latest go.
func (p Policy) choose(names []Name, bad map[string]bool, runs map[string][]string, now time.Time) (stay, gone []Name) {
	names = slices.SortedFunc(slices.Values(names), newestFirst)
	if len(names) == 0 {
		return nil, nil
	}
	keep := map[string]bool{names[0].Key(): true}
	if i := slices.IndexFunc(names, func(n Name) bool { return !bad[n.Sum] }); i >= 0 {
		keep[names[i].Key()] = true
	}
	for _, rule := range p.rules() {
		p.keepPeriods(rule, names, bad, keep)
	}
	if now.After(names[0].Time) {
		now = names[0].Time
	}
	p.keepWithin(now.Add(-p.Within), names, bad, keep)
	for _, n := range names {
		if slices.ContainsFunc(append(runs[n.Sum], n.ID), func(id string) bool { return id != "" && slices.Contains(p.IDs, id) }) {
			keep[n.Key()] = true
		}
	}
	for _, n := range names {
		if keep[n.Key()] {
			stay = append(stay, n)
		} else {
			gone = append(gone, n)
		}
	}
	return stay, gone
}

// keepWithin adds what Within keeps of names, which are sorted newest first: all since that time, and the newest one
// at or before it that is not bad. That was the repository's state until the first of the others was taken.
func (p Policy) keepWithin(since time.Time, names []Name, bad, keep map[string]bool) {
	if p.Within <= 0 {
		return
	}
	for i, taken := range p.times(names) {
		n := names[i]
		if n.Time.After(taken) { // too many are better than too few
			taken = n.Time
		}
		if taken.Before(since) && bad[n.Sum] {
			continue
		}
		if keep[n.Key()] = true; !taken.After(since) && !bad[n.Sum] {
			return
		}
	}
}

// newestFirst orders as the store lists.
func newestFirst(a, b Name) int { return strings.Compare(a.Key(), b.Key()) }

// keepPeriods adds what a rule keeps of names, which are sorted newest first: of each of its newest periods the
// newest snapshot that is not bad, or the newest when all are. A bad one does not use up a place of
// keep_last either, as long as there are others to fill it.
func (p Policy) keepPeriods(r rule, names []Name, bad map[string]bool, keep map[string]bool) {
	if r.count == 0 {
		return
	}
	if r.period == nil {
		sorted := slices.SortedStableFunc(slices.Values(names), func(a, b Name) int { return rank(bad[a.Sum]) - rank(bad[b.Sum]) })
		for _, n := range sorted[:min(r.count, len(sorted))] {
			keep[n.Key()] = true
		}
		return
	}
	where := p.Location
	if where == nil {
		where = time.UTC
	}
	var order [][3]int
	best := map[[3]int]Name{}
	times := p.times(names)
	for i, n := range names {
		period := r.period(times[i].In(where))
		have, seen := best[period]
		if !seen && len(order) == r.count {
			continue
		}
		if !seen {
			order = append(order, period)
		}
		if !seen || bad[have.Sum] && !bad[n.Sum] {
			best[period] = n
		}
	}
	for _, n := range best {
		keep[n.Key()] = true
	}
}

// clocksDiffer is how much the clocks of a server and of a store may differ without that one of them was set wrong.
const clocksDiffer = time.Hour

// overruledFor is how far the names of snapshots are apart at the most whose clock was overruled, by a millisecond each, when most
// of them are gone.
const overruledFor = time.Minute

// times returns when snapshots, which are sorted newest first, were taken. One that is named after a clock that was ahead has all that follow
// it named right behind it, until that time has come: as if a year were one day, of which a policy keeps one
// snapshot. So has one before a clock that was put back. For these the store's time counts. A store's clock that is behind makes none: snapshots that were
// taken one right after the other came to it like that.
func (p Policy) times(names []Name) []time.Time {
	times := make([]time.Time, len(names))
	overruled := false // the one before
	for i, n := range slices.Backward(names) {
		times[i] = n.Time
		put, known := p.put[n.Key()]
		overruled = (overruled || p.apart(names, i)) && known && n.Time.Sub(put).Abs() > clocksDiffer && rightBehind(names, i)
		if overruled {
			times[i] = put
		}
	}
	return times
}

// rightBehind reports whether a snapshot is named right behind the one before it.
func rightBehind(names []Name, i int) bool {
	return i+1 < len(names) && names[i].Time.Sub(names[i+1].Time) < overruledFor
}

// apart reports whether the store got a snapshot and the one before it at times that are not as far apart as their names.
func (p Policy) apart(names []Name, i int) bool {
	if i+1 >= len(names) {
		return false
	}
	put, known := p.put[names[i].Key()]
	before, known2 := p.put[names[i+1].Key()]
	apart := put.Sub(before) - names[i].Time.Sub(names[i+1].Time)
	return known && known2 && apart.Abs() >= overruledFor
}

func rank(bad bool) int {
	if bad {
		return 1
	}
	return 0
}
