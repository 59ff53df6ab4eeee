package worker

import (
	"strings"
	"testing"
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
		if f := judgeGitolite("frodo", "gollum", user, version); known && (f.Level != test.level || !strings.Contains(f.Detail, test.says)) {
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
