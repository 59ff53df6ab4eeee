package faults

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// chain notes commits of which each is the next one's parent.
func chain(o *oracle, oids ...string) {
	for i, oid := range oids {
		o.commit(oid, oids[max(i-1, 0):i]...)
	}
}

func reachable(oids ...string) map[string]map[string]bool {
	set := map[string]bool{}
	for _, oid := range oids {
		set[oid] = true
	}
	return map[string]map[string]bool{"r": set}
}

// TestOracle: what has to be there, and what users may have wished away.
func TestOracle(t *testing.T) {
	push := func(o *oracle, c change) {
		c.repo, c.who = "r", "alice"
		c.start = o.now()
		o.pushed([]change{c})
	}
	cases := []struct {
		name  string
		play  func(o *oracle)
		there []string // on the master
		other []string // somewhere else
		lost  []string
	}{
		{"all there", func(o *oracle) {
			push(o, change{ref: "m", new: "a", outcome: acked})
			push(o, change{ref: "m", new: "b", outcome: acked})
		}, []string{"a", "b"}, nil, nil},
		{"an accepted commit is gone", func(o *oracle) {
			push(o, change{ref: "m", new: "b", outcome: acked})
		}, []string{"a"}, []string{"b"}, []string{"b"}},
		{"what was cut off or refused is nobody's", func(o *oracle) {
			push(o, change{ref: "m", new: "b", outcome: unknown})
			push(o, change{ref: "m", new: "c", outcome: refused})
		}, nil, nil, nil},
		{"overwritten by force, with what it contained", func(o *oracle) {
			push(o, change{ref: "m", new: "a", outcome: acked})
			push(o, change{ref: "m", new: "b", outcome: acked})
			push(o, change{ref: "m", old: "b", new: "x", destructive: true, outcome: acked})
		}, []string{"x"}, nil, nil},
		{"a rewind keeps what is below", func(o *oracle) {
			push(o, change{ref: "m", new: "b", outcome: acked})
			push(o, change{ref: "m", old: "c", new: "b", destructive: true, outcome: acked})
		}, []string{"a"}, nil, []string{"b", "b"}},
		{"a force push that may have been applied", func(o *oracle) {
			push(o, change{ref: "m", new: "b", outcome: acked})
			push(o, change{ref: "m", old: "b", destructive: true, outcome: unknown})
		}, nil, nil, nil},
		{"one that was refused, of another ref, or earlier", func(o *oracle) {
			push(o, change{ref: "m", old: "b", destructive: true, outcome: acked})
			push(o, change{ref: "m", new: "b", outcome: acked})
			push(o, change{ref: "m", old: "b", destructive: true, outcome: refused})
			push(o, change{ref: "n", old: "b", destructive: true, outcome: acked})
		}, nil, nil, []string{"b"}},
		{"behind the back", func(o *oracle) {
			o.behind(deed{"r", "sam", "m", "b", true})
			o.behind(deed{"r", "sam", "m", "c", true})
			o.behind(deed{"r", "sam", "m", "x", false})
		}, nil, []string{"b"}, []string{"c"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := newOracle()
			chain(o, "a", "b", "c")
			chain(o, "x")
			c.play(o)
			v := o.judge(state{master: reachable(c.there...), anywhere: reachable(append(c.there, c.other...)...)})
			var lost []string
			for _, l := range v.lost {
				lost = append(lost, l.oid)
			}
			if !slices.Equal(lost, c.lost) {
				t.Errorf("lost %q, want %q", lost, c.lost)
			}
		})
	}
}

func TestUnexplained(t *testing.T) {
	o := newOracle()
	o.pushed([]change{{repo: "r", ref: "m", new: "a", outcome: unknown}, {repo: "r", ref: "m", new: "b", outcome: refused}})
	for oid, want := range map[string]int{"a": 0, "b": 1, "c": 1} {
		if got := o.judge(state{refs: map[string]map[string]string{"r": {"m": oid}}}).lost; len(got) != want {
			t.Errorf("%s: %v", oid, got)
		}
	}
}

func TestHoldsDeeds(t *testing.T) {
	o := newOracle()
	chain(o, "a", "b", "c")
	o.tag("t", "c")
	o.behind(deed{"r", "sam", "m", "b", true})
	for oid, want := range map[string]bool{"a": false, "b": true, "c": true, "t": true, "": false, "other": false} {
		if got := o.holdsDeeds(oid); got != want {
			t.Errorf("%q: %v", oid, got)
		}
	}
	if o.peel("t") != "c" || o.peel("b") != "b" || o.parent("b") != "a" || o.parent("a") != "" {
		t.Error("peel, parent")
	}
}

// TestJudgePush: what git has printed, for five refs.
func TestJudgePush(t *testing.T) {
	const porcelain = "To sam:r\n*\taaa:refs/heads/new\t[new branch]\n \tbbb:refs/heads/ff\taa..bb\n" +
		"!\tccc:refs/heads/no\t[rejected] (fetch first)\n!\tddd:refs/heads/gone\t[remote failure] (remote failed to report status)\n"
	for _, c := range []struct {
		name string
		r    result
		want string
	}{
		{"each its own", result{stdout: porcelain + "Done\n", status: 1}, "accepted accepted refused unknown unknown"},
		{"cut off", result{stderr: "fatal: the remote end hung up unexpectedly", status: 128}, "unknown unknown unknown unknown unknown"},
		{"not the master", result{stderr: "fatal: gollum is not the master of r, please push to frodo", status: 128}, "refused refused refused refused refused"},
		{"redirection refused", result{stderr: "fatal: frodo <==//== sam redirected push rejected: no", status: 128}, "refused refused refused refused refused"},
		{"killed", result{status: -1}, "unknown unknown unknown unknown unknown"},
	} {
		changes := []change{{ref: "refs/heads/new"}, {ref: "refs/heads/ff"}, {ref: "refs/heads/no"}, {ref: "refs/heads/gone"}, {ref: "refs/heads/other"}}
		judgePush(changes, c.r)
		var got []string
		for _, change := range changes {
			got = append(got, string(change.outcome))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

// TestPlans: a seed chooses the same things again, another one chooses others.
func TestPlans(t *testing.T) {
	take := func(seed uint64) []any {
		next := faultPlans(seed, AllKinds())
		all := []any{pushPlans(seed, 0, 50), pushPlans(seed, 1, 50), deedPlans(seed, 50)}
		for range 50 {
			all = append(all, next())
		}
		return all
	}
	if !reflect.DeepEqual(take(7), take(7)) {
		t.Error("a seed is not enough")
	}
	if reflect.DeepEqual(take(7), take(8)) || reflect.DeepEqual(pushPlans(7, 0, 50), pushPlans(7, 1, 50)) {
		t.Error("seeds and users do not differ")
	}
	for _, kind := range append(AllKinds(), DatabaseKinds()...) {
		if kindWeights[kind] == 0 {
			t.Errorf("%s is never chosen", kind)
		}
	}
}
