package shell

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

func TestParsePerms(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"READERS alice @devs\n":       "READERS alice @devs\n",
		" WRITERS\tbob \r\n\n#x\nA b": "WRITERS\tbob\nA b\n",
		"READERS":                     "READERS\n",
		"@READERS = bob\n= @A =b":     "!",
		"@READERS = bob\n@A=b":        "READERS   bob\nA b\n",
		"READERS al;ice\n":            "!",
		"READERS ../x\n":              "!",
		"-x y\n":                      "!",
		" # x\n@#A\nA b\n":            "A b\n",
		"A b # not dave\n":            "!", // to gitolite dave is one of them
		"R \x00\n":                    "!",
		strings.Repeat("A b\n", 20e3): "!",
	} {
		got, err := parsePerms(strings.NewReader(in))
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%.80q: %q, %v", in, got, err)
		}
	}
}

// What was read is read again as the same.
func FuzzParsePerms(f *testing.F) {
	f.Add("READERS alice @devs\n# x\nWRITERS\n")
	f.Fuzz(func(t *testing.T, in string) {
		perms, err := parsePerms(strings.NewReader(in))
		if err != nil {
			return
		}
		again, err := parsePerms(strings.NewReader(perms))
		if err != nil || again != perms {
			t.Errorf("%q, then %q, %v", perms, again, err)
		}
		if strings.ContainsAny(perms, "\x00\r;'\"`$\\") {
			t.Errorf("%q", perms)
		}
	})
}

func TestDecideWild(t *testing.T) {
	req, err := Parse("CREATOR=alice perms -c 'wild/a'")
	if err != nil || req != (Request{Verb: WildPerms, User: "alice", Repo: "wild/a"}) || req.Command() != "CREATOR=alice perms -c 'wild/a'" {
		t.Fatal(req, err)
	}
	for _, bad := range []string{"CREATOR= perms -c 'a'", "CREATOR=a/b perms -c 'a'", "CREATOR=a perms 'a'", "CREATOR=a perms -c '../a'", "CREATOR=a perms -c -x"} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	repo := func(master string) *mirrorcfg.Repo { return &mirrorcfg.Repo{Name: "wild/a", Master: master} }
	for name, c := range map[string]struct {
		facts Facts
		take  bool
	}{
		"missing":           {Facts{Hostname: "frodo"}, false},
		"may be created":    {Facts{Hostname: "frodo", Create: true}, true},
		"its master":        {Facts{Hostname: "frodo", Repo: repo("sam")}, true},
		"another's":         {Facts{Hostname: "frodo", Repo: repo("gollum"), Create: true}, false},
		"local":             {Facts{Hostname: "frodo", Repo: repo(""), Create: true}, false},
		"we are the master": {Facts{Hostname: "frodo", Repo: repo("frodo"), Create: true}, false},
	} {
		if d := DecidePeer(c.facts, Peer{"sam"}, req); (d.Action == TakeWild) != c.take || !c.take && d.Message == "" {
			t.Errorf("%s: %+v", name, d)
		}
		if d := DecideUser(c.facts, User{"alice"}, req); d.Action != Refuse {
			t.Errorf("%s, a user: %+v", name, d)
		}
	}
}

func TestTakeWild(t *testing.T) {
	s := newTestServer(t, "[accept]\ncreate = [\"wild/**\"]\n")
	sams := s.bare("sams", "master=sam")
	send := func(command, perms string) *testRun {
		r := s.session(command)
		r.Stdin = strings.NewReader(perms)
		r.InstallHooks = func(context.Context, git.Repo) error { return nil }
		return r.peer(t, "sam")
	}
	has := func(dir, creator, perms string) {
		t.Helper()
		for file, want := range map[string]string{"gl-creator": creator, "gl-perms": perms} {
			if text, _ := os.ReadFile(filepath.Join(dir, file)); string(text) != want {
				t.Errorf("%s of %s is %q, want %q", file, dir, text, want)
			}
		}
	}
	made := filepath.Join(s.RepoBase, "wild/a.git")
	for _, perms := range []string{"READERS bob\n", "", "READERS carol\n"} {
		if r := send("CREATOR=alice perms -c 'wild/a'", perms); r.status != 0 {
			t.Errorf("%d, %s", r.status, r.err.String())
		}
		has(made, "alice", perms)
	}
	if _, repo, err := s.OpenRepo(t.Context(), "wild/a"); err != nil || repo.Dir == "" {
		t.Error(err)
	}
	if r := send("CREATOR=alice perms -c 'sams'", "WRITERS bob\n"); r.status != 0 {
		t.Errorf("%d, %s", r.status, r.err.String())
	}
	has(sams, "alice", "WRITERS bob\n")
	for command, perms := range map[string]string{"CREATOR=alice perms -c 'wild/b'": "READERS $(id)\n", "CREATOR=alice perms -c 'other'": ""} {
		if r := send(command, perms); r.status != 1 {
			t.Errorf("%s: %d, %s", command, r.status, r.err.String())
		}
	}
	for _, name := range []string{"wild/b", "other"} {
		if _, err := os.Stat(filepath.Join(s.RepoBase, name+".git")); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}
