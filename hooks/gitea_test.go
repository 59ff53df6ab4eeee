package hooks

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/git"
)

// delegating does what Gitea's own script does.
const delegating = `#!/bin/sh
data=$(cat)
for hook in ./hooks/$(basename $0).d/*; do
  test -x "$hook" || continue
  echo "$data" | "$hook" || exit $?
done
`

func TestInstallBesideGitea(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("alice/ip1", "master=sam")
	repo := git.Repo{Dir: dir}
	gitea := func() { // as it makes a repository, and as it regenerates hooks
		for _, name := range Names {
			if err := os.MkdirAll(filepath.Join(dir, "hooks", name+".d"), 0o755); err != nil {
				t.Fatal(err)
			}
			os.Remove(dir + "/hooks/" + name)
			w.write(dir+"/hooks/"+name, delegating, 0o755)
			w.write(dir+"/hooks/"+name+".d/gitea", "#!/bin/sh\ncat >gitea-"+name+"\n", 0o755)
		}
	}
	os.RemoveAll(dir + "/hooks")
	gitea()
	installed := func(want bool) {
		t.Helper()
		if got, err := Installed(t.Context(), repo); err != nil || got != want {
			t.Errorf("installed: %v, %v, want %v", got, err, want)
		}
	}
	right := func() {
		t.Helper()
		installed(true)
		for _, name := range Names {
			if text, _ := os.ReadFile(dir + "/hooks/" + name); string(text) != delegating {
				t.Errorf("%s is %.40q", name, text)
			}
			wantHooks(t, dir+"/hooks/"+name+".d", map[string]string{besideGitea: "-> " + programs + "/" + name, "gitea": "#!/bin/sh\ncat >gitea-" + name + "\n"})
		}
		out, err := w.push(dir, "MIRROR_SHELL_CONFIG="+w.config)
		if err == nil || !strings.Contains(out, "frodo is not the master of alice/ip1, please push to sam") {
			t.Errorf("%v, %s", err, out)
		}
		if _, err := os.Stat(dir + "/gitea-pre-receive"); err != nil {
			t.Errorf("Gitea's own hook does not run: %v", err)
		}
		os.Remove(dir + "/gitea-pre-receive")
	}
	installed(false)
	if changes := w.install(dir); len(changes) != 2 {
		t.Errorf("changes %q", changes)
	}
	right()
	if changes := w.install(dir); len(changes) != 0 {
		t.Errorf("again: %q", changes)
	}
	gitea()
	right()

	// Put in Gitea's place by an older version, and mended.
	for _, name := range Names {
		os.Remove(dir + "/hooks/" + name + ".d/" + besideGitea)
		if err := os.Rename(dir+"/hooks/"+name, dir+"/hooks/"+name+".next"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(programs+"/"+name, dir+"/hooks/"+name); err != nil {
			t.Fatal(err)
		}
	}
	installed(false)
	if changes := w.install(dir); len(changes) != 4 {
		t.Errorf("changes %q", changes)
	}
	right()

	// A link to where our programs were.
	link := dir + "/hooks/pre-receive.d/" + besideGitea
	os.Remove(link)
	if err := os.Symlink("/nowhere/pre-receive", link); err != nil {
		t.Fatal(err)
	}
	installed(false)
	w.install(dir)
	right()

	// Without Gitea's script nothing would run.
	os.Remove(dir + "/hooks/pre-receive")
	installed(false)
	if _, err := Install(t.Context(), repo, programs); err == nil || !strings.Contains(err.Error(), "gitea admin regenerate hooks") {
		t.Errorf("no script: %v", err)
	}
}

// Gitea gives its git another HOME.
func TestHomeBesideGitea(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=sam")
	beside := dir + "/hooks/pre-receive.d"
	if err := os.MkdirAll(beside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(programs+"/pre-receive", beside+"/"+besideGitea); err != nil {
		t.Fatal(err)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(beside + "/" + besideGitea)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(w.lines())
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.home}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), home+"/.config/mirror-shell/config.toml") {
		t.Errorf("%v: it does not look for the account's configuration: %s", err, out)
	}
}
