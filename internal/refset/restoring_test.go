package refset

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestRestoringMark(t *testing.T) {
	dir := t.TempDir()
	gone := filepath.Join(dir, "gone.git")
	if _, err := MarkRestoring(gone, "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a repository that is not there: %v", err)
	}
	if why := WhyRestoring(dir); why != "" || StaleRestoring(dir) {
		t.Fatalf("%q", why)
	}
	mark, err := MarkRestoring(dir, "ip1 is being\nrestored")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // looking takes nothing away
		if why := WhyRestoring(dir); why != "ip1 is being restored" || StaleRestoring(dir) {
			t.Fatalf("%q", why)
		}
	}
	// The repository is moved, and another one takes its place.
	aside := AsideName(dir) + "20261122T035557Z"
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	if why := WhyRestoring(dir); why != "" {
		t.Errorf("%q", why)
	}
	if why := WhyRestoring(aside); why == "" {
		t.Error("a push to what was moved aside is let in")
	}
	if err := mark.Release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(RestoringFile(aside)); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// The mark of a restore that was killed, whose lock went with it, does no harm.
func TestRestoringMarkOfKilled(t *testing.T) {
	dir := t.TempDir()
	mark, err := MarkRestoring(dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	mark.lock.Close()
	if !StaleRestoring(dir) {
		t.Error("nobody holds it")
	}
	again, err := MarkRestoring(dir, "y") // the next restore
	if err != nil || WhyRestoring(dir) != "y" {
		t.Fatal(err)
	}
	again.lock.Close()
	if why := WhyRestoring(dir); why != "" {
		t.Errorf("%q", why)
	}
	if _, err := os.Lstat(RestoringFile(dir)); !os.IsNotExist(err) {
		t.Error("it is left", err)
	}
	again.dir.Close()
	// A link, or a directory, in its place is nothing.
	if err := os.Symlink("/etc/passwd", RestoringFile(dir)); err != nil {
		t.Fatal(err)
	}
	if why := WhyRestoring(dir); why != "" {
		t.Errorf("%q", why)
	}
}

func TestIsAside(t *testing.T) {
	for name, want := range map[string]bool{
		"/r/ip1.git": false, "/r/ip1.git.before-restore-20261122T035557Z": true, "/r/.ip1.git.mirror-shell-restore-123": true,
		"/r/x.before-restore-y/ip1.git": false, "/": false, "/r/notes.before-restore-2025.git": false, "/r/notes.before-restore-2025.git.before-restore-20261122T035557Z-2": true,
	} {
		if got := isAside(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestBuildOf(t *testing.T) {
	for name, want := range map[string]string{
		filepath.Base(BuildName("/r/ip1.git")) + "123": "ip1.git", ".a.mirror-shell-restore-1.git.mirror-shell-restore-2": "a.mirror-shell-restore-1.git",
		"ip1.git.mirror-shell-restore-1": "", ".ip1.git.mirror-shell-restore-lock": "", ".ip1.git.mirror-shell-restore-": "", ".mirror-shell-restore-1": "", "": "", "ip1.git": "",
	} {
		if got, ok := BuildOf(name); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", name, got, ok)
		}
	}
}

func BenchmarkWhyRestoring(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		if WhyRestoring(dir) != "" {
			b.Fatal("no restore is at work")
		}
	}
}
