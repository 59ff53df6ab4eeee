package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
)

// While a restore is about to replace a repository nobody pushes to it, in whatever role it is.
func TestPushWhileRestoring(t *testing.T) {
	for name, c := range map[string]struct {
		config, env []string
	}{
		"local":  {nil, nil},
		"master": {[]string{"master=frodo", "slaves=sam"}, nil},
		"slave":  {[]string{"master=sam", "slaves=frodo"}, []string{"MIRROR_SHELL_PEER=sam"}},
	} {
		w := newWorld(t)
		dir := w.bare(name, c.config...)
		mark, err := refset.MarkRestoring(dir, name+" is being restored: try again in a minute")
		if err != nil {
			t.Fatal(err)
		}
		out, pushed := w.push(dir, c.env...)
		w.refused(dir, out, pushed, "fatal: push refused: "+name+" is being restored: try again in a minute")
		if err := mark.Release(); err != nil {
			t.Fatal(err)
		}
		// That of a restore that was killed is nothing, and goes.
		if err := os.WriteFile(refset.RestoringFile(dir), []byte("killed\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, pushed = w.push(dir, c.env...)
		w.pushed(dir, out, pushed)
		if _, err := os.Lstat(refset.RestoringFile(dir)); !os.IsNotExist(err) {
			t.Errorf("%s: the mark is left: %v", name, err)
		}
	}
}

// Nor is a push of the master taken without hooks.
func TestMirrorPushWhileRestoring(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	mark, err := refset.MarkRestoring(dir, "ip1 is being restored")
	if err != nil {
		t.Fatal(err)
	}
	defer mark.Release()
	var warned []string
	p := w.quickPush(dir, "sam", &warned)
	if _, err := p.Begin(t.Context(), []sendpack.Command{{Ref: "refs/heads/a", Old: zero, New: w.oid}}); err == nil || !strings.Contains(err.Error(), "ip1 is being restored") {
		t.Error(err)
	}
}

// Who began before the restore and comes late does not get into what was put away.
func TestPushToWhatWasMovedAside(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1")
	aside := refset.AsideName(dir) + "20261122T035557Z"
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	out, err := w.push(aside)
	w.refused(aside, out, err, "fatal: push refused: this repository was moved aside by a restore")
	again := filepath.Join(filepath.Dir(dir), "ip2.git")
	if err := os.Rename(aside, again); err != nil {
		t.Fatal(err)
	}
	out, err = w.push(again)
	w.pushed(again, out, err)
}
