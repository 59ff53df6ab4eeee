package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"
)

// Gitea owns hooks/post-receive: a script that it writes anew now and then, and that runs
// every program in hooks/post-receive.d, of which Gitea's own is called gitea. Ours
// stands beside it, as mirror-shell, and Gitea leaves it alone. The same holds
// for pre-receive.
const (
	giteaHook   = "gitea"
	besideGitea = "mirror-shell"
	hookDir     = ".d" // what follows the name of a hook
)

// place is where our hook of that name stands in a directory of hooks.
func place(dir, name string) string {
	if byGitea(dir, name) {
		return filepath.Join(dir, name+hookDir, besideGitea)
	}
	return filepath.Join(dir, name)
}

// byGitea reports whether the hook of that name is Gitea's to write.
func byGitea(dir, name string) bool {
	info, err := os.Lstat(filepath.Join(dir, name+hookDir, giteaHook))
	return err == nil && info.Mode().IsRegular()
}

// delegates reports whether the hook itself, beside which ours stands, is there and is
// not ours: without it git runs neither.
func delegates(dir, name string) bool {
	hook := filepath.Join(dir, name)
	info, err := os.Stat(hook)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && !isOurs(hook)
}

// giveBack makes Gitea's script the hook again, where ours has taken its place: under
// another name it looks for its programs in a directory that does not exist.
func giveBack(dir, name string) ([]string, error) {
	hook := filepath.Join(dir, name)
	if delegates(dir, name) {
		return nil, nil
	}
	if _, err := os.Lstat(hook); err == nil && !isOurs(hook) {
		return nil, fmt.Errorf("%s cannot be run, and with it neither Gitea's hook nor ours: run gitea admin regenerate hooks", hook)
	}
	err := os.Rename(hook+nextSuffix, hook)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not Gitea's, which would run its own hook and ours: run gitea admin regenerate hooks", hook)
	}
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("%s is %s again", hook, name+nextSuffix)}, nil
}

// started reports whether Gitea's script has started the hook that stands in path.
func started(path string) bool {
	return filepath.Base(path) == besideGitea && strings.HasSuffix(filepath.Dir(path), hookDir)
}

// leaveGitea undoes what Gitea changes for the git that it runs, which is to see none of the
// account's config and none of the machine's. Our other programs see both. A hook that did
// not would take repositories for local that have their master from there, and find
// no configuration of ours.
func leaveGitea() {
	if u, err := user.Current(); err == nil && u.HomeDir != "" {
		os.Setenv("HOME", u.HomeDir)
	}
	os.Unsetenv("GIT_CONFIG_NOSYSTEM")
}
