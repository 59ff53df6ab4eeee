package faults

import (
	"math/rand/v2"
	"sync"
)

// Everything here is chosen by the seed alone, before anything happens: names, kinds and raw
// numbers, which later pick from what there is.

// The streams of a seed.
const (
	deedStream = 1000 + iota
	faultStream
)

func stream(seed, number uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, number)) }

// weighted is a choice and how often it is made.
type weighted[T any] struct {
	weight int
	value  T
}

func choose[T any](r *rand.Rand, list []weighted[T]) T {
	sum := 0
	for _, c := range list {
		sum += c.weight
	}
	n := r.IntN(sum)
	for _, c := range list {
		if n -= c.weight; n < 0 {
			return c.value
		}
	}
	panic("faults: weights that are not positive")
}

// move is what a push does to one ref.
type move string

const (
	forward   move = "forward"   // new commits on top; makes a ref that is not there
	rewrite   move = "rewrite"   // by force: other commits instead of the last
	rewind    move = "rewind"    // by force: back to the parent
	remove    move = "delete"    //
	fork      move = "fork"      // by force: what another ref has
	annotated move = "annotated" // a tag object
)

var moves = []weighted[move]{{50, forward}, {14, rewrite}, {6, rewind}, {14, remove}, {8, fork}, {8, annotated}}

// names of refs. Some stand in each other's way.
var names = []weighted[string]{
	{20, "refs/heads/main"}, {12, "refs/heads/dev"}, {6, "refs/heads/one"}, {6, "refs/heads/two"}, {6, "refs/heads/three"},
	{5, "refs/heads/topic"}, {5, "refs/heads/topic/a"}, {4, "refs/heads/topic/a/deep"}, {5, "refs/heads/topic/b"},
	{4, "refs/heads/wip/x"}, {4, "refs/heads/wip/y"}, {3, "refs/notes/commits"},
	{5, "refs/tags/v1"}, {5, "refs/tags/v2"}, {4, "refs/tags/v3"}, {3, "refs/tags/rel/v4"},
}

// refPlan is a move of one ref.
type refPlan struct {
	ref  string
	move move
	from string // the ref that fork and a new ref begin at
}

// pushPlan is one push of a user.
type pushPlan struct {
	repo    repository
	through uint64 // picks the server
	fetch   bool   // before it
	atomic  bool
	bytes   int // of a file in the commits
	refs    []refPlan
	clear   bool // delete all branches but main, whatever there is
}

// pushPlans is what a user does.
func pushPlans(seed uint64, user, n int) []pushPlan {
	r := stream(seed, uint64(user))
	plans := make([]pushPlan, n)
	for i := range plans {
		p := pushPlan{
			repo: repositories[r.IntN(len(repositories))], through: r.Uint64(), fetch: r.IntN(100) < 60,
			atomic: r.IntN(100) < 15, clear: r.IntN(100) < 1,
			bytes: choose(r, []weighted[int]{{80, 100}, {17, 20_000}, {3, 1_000_000}}),
		}
		count := choose(r, []weighted[int]{{75, 1}, {10, 2}, {8, 3}, {7, 8}})
		for range count {
			p.refs = append(p.refs, refPlan{choose(r, names), choose(r, moves), choose(r, names)})
		}
		plans[i] = p
	}
	return plans
}

// act is a deed of an administrator.
type act string

const (
	behind    act = "behind"       // commits on a slave's disk
	behindTag act = "behind tag"   // a tag object there
	vanish    act = "vanish"       // a ref of a slave is deleted on disk
	head      act = "head"         // HEAD of the master
	wrongHead act = "wrong head"   // HEAD of a slave
	timer     act = "timer"        // sync of a server
	drain     act = "drain"        // by a timer
	approve   act = "approve"      // what is held
	sweep     act = "sweep"        // locks that git has left
	look      act = "look"         // status and doctor, which must not disturb
	ask       act = "request push" // by hand
)

var acts = []weighted[act]{{40, behind}, {5, behindTag}, {6, vanish}, {10, head}, {4, wrongHead}, {9, timer}, {4, drain}, {16, approve}, {6, sweep}, {4, look}, {6, ask}}

// deedPlan is one deed.
type deedPlan struct {
	act    act
	repo   repository
	ref    string
	server uint64
	pick   uint64
}

func deedPlans(seed uint64, n int) []deedPlan {
	r := stream(seed, deedStream)
	plans := make([]deedPlan, n)
	for i := range plans {
		plans[i] = deedPlan{choose(r, acts), repositories[r.IntN(len(repositories))], choose(r, names), r.Uint64(), r.Uint64()}
	}
	return plans
}

// faultPlan is one fault.
type faultPlan struct {
	kind   Kind
	server string
	repo   repository
	ref    string
	pick   uint64
	long   float64 // how long it lasts, between 0 and 1 of what is usual for the kind
}

// faultPlans gives one fault after another, to several callers at once.
func faultPlans(seed uint64, kinds []Kind) func() faultPlan {
	r := stream(seed, faultStream)
	var list []weighted[Kind]
	for _, k := range kinds {
		list = append(list, weighted[Kind]{kindWeights[k], k})
	}
	var mu sync.Mutex
	return func() faultPlan {
		mu.Lock()
		defer mu.Unlock()
		return faultPlan{choose(r, list), serverNames[r.IntN(len(serverNames))], repositories[r.IntN(len(repositories))], choose(r, names), r.Uint64(), r.Float64()}
	}
}
