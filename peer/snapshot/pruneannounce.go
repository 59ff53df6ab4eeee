package snapshot

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"mirror-shell/peer/store"
)

// announce says in a mark, before anything of it happens, which snapshots the policy drops, and which older marks
// do not count any longer; those are deleted then.
func (p *pruning) announce(ctx context.Context) error {
	plan := p.plan()
	if p.lease == nil {
		return nil
	}
	if plan.needed {
		within, cancel, err := p.lease.hold(ctx)
		if err != nil {
			return err
		}
		defer cancel()
		if err := p.v.putMark(within, p.repository, &plan.mark); err != nil {
			return err
		}
	}
	// The oldest first: a mark never goes before those that it retires.
	for _, key := range plan.retire {
		within, cancel, err := p.lease.hold(ctx)
		if err != nil {
			return err
		}
		err = p.v.Store.Delete(within, key)
		cancel()
		if errors.Is(err, store.ErrLocked) && plan.needed {
			continue // it stays without effect
		}
		if errors.Is(err, store.ErrLocked) {
			break // nor has it any now, as none of its candidates is there
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// announcement is what plan decides.
type announcement struct {
	mark   mark
	needed bool     // the mark has to be written
	retire []string // keys of marks to be deleted, the oldest first
}

// plan decides what the first mark of this run says. Old marks are merged into it, because their candidates
// were dealt with. So are young ones that name data which a snapshot names by now: were that snapshot removed,
// the data would be deleted earlier than a grace period after it. And so are those of a clock that was ahead, which would not be old
// for as long: their candidates are announced anew.
func (p *pruning) plan() announcement {
	var a announcement
	var merge, keep []mark
	there := map[string]bool{}
	for _, n := range p.gone {
		there[n.Sum] = true
	}
	for _, m := range p.marks {
		if m.Forgotten && (len(p.stay) == 0 || slices.ContainsFunc(m.Removed, func(r removed) bool { return there[r.Sum] })) {
			keep = append(keep, m) // a later run goes by it
			continue
		}
		revived := slices.ContainsFunc(m.Candidates, func(key string) bool { return p.named.all[key] })
		if revived || p.old(m.stored) || p.ahead(m.stored) {
			merge = append(merge, m)
		} else {
			keep = append(keep, m)
		}
	}
	if len(merge) == 1 && p.settled(merge[0]) {
		merge, keep = nil, append(keep, merge[0])
	}
	said := map[string]bool{}
	for _, m := range keep {
		for _, r := range m.Removed {
			said[r.Sum] = true
		}
	}
	live := false
	for _, m := range merge {
		a.retire = append(a.retire, m.key)
		for _, r := range m.Removed {
			a.mark.remove(r, said)
		}
		live = live || slices.ContainsFunc(m.Candidates, func(key string) bool { _, there := p.data[key]; return there })
	}
	for _, n := range p.gone {
		a.mark.remove(removed{n.Sum, n.Time}, said)
	}
	p.trim(&a.mark)
	a.retire = slices.Concat(p.retired, a.retire)
	slices.SortFunc(a.retire, func(x, y string) int { return strings.Compare(y, x) }) // countdowns: the oldest is the greatest
	a.needed = len(a.mark.Removed) > 0 || live || len(merge) > 0 && len(p.retired) > 0
	if a.needed {
		a.mark.Retires = slices.Clone(a.retire)
	}
	p.marks = keep
	return a
}

// remove adds a snapshot to those that the mark tells of, once.
func (m *mark) remove(r removed, said map[string]bool) {
	if !said[r.Sum] {
		said[r.Sum] = true
		m.Removed = append(m.Removed, r)
	}
}

// keepRemoved is how many removed snapshots stay known for sure.
const keepRemoved = 1000

// trim takes those out of a mark that nobody is going to ask for: neither does a snapshot that stays follow them,
// nor are they there still, nor among the newest, of which a server may remember that it made them.
func (p *pruning) trim(m *mark) {
	slices.SortStableFunc(m.Removed, func(a, b removed) int { return b.Time.Compare(a.Time) })
	if len(m.Removed) <= keepRemoved {
		return
	}
	rest := slices.DeleteFunc(m.Removed[keepRemoved:], func(r removed) bool {
		return !p.named.follows[r.Sum] && !slices.ContainsFunc(p.gone, func(n Name) bool { return n.Sum == r.Sum })
	})
	m.Removed = m.Removed[:keepRemoved+len(rest)]
}

// settled reports whether a mark can stay as it is although it is old.
func (p *pruning) settled(m mark) bool { return len(m.Candidates) == 0 && len(m.Removed) > 0 }

// nominate writes a mark with the data that no snapshot names, now that those which the policy drops are gone.
func (p *pruning) nominate(ctx context.Context) error {
	m := mark{Candidates: p.candidates()}
	if p.lease == nil || len(m.Candidates) == 0 {
		return nil
	}
	within, cancel, err := p.lease.hold(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	return p.v.putMark(within, p.repository, &m)
}

// candidates are the keys of data that no snapshot names and no mark yet. What none ever named is left alone
// while it is young: a backup at work puts it there.
func (p *pruning) candidates() []string {
	said := map[string]bool{}
	for _, m := range p.marks {
		for _, key := range m.Candidates {
			said[key] = true
		}
	}
	removedAll := len(p.report.Removed) == len(p.gone)
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(p.data)) {
		_, stays := p.named.stays[key]
		dropped := p.named.all[key] && !stays
		switch {
		case stays || dropped && !removedAll: // the store may retain the snapshot that names it
			continue
		case !dropped && !said[key] && p.now.Sub(p.data[key].Time) < p.grace():
			continue
		}
		p.report.Waiting.add(p.data[key].Size)
		if !said[key] && len(keys) < maxCandidates {
			keys = append(keys, key)
		}
	}
	return keys
}
