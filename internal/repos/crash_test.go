package repos

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

// Names of what is being made are nobody's: what has one is removed when the next
// repository is made beside it, without going to the trash.
func TestNamesOfWhatIsMade(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("p/precious", "frodo"))
	for _, name := range []string{"p/.mirror-shell-new-1", "p/.mirror-shell-new-1/x", "p/.mirror-shell/trash"} {
		if err := Rename(t.Context(), w.server, Renaming{Old: "p/precious", New: name, By: "frodo"}); !errors.Is(err, mirrorcfg.ErrName) {
			t.Errorf("renamed to %s: %v", name, err)
		}
		if err := w.create(name, "frodo"); !errors.Is(err, mirrorcfg.ErrName) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.must(w.create("p/other", "frodo"))
	if got := w.names(); !slices.Equal(got, []string{"p/other", "p/precious"}) {
		t.Error(got)
	}
	// One that is half made is no repository to anybody.
	_, err := git.Init(t.Context(), w.path("p/.mirror-shell-new-7.git"), "sha1")
	w.must(err)
	if got := w.names(); !slices.Equal(got, []string{"p/other", "p/precious"}) {
		t.Error(got)
	}
}

// Who may make no more repositories today makes no directories, either.
func TestCountedBeforeAnything(t *testing.T) {
	w := newWorld(t)
	w.server.Accept.CreatePerDay = 1
	w.must(w.create("a", "frodo"))
	if w.create("b/c/d", "frodo") == nil {
		t.Error("b/c/d was made")
	}
	if Rename(t.Context(), w.server, Renaming{Old: "a", New: "e/f", By: "frodo"}) == nil {
		t.Error("e/f was made")
	}
	for _, dir := range []string{"b", "e"} {
		if _, err := os.Lstat(w.path(dir)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", dir, err)
		}
	}
	w.must(Rename(t.Context(), w.server, Renaming{Old: "a", New: "e/f"})) // the administrator's is not counted
}

// A renaming that a crash prevented is not taken for done because the name has
// been given to another repository since.
func TestPreventedRenaming(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("a", "sam"))
	p, err := open(t.Context(), w.server)
	w.must(err)
	w.must(p.writeOps("gollum", []Op{{ID: newID(time.Now()), Kind: Renamed, Name: "a", To: "b", Prepared: true, Inode: inode(w.path("a.git"))}}))
	p.close()
	w.must(w.create("b", "sam"))
	if ops, err := Untold(t.Context(), w.server, "gollum", "b"); len(ops) != 0 || err != nil {
		t.Error(ops, err)
	}
}

// step is what a process does that is killed; it runs in a process of its own.
func step(ctx context.Context, w world, round int) error {
	name, renamed := fmt.Sprintf("d/a%d-%d", os.Getpid(), round), fmt.Sprintf("e/b%d-%d", os.Getpid(), round)
	if err := w.create(name, "sam"); err != nil {
		return err
	}
	if err := Rename(ctx, w.server, Renaming{Old: name, New: renamed, Peers: []string{"gollum", "merry"}}); err != nil {
		return err
	}
	e, err := Delete(ctx, w.server, Deletion{Name: renamed, Peers: []string{"gollum", "merry"}})
	if err != nil {
		return err
	}
	_, err = Restore(ctx, w.server, e.ID, "")
	return err
}

const killedBase = "REPOS_TEST_BASE"

// TestKilledChild is the process that TestKilledAnywhere kills.
func TestKilledChild(t *testing.T) {
	base := os.Getenv(killedBase)
	if base == "" {
		t.Skip("run by TestKilledAnywhere")
	}
	w := world{t, serverIn(filepath.Dir(base))}
	for round := range 1 << 20 {
		if err := step(t.Context(), w, round); err != nil {
			t.Fatal(err)
		}
	}
}

// Wherever the process dies, each repository is in one place and whole, what the peers
// are told has happened here, and the next process goes on.
func TestKilledAnywhere(t *testing.T) {
	w := newWorld(t)
	for round := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledChild$", "-test.count=1")
		cmd.Env = append(os.Environ(), killedBase+"="+w.server.RepoBase)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		w.must(cmd.Start())
		begun, before := time.Now(), len(w.names())
		for time.Since(begun) < 30*time.Second && len(w.names()) == before {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(round*3) * time.Millisecond)
		cmd.Process.Kill()
		if err := cmd.Wait(); err == nil || strings.Contains(out.String(), "FAIL") {
			t.Fatalf("%v %s", err, out.String())
		}
		w.sound()
		for _, e := range w.trashed() {
			_, err := Restore(t.Context(), w.server, e.ID, "r/"+e.ID)
			w.must(err)
		}
		w.sound()
	}
}

func (w world) trashed() []Entry {
	w.Helper()
	list, err := Trash(w.server)
	w.must(err)
	return list
}

// sound checks what is on disk.
func (w world) sound() {
	w.Helper()
	here := w.names()
	for _, name := range here {
		if cfg, _, err := w.server.OpenRepo(w.Context(), name); err != nil || cfg.Master != "sam" {
			w.Errorf("%s: %+v, %v", name, cfg, err)
		}
	}
	gone := map[string]bool{}
	for _, e := range w.trashed() {
		gone[e.ID] = true
		if !git.IsRepository(w.path(".mirror-shell/trash", e.ID, "repository")) {
			w.Errorf("%+v is not whole", e)
		}
	}
	waiting, err := Waiting(w.Context(), w.server)
	w.must(err)
	for peer, ops := range waiting {
		for _, op := range ops {
			if op.Prepared || op.Kind == Deleted && !gone[op.ID] && slices.Contains(here, op.Name) {
				w.Errorf("%s is told %+v", peer, op)
			}
			if op.Kind == Renamed && slices.Contains(here, op.Name) {
				w.Errorf("%s is told that %s, which is here, was renamed", peer, op.Name)
			}
		}
	}
}
