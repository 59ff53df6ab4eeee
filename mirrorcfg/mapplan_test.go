package mirrorcfg

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/git"
)

// applied is an empty config after a plan's writes.
func applied(p *MapPlan) []git.ConfigEntry { return applyWrites(nil, p.Writes) }

func applyWrites(entries []git.ConfigEntry, writes []ConfigWrite) []git.ConfigEntry {
	entries = slices.Clone(entries)
	for _, w := range writes {
		entries = slices.DeleteFunc(entries, func(e git.ConfigEntry) bool { return strings.EqualFold(e.Key, w.Key) })
		if w.New.Set {
			entries = append(entries, git.ConfigEntry{Key: strings.ToLower(w.Key), Value: w.New.Text})
		}
	}
	return entries
}

// config reads "KEY=VALUE" entries of the own file; those behind "global:" and
// "late:" stand in other files.
func config(lines ...string) (entries []git.ConfigEntry, files []string) {
	for _, line := range lines {
		file := "own"
		for _, other := range []string{"global", "late"} {
			if rest, ok := strings.CutPrefix(line, other+":"); ok {
				file, line = other, rest
			}
		}
		key, value, ok := strings.Cut(line, "=")
		if !strings.Contains(key, ".") {
			key = keyPrefix + key
		}
		entries = append(entries, git.ConfigEntry{Key: key, Value: value, Implicit: !ok})
		files = append(files, file)
	}
	return entries, files
}

func want(pairs ...string) Settings {
	set := Settings{}
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		set[strings.ToLower(key)] = Setting{keyPrefix + key, value, "m.toml"}
	}
	return set
}

const recordOf = MapRecordKey + "="

func TestPlanMap(t *testing.T) {
	for name, test := range map[string]struct {
		have     []string
		want     Settings
		changes  []string
		warnings []string
		notes    []string
		writes   int
	}{
		"new": {nil, want("master=sam", "slaves=frodo", "redirectOK=true"),
			[]string{"redirectOK: (not set) → true", "slaves: (not set) → frodo", "master: (not set) → sam"}, nil, nil, 4},
		"the master is another server: it comes first": {nil, want("master=frodo", "lists=x"),
			[]string{"master: (not set) → frodo", "lists: (not set) → x"}, nil, nil, 3},
		"unchanged":                            {[]string{"core.bare=true", "master=sam", recordOf + "master sam\n"}, want("master=sam"), nil, nil, nil, 0},
		"changed":                              {[]string{"slaves=a", recordOf + "slaves a\n"}, want("slaves=a b"), []string{"slaves: a → a b"}, nil, nil, 3},
		"right by hand: on record from now on": {[]string{"slaves=a"}, want("slaves=a"), nil, nil, nil, 1},
		"by hand: the map wins": {[]string{"slaves=mine"}, want("slaves=a"),
			[]string{"slaves: mine → a (the old value was written by hand; the map wins)"}, nil, nil, 2},
		"changed by hand: the map wins": {[]string{"slaves=mine", recordOf + "slaves a\n"}, want("slaves=a"),
			[]string{"slaves: mine → a (the old value was written by hand; the map wins)"}, nil, nil, 1},
		"removed by hand: set again":    {[]string{recordOf + "slaves a\n"}, want("slaves=a"), []string{"slaves: (not set) → a"}, nil, nil, 1},
		"no longer mentioned":           {[]string{"slaves=a", "hourly=b", recordOf + "slaves a\n"}, nil, []string{"slaves: a → (not set)"}, nil, nil, 2},
		"no longer, but changed":        {[]string{"slaves=mine", recordOf + "slaves a\n"}, nil, nil, nil, []string{"slaves: mine stays"}, 1},
		"no longer, and removed":        {[]string{recordOf + "slaves a\n"}, nil, nil, nil, nil, 1},
		"after a crash: either is ours": {[]string{"slaves=b", recordOf + "slaves a\nslaves b\n"}, nil, []string{"slaves: b → (not set)"}, nil, nil, 2},
		"empty is a value":              {[]string{"global:slaves=g"}, want("slaves="), []string{"slaves: (not set) → (empty)"}, nil, nil, 2},
		"a global one is not ours":      {[]string{"global:slaves=g", "core.bare=true"}, want("slaves=g"), []string{"slaves: (not set) → g"}, nil, nil, 2},
		"a later one hides ours":        {[]string{"core.bare=true", "late:slaves=g"}, want("slaves=a"), []string{"slaves: (not set) → a"}, []string{"slaves is set in late"}, nil, 2},
		"lists of both":                 {[]string{"hourly=x"}, want("slaves=gitolite.mirror.hourly"), []string{"slaves: (not set) → gitolite.mirror.hourly"}, nil, nil, 2},
		"a broken value is replaced": {[]string{"slaves"}, want("slaves=a"),
			[]string{"slaves: (empty) → a (the old value was written by hand; the map wins)"}, nil, nil, 2},
		"taken from another": {[]string{"master=frodo"}, want("master=sam"),
			[]string{"master: frodo → sam (the old value was written by hand; the map wins)"}, []string{"becomes its master in place of frodo"}, nil, 2},
		"given to another":      {[]string{"master=sam", recordOf + "master sam\n"}, want("master=frodo"), []string{"master: sam → frodo"}, []string{"changes from this server to frodo"}, nil, 3},
		"from one to another":   {[]string{"master=gollum", recordOf + "master gollum\n"}, want("master=frodo"), []string{"master: gollum → frodo"}, []string{"gollum must know of it first, and frodo last"}, nil, 3},
		"not mirrored any more": {[]string{"master=frodo", recordOf + "master frodo\n"}, nil, []string{"master: frodo → (not set)"}, []string{"users may push to sam"}, nil, 2},
		"local now":             {[]string{"master=frodo", recordOf + "master frodo\n"}, want("master=local"), []string{"master: frodo → local"}, []string{"users may push to sam"}, nil, 3},
		"another master remains": {[]string{"global:master=gollum", "master=frodo", recordOf + "master frodo\n"}, nil, []string{"master: frodo → (not set)"},
			[]string{"changes from frodo to gollum"}, nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			entries, files := config(test.have...)
			p, err := PlanMap("sam", "ip1", entries, files, "own", test.want)
			if err != nil {
				t.Fatal(err)
			}
			var changes []string
			for _, c := range p.Changes {
				changes = append(changes, strings.TrimPrefix(c.String(), keyPrefix))
			}
			if diff := cmp.Diff(test.changes, changes); diff != "" {
				t.Errorf("changes (-expected +got):\n%s", diff)
			}
			if len(p.Writes) != test.writes {
				t.Errorf("%d writes: %q", len(p.Writes), p.Writes)
			}
			contain(t, "warnings", test.warnings, p.Warnings)
			contain(t, "notes", test.notes, p.Notes)
			converges(t, entries, files, p.Writes, test.want)
		})
	}
}

func contain(t *testing.T, what string, want, got []string) {
	t.Helper()
	if len(want) != len(got) {
		t.Fatalf("%s: %q", what, got)
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("%s: %q, not %q", what, got[i], want[i])
		}
	}
}

// converges ends an apply after each of its writes: the next one ends where this
// one would have, and takes nothing for written by hand that was not.
func converges(t *testing.T, entries []git.ConfigEntry, files []string, writes []ConfigWrite, want Settings) {
	t.Helper()
	own := slices.Clone(entries)
	var others []git.ConfigEntry
	for i := len(own) - 1; i >= 0; i-- {
		if files[i] != "own" {
			others = append(others, own[i])
			own = slices.Delete(own, i, i+1)
		}
	}
	end := shownConfig(applyWrites(own, writes))
	for n := range len(writes) + 1 {
		state := applyWrites(own, writes[:n])
		origins := slices.Repeat([]string{"own"}, len(state))
		again, err := PlanMap("sam", "ip1", append(slices.Clone(others), state...), append(slices.Repeat([]string{"global"}, len(others)), origins...), "own", want)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(end, shownConfig(applyWrites(state, again.Writes))); diff != "" {
			t.Errorf("ended after %d writes, another end (-expected +got):\n%s", n, diff)
		}
	}
}

func shownConfig(entries []git.ConfigEntry) []string {
	var lines []string
	for _, e := range entries {
		lines = append(lines, e.Key+"="+e.Value)
	}
	slices.Sort(lines)
	return lines
}

func TestPlanMapRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		have []string
		want Settings
		err  string
	}{
		"cycle":                         {nil, want("a=gitolite.mirror.b", "b=gitolite.mirror.a"), "m.toml: mirror list of ip1: the keys include each other"},
		"cycle with a hand-written key": {[]string{"b=gitolite.mirror.a"}, want("a=gitolite.mirror.b"), "include each other"},
		"not set":                       {nil, want("slaves=gitolite.mirror.b"), "gitolite.mirror.b is not set"},
		"about to go":                   {[]string{"b=x", recordOf + "b x\n"}, want("slaves=gitolite.mirror.b"), "gitolite.mirror.b is not set"},
		"broken by hand":                {[]string{"refs"}, want("slaves=x"), "gitolite.mirror.refs has no value"},
	} {
		t.Run(name, func(t *testing.T) {
			entries, files := config(test.have...)
			if _, err := PlanMap("sam", "ip1", entries, files, "own", test.want); err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, not %q", err, test.err)
			}
		})
	}
}
