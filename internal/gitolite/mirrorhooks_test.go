package gitolite

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

func TestMirrorHooks(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	repo := filepath.Join(home, "ip1.git")
	common := filepath.Join(home, ".gitolite/hooks/common")
	for _, dir := range []string{common, repo + "/hooks"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write := func(file string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(filepath.Base(file)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"pre-receive", "post-receive.next", "update.sample"} {
		write(filepath.Join(repo, "hooks", name))
	}
	write(common + "/update")
	server := &mirrorcfg.Server{Gitolite: mirrorcfg.Gitolite{Programs: "/g"}}
	ask := func(server *mirrorcfg.Server, cfg mirrorcfg.Repo) string {
		t.Helper()
		dir, err := MirrorHooks(server, &cfg, git.Repo{Dir: repo})
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	if dir := ask(server, mirrorcfg.Repo{}); dir != "" {
		t.Errorf("without an update hook: %s", dir)
	}
	write(repo + "/hooks/update") // of somebody else
	if dir := ask(server, mirrorcfg.Repo{}); dir != "" {
		t.Errorf("an update hook of its own is left out: %s", dir)
	}
	if err := os.Remove(repo + "/hooks/update"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(common+"/update", repo+"/hooks/update"); err != nil {
		t.Fatal(err)
	}
	if dir := ask(&mirrorcfg.Server{}, mirrorcfg.Repo{}) + ask(server, mirrorcfg.Repo{HooksPath: "/x"}); dir != "" {
		t.Errorf("no gitolite here, or hooks elsewhere: %s", dir)
	}

	has := func(want ...string) {
		t.Helper()
		dir := ask(server, mirrorcfg.Repo{})
		if dir != repo+"/mirror-shell/hooks" {
			t.Fatalf("hooks are in %s", dir)
		}
		var got []string
		files, _ := os.ReadDir(dir)
		for _, f := range files {
			got = append(got, f.Name())
			if text, err := os.ReadFile(filepath.Join(dir, f.Name())); err != nil || string(text) != f.Name() {
				t.Errorf("%s: %s, %v", f.Name(), text, err)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	has("post-receive.next", "pre-receive")
	has("post-receive.next", "pre-receive")
	write(repo + "/hooks/post-update")
	if err := os.Remove(repo + "/hooks/post-receive.next"); err != nil {
		t.Fatal(err)
	}
	has("post-update", "pre-receive")
}
