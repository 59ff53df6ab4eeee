package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/git"
)

// hookState says what stands under each name in a hooks directory: "-> TARGET"
// for a link, else the content.
func hookState(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	state := map[string]string{}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".sample") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if target, err := os.Readlink(path); err == nil {
			state[e.Name()] = "-> " + target
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		state[e.Name()] = string(data)
	}
	return state
}

func wantHooks(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := hookState(t, dir)
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s is %.80q, want %.80q", name, got[name], w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is there too: %.80q", name, got[name])
		}
	}
}

func TestInstall(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.home, "x.git")
	w.git("", "init", "-q", "--bare", dir)
	os.RemoveAll(dir + "/hooks") // a template may have none
	repo := git.Repo{Dir: dir}
	installed := func(want bool) {
		t.Helper()
		if got, err := Installed(t.Context(), repo); err != nil || got != want {
			t.Errorf("installed: %v, %v, want %v", got, err, want)
		}
	}
	installed(false)
	if changes := w.install(dir); len(changes) != 2 {
		t.Errorf("changes %q", changes)
	}
	installed(true)
	ours := map[string]string{"pre-receive": "-> " + programs + "/pre-receive", "post-receive": "-> " + programs + "/post-receive"}
	wantHooks(t, dir+"/hooks", ours)
	if changes := w.install(dir); len(changes) != 0 {
		t.Errorf("again: changes %q", changes)
	}
	wantHooks(t, dir+"/hooks", ours)

	if err := os.Remove(dir + "/hooks/post-receive"); err != nil {
		t.Fatal(err)
	}
	installed(false)
	if changes := w.install(dir); len(changes) != 1 || !strings.Contains(changes[0], "post-receive -> ") {
		t.Errorf("changes %q", changes)
	}
	installed(true)
}

func TestInstallKeepsHooks(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.home, "x.git")
	w.git("", "init", "-q", "--bare", dir)
	w.write(dir+"/hooks/pre-receive", "#!/bin/sh\n# mine\n", 0o750)
	w.write(w.home+"/elsewhere/notify", "#!/bin/sh\n", 0o700)
	if err := os.Symlink("../../elsewhere/notify", dir+"/hooks/post-receive"); err != nil { // relative
		t.Fatal(err)
	}
	want := map[string]string{
		"pre-receive": "-> " + programs + "/pre-receive", "pre-receive.next": "#!/bin/sh\n# mine\n",
		"post-receive": "-> " + programs + "/post-receive", "post-receive.next": "-> ../../elsewhere/notify",
	}
	changes := w.install(dir)
	if len(changes) != 4 || !strings.Contains(changes[0], "pre-receive kept as pre-receive.next, runs after ours") {
		t.Errorf("changes %q", changes)
	}
	wantHooks(t, dir+"/hooks", want)
	if info, err := os.Stat(dir + "/hooks/pre-receive.next"); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("%v, %v", info, err)
	}
	if changes := w.install(dir); len(changes) != 0 {
		t.Errorf("again: changes %q", changes)
	}
	wantHooks(t, dir+"/hooks", want)
}

func TestInstallConflict(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.home, "x.git")
	w.git("", "init", "-q", "--bare", dir)
	w.write(dir+"/hooks/pre-receive", "mine\n", 0o700)
	w.write(dir+"/hooks/pre-receive.next", "older\n", 0o700)
	_, err := Install(t.Context(), git.Repo{Dir: dir}, programs)
	if err == nil || !strings.Contains(err.Error(), "pre-receive.next, where it would be kept, exists: rename one of them") {
		t.Errorf("%v", err)
	}
	wantHooks(t, dir+"/hooks", map[string]string{"pre-receive": "mine\n", "pre-receive.next": "older\n"})
	// A dangling link under that name is somebody's too.
	if err := os.Remove(dir + "/hooks/pre-receive.next"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere/check", dir+"/hooks/pre-receive.next"); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), git.Repo{Dir: dir}, programs); err == nil {
		t.Error("the link was overwritten")
	}
	wantHooks(t, dir+"/hooks", map[string]string{"pre-receive": "mine\n", "pre-receive.next": "-> /nowhere/check"})
}

// An Install that was killed after the hook got its second name.
func TestInstallTakenUpAgain(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.home, "x.git")
	w.git("", "init", "-q", "--bare", dir)
	w.write(dir+"/hooks/pre-receive", "mine\n", 0o700)
	if err := os.Link(dir+"/hooks/pre-receive", dir+"/hooks/pre-receive.next"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/old", dir+"/hooks/pre-receive.mirror-shell-new"); err != nil {
		t.Fatal(err)
	}
	w.install(dir)
	wantHooks(t, dir+"/hooks", map[string]string{
		"pre-receive": "-> " + programs + "/pre-receive", "pre-receive.next": "mine\n", "post-receive": "-> " + programs + "/post-receive",
	})
}

// Programs that were moved, upgraded or copied are replaced, and never kept as
// a hook that runs after ours.
func TestInstallMovedPrograms(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.home, "x.git")
	w.git("", "init", "-q", "--bare", dir)
	w.ownPrograms("pre-receive", "post-receive")
	w.install(dir) // links to our own copy of the programs
	old := w.programs
	w.programs = programs
	ours := map[string]string{"pre-receive": "-> " + programs + "/pre-receive", "post-receive": "-> " + programs + "/post-receive"}
	if changes := w.install(dir); len(changes) != 4 { // still there, at another place
		t.Errorf("changes %q", changes)
	}
	wantHooks(t, dir+"/hooks", ours)

	w.programs = old
	w.install(dir)
	if err := os.RemoveAll(old); err != nil {
		t.Fatal(err)
	}
	if ok, err := Installed(t.Context(), git.Repo{Dir: dir}); ok || err != nil {
		t.Errorf("dangling links count as installed: %v", err)
	}
	w.programs = programs
	changes := w.install(dir)
	if len(changes) != 4 || !strings.Contains(changes[0], "pre-receive was a link to "+old+"/pre-receive") {
		t.Errorf("changes %q", changes)
	}
	wantHooks(t, dir+"/hooks", ours)

	data, err := os.ReadFile(programs + "/pre-receive") // a copy instead of a link
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir + "/hooks/pre-receive"); err != nil {
		t.Fatal(err)
	}
	w.write(dir+"/hooks/pre-receive", string(data), 0o700)
	w.install(dir)
	wantHooks(t, dir+"/hooks", ours)
	// A dangling link of another name is somebody's.
	if err := os.Remove(dir + "/hooks/pre-receive"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/mnt/away/check", dir+"/hooks/pre-receive"); err != nil {
		t.Fatal(err)
	}
	w.install(dir)
	ours["pre-receive.next"] = "-> /mnt/away/check"
	wantHooks(t, dir+"/hooks", ours)
}

func TestInstallHooksPath(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct{ value, dir string }{
		"absolute": {w.home + "/shared hooks", w.home + "/shared hooks"},
		"relative": {"my-hooks", ""},
		"home":     {"~/home-hooks", w.home + "/home-hooks"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("HOME", w.home)
			dir := w.bare(name, "master=sam")
			w.git(dir, "config", "core.hooksPath", c.value)
			w.install(dir)
			if c.dir == "" {
				c.dir = filepath.Join(dir, c.value)
			}
			wantHooks(t, c.dir, map[string]string{"pre-receive": "-> " + programs + "/pre-receive", "post-receive": "-> " + programs + "/post-receive"})
			if ok, err := Installed(t.Context(), git.Repo{Dir: dir}); !ok || err != nil {
				t.Errorf("installed: %v, %v", ok, err)
			}
			w.write(c.dir+"/pre-receive.next", "#!/bin/sh\ntouch "+w.home+"/ran-"+name+"\n", 0o700)
			out, err := w.push(dir)
			w.refused(dir, out, err, "frodo is not the master of "+name)
			out, err = w.push(dir, "MIRROR_SHELL_PEER=sam")
			w.pushed(dir, out, err)
			if _, err := os.Stat(w.home + "/ran-" + name); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestInstallFails(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.home, "x.git")
	w.git("", "init", "-q", "--bare", dir)
	w.write(dir+"/hooks/pre-receive", "mine\n", 0o700)
	if _, err := Install(t.Context(), git.Repo{Dir: dir}, w.home); err == nil || !strings.Contains(err.Error(), "program for hook") {
		t.Errorf("without programs: %v", err)
	}
	wantHooks(t, dir+"/hooks", map[string]string{"pre-receive": "mine\n"})
	if _, err := Install(t.Context(), git.Repo{Dir: w.home + "/nowhere"}, programs); err == nil {
		t.Error("no repository, no error")
	}
	if err := os.Remove(dir + "/hooks/pre-receive"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir+"/hooks/pre-receive/x", 0o700); err != nil { // a directory moves aside whole
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), git.Repo{Dir: dir}, programs); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/hooks/pre-receive.next/x"); err != nil {
		t.Error(err)
	}
}
