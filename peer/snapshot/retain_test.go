package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// named is a snapshot of "ip1" for tests of policies; its Sum is made from n.
func named(at time.Time, n int, id string) Name {
	return Name{Repository: "ip1", Time: at.UTC().Truncate(time.Millisecond), Digest: strings.Repeat("d", 64), State: strings.Repeat("5", 32), Sum: fmt.Sprintf("%032x", n), ID: id}
}

func TestPolicyChooses(t *testing.T) {
	berlin := time.FixedZone("UTC+1", 3600)
	times := []string{ // by their index from here on
		"2026-11-22T12:00:00Z", "2026-11-22T11:30:00Z", "2026-11-22T11:10:00Z", "2026-11-21T23:30:00Z", "2026-11-21T08:00:00Z",
		"2026-11-15T12:00:00Z", "2026-11-09T12:00:00Z", "2026-10-31T12:00:00Z", "2026-01-01T12:00:00Z", "2025-12-31T12:00:00Z",
		"2025-12-28T12:00:00Z",
	}
	tests := []struct {
		name   string
		policy Policy
		bad    []int
		want   []int
	}{
		{"last", Policy{Last: 3}, nil, []int{0, 1, 2}},
		{"more than there are", Policy{Last: 99}, nil, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
		{"hours that have one", Policy{Hourly: 3}, nil, []int{0, 1, 3}},
		{"days that have one", Policy{Daily: 3}, nil, []int{0, 3, 5}},
		{"days of another place", Policy{Daily: 2, Location: berlin}, nil, []int{0, 4}},
		{"weeks begin on Monday, and a Sunday is of the week before", Policy{Weekly: 2}, nil, []int{0, 5}},
		{"the first of January and the day before are of one ISO week", Policy{Weekly: 99}, nil, []int{0, 5, 7, 8, 10}},
		{"months", Policy{Monthly: 3}, nil, []int{0, 7, 8}},
		{"years", Policy{Yearly: 3}, nil, []int{0, 9}},
		{"within includes its border", Policy{Within: 50 * time.Minute}, nil, []int{0, 1, 2}},
		{"a bad one at its border is not the state it began with", Policy{Within: 50 * time.Minute}, []int{2}, []int{0, 1, 2, 3}},
		{"rules add up", Policy{Last: 2, Monthly: 2}, nil, []int{0, 1, 7}},
		{"a bad one is kept as the latest, and not for its day", Policy{Daily: 1}, []int{0}, []int{0, 1}},
		{"a day with bad ones only keeps the newest of them", Policy{Daily: 2}, []int{3, 4}, []int{0, 3}},
		{"only the newest day, and all of it bad: the last good one stays too", Policy{Daily: 1}, []int{0, 1, 2}, []int{0, 3}},
		{"bad ones take no place of the last", Policy{Last: 2}, []int{1, 2}, []int{0, 3}},
		{"all bad", Policy{Last: 2}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, []int{0, 1}},
		{"a run by its ID", Policy{Last: 1, IDs: []string{"run-9"}}, nil, []int{0, 9}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var names []Name
			for i, s := range times {
				at, _ := time.Parse(time.RFC3339, s)
				names = append(names, named(at, i, fmt.Sprintf("run-%d", i)))
			}
			bad := map[string]bool{}
			for _, i := range tt.bad {
				bad[names[i].Sum] = true
			}
			now := names[0].Time.Add(time.Minute)
			sums := slices.Clone(names)
			slices.Reverse(sums) // the order does not matter
			stay, gone := tt.policy.choose(sums, bad, nil, now)
			var got []int
			for _, n := range stay {
				got = append(got, slices.Index(names, n))
			}
			if !slices.Equal(got, tt.want) || len(stay)+len(gone) != len(names) {
				t.Errorf("stay %v, want %v; gone %d", got, tt.want, len(gone))
			}
		})
	}
}

func TestPolicyCheck(t *testing.T) {
	for _, p := range []Policy{{Last: 1}, {Hourly: 1}, {Yearly: 1}, {Within: time.Second}, {IDs: []string{"a"}}} {
		if err := p.Check(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, p := range []Policy{{}, {DryRun: true}, {Location: time.UTC}} {
		if err := p.Check(); !errors.Is(err, ErrNoPolicy) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, p := range []Policy{{Last: -1}, {Last: 1, Monthly: -2}, {Last: 1, Within: -1}, {IDs: []string{"a b"}}} {
		if err := p.Check(); err == nil || errors.Is(err, ErrNoPolicy) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// What every policy has to hold, whatever the snapshots.
func TestChooseProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
		n := rapid.IntRange(1, 60).Draw(t, "snapshots")
		var names []Name
		bad := map[string]bool{}
		for i := range n {
			age := time.Duration(rapid.Int64Range(0, int64(800*24*time.Hour)).Draw(t, "age"))
			names = append(names, named(base.Add(-age), i, ""))
			bad[names[i].Sum] = rapid.IntRange(0, 4).Draw(t, "bad") == 0
		}
		count := rapid.IntRange(0, 6)
		p := Policy{Last: count.Draw(t, "last"), Hourly: count.Draw(t, "hourly"), Daily: count.Draw(t, "daily"), Weekly: count.Draw(t, "weekly"), Monthly: count.Draw(t, "monthly"), Yearly: count.Draw(t, "yearly")}
		stay, gone := p.choose(names, bad, nil, base)
		if len(stay)+len(gone) != n || !slices.IsSortedFunc(stay, newestFirst) || !slices.IsSortedFunc(gone, newestFirst) {
			t.Fatalf("%d stay and %d go of %d", len(stay), len(gone), n)
		}
		slices.SortFunc(names, newestFirst)
		if stay[0] != names[0] {
			t.Fatal("the latest goes")
		}
		good := slices.IndexFunc(names, func(n Name) bool { return !bad[n.Sum] })
		if good >= 0 && !slices.Contains(stay, names[good]) {
			t.Fatal("the latest good one goes")
		}
		if most := 2 + p.Last + p.Hourly + p.Daily + p.Weekly + p.Monthly + p.Yearly; len(stay) > most {
			t.Fatalf("%d stay, at most %d were to", len(stay), most)
		}
		days := map[string]bool{} // the newest days, each of which keeps its best
		for _, n := range names {
			if len(days) < p.Daily {
				days[n.Time.Format(time.DateOnly)] = true
			}
		}
		for day := range maps.Keys(days) {
			of := func(from []Name, wantGood bool) bool {
				return slices.ContainsFunc(from, func(n Name) bool { return n.Time.Format(time.DateOnly) == day && (!wantGood || !bad[n.Sum]) })
			}
			if !of(stay, of(names, true)) {
				t.Fatalf("nothing of %s stays", day)
			}
		}
		// Once more changes nothing: what was kept is kept.
		again, more := p.choose(stay, bad, nil, base)
		if len(more) != 0 && !slices.ContainsFunc(names, func(n Name) bool { return bad[n.Sum] }) || len(again) == 0 {
			t.Fatalf("a second run removes %v", more)
		}
		bigger := p
		bigger.Daily++
		wider, _ := bigger.choose(names, bad, nil, base)
		for _, n := range stay {
			if !slices.Contains(wider, n) {
				t.Fatal("a policy that keeps more keeps less")
			}
		}
	})
}

// A run has the snapshots that it found unchanged as well as those that it made.
func TestChooseRuns(t *testing.T) {
	base := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	names := []Name{named(base, 0, ""), named(base.Add(-time.Hour), 1, "night-1"), named(base.Add(-2*time.Hour), 2, ""), named(base.Add(-3*time.Hour), 3, "")}
	runs := map[string][]string{names[2].Sum: {"night-3", "night-2"}, names[3].Sum: {"night-0"}}
	for _, id := range []string{"night-2", "night-3"} {
		if stay, _ := (Policy{IDs: []string{id}}).choose(names, nil, runs, base); len(stay) != 2 || stay[1] != names[2] {
			t.Errorf("%s: %v stay", id, stay)
		}
	}
	if stay, _ := (Policy{IDs: []string{"night-1", "night-0"}}).choose(names, nil, runs, base); len(stay) != 3 {
		t.Errorf("%v stay", stay)
	}
}
