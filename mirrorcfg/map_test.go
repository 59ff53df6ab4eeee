package mirrorcfg

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// memory is a map's directory.
type memory struct{ fstest.MapFS }

func (m memory) Glob(pattern string) ([]string, error) { return fs.Glob(m.MapFS, pattern) }

// mapOf makes files, each begun by "-- NAME --", a map's directory.
func mapOf(text string) memory {
	m := memory{fstest.MapFS{}}
	name := ""
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "-- "); ok {
			name = strings.TrimSuffix(rest, " --\n")
			m.MapFS[name] = &fstest.MapFile{}
			continue
		}
		m.MapFS[name].Data = append(m.MapFS[name].Data, line...)
	}
	return m
}

// shown is what a map wants, one line a key.
func shown(want map[string]Settings) []string {
	var lines []string
	for name, set := range want {
		for _, s := range set {
			lines = append(lines, fmt.Sprintf("%s %s=%s", name, strings.TrimPrefix(s.Key, keyPrefix), s.Value))
		}
	}
	slices.Sort(lines)
	return lines
}

func TestMapResolve(t *testing.T) {
	here := []string{"admin", "ip1", "ip2", "os1", "sam/site", "sam/deep/site", "gollum/site"}
	for name, test := range map[string]struct {
		files, host string
		want        []string
		missing     []string
		notes       int
	}{
		"every key": {`-- m.toml --
[[repo]]
match = ["ip1"]
master = "frodo"
slaves = ["sam", "gitolite.mirror.hourly"]
sync = ["vault"]
refs = ["refs/heads/*", "!refs/heads/tmp/*"]
meta_keys = ["gitweb.owner", "branch.ab.x"]
lists = { Hourly = ["sam", "legolas"] }
redirect_ok = ["sam", "gollum"]
`, "frodo", []string{"ip1 Hourly=sam legolas", "ip1 master=frodo", "ip1 metaKeys=gitweb.owner branch.ab.x",
			"ip1 redirectOK=sam gollum", "ip1 refs=refs/heads/* !refs/heads/tmp/*", "ip1 slaves=sam gitolite.mirror.hourly", "ip1 sync=vault"}, nil, 0},
		"later ones override key by key, and names are exact": {`-- m.toml --
[[repo]]
match = ["@all"]
master = "frodo"
slaves = ["sam", "gollum"]
redirect_ok = true
[[repo]]
match = ["ip?"]
slaves = []
redirect_ok = false
[[repo]]
match = ["ip1.git", "sam/**", "**/deep/**"]
master = "sam"
lists = { hourly = ["gollum"] }
`, "frodo", []string{
			"admin master=frodo", "admin redirectOK=true", "admin slaves=sam gollum",
			"gollum/site master=frodo", "gollum/site redirectOK=true", "gollum/site slaves=sam gollum",
			"ip1 hourly=gollum", "ip1 master=sam", "ip1 redirectOK=", "ip1 slaves=",
			"ip2 master=frodo", "ip2 redirectOK=", "ip2 slaves=",
			"os1 master=frodo", "os1 redirectOK=true", "os1 slaves=sam gollum",
			"sam/deep/site hourly=gollum", "sam/deep/site master=sam", "sam/deep/site redirectOK=true", "sam/deep/site slaves=sam gollum",
			"sam/site hourly=gollum", "sam/site master=sam", "sam/site redirectOK=true", "sam/site slaves=sam gollum",
		}, nil, 0},
		"groups of groups; what is not here": {`-- m.toml --
[group]
all-sites = ["@sam", "@gollum", "nowhere/**"]
sam = ["sam/**"]
gollum = ["gollum/*", "gollum/gone"]
[[repo]]
match = ["@all-sites", "absent"]
master = "sam"
[[repo]]
match = ["*"]
redirect_ok = true
`, "frodo", []string{"admin redirectOK=true", "gollum/site master=sam", "ip1 redirectOK=true", "ip2 redirectOK=true", "os1 redirectOK=true",
			"sam/deep/site master=sam", "sam/site master=sam"},
			[]string{"absent master=sam", "absent redirectOK=true", "gollum/gone master=sam"}, 1},
		"includes come after, HOSTNAME is a word, nothing is read twice": {`-- m.toml --
include = ["d/HOSTNAME.toml", "d/HOSTNAME_x.toml", "d/x-HOSTNAME.toml", "HOSTNAME.toml", "[a-c]*.toml", "b.toml", "q*.toml"]
[[repo]]
match = ["ip1"]
master = "top"
-- d/frodo.toml --
include = ["../c.toml"]
[[repo]]
match = ["ip1"]
slaves = ["x1"]
-- d/HOSTNAME_x.toml --
[[repo]]
match = ["ip1"]
slaves = ["x2"]
-- d/x-frodo.toml --
[[repo]]
match = ["ip1"]
sync = ["x3"]
-- b.toml --
[[repo]]
match = ["ip1"]
master = "b"
-- c.toml --
[[repo]]
match = ["ip1"]
master = "c"
-- sam.toml --
nonsense
`, "frodo", []string{"ip1 master=b", "ip1 slaves=x2", "ip1 sync=x3"}, nil, 2},
		"subconf within its group; groups of its own": {`-- m.toml --
subconf = ["HOSTNAME.toml"]
[group]
sam = ["sam/**"]
-- sam.toml --
include = ["more.toml"]
[group]
mine = ["sam/*"]
[[repo]]
match = ["@mine", "sam/new"]
master = "sam"
-- more.toml --
[[repo]]
match = ["@mine"]
slaves = ["frodo"]
-- gollum.toml --
[[repo]]
match = ["sam/site"]
`, "sam", []string{"sam/site master=sam", "sam/site slaves=frodo"}, []string{"sam/new master=sam", "sam/new slaves=frodo"}, 0},
		"no file for this server": {"-- m.toml --\nsubconf = [\"HOSTNAME.toml\"]\n", "frodo", nil, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := LoadMap(mapOf(test.files), "m.toml", test.host)
			if err != nil {
				t.Fatal(err)
			}
			res, err := m.Resolve(here)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, shown(res.Want)); diff != "" {
				t.Errorf("want (-expected +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.missing, shown(res.Missing)); diff != "" {
				t.Errorf("missing (-expected +got):\n%s", diff)
			}
			if len(res.Notes) != test.notes {
				t.Errorf("notes: %q", res.Notes)
			}
		})
	}
}

func TestMapErrors(t *testing.T) {
	repo := func(lines string) string { return "-- m.toml --\n[[repo]]\nmatch = [\"ip1\"]\n" + lines + "\n" }
	for name, test := range map[string]struct{ files, want string }{
		"syntax":               {"-- m.toml --\nx = \n", "m.toml: "},
		"unknown key":          {"-- m.toml --\nincludes = []\n", "m.toml: unknown key includes: the keys are include"},
		"unknown in repo":      {repo(`masters = "x"`), "m.toml: unknown key repo.masters: the keys are match, master"},
		"type":                 {repo(`slaves = "sam"`), "m.toml: "},
		"no match":             {"-- m.toml --\n[[repo]]\nmaster = \"x\"\n", "m.toml: [[repo]] number 1: match is not set"},
		"sets nothing":         {repo(``), "it sets nothing"},
		"master empty":         {repo(`master = ""`), "master: it is empty"},
		"master bad":           {repo(`master = "-oProxyCommand=x"`), "master: bad name"},
		"master HOSTNAME":      {repo(`master = "HOSTNAME"`), "master: HOSTNAME stands for"},
		"two in one string":    {repo(`slaves = ["sam gollum"]`), "each peer is a string of its own"},
		"reserved in list":     {repo(`slaves = ["gitolite.mirror.Master"]`), "is not a list of peers"},
		"bad key in list":      {repo(`sync = ["gitolite.mirror.a.b"]`), "a list key is gitolite.mirror.NAME"},
		"list reserved":        {repo(`lists = { redirectOK = ["x"] }`), "lists.redirectOK: it is no list of your own"},
		"list slaves":          {repo(`lists = { Slaves = ["x"] }`), "lists.Slaves: it is no list of your own"},
		"list name":            {repo(`lists = { a_b = ["x"] }`), "lists.a_b: use letters"},
		"list twice":           {repo(`lists = { a = ["x"], A = ["y"] }`), "there is another one of that name"},
		"refs":                 {repo(`refs = ["heads/x"]`), "refs: pattern"},
		"refs newline":         {repo(`refs = ["refs/x\nrefs/y"]`), "one pattern in each string"},
		"refs nul":             {repo(`refs = ["refs/\u0000y"]`), "one pattern in each string"},
		"meta":                 {repo(`meta_keys = ["x"]`), "meta_keys: \"x\""},
		"redirect":             {repo(`redirect_ok = "yes"`), "redirect_ok: write true"},
		"redirect list":        {repo(`redirect_ok = [1]`), "redirect_ok: write true"},
		"redirect host":        {repo(`redirect_ok = ["a b"]`), "redirect_ok: bad name"},
		"bad name":             {"-- m.toml --\n[[repo]]\nmatch = [\"../x\"]\nmaster=\"x\"\n", "m.toml: bad name"},
		"bad glob":             {"-- m.toml --\n[[repo]]\nmatch = [\"a[\"]\nmaster=\"x\"\n", "m.toml: glob"},
		"deep glob":            {"-- m.toml --\n[[repo]]\nmatch = [\"**/**/**/**/**\"]\nmaster=\"x\"\n", "at most 4 times"},
		"no group":             {"-- m.toml --\n[[repo]]\nmatch = [\"@x\"]\nmaster=\"x\"\n", `there is no group "x"`},
		"group of itself":      {"-- m.toml --\n[group]\na=[\"@b\"]\nb=[\"@a\"]\n[[repo]]\nmatch = [\"@a\"]\nmaster=\"x\"\n", "@a → @b → @a"},
		"group all":            {"-- m.toml --\n[group]\nall=[]\n", "@all is every repository"},
		"group name":           {"-- m.toml --\n[group]\n\"@a\"=[]\n", "group.@a: use letters"},
		"group twice":          {"-- m.toml --\ninclude=[\"b.toml\"]\n[group]\na=[]\n-- b.toml --\n[group]\na=[]\n", "b.toml: group.a: it is defined in m.toml already"},
		"missing include":      {"-- m.toml --\ninclude=[\"b.toml\"]\n", `m.toml: "b.toml": `},
		"outside":              {"-- m.toml --\ninclude=[\"../b.toml\"]\n", "leaves the map's directory"},
		"outside, round about": {"-- m.toml --\ninclude=[\"x/../../b.toml\"]\n", "leaves the map's directory"},
		"absolute":             {"-- m.toml --\ninclude=[\"/etc/b.toml\"]\n", "leaves the map's directory"},
		"no toml":              {"-- m.toml --\ninclude=[\"passwd\"]\n", "write the name of a .toml file"},
		"glob upwards":         {"-- m.toml --\ninclude=[\"x/../*.toml\"]\n", "without .."},
		"bad include glob":     {"-- m.toml --\ninclude=[\"[.toml\"]\n", "include"},
		"cycle":                {"-- m.toml --\ninclude=[\"b.toml\"]\n-- b.toml --\ninclude=[\"c.toml\"]\n-- c.toml --\ninclude=[\"b.toml\"]\n", "b.toml → c.toml → b.toml"},
		"itself":               {"-- m.toml --\ninclude=[\"m.toml\"]\n", "m.toml → m.toml"},
		"included and limited": {"-- m.toml --\ninclude=[\"*.toml\"]\nsubconf=[\"HOSTNAME.toml\"]\n[group]\nsam=[]\n-- sam.toml --\n", "m.toml: sam.toml is read twice, without limit and m.toml limits it to @sam"},
		"no group for subconf": {"-- m.toml --\nsubconf=[\"HOSTNAME.toml\"]\n-- sam.toml --\n[[repo]]\nmatch=[\"sam/x\"]\nmaster=\"sam\"\n", "sam.toml may touch only the group sam, which is not defined"},
		"own group for subconf": {"-- m.toml --\nsubconf=[\"HOSTNAME.toml\"]\n-- sam.toml --\n[group]\nsam=[\"**\"]\n[[repo]]\nmatch=[\"ip1\"]\nmaster=\"sam\"\n",
			"sam.toml may touch only the group sam, which is not defined"},
		"hidden group": {"-- m.toml --\nsubconf=[\"HOSTNAME.toml\"]\n[group]\nsam=[\"sam/**\"]\n-- sam.toml --\n[group]\nsam=[\"**\"]\n", "sam.toml: group.sam: it is defined in m.toml already"},
		"subconf names more": {"-- m.toml --\nsubconf=[\"s/HOSTNAME.toml\"]\n[group]\nsam=[\"sam/**\"]\n-- s/sam.toml --\n[[repo]]\nmatch=[\"absent\"]\nmaster=\"sam\"\n",
			"s/sam.toml: it may touch only the repositories of the group sam, and names absent"},
		"subconf matches more": {"-- m.toml --\nsubconf=[\"HOSTNAME.toml\"]\n[group]\nsam=[\"sam/**\"]\n-- sam.toml --\n[[repo]]\nmatch=[\"**\"]\nmaster=\"sam\"\n",
			"sam.toml: it may touch only the repositories of the group sam, and names ip1"},
		"subconf includes more": {"-- m.toml --\nsubconf=[\"HOSTNAME.toml\"]\n[group]\nsam=[\"sam/**\"]\n-- sam.toml --\ninclude=[\"x.toml\"]\n-- x.toml --\n[[repo]]\nmatch=[\"ip1\"]\nmaster=\"sam\"\n",
			"x.toml: it may touch only the repositories of the group sam, and names ip1"},
		"subconf in subconf": {"-- m.toml --\nsubconf=[\"HOSTNAME.toml\"]\n[group]\nsam=[\"sam/**\"]\n-- sam.toml --\nsubconf=[\"x.toml\"]\n[group]\nx=[\"**\"]\n-- x.toml --\n[[repo]]\nmatch=[\"ip1\"]\nmaster=\"sam\"\n",
			"x.toml: it may touch only the repositories of the group sam, and names ip1"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := LoadMap(mapOf(test.files), "m.toml", "sam")
			if err == nil {
				_, err = m.Resolve([]string{"ip1", "sam/site"})
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, not %q", err, test.want)
			}
		})
	}
}

func TestMapBounds(t *testing.T) {
	long := memory{fstest.MapFS{"m.toml": {Data: []byte(strings.Repeat("#", MaxMapFile+1))}}}
	if _, err := LoadMap(long, "m.toml", "sam"); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("long file: %v", err)
	}
	many := memory{fstest.MapFS{"m.toml": {Data: []byte(`include = ["d/*.toml"]`)}}}
	for i := range maxMapFiles + 1 {
		many.MapFS[fmt.Sprintf("d/%d.toml", i)] = &fstest.MapFile{}
	}
	if _, err := LoadMap(many, "m.toml", "sam"); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("many files: %v", err)
	}
	// A tower of groups, each twice in the next, is not 2^n work.
	var b strings.Builder
	b.WriteString("[group]\ng0 = [\"ip1\"]\n")
	for i := range 60 {
		fmt.Fprintf(&b, "g%d = [\"@g%d\", \"@g%d\"]\n", i+1, i, i)
	}
	b.WriteString("[[repo]]\nmatch = [\"@g60\"]\nmaster = \"frodo\"\n")
	tower := memory{fstest.MapFS{"m.toml": {Data: []byte(b.String())}}}
	m, err := LoadMap(tower, "m.toml", "sam")
	if err != nil {
		t.Fatal(err)
	}
	if res, err := m.Resolve([]string{"ip1"}); err != nil || len(res.Want) != 1 {
		t.Errorf("tower: %v, %v", res, err)
	}
}

func TestInvolves(t *testing.T) {
	set := Settings{"master": {Value: "frodo"}, "slaves": {Value: "sam"}, "redirectok": {Value: "gollum"}}
	if !set.Involves("frodo") || !set.Involves("sam") || set.Involves("gollum") || set.Involves("sa") {
		t.Error("master and slaves are involved, nobody else")
	}
	if !(Settings{"redirectok": {Value: "true"}}).Involves("gollum") {
		t.Error("without a master it may be anybody")
	}
}

// A map that is read yields settings which, written and read again, are the
// config that was meant, and never touches more than the limits allow.
func FuzzMap(f *testing.F) {
	f.Add("[group]\nsam=[\"sam/**\"]\n[[repo]]\nmatch=[\"@sam\",\"ip1\"]\nmaster=\"frodo\"\nslaves=[\"sam\"]\nlists={a=[\"gitolite.mirror.b\"]}\nredirect_ok=true\n",
		"[[repo]]\nmatch=[\"sam/*\"]\nrefs=[\"refs/heads/*\"]\nmeta_keys=[\"a.b\"]\n")
	f.Add("include=[\"*.toml\"]\n", "subconf=[\"HOSTNAME.toml\"]\n")
	f.Fuzz(func(t *testing.T, top, sub string) {
		const head = "subconf = [\"sub.toml\"]\n"
		files := memory{fstest.MapFS{"m.toml": {Data: []byte(head + top)}, "sub.toml": {Data: []byte(sub)}}}
		if m, err := LoadMap(files, "m.toml", "sam"); err == nil {
			checkResolved(t, m)
		}
		files.MapFS["m.toml"] = &fstest.MapFile{Data: []byte(head + "[group]\nsub=[\"sam/*\"]\n")}
		m, err := LoadMap(files, "m.toml", "sam")
		if err != nil {
			return
		}
		for name := range checkResolved(t, m) {
			if name != "sam/site" {
				t.Errorf("the limited file touches %s", name)
			}
		}
	})
}

func checkResolved(t *testing.T, m *Map) map[string]Settings {
	res, err := m.Resolve([]string{"ip1", "sam/site", "sam/deep/site"})
	if err != nil {
		return nil
	}
	for name, set := range res.Want {
		plan, err := PlanMap("sam", name, nil, nil, "", set)
		if err != nil {
			continue // a list that is not set, or a cycle
		}
		again, err := PlanMap("sam", name, applied(plan), slices.Repeat([]string{""}, len(applied(plan))), "", set)
		if err != nil || len(again.Writes) > 0 {
			t.Errorf("%s: applied twice: %v, %v", name, again, err)
		}
	}
	return res.Want
}
