package faults

import (
	"fmt"
	"sync"
)

// The oracle knows what everybody was told, and nothing of the product. It decides what must
// be where in the end.

// outcome of one ref of a push, as the user saw it.
type outcome string

const (
	acked   outcome = "accepted"
	refused outcome = "refused"
	unknown outcome = "unknown" // cut off: it was applied, or not
)

// change is one ref of one push.
type change struct {
	id          int
	repo, ref   string
	old, new    string // "" for none. Of a destructive change old is exact: it was pushed with a lease
	destructive bool
	outcome     outcome
	start, end  int // of the push, on the oracle's clock
	who         string
}

// deed is a value that was set behind the master's back.
type deed struct {
	repo, server, ref, oid string
	certain                bool // git said so
}

type oracle struct {
	mu      sync.Mutex
	clock   int
	parents map[string][]string // of every commit and tag object that was made
	tags    map[string]bool     // those of them that are tag objects
	changes []change
	deeds   []deed

	problems []string // what was seen to be wrong during the run
}

func newOracle() *oracle { return &oracle{parents: map[string][]string{}, tags: map[string]bool{}} }

// now returns a new moment.
func (o *oracle) now() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clock++
	return o.clock
}

// commit notes a commit.
func (o *oracle) commit(oid string, parents ...string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.parents[oid] = parents
}

// tag notes a tag object.
func (o *oracle) tag(oid, target string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.parents[oid], o.tags[oid] = []string{target}, true
}

// peel returns the commit that a value is, or is a tag of.
func (o *oracle) peel(oid string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.tags[oid] {
		oid = o.parents[oid][0]
	}
	return oid
}

// parent returns the first parent of a commit, "" for none.
func (o *oracle) parent(oid string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.parents[oid]; len(p) > 0 {
		return p[0]
	}
	return ""
}

// pushed notes the refs of a push that has ended.
func (o *oracle) pushed(changes []change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.clock++
	for _, c := range changes {
		c.id, c.end = len(o.changes), o.clock
		o.changes = append(o.changes, c)
	}
}

// behind notes a value that was set on a slave's disk.
func (o *oracle) behind(d deed) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deeds = append(o.deeds, d)
}

// reach is everything that a value contains, itself included.
func (o *oracle) reach(oid string) map[string]bool {
	found := map[string]bool{}
	for queue := []string{oid}; len(queue) > 0; queue = queue[1:] {
		if next := queue[0]; next != "" && !found[next] {
			found[next] = true
			queue = append(queue, o.parents[next]...)
		}
	}
	return found
}

// holdsDeeds reports whether a value contains something made behind the master's back.
func (o *oracle) holdsDeeds(oid string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	reach := o.reach(oid)
	for _, d := range o.deeds {
		if reach[d.oid] {
			return true
		}
	}
	return false
}

// loss is something that is not where it has to be.
type loss struct{ repo, oid, what string }

func (l loss) String() string { return fmt.Sprintf("%s %.10s: %s", l.repo, l.oid, l.what) }

// verdict is what the oracle finds in the end.
type verdict struct {
	checked int // values
	excused int // of them overwritten by users
	lost    []loss
}

// state is what there is in the end: of each repository, the objects that can be reached.
type state struct {
	master   map[string]map[string]bool   // from the master's refs, refs/mirror/ not counted
	anywhere map[string]map[string]bool   // from any ref of any server
	refs     map[string]map[string]string // the master's, refs/mirror/ not counted
}

// judge compares.
func (o *oracle) judge(s state) verdict {
	o.mu.Lock()
	defer o.mu.Unlock()
	var v verdict
	destroyers := o.destroyers()
	for _, c := range o.changes {
		if c.outcome != acked || c.new == "" {
			continue
		}
		v.checked++
		switch {
		case s.master[c.repo][c.new]:
		case o.overwritten(c, destroyers[c.repo+" "+c.ref]):
			v.excused++
		default:
			v.lost = append(v.lost, loss{c.repo, c.new, fmt.Sprintf("%s was told that %s is stored (change %d), and nobody overwrote it", c.who, c.ref, c.id)})
		}
	}
	for _, d := range o.deeds {
		if !d.certain {
			continue
		}
		v.checked++
		if !s.anywhere[d.repo][d.oid] {
			v.lost = append(v.lost, loss{d.repo, d.oid, fmt.Sprintf("stood in %s on %s, and is neither on the master nor rescued", d.ref, d.server)})
		}
	}
	v.lost = append(v.lost, o.unexplained(s.refs)...)
	return v
}

// destroyer is a change with what it overwrote and did not contain.
type destroyer struct {
	change
	destroyed map[string]bool
}

func (o *oracle) destroyers() map[string][]destroyer {
	found := map[string][]destroyer{}
	for _, c := range o.changes {
		if !c.destructive || c.outcome == refused || c.old == "" {
			continue
		}
		d := destroyer{c, o.reach(c.old)}
		for oid := range o.reach(c.new) {
			delete(d.destroyed, oid)
		}
		key := c.repo + " " + c.ref
		found[key] = append(found[key], d)
	}
	return found
}

// overwritten reports whether a user may have wished that a value be gone.
func (o *oracle) overwritten(c change, by []destroyer) bool {
	for _, d := range by {
		if d.id != c.id && d.end > c.start && d.destroyed[c.new] {
			return true
		}
	}
	return false
}

// unexplained finds values on masters that nobody pushed there.
func (o *oracle) unexplained(refs map[string]map[string]string) []loss {
	pushed := map[[3]string]bool{}
	for _, c := range o.changes {
		if c.outcome != refused {
			pushed[[3]string{c.repo, c.ref, c.new}] = true
		}
	}
	var list []loss
	for repo, values := range refs {
		for ref, oid := range values {
			if !pushed[[3]string{repo, ref, oid}] {
				list = append(list, loss{repo, oid, ref + " of the master has this value, which nobody pushed"})
			}
		}
	}
	return list
}
