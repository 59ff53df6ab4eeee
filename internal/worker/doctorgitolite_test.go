package worker

import (
	"strings"
	"testing"
	"unicode"
)

func TestGitoliteGreeting(t *testing.T) {
	const rest = "\n\n R W\ttesting\n"
	for _, test := range []struct{ text, level, says string }{
		{"hello server-frodo, this is git@host running gitolite3 3.6.12-1 (Debian) on git 2.39.5" + rest, ok, "gitolite 3 3.6.12-1, without mirror-shell: it knows us as server-frodo;"},
		{"hello server-frodo, this is git@host running gitolite3 v3.6.13-3-g1 on git 2.39.5", ok, "gitolite 3 v3.6.13-3-g1,"},
		{"hello frodo, this is git@host running gitolite3 v3.6.13 on git 2.39.5" + rest, warn, "it takes us for the user frodo"},
		{"hello server-frodo2, this is git@host running gitolite3 v3.6.13 on git 2.39.5", warn, "it takes us for the user server-frodo2"},
		{"hello frodo, this is gitolite 2.3 running on git 2.39.5", "", ""},
		{"Hello gollum, I am sam.", "", ""},
		{"\nhello server-frodo, this is git@host running gitolite3 v3 on git 2", "", ""},
		{"", "", ""},
	} {
		user, version, known := gitoliteGreeting(test.text)
		if known != (test.level != "") {
			t.Errorf("%q: a gitolite: %t", test.text, known)
			continue
		}
		if f := judgeGitolite("frodo", "gollum", user, version, ""); known && (f.Level != test.level || !strings.Contains(f.Detail, test.says)) {
			t.Errorf("%q: %+v", test.text, f)
		}
	}
}

func TestHead(t *testing.T) {
	var h head
	for range 3 {
		if n, err := h.Write(make([]byte, 40<<10)); n != 40<<10 || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(h) != 64<<10 {
		t.Errorf("it keeps %d bytes", len(h))
	}
}

// Whatever a peer says, what doctor says of it is one line that a terminal can show.
func FuzzGitoliteGreeting(f *testing.F) {
	f.Add("hello server-frodo, this is git@host running gitolite3 3.6.12-1 (Debian) on git 2.39.5")
	f.Add("hello \x1b[2J\u202e, this is x running gitolite3\u2028 \x00")
	f.Fuzz(func(t *testing.T, text string) {
		user, version, known := gitoliteGreeting(text)
		if !known {
			return
		}
		found := judgeGitolite("frodo", "gollum", user, version, "")
		for _, r := range found.Detail + found.Do {
			if !unicode.IsGraphic(r) {
				t.Fatalf("%q in %q", r, found.Detail)
			}
		}
	})
}

func TestJudgeUser(t *testing.T) {
	for text, want := range map[string]bool{
		"Hello frodo, I am sam.\n local   ip1":                      true,
		"Hello frodo, I am sam.":                                    true,
		"Hello frodo, I am gollum.":                                 false, // doctor has another finding for that
		"Hello frodo, I am sam. And more":                           false,
		"Hello $(reboot), I am sam.":                                false, // it would stand in a command for people to type
		"hello server-frodo, this is git@sam running gitolite3 3.6": false,
		"": false,
	} {
		if f, got := judgeUser("frodo", "sam", text); got != want || got && (f.Level != fail || f.Do == "") {
			t.Errorf("%q: %v, %+v", text, got, f)
		}
	}
}

// What travels to a gitolite depends on what its administrator has enabled.
func TestGivenThere(t *testing.T) {
	for _, c := range []struct{ help, want string }{
		{"hello x\nlist of remote commands available:\n\n\tdesc\n\thelp\n\tsymbolic-ref\n",
			"HEAD where its gitolite.conf has `RW = server-frodo`, the description where it also has `option writer-is-owner = 1`; config is for its gitolite.conf to set"},
		{"\tdesc\n\thelp\n", "HEAD does not: for it 'symbolic-ref' has to be in ENABLE of ~/.gitolite.rc there, and `RW = server-frodo` in its gitolite.conf, " +
			"the description where that has `RW = server-frodo` and `option writer-is-owner = 1`; config is for its gitolite.conf to set"},
		{"\tsymbolic-ref\n", "HEAD where its gitolite.conf has `RW = server-frodo`, the description does not: for it 'desc' has to be in ENABLE of ~/.gitolite.rc there, " +
			"and `RW = server-frodo` and `option writer-is-owner = 1` in its gitolite.conf; config is for its gitolite.conf to set"},
	} {
		if got := givenThere("server-frodo", c.help); got != c.want {
			t.Errorf("%q: %q, want %q", c.help, got, c.want)
		}
	}
}
