package hooks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

// Whoever pushes is told what is late, and the push is what it always is.
func TestToldWhatIsBehind(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("a/ip1", "master=frodo", "slaves=sam gollum")
	since := time.Now().Add(-75 * time.Hour)
	err := inbox.SetBehind(w.state(), []inbox.Lack{
		{Repository: "a/ip1", Peer: "sam", Since: since, Why: "disk full\x1b[31m"},
		{Repository: "other", Peer: "sam", Since: since, Why: "nothing of ours"},
		{Peer: "gollum", Since: since, Why: "connection refused"},
		{Peer: "legolas", Since: since, Why: "not a peer of this one"},
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	date := since.UTC().Format("2006-01-02")
	for _, want := range []string{
		fmt.Sprintf("remote: mirror-shell: sam has not had a/ip1 since %s (3 days): disk full [31m", date),
		fmt.Sprintf("remote: mirror-shell: gollum has not been reached since %s (3 days): connection refused", date),
	} {
		if !strings.Contains(out, want) {
			t.Errorf("told\n%s, want %q", out, want)
		}
	}
	if strings.Count(out, "mirror-shell: ") != 2 || len(w.events()) != 1 {
		t.Errorf("told\n%s, events %v", out, w.events())
	}
}

// What cannot be read is in the log, and holds up nothing.
func TestBehindUnreadable(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo", "slaves=sam")
	w.write(filepath.Join(w.state(), "behind"), "not a directory", 0o600)
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	log, _ := os.ReadFile(filepath.Join(w.state(), "mirror-shell.log"))
	if len(w.events()) != 1 || !strings.Contains(string(log), "what is behind cannot be read") {
		t.Errorf("told\n%s, log %s", out, log)
	}
}
