package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/refset"
)

// A slave keeps what its master has set, and the next hook still reads its input.
func TestReceived(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("a/ip1", "master=sam")
	w.write(dir+"/hooks/post-receive.next", "#!/bin/sh\ncat > mirror-shell/next\n", 0o700)
	stale := refset.Path(dir, "gollum")
	if err := os.MkdirAll(filepath.Dir(stale), 0o700); err != nil {
		t.Fatal(err)
	}
	w.write(stale, "", 0o600)

	out, err := w.push(dir, "MIRROR_SHELL_PEER=sam")
	w.pushed(dir, out, err)
	oid := w.git(dir, "rev-parse", "refs/heads/main")
	log, err := refset.Open(refset.Received(dir))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := log.Confirmed("refs/heads/main"); !ok || got != oid {
		t.Errorf("on record: %q, %v; want %s", got, ok, oid)
	}
	next, err := os.ReadFile(dir + "/mirror-shell/next")
	if want := strings.Repeat("0", 40) + " " + oid + " refs/heads/main\n"; err != nil || string(next) != want {
		t.Errorf("the next hook read %q, %v; want %q", next, err, want)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("what was known of gollum from another reign: %v", err)
	}
}

func FuzzParseUpdates(f *testing.F) {
	zero := strings.Repeat("0", 40)
	f.Add([]byte(zero + " " + zero + " refs/heads/main\n"))
	f.Fuzz(func(t *testing.T, updates []byte) {
		list, err := parseUpdates(updates)
		if err != nil {
			return
		}
		again := ""
		for _, u := range list {
			again += u.old + " " + u.new + " " + u.ref + "\n"
		}
		if again != string(updates) {
			t.Errorf("%q reads as %v", updates, list)
		}
	})
}
