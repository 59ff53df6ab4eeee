package peer

import (
	"context"
	"maps"
	"slices"
	"strings"

	"mirror-shell/internal/sendpack"
)

// What a push needs to know of objects. In the usual case, a peer that has
// what we put there, that is nothing: git is not asked, and what is assumed can
// at worst make git refuse to pack, before anything is sent (see diagnose).

// know looks up what decide will ask.
func (r *syncRun) know(ctx context.Context, diff []sendpack.Command) (knowledge, error) {
	k := knowledge{ours: r.log.Ours, contained: func(string) bool { return false }}
	var unknown []string
	for _, c := range diff {
		if c.Old != r.zero && !r.log.Ours(c.Ref, c.Old) {
			unknown = append(unknown, c.Old)
		}
	}
	if len(unknown) == 0 {
		return k, nil
	}
	contained, err := r.contained(ctx, unknown)
	k.contained = func(oid string) bool { return contained[oid] }
	return k, err
}

// contained returns which of the objects our mirrored refs reach.
func (r *syncRun) contained(ctx context.Context, oids []string) (map[string]bool, error) {
	tips := distinct(slices.Collect(maps.Values(r.ours)))
	exists, err := r.src.Repo.Existing(ctx, slices.Concat(tips, oids))
	if err != nil {
		return nil, err
	}
	absent := func(oid string) bool { return !exists[oid] }
	tips, oids = slices.DeleteFunc(tips, absent), slices.DeleteFunc(distinct(oids), absent)
	contained := make(map[string]bool, len(oids))
	outside, err := r.src.Repo.Unreachable(ctx, oids, tips)
	if err == nil {
		for _, oid := range oids {
			contained[oid] = !outside[oid]
		}
		return contained, nil
	}
	// Remains of a history that was pruned in part cannot be walked. They must
	// not make the others look foreign; what cannot be told is not contained.
	for _, oid := range oids[:min(len(oids), maxProbes)] {
		if ctx.Err() != nil {
			return nil, err
		}
		outside, err := r.src.Repo.Unreachable(ctx, []string{oid}, tips)
		contained[oid] = err == nil && !outside[oid]
	}
	return contained, nil
}

// maxHaves is how many of the peer's refs are named to git when a few old
// values would do. Each is an object that git opens: 50,000 cost 0.3 s.
const maxHaves = 1000

// haves returns objects that the peer has and we have too, for git to leave out
// of the pack, with what is reachable from them. Old values of the refs that change
// come first. Other refs of the peer save sending a branch twice that was merged
// into another, and matter most for a ref that is new there: only then are they
// all named. Unless careful, a value that is also one of our refs', or that we
// sent, is taken to exist here.
func (r *syncRun) haves(ctx context.Context, commands []sendpack.Command, careful bool) ([]string, error) {
	here := make(map[string]bool, len(r.ours))
	for _, oid := range r.ours {
		here[oid] = true
	}
	created := careful
	var have, others []string
	for _, c := range commands {
		if c.Old == r.zero {
			created = true
		} else {
			have = append(have, c.Old) // we sent it, or know found that our refs contain it
		}
	}
	for ref, oid := range r.shown {
		if here[oid] && (created || strings.HasPrefix(ref, "refs/heads/") && len(have) < maxHaves) {
			have = append(have, oid)
		} else if created {
			others = append(others, oid)
		}
	}
	if created && r.adv != nil {
		others = append(others, r.adv.Haves...)
	}
	have = distinct(have)
	if careful {
		have, others = nil, append(others, have...)
	}
	others = slices.DeleteFunc(distinct(others), func(oid string) bool {
		_, known := slices.BinarySearch(have, oid)
		return known
	})
	exists, err := r.src.Repo.Existing(ctx, others)
	for _, oid := range others {
		if exists[oid] {
			have = append(have, oid)
		}
	}
	slices.Sort(have)
	return have, err
}

// distinct sorts and removes doubles, in place.
func distinct(oids []string) []string {
	slices.Sort(oids)
	return slices.Compact(oids)
}

// diagnose finds out why a pack could not be made: the refs whose objects
// cannot be read here, sorted, and what the peer has that really is here too.
func (r *syncRun) diagnose(ctx context.Context, failed *packFailure) (bad, have []string, err error) {
	defer r.pulse.pause()()
	have, err = r.haves(ctx, failed.commands, true)
	if err != nil {
		return nil, nil, err
	}
	want := wanted(failed.commands, r.zero)
	exists, err := r.src.Repo.Existing(ctx, want)
	if err != nil {
		return nil, nil, err
	}
	var readable []sendpack.Command
	for _, c := range failed.commands {
		switch {
		case c.New == r.zero:
		case exists[c.New]:
			readable = append(readable, c)
		default:
			bad = append(bad, c.Ref)
		}
	}
	s := bisection{packable: func(part []sendpack.Command) (bool, error) {
		want := make([]string, 0, len(part))
		for _, c := range part {
			want = append(want, c.New)
		}
		return r.src.Repo.Packable(ctx, want, have)
	}}
	_, err = s.search(readable, false)
	bad = append(bad, s.bad...)
	slices.Sort(bad)
	return bad, have, err
}

// maxProbes bounds how often git is asked about objects in one search. It finds
// a dozen bad refs among 50,000.
const maxProbes = 200

// bisection finds the refs that cannot be packed by packing ever smaller groups:
// one walk through all of history for each ref would take days where there are
// many. When it runs out of probes, what is undecided counts as bad.
type bisection struct {
	packable func([]sendpack.Command) (bool, error)
	probes   int // so far
	bad      []string
}

// search reports whether part has a bad ref; known says that it has.
func (s *bisection) search(part []sendpack.Command, known bool) (bool, error) {
	if len(part) == 0 {
		return false, nil
	}
	if s.probes >= maxProbes {
		for _, c := range part {
			s.bad = append(s.bad, c.Ref)
		}
		return true, nil
	}
	if !known {
		s.probes++
		if ok, err := s.packable(part); ok || err != nil {
			return false, err
		}
	}
	if len(part) == 1 {
		s.bad = append(s.bad, part[0].Ref)
		return true, nil
	}
	half := len(part) / 2
	found, err := s.search(part[:half], false)
	if err != nil {
		return false, err
	}
	_, err = s.search(part[half:], !found)
	return true, err
}
