package snapshot

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// keptByHand is what a policy keeps, written down as the README says it and with no regard to cost: each rule
// asks of each snapshot whether there is a reason to keep it.
func keptByHand(p Policy, names []Name, bad map[string]bool, now time.Time) map[string]bool {
	kept := map[string]bool{}
	newest := func(from []Name) (best Name) { // the newest that is not bad, or the newest
		for _, n := range from {
			better := best.Sum == "" || bad[best.Sum] && !bad[n.Sum]
			if better || bad[best.Sum] == bad[n.Sum] && n.Time.After(best.Time) {
				best = n
			}
		}
		return best
	}
	latest := names[0]
	for _, n := range names {
		if n.Time.After(latest.Time) {
			latest = n
		}
	}
	kept[latest.Sum], kept[newest(names).Sum] = true, true
	if now.After(latest.Time) {
		now = latest.Time
	}
	for _, rule := range []struct {
		count int
		label func(time.Time) string
	}{
		{p.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15 -0700") }},
		{p.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{p.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprintf("%04d-%02d", y, w) }},
		{p.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{p.Yearly, func(t time.Time) string { return t.Format("2006") }},
	} {
		periods, ends := map[string][]Name{}, map[string]time.Time{}
		for _, n := range names {
			label := rule.label(n.Time.In(p.Location))
			periods[label] = append(periods[label], n)
			if n.Time.After(ends[label]) {
				ends[label] = n.Time
			}
		}
		for label, of := range periods {
			younger := 0
			for _, end := range ends {
				if end.After(ends[label]) {
					younger++
				}
			}
			if younger < rule.count {
				kept[newest(of).Sum] = true
			}
		}
	}
	for _, n := range names {
		before, goodAfter := 0, 0
		for _, m := range names {
			if m.Time.After(n.Time) && !bad[m.Sum] || bad[n.Sum] && !bad[m.Sum] || bad[n.Sum] && bad[m.Sum] && m.Time.After(n.Time) {
				before++
			}
			if m.Time.After(n.Time) && !m.Time.After(now.Add(-p.Within)) && !bad[m.Sum] {
				goodAfter++ // it is the state at the beginning in place of n
			}
		}
		if before < p.Last {
			kept[n.Sum] = true
		}
		if age := now.Sub(n.Time); p.Within > 0 && (age < p.Within || age == p.Within || !bad[n.Sum] && goodAfter == 0) {
			kept[n.Sum] = true
		}
	}
	return kept
}

func TestChooseAsByHand(t *testing.T) {
	vienna, err := time.LoadLocation("Europe/Vienna")
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		// Around the end of a year, or the night when clocks are put back.
		base := rapid.SampledFrom([]time.Time{time.Date(2027, 1, 4, 1, 0, 0, 0, time.UTC), time.Date(2026, 10, 25, 3, 0, 0, 0, time.UTC)}).Draw(t, "base")
		span := rapid.SampledFrom([]int64{6, 80, 800, 20000}).Draw(t, "hours")
		ages := rapid.SliceOfNDistinct(rapid.Int64Range(0, span*60), 1, 40, rapid.ID).Draw(t, "minutes")
		var names []Name
		bad := map[string]bool{}
		for i, age := range ages {
			names = append(names, named(base.Add(-time.Duration(age)*time.Minute), i, ""))
			bad[names[i].Sum] = rapid.IntRange(0, 3).Draw(t, "bad") == 0
		}
		count := rapid.IntRange(0, 5)
		p := Policy{
			Last: count.Draw(t, "last"), Hourly: count.Draw(t, "hourly"), Daily: count.Draw(t, "daily"), Weekly: count.Draw(t, "weekly"), Monthly: count.Draw(t, "monthly"), Yearly: count.Draw(t, "yearly"),
			Within: time.Duration(rapid.Int64Range(0, span).Draw(t, "within")) * time.Hour, Location: rapid.SampledFrom([]*time.Location{time.UTC, vienna}).Draw(t, "zone"),
		}
		now := base.Add(time.Duration(rapid.Int64Range(-3, 100).Draw(t, "now")) * time.Hour)
		want := keptByHand(p, names, bad, now)
		stay, gone := p.choose(slices.Clone(names), bad, nil, now)
		for _, n := range stay {
			if !want[n.Sum] {
				t.Errorf("%s stays (bad: %v), and nothing says so", n.Time.In(p.Location), bad[n.Sum])
			}
		}
		for _, n := range gone {
			if want[n.Sum] {
				t.Errorf("%s goes (bad: %v), and should not", n.Time.In(p.Location), bad[n.Sum])
			}
		}
	})
}
