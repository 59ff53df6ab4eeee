package mirrorcfg

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/git"
)

// repoOf makes the configuration of ip1 from keys without prefix.
func repoOf(t testing.TB, keys map[string]string) *Repo {
	t.Helper()
	var entries []git.ConfigEntry
	for key, value := range keys {
		entries = append(entries, git.ConfigEntry{Key: keyPrefix + key, Value: value})
	}
	cfg, err := ParseRepo("ip1", entries)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// The example of gitolite's mirroring document.
func TestExpandSeedExample(t *testing.T) {
	cfg := repoOf(t, map[string]string{
		"master":  "frodo",
		"slaves":  "sam merry pippin",
		"hourly":  "sam legolas",
		"nightly": "gitolite.mirror.hourly gimli",
		"all":     "gitolite.mirror.nightly gitolite.mirror.hourly gitolite.mirror.slaves",
	})
	tests := []struct{ words, want string }{
		{"gitolite.mirror.slaves", "sam merry pippin"},
		{"gollum", "gollum"},
		{"gitolite.mirror.slaves gollum", "sam merry pippin gollum"},
		{"gitolite.mirror.slaves gitolite.mirror.hourly", "sam merry pippin legolas"},
		{"gitolite.mirror.all", "sam legolas gimli merry pippin"},
		{"Gitolite.Mirror.ALL", "sam legolas gimli merry pippin"},
		{"gitolite.mirror.unset", ""},
		{"gitolite.mirror.unset sam frodo", "sam"},
	}
	for _, tt := range tests {
		got, err := cfg.Expand("frodo", strings.Fields(tt.words)...)
		if err != nil {
			t.Errorf("Expand(%s): %v", tt.words, err)
			continue
		}
		if diff := cmp.Diff(strings.Fields(tt.want), got); diff != "" && tt.want+strings.Join(got, "") != "" {
			t.Errorf("Expand(%s) (-want +got):\n%s", tt.words, diff)
		}
	}
}

func TestExpandMistakes(t *testing.T) {
	tests := []struct {
		keys map[string]string
		want string
	}{
		{map[string]string{"x": "gitolite.mirror.x"}, "x → x"},
		{map[string]string{"x": "gitolite.mirror.nightly", "nightly": "gimli gitolite.mirror.hourly", "hourly": "legolas gitolite.mirror.nightly"},
			"nightly → hourly → nightly"},
		{map[string]string{"x": "sam gitolite.mirror.nowhere"}, "gitolite.mirror.nowhere is not set (in the value of gitolite.mirror.x)"},
		{map[string]string{"x": "gitolite.mirror.master"}, "gitolite.mirror.master is not a list"},
		{map[string]string{"x": "gitolite.mirror.redirectOK"}, "is not a list"},
		{map[string]string{"x": "gitolite.mirror.refs"}, "is not a list"},
		{map[string]string{"x": "gitolite.mirror.metaKeys"}, "is not a list"},
		{map[string]string{"x": "-oProxyCommand=x"}, "bad name"},
		{map[string]string{"x": "sam,merry"}, "bad name"},
	}
	for _, tt := range tests {
		_, err := repoOf(t, tt.keys).Expand("frodo", "gitolite.mirror.x")
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Expand with %v: error %v, want one with %q", tt.keys, err, tt.want)
		}
	}
	if _, err := repoOf(t, nil).Expand("frodo", "gitolite.mirror.master"); err == nil {
		t.Error("a reserved key on the command line is accepted")
	}
}

// Thirty keys that each name the next one twice would be a billion words.
func TestExpandIsNotExponential(t *testing.T) {
	keys := map[string]string{"k29": "sam"}
	for i := range 29 {
		next := keyPrefix + "k" + string(rune('0'+(i+1)/10)) + string(rune('0'+(i+1)%10))
		keys["k"+string(rune('0'+i/10))+string(rune('0'+i%10))] = next + " " + next
	}
	got, err := repoOf(t, keys).Expand("frodo", keyPrefix+"k00")
	if err != nil || len(got) != 1 {
		t.Fatalf("Expand = %v, %v; want [sam]", got, err)
	}
}

// Whoever may write one repository's lists must not occupy the server with them.
// cpuTime is what this process has computed so far, however busy the machine is.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func TestExpandIsBounded(t *testing.T) {
	chain := map[string]string{fmt.Sprintf("k%d", maxListKeys-1): "sam"}
	for i := range maxListKeys - 1 {
		chain[fmt.Sprintf("k%d", i)] = fmt.Sprintf("%sk%d", keyPrefix, i+1)
	}
	start := cpuTime(t)
	if cfg := repoOf(t, chain); !cfg.Listed("frodo", "sam") || cfg.Listed("frodo", "gollum") {
		t.Error("long chains are not followed")
	}
	if d := cpuTime(t) - start; d > 8*time.Second { // a second with the race detector
		t.Errorf("it took %v", d)
	}
	chain["one-more"] = "sam"
	var entries []git.ConfigEntry
	for key, value := range chain {
		entries = append(entries, git.ConfigEntry{Key: keyPrefix + key, Value: value})
	}
	if _, err := ParseRepo("ip1", entries); err == nil || !strings.Contains(err.Error(), "at most 1000 are allowed") {
		t.Errorf("too many keys: %v", err)
	}
	wide := repoOf(t, map[string]string{"slaves": strings.Repeat("sam ", maxWords)})
	if _, err := wide.Expand("frodo", SlavesKey); err == nil || !strings.Contains(err.Error(), "more than 1000 peers and keys (in the value of gitolite.mirror.slaves)") {
		t.Errorf("too many words: %v", err)
	}
}

func TestRedirect(t *testing.T) {
	tests := []struct {
		redirectOK, slave        string
		masterAllows, slaveWould bool
	}{
		{"", "sam", false, false},
		{"true", "sam", true, true},
		{"true", "gollum", false, true}, // not in frodo's slaves
		{"True", "sam", false, false},
		{"sam merry", "sam", true, true},
		{"gollum", "gollum", true, true}, // need not be one of the slaves
		{"sam", "saXm", false, false},
		{"sa.m", "saXm", false, false},
		{"true", "", false, true},
	}
	for _, tt := range tests {
		cfg := repoOf(t, map[string]string{"master": "frodo", "slaves": "sam", "redirectOK": tt.redirectOK})
		if got := cfg.MayRedirect("frodo", tt.slave); got != tt.masterAllows {
			t.Errorf("redirectOK = %q: MayRedirect(%q) = %v", tt.redirectOK, tt.slave, got)
		}
		if got := cfg.Redirects(tt.slave); got != tt.slaveWould {
			t.Errorf("redirectOK = %q: Redirects(%q) = %v", tt.redirectOK, tt.slave, got)
		}
	}
}

func TestRolesAndListed(t *testing.T) {
	for master, want := range map[string]Role{"": Local, "local": Local, "frodo": Master, "sam": Slave} {
		if got := repoOf(t, map[string]string{"master": master}).Role("frodo"); got != want {
			t.Errorf("master = %q: role %v, want %v", master, got, want)
		}
	}
	cfg := repoOf(t, map[string]string{"master": "frodo", "slaves": "gitolite.mirror.broken", "nightly": "gimli"})
	if !cfg.Listed("frodo", "gimli") || cfg.Listed("frodo", "sam") || cfg.IsSlave("frodo", "gimli") {
		t.Error("a broken list must have no members, and hide no other list's")
	}
}

func TestMirrorsRef(t *testing.T) {
	tests := []struct {
		patterns, ref string
		want          bool
	}{
		{"", "refs/heads/main", true},
		{"", "refs/mirror/rescued/x", false},
		{"refs/heads/*", "refs/heads/a/b", true},
		{"refs/heads/*", "refs/tags/a", false},
		{"refs/heads/", "refs/heads/a/b", true},
		{"!refs/pull/*", "refs/pull/1/head", false},
		{"!refs/pull/*", "refs/heads/main", true},
		{"refs/heads/* !refs/heads/tmp/*", "refs/heads/tmp/x", false},
		{"refs/heads/*/x*y", "refs/heads/a/xzy", true},
		{"refs/heads/*/x*y", "refs/heads/a/xy", true},
		{"refs/heads/a*a", "refs/heads/a", false},
		{"refs/*", "refs/mirror/x", false},
	}
	for _, tt := range tests {
		if got := repoOf(t, map[string]string{"refs": tt.patterns}).MirrorsRef(tt.ref); got != tt.want {
			t.Errorf("refs = %q: MirrorsRef(%s) = %v", tt.patterns, tt.ref, got)
		}
	}
	for _, bad := range []string{"heads/*", "refs/heads/[ab]", "!main"} {
		if _, err := parseRefPatterns(bad); err == nil {
			t.Errorf("pattern %q is accepted", bad)
		}
	}
}

func FuzzParseRepo(f *testing.F) {
	f.Add("gitolite.mirror.slaves", "sam gitolite.mirror.hourly", "gitolite.mirror.hourly", "gollum")
	f.Add("gitolite.mirror.a", "gitolite.mirror.b", "gitolite.mirror.b", "gitolite.mirror.a")
	f.Add("gitolite.mirror.refs", "refs/heads/* !refs/x/", "gitolite.mirror.master", "frodo")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		cfg, err := ParseRepo("ip1", []git.ConfigEntry{{Key: k1, Value: v1}, {Key: k2, Value: v2}})
		if err != nil {
			return
		}
		cfg.MirrorsRef("refs/heads/main")
		for _, key := range cfg.Lists() {
			peers, err := cfg.Expand("frodo", key)
			seen := map[string]bool{"frodo": true}
			for _, p := range peers {
				if err == nil && (seen[p] || CheckHost(p) != nil) {
					t.Fatalf("Expand(%q) = %q", key, peers)
				}
				seen[p] = true
			}
		}
	})
}
