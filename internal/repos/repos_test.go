package repos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/meta"
	"mirror-shell/mirrorcfg"
)

// world is a server without any repository.
type world struct {
	testing.TB
	server *mirrorcfg.Server
}

func newWorld(t testing.TB) world {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(dir, "gitconfig"))
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	w := world{t, serverIn(dir)}
	if err := os.Mkdir(w.server.RepoBase, 0o755); err != nil {
		t.Fatal(err)
	}
	return w
}

func serverIn(dir string) *mirrorcfg.Server {
	return &mirrorcfg.Server{File: "x.toml", Hostname: "sam", RepoBase: filepath.Join(dir, "repositories"), StateDir: filepath.Join(dir, "state"),
		Accept: mirrorcfg.Accept{Create: []string{"**"}, Delete: []string{"**"}, CreatePerDay: 100000}}
}

func (w world) path(elements ...string) string {
	return filepath.Join(append([]string{w.server.RepoBase}, elements...)...)
}

func (w world) create(name, master string) error {
	_, _, err := Create(w.Context(), w.server, Creation{Name: name, Master: master, InstallHooks: func(context.Context, git.Repo) error { return nil }})
	return err
}

func (w world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w world) names() []string {
	w.Helper()
	names, err := w.server.Repositories()
	w.must(err)
	return names
}

func TestCreate(t *testing.T) {
	w := newWorld(t)
	perms := "READERS bob\n"
	repo, answer, err := Create(t.Context(), w.server, Creation{Name: "a/b/c", Master: "frodo", Format: "sha256",
		Meta: &meta.Data{Head: "refs/heads/trunk", Perms: &perms, Config: map[string]string{"gitweb.owner": "x", "core.pager": "id"}},
		InstallHooks: func(_ context.Context, r git.Repo) error {
			return os.WriteFile(filepath.Join(r.Dir, "hooked"), nil, 0o600)
		}})
	w.must(err)
	if !slices.Equal(answer.NotTaken, []string{"core.pager"}) {
		t.Errorf("%+v", answer)
	}
	for file, want := range map[string]string{"HEAD": "ref: refs/heads/trunk\n", "gl-perms": perms, "hooked": ""} {
		if text, err := os.ReadFile(filepath.Join(repo.Dir, file)); err != nil || string(text) != want {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
	if format, err := repo.ObjectFormat(t.Context()); format != "sha256" || err != nil {
		t.Error(format, err)
	}
	cfg, _, err := w.server.OpenRepo(t.Context(), "a/b/c")
	if err != nil || cfg.Role("sam") != mirrorcfg.Slave || cfg.Master != "frodo" {
		t.Error(cfg, err)
	}
	if info, err := os.Stat(repo.Dir); err != nil || info.Mode().Perm()&0o055 == 0 {
		t.Errorf("others cannot get in: %v %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(w.path("a/b/.mirror*")); len(left) > 0 {
		t.Error(left)
	}
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("there", "frodo"))
	_, err := git.Init(t.Context(), w.path("plain"), "sha1")
	w.must(err)
	w.must(os.Symlink(t.TempDir(), w.path("out")))
	w.must(os.Symlink("there.git", w.path("alias.git")))
	w.must(os.Symlink("nowhere", w.path("dangling.git")))
	w.must(os.Mkdir(w.path("empty.git"), 0o755))
	w.must(os.WriteFile(w.path("file"), nil, 0o600))
	before := w.names()
	for name, want := range map[string]error{
		"there": ErrExists, "alias": ErrExists, "dangling": ErrExists, "empty": ErrExists,
		"plain/x": mirrorcfg.ErrName, "out/x": mirrorcfg.ErrName, "file/x": mirrorcfg.ErrName,
		"there.git/x": mirrorcfg.ErrName, "../x": mirrorcfg.ErrName, ".mirror-shell/x": mirrorcfg.ErrName, "x.git": mirrorcfg.ErrName,
		"a//b": mirrorcfg.ErrName, "": mirrorcfg.ErrName, "-x": mirrorcfg.ErrName, "a/.git/b": mirrorcfg.ErrName,
	} {
		if err := w.create(name, "eve"); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", name, err, want)
		}
	}
	if err := w.create("x", "-oProxyCommand=id"); err == nil {
		t.Error("an odd master is taken")
	}
	if after := w.names(); !slices.Equal(before, after) {
		t.Errorf("%q, before %q", after, before)
	}
	// A repository whose hooks cannot be installed is not there.
	_, _, err = Create(t.Context(), w.server, Creation{Name: "y", Master: "eve", InstallHooks: func(context.Context, git.Repo) error { return errors.New("no") }})
	if _, statErr := os.Lstat(w.path("y.git")); err == nil || !errors.Is(statErr, fs.ErrNotExist) {
		t.Error(err, statErr)
	}
	// Nor is one that this server's own configuration would give to somebody else.
	w.must(os.WriteFile(os.Getenv("GIT_CONFIG_GLOBAL"), []byte("[init]\n\ttemplateDir = "+t.TempDir()+"\n"), 0o600))
	w.must(w.create("z", "eve"))
}

// Of many that create the same name at once, one does, and what is there is its.
func TestCreateAtOnce(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	made := make(chan string, 8)
	for i := range 8 {
		wg.Go(func() {
			master := fmt.Sprint("m", i)
			if err := w.create("x/y", master); err == nil {
				made <- master
			} else if !errors.Is(err, ErrExists) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(made)
	cfg, _, err := w.server.OpenRepo(t.Context(), "x/y")
	if first, more := <-made, len(made); err != nil || more != 0 || cfg.Master != first {
		t.Errorf("made by %s and %d others, master %v, %v", first, more, cfg, err)
	}
}

func TestCreationsPerDay(t *testing.T) {
	w := newWorld(t)
	w.server.Accept.CreatePerDay = 2
	w.must(w.create("a", "frodo"))
	w.must(w.create("b", "frodo"))
	if err := w.create("c", "frodo"); err == nil || !strings.Contains(err.Error(), "frodo has made or renamed 2 repositories here today") {
		t.Error(err)
	}
	w.must(w.create("c", "gollum"))
	w.must(os.WriteFile(w.path(".mirror-shell/created"), []byte(`{"day":"2001-01-01","count":{"frodo":2}}`), 0o600))
	w.must(w.create("d", "frodo"))
}

func TestDeleteRestoreExpire(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("a/b", "frodo"))
	if _, err := Delete(t.Context(), w.server, Deletion{Name: "a/b", By: "eve"}); err == nil || !strings.Contains(err.Error(), "the master of a/b is frodo") {
		t.Error(err)
	}
	e, err := Delete(t.Context(), w.server, Deletion{Name: "a/b", By: "frodo", Op: "op1"})
	w.must(err)
	if len(w.names()) != 0 {
		t.Error(w.names())
	}
	if done, err := Done(w.server, "frodo", "op1"); !done || err != nil {
		t.Error(done, err)
	}
	if done, _ := Done(w.server, "eve", "op1"); done {
		t.Error("eve's deletion is done")
	}
	w.must(w.create("a/b", "frodo"))
	if _, err := Restore(t.Context(), w.server, e.ID, ""); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	_, err = Restore(t.Context(), w.server, e.ID, "c")
	w.must(err)
	if got := w.names(); !slices.Equal(got, []string{"a/b", "c"}) {
		t.Error(got)
	}
	old, err := Delete(t.Context(), w.server, Deletion{Name: "c"})
	w.must(err)
	gone, err := Expire(t.Context(), w.server, time.Now().Add(-time.Hour))
	if len(gone) != 0 || err != nil {
		t.Error(gone, err)
	}
	if gone, err = Expire(t.Context(), w.server, time.Now().Add(time.Hour)); len(gone) != 1 || gone[0].ID != old.ID || err != nil {
		t.Error(gone, err)
	}
	for _, id := range []string{"", "..", "../../x", old.ID} {
		if _, err := Restore(t.Context(), w.server, id, "x"); err == nil {
			t.Errorf("%q was restored", id)
		}
	}
}

// What is to be told is on disk before it happens, and is void when it did not.
func TestKilledInBetween(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"a", "b", "c"} {
		w.must(w.create(name, "sam"))
	}
	e, err := Delete(t.Context(), w.server, Deletion{Name: "a", Peers: []string{"gollum"}})
	w.must(err)
	w.must(Rename(t.Context(), w.server, Renaming{Old: "b", New: "bb", Peers: []string{"gollum"}}))
	p, err := open(t.Context(), w.server)
	w.must(err)
	ops, err := readOps(p.untoldFile("gollum"))
	w.must(err)
	for i := range ops {
		ops[i].Prepared = true
	}
	ops = append(ops, Op{ID: newID(time.Now()), Kind: Deleted, Name: "c", Prepared: true}, Op{ID: newID(time.Now()), Kind: Renamed, Name: "c", To: "d", Prepared: true})
	w.must(p.writeOps("gollum", ops))
	p.close()
	waiting, err := Waiting(t.Context(), w.server)
	w.must(err)
	if got := waiting["gollum"]; len(got) != 2 || got[0].ID != e.ID || got[1].To != "bb" || got[0].Prepared || got[1].Prepared {
		t.Errorf("%+v", got)
	}
	// Restoring takes back what was not told.
	_, err = Restore(t.Context(), w.server, e.ID, "")
	w.must(err)
	if ops, err := Untold(t.Context(), w.server, "gollum", "a"); len(ops) != 0 || err != nil {
		t.Error(ops, err)
	}
	if ops, err := Untold(t.Context(), w.server, "gollum", "bb"); len(ops) != 1 || err != nil {
		t.Error(ops, err)
	} else {
		w.must(Told(t.Context(), w.server, "gollum", ops[0]))
	}
	if waiting, err = Waiting(t.Context(), w.server); len(waiting) != 0 || err != nil {
		t.Error(waiting, err)
	}
}

// Whatever is told about a name is told with all that it hangs together with, in order.
func TestRelated(t *testing.T) {
	ops := []Op{{ID: "1", Kind: Renamed, Name: "a", To: "b"}, {ID: "2", Kind: Deleted, Name: "x"}, {ID: "3", Kind: Renamed, Name: "b", To: "c"},
		{ID: "4", Kind: Deleted, Name: "a"}, {ID: "5", Kind: Renamed, Name: "y", To: "z"}}
	for name, want := range map[string]string{"a": "134", "b": "134", "c": "134", "x": "2", "y": "5", "z": "5", "other": "", "": ""} {
		got := ""
		for _, op := range related(ops, name) {
			got += op.ID
		}
		if got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func TestRename(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("a", "frodo"))
	w.must(w.create("taken", "frodo"))
	for _, r := range []Renaming{{Old: "a", New: "taken"}, {Old: "a", New: "a"}, {Old: "a", New: "../x"}, {Old: "a", New: "x", By: "eve"}, {Old: "gone", New: "x"}, {Old: "a", New: "x", Peers: []string{"../x"}}} {
		if err := Rename(t.Context(), w.server, r); err == nil {
			t.Errorf("%+v was done", r)
		}
	}
	w.must(Rename(t.Context(), w.server, Renaming{Old: "a", New: "b/c", By: "frodo"}))
	w.must(Rename(t.Context(), w.server, Renaming{Old: "b/c", New: "d"}))
	if NewName(w.server, "a") != "d" || NewName(w.server, "b/c") != "d" || NewName(w.server, "d") != "" {
		t.Error(NewName(w.server, "a"), NewName(w.server, "b/c"), NewName(w.server, "d"))
	}
	w.must(Rename(t.Context(), w.server, Renaming{Old: "d", New: "a"})) // round in a circle
	if NewName(w.server, "a") != "" || NewName(w.server, "d") != "a" {
		t.Error(NewName(w.server, "a"), NewName(w.server, "d"))
	}
	w.must(os.Symlink("a.git", w.path("link.git")))
	if err := Rename(t.Context(), w.server, Renaming{Old: "link", New: "e"}); err == nil {
		t.Error("a link was renamed")
	}
	if out, err := exec.Command("git", "-C", w.path("a.git"), "fsck").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// A damaged file is told, and nothing is made of it.
func TestDamagedUntold(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("a", "sam"))
	w.must(os.MkdirAll(w.path(".mirror-shell/untold"), 0o700))
	w.must(os.WriteFile(w.path(".mirror-shell/untold/gollum.json"), []byte(`[{"id"`), 0o600))
	if _, err := Untold(t.Context(), w.server, "gollum", "a"); err == nil || !strings.Contains(err.Error(), "gollum.json") {
		t.Error(err)
	}
	if _, err := Delete(t.Context(), w.server, Deletion{Name: "a", Peers: []string{"gollum"}}); err == nil {
		t.Error("deleted, and nobody would hear of it")
	}
	if names := w.names(); !slices.Equal(names, []string{"a"}) {
		t.Error(names)
	}
	var syntax *json.SyntaxError
	if _, err := Waiting(t.Context(), w.server); !errors.As(err, &syntax) {
		t.Error(err)
	}
}
