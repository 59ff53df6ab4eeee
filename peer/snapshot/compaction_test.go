package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

// day is midnight of the nth day, for tests of compaction.
func day(n float64) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n * float64(24*time.Hour)))
}

const month = 30 * 24 * time.Hour

func TestLasting(t *testing.T) {
	hourly := func(from, to float64) (names []Name) {
		for at := day(from); at.Before(day(to)); at = at.Add(time.Hour) {
			names = append(names, named(at, int(at.Unix()), ""))
		}
		return names
	}
	some := func(days ...float64) (names []Name) {
		for _, d := range days {
			names = append(names, named(day(d), int(d*100), ""))
		}
		return names
	}
	for _, tt := range []struct {
		name   string
		policy Policy
		names  []Name
		now    float64
		retain time.Duration
		want   float64 // day of the newest that lasts; -1: none
	}{
		{"nobody knows the policy: all do", Policy{}, some(1, 2, 3), 3.5, month, 3},
		{"the latest alone: the next takes its place", Policy{Last: 1}, some(1, 2, 3), 3.5, month, -1},
		{"dailies for two weeks, locked for a month", Policy{Daily: 14}, hourly(0, 40), 40, month, -1},
		{"what is locked for a shorter time than the policy keeps it", Policy{Daily: 14}, hourly(0, 40), 40, 7 * 24 * time.Hour, 39 + 23.0/24},
		{"months: the last of January, in the middle of February", Policy{Daily: 14, Monthly: 12}, hourly(0, 46), 46, 20 * 24 * time.Hour, 30 + 23.0/24},
		{"within a week, locked for a month", Policy{Within: 7 * 24 * time.Hour}, hourly(0, 40), 40, month, -1},
		{"a repository at rest: the one that is taken now follows", Policy{Last: 1}, some(1), 100, month, -1},
		{"one backup in a month, and the month is over then", Policy{Monthly: 12}, some(10), 12, month, -1},
		{"the same, a year ago", Policy{Monthly: 12}, some(10, 50), 110, month, 50},
		{"a run by its ID", Policy{Last: 1, IDs: []string{"a"}}, []Name{named(day(1), 1, "a"), named(day(2), 2, "")}, 3, month, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := -1.0
			for _, n := range tt.policy.lasting(tt.names, day(tt.now), tt.retain) {
				if !slices.Contains(tt.names, n) {
					t.Errorf("%v is none of those that are there", n)
				}
				got = max(got, n.Time.Sub(day(0)).Hours()/24)
			}
			if diff := got - tt.want; diff > 0.001 || diff < -0.001 {
				t.Errorf("the newest is of day %g, want %g", got, tt.want)
			}
		})
	}
}

func TestCompaction(t *testing.T) {
	const mb = 1 << 20
	// packs returns one of large bytes, put on the first day, and n small ones, one each day from then on.
	packs := func(large, small int64, n int) []storedPack {
		all := []storedPack{{large, day(0)}}
		for i := range n {
			all = append(all, storedPack{small, day(float64(i + 1))})
		}
		return all
	}
	for _, tt := range []struct {
		name string
		c    compaction
		want int // packs that are put together, besides the fresh
	}{
		{"few", compaction{packs: packs(mb, 100, 48), fresh: 1}, 0},
		{"no lock: as many as there may be", compaction{packs: packs(mb, 100, 49), fresh: 0}, 0},
		{"no lock: one too many", compaction{packs: packs(mb, 100, 49), fresh: 1}, 49},
		{"lock: nothing between two looks", compaction{packs: packs(mb, 100, 49), fresh: 1, retain: month}, 0},
		{"lock: nothing lasts", compaction{packs: packs(mb, 100, 58), fresh: 1, retain: month}, 58},
		{"lock: no new pack, no look", compaction{packs: packs(mb, 100, 59), fresh: 0, retain: month}, 0},
		{"lock: all were put before one that stays", compaction{packs: packs(mb, 100, 58), fresh: 1, retain: month, lasting: day(58)}, 0},
		{"lock: those that were put after it", compaction{packs: packs(mb, 100, 58), fresh: 1, retain: month, lasting: day(30)}, 28},
		{"lock: too few of them", compaction{packs: packs(mb, 100, 58), fresh: 1, retain: month, lasting: day(50)}, 0},
		{"lock: a pack that was not listed is left", compaction{packs: append(packs(mb, 100, 57), storedPack{size: 1}), fresh: 1, retain: month}, 57},
		{"lock: the large one too, when the others have become as large", compaction{packs: packs(mb, mb, 58), fresh: 1, retain: month}, 59},
		{"lock: no more than half of it twice", compaction{packs: packs(mb, 10*mb, 58), fresh: 1, retain: month}, 29}, // 1 + 28 × 10 of 581
		{"lock: so much is there twice already", compaction{packs: packs(mb, 10*mb, 58), fresh: 1, retain: month, others: 290 * mb}, 0},
		{"lock: what is left of half of it", compaction{packs: packs(mb, 10*mb, 58), fresh: 1, retain: month, others: 140 * mb}, 15},
		{"lock: small things do not count", compaction{packs: packs(100, 100, 58), fresh: 1, retain: month, others: 60 * mb}, 59},
		{"lock: as many as there may ever be", compaction{packs: packs(mb, 100, 498), fresh: 1, retain: month, lasting: day(498)}, 0},
		{"lock: too many, whatever it costs", compaction{packs: packs(mb, 100, 499), fresh: 1, retain: month, lasting: day(499), others: 1000 * mb}, 499},
		{"lock: the same without a new pack", compaction{packs: packs(mb, 100, 500), fresh: 0, retain: month, lasting: day(499)}, 500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.c.choose()
			if len(got) != tt.want {
				t.Errorf("%d are put together, want %d", len(got), tt.want)
			}
			var twice, all int64
			for i, p := range tt.c.packs {
				all += p.size
				if got[i] {
					twice += p.size
				}
			}
			if n := len(tt.c.packs) + tt.c.fresh; n <= maxPacksRetained && tt.c.retain > 0 && len(got) > 0 && tt.c.others+twice > max(all/2, freeTwice) {
				t.Errorf("%d bytes are in the store twice", tt.c.others+twice)
			}
		})
	}
}

// A repository that is backed up with every push, for 200 days: the number of packs and what is in the store twice stay bounded,
// whatever the policy.
func TestCompactionForLong(t *testing.T) {
	for _, tt := range []struct {
		name        string
		policy      Policy
		perDay      int
		most, twice int // packs; percent of what the repository has
	}{
		{"dailies, pruned", Policy{Daily: 7}, 2, 60, 60},
		{"dailies and monthlies, pruned", Policy{Daily: 7, Monthly: 24}, 6, 200, 60},
		{"no policy is known", Policy{}, 4, 501, 150},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := year{t: t, policy: tt.policy, retain: month, packs: []storedPack{{100 << 30, day(0)}}}
			most, twice := 0, int64(0)
			for i := range 200 * tt.perDay {
				w.push(day(1+float64(i)/float64(tt.perDay)), 100<<20)
				if i%(5*tt.perDay) == 0 {
					w.prune(day(1 + float64(i)/float64(tt.perDay)))
				}
				most, twice = max(most, len(w.packs)), max(twice, 100*w.others()/w.size())
			}
			t.Logf("at the most %d packs, %d times put together, %d %% twice", most, w.compactions, twice)
			if most > tt.most || twice > int64(tt.twice) || w.compactions == 0 {
				t.Errorf("%d packs at the most (of %d), %d %% twice (of %d), %d times put together", most, tt.most, twice, tt.twice, w.compactions)
			}
		})
	}
}

// year is a vault reduced to sizes and times.
type year struct {
	t           *testing.T
	policy      Policy
	retain      time.Duration
	packs       []storedPack
	replaced    []gonePack
	names       []Name
	compactions int
}

// gonePack is a pack that the snapshots between put and replaced name.
type gonePack struct {
	storedPack
	replaced time.Time
}

func (w *year) push(now time.Time, size int64) {
	c := compaction{packs: w.packs, fresh: 1, retain: w.retain, others: w.others()}
	if c.asks() {
		for _, n := range w.policy.lasting(w.names, now, w.retain) {
			c.lasting = maxTime(c.lasting, n.Time)
		}
	}
	var left []storedPack
	merge := c.choose()
	for i, p := range w.packs {
		if merge[i] {
			size += p.size
			w.replaced = append(w.replaced, gonePack{p, now})
		} else {
			left = append(left, p)
		}
	}
	if len(merge) > 0 {
		w.compactions++
	}
	w.packs = append(left, storedPack{size, now.Add(-time.Minute)})
	w.names = append(w.names, named(now, int(now.Unix()), ""))
}

// prune removes what the policy drops and nothing retains.
func (w *year) prune(now time.Time) {
	if w.policy.Check() != nil {
		return
	}
	stay, _ := w.policy.choose(w.names, nil, nil, now)
	keep := map[string]bool{}
	for _, n := range stay {
		keep[n.Sum] = true
	}
	w.names = slices.DeleteFunc(w.names, func(n Name) bool { return !keep[n.Sum] && now.Sub(n.Time) > w.retain })
	w.replaced = slices.DeleteFunc(w.replaced, func(p gonePack) bool {
		return !slices.ContainsFunc(w.names, func(n Name) bool { return !n.Time.Before(p.put) && n.Time.Before(p.replaced) })
	})
}

func (w *year) size() (sum int64) {
	for _, p := range w.packs {
		sum += p.size
	}
	return sum
}

func (w *year) others() (sum int64) {
	for _, p := range w.replaced {
		sum += p.size
	}
	return sum
}

// In a store that retains, packs are put together when nothing needs them for long.
func TestTakeCompactsWhereLocked(t *testing.T) {
	w := newMonths(t)
	w.Retain = month
	r := newSource(t)
	src := sourceOf(t, r)
	compacted := 0
	for i := range maxPacks + 2*compactionStep {
		if i == maxPacks+compactionStep+1 { // one look was in vain: nobody knew the policy
			w.Keep = Policy{Last: 1}
		}
		commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d more", i))
		w.pass(time.Minute)
		got := take1(t, w.Vault, src)
		if got.Compacted {
			compacted++
			compare(t, w.Vault, got.Name, r)
		} else if got.Packs != i+1 {
			t.Fatalf("%d packs after %d backups", got.Packs, i+1)
		}
	}
	if compacted != 1 {
		t.Errorf("compacted %d times", compacted)
	}
}

// On a real server: what was put together comes free when its lock is over, and not before.
func TestTakeCompactsInS3(t *testing.T) {
	t.Parallel()
	s3 := storetest.S3(t)
	v, _ := testVault(t)
	v.Store = s3.Open(t, s3.Bucket(t, true), store.Options{LockMode: "governance"})
	v.Retain, v.Keep, v.Grace = 8*time.Second, Policy{Last: 1}, 30*time.Second
	r := newSource(t)
	src := sourceOf(t, r)
	var result Result
	for i := 0; !result.Compacted; i++ {
		if i == maxPacks+compactionStep {
			t.Fatal("nothing was put together")
		}
		commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d more", i))
		result = take1(t, v, src)
	}
	latest := compare(t, v, result.Name, r)
	if len(latest.Packs) != 1 {
		t.Errorf("%d packs", len(latest.Packs))
	}
	report, err := v.Prune(t.Context(), src.Repository, v.Keep)
	if err != nil || len(report.Locked) == 0 || report.Kept != 1 {
		t.Errorf("while all is locked: %+v, %v", report, err)
	}
	for time.Since(result.Name.Time) < v.Retain+2*time.Second {
		time.Sleep(200 * time.Millisecond)
	}
	if report, err = v.Prune(t.Context(), src.Repository, v.Keep); err != nil || len(report.Locked) != 0 || report.Waiting.Blobs < 2*(maxPacks-compactionStep) {
		t.Errorf("after the locks: %+v, %v", report, err)
	}
	// Those of the packs that were put together are not prolonged; the others are.
	if until, err := v.Store.(store.Retainer).Retained(t.Context(), latest.Packs[0].Pack.Key); err != nil || time.Until(until) < v.Retain/4 {
		t.Errorf("what the latest snapshot needs is locked until %v (%v)", until, err)
	}
	deleted := 0
	for info, err := range v.Store.List(t.Context(), dataOf(src.Repository)+"pack-", "", 0) {
		if err != nil {
			t.Fatal(err)
		}
		needed := strings.HasPrefix(info.Key, dataOf(src.Repository)+latest.Packs[0].Name+".")
		if err := v.Store.Delete(t.Context(), info.Key); err == nil {
			deleted++
		} else if !errors.Is(err, store.ErrLocked) || !needed {
			t.Errorf("%s: %v", info.Key, err)
		}
	}
	if deleted != report.Waiting.Blobs {
		t.Errorf("%d blobs could be deleted of %d", deleted, report.Waiting.Blobs)
	}
}
