package hooks

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"mirror-shell/internal/git"
)

// Names are the hooks that Install puts into a repository.
var Names = []string{"pre-receive", "post-receive"}

// nextSuffix is what an administrator's own hook is called beside ours.
const nextSuffix = ".next"

// Install makes both hooks of the repository links to our programs, and returns
// what it changed, one line each; nothing when all is in place. A hook that is
// there already is renamed to HOOK.next and goes on running after ours. In a
// repository of Gitea's ours are put beside Gitea's, which stay what they are.
func Install(ctx context.Context, repo git.Repo, programs string) ([]string, error) {
	dir, err := repo.HooksDir(ctx)
	if err != nil {
		return nil, err
	}
	return InstallInto(dir, programs)
}

// InstallInto is Install for a directory of hooks, of one repository or, where a
// front end links such a directory's files into its repositories, of all.
func InstallInto(dir, programs string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	var changes []string
	for _, name := range Names {
		program := filepath.Join(programs, name)
		if _, err := os.Stat(program); err != nil {
			return changes, fmt.Errorf("program for hook: %w", err)
		}
		done, err := installOne(place(dir, name), program, filepath.Join(dir, name+".mirror-shell-new"))
		changes = append(changes, done...)
		if err == nil && byGitea(dir, name) {
			done, err = giveBack(dir, name)
			changes = append(changes, done...)
		}
		if err != nil {
			return changes, err
		}
	}
	return changes, nil
}

// installOne puts one hook in its place. temp is the name that it has before, and stands
// in no directory of which all programs are run.
func installOne(hook, program, temp string) ([]string, error) {
	target, err := os.Readlink(hook)
	if err == nil && (target == program || leadsTo(hook, program)) {
		return nil, nil
	}
	var changes []string
	if _, err := os.Lstat(hook); err == nil && !isOurs(hook) {
		if err := keep(hook, hook+nextSuffix); err != nil {
			return nil, err
		}
		changes = append(changes, fmt.Sprintf("%s kept as %s, runs after ours", hook, filepath.Base(hook)+nextSuffix))
	} else if err == nil && target != "" {
		changes = append(changes, fmt.Sprintf("%s was a link to %s", hook, target))
	}
	// A link is put in place by renaming: between removal and creation a push
	// would pass unseen.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return changes, err
	}
	if err := os.Symlink(program, temp); err != nil {
		return changes, err
	}
	if err := os.Rename(temp, hook); err != nil {
		return changes, err
	}
	return append(changes, fmt.Sprintf("%s -> %s", hook, program)), nil
}

// leadsTo reports whether a link ends at the program by way of other links: gitolite
// links the hooks of all repositories to one directory, and that is where we are.
func leadsTo(hook, program string) bool {
	end, err := filepath.EvalSymlinks(hook)
	if err != nil {
		return false
	}
	wanted, err := filepath.EvalSymlinks(program)
	return err == nil && end == wanted
}

// keep gives the hook its second name; the first one stays until ours takes its
// place, so that no push finds no hook. An Install that ended between the two is
// taken up where it stopped.
func keep(hook, next string) error {
	mine, err := os.Lstat(hook)
	if err != nil {
		return err
	}
	switch other, err := os.Lstat(next); {
	case err == nil && os.SameFile(mine, other):
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is not ours, and %s, where it would be kept, exists: rename one of them", hook, next)
	}
	if os.Link(hook, next) == nil {
		return nil
	}
	return os.Rename(hook, next) // a file system without hard links
}

// Installed reports whether the repository's hooks are ours and can run.
func Installed(ctx context.Context, repo git.Repo) (bool, error) {
	dir, err := repo.HooksDir(ctx)
	if err != nil {
		return false, err
	}
	return InstalledIn(dir), nil
}

// InstalledIn reports the same of a directory of hooks.
func InstalledIn(dir string) bool {
	for _, name := range Names {
		hook := place(dir, name)
		if info, err := os.Stat(hook); err != nil || info.Mode()&0o111 == 0 || !isOurs(hook) {
			return false
		}
		if byGitea(dir, name) && !delegates(dir, name) {
			return false
		}
	}
	return true
}

// isOurs reports whether a hook is one of our programs, of whatever version and
// place, or a dangling link to where one of them was. The program says itself
// which module it was built from.
func isOurs(hook string) bool {
	info, err := buildinfo.ReadFile(hook)
	if err == nil {
		return info.Main.Path == "mirror-shell"
	}
	target, err := os.Readlink(hook)
	if err != nil {
		return false
	}
	_, err = os.Stat(hook)
	named := filepath.Base(hook)
	if started(hook) { // DIR/post-receive.d/mirror-shell
		named = strings.TrimSuffix(filepath.Base(filepath.Dir(hook)), hookDir)
	}
	return errors.Is(err, fs.ErrNotExist) && filepath.Base(target) == named && filepath.IsAbs(target)
}
