package snapshot

import (
	"cmp"
	"slices"
	"time"
)

const (
	// maxPacksRetained takes the place of maxPacks where what is merged cannot be deleted for long.
	maxPacksRetained = 500
	// compactionStep says how often the store is asked, where it retains, whether putting packs together is worth it: with every so
	// many packs. It also is the least number of packs that are worth it.
	compactionStep = 10
	// freeTwice is how many bytes may be in the store twice without counting.
	freeTwice = 64 << 20
)

// compaction is what it depends on which packs are put together; see "How packs stay few" in the package comment.
type compaction struct {
	packs  []storedPack  // of the latest snapshot
	fresh  int           // packs that the new one adds
	retain time.Duration // for how long the store refuses to delete what is written now; 0: it does not
	// What has to be known where the store retains, and asks says so.
	others  int64     // bytes of packs that are in the store besides
	lasting time.Time // when the newest snapshot was published that stays for longer than retain; zero: none does
}

// storedPack is a pack in the store.
type storedPack struct {
	size int64     // bytes
	put  time.Time // by the store's clock
}

// asks reports whether others, lasting and the times of the packs have to be known.
func (c compaction) asks() bool {
	n := len(c.packs) + c.fresh
	return c.retain > 0 && c.fresh > 0 && n > maxPacks && n <= maxPacksRetained && n%compactionStep == 0
}

// choose returns the places of the packs that are put together, with those that are new; none: it is not worth it.
func (c compaction) choose() map[int]bool {
	n, limit := len(c.packs)+c.fresh, maxPacks
	if c.retain > 0 {
		limit = maxPacksRetained
	}
	if n > limit {
		return toMerge(sizesOf(c.packs), limit)
	}
	if !c.asks() {
		return nil
	}
	return c.ripe()
}

// ripe chooses among the packs that no snapshot needs for longer than it is retained: the small ones, as long as not too
// much is in the store twice by that.
func (c compaction) ripe() map[int]bool {
	var places []int
	var packs []storedPack
	var all int64
	for i, p := range c.packs {
		all += p.size
		if p.put.After(c.lasting) {
			places, packs = append(places, i), append(packs, p)
		}
	}
	room := max(all/2, freeTwice) - c.others
	var merge []int
	for i := range toMerge(sizesOf(packs), maxPacks) {
		merge = append(merge, places[i])
	}
	slices.SortFunc(merge, func(a, b int) int { return cmp.Compare(c.packs[a].size, c.packs[b].size) })
	chosen := map[int]bool{}
	for _, i := range merge {
		if room -= c.packs[i].size; room < 0 {
			break
		}
		chosen[i] = true
	}
	if len(chosen)+c.fresh <= compactionStep {
		return nil
	}
	return chosen
}

func sizesOf(packs []storedPack) []int64 {
	sizes := make([]int64, len(packs))
	for i, p := range packs {
		sizes[i] = p.size
	}
	return sizes
}

// lasting returns those of a repository's snapshots that the policy still keeps when a time as long as retain has passed, and
// what is retained because of today is not any more. One is taken now, and until then others follow as they did in the last such time, which
// is known exactly, because none of those can have been removed. Without a policy nobody knows, and all stay.
func (p Policy) lasting(names []Name, now time.Time, retain time.Duration) []Name {
	if p.Check() != nil {
		return names
	}
	then := now.Add(retain)
	known := map[string]bool{}
	future := []Name{{Time: now, Sum: "now"}, {Time: then}}
	for _, n := range names {
		known[n.Key()] = true
		if n.Time.After(now.Add(-retain)) {
			future = append(future, Name{Repository: n.Repository, Time: n.Time.Add(retain), Sum: n.Sum})
		}
	}
	stay, _ := p.choose(slices.Concat(names, future), nil, nil, then)
	return slices.DeleteFunc(stay, func(n Name) bool { return !known[n.Key()] })
}
