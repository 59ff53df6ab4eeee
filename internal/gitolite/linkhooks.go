package gitolite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

// LinkHooks gives a repository that gitolite has not made the hooks that gitolite gives to
// all: without its update hook gitolite takes nobody's push to it. They are copied from
// gitolite-admin, which has them and gitolite's post-update. Where gitolite is not, nothing
// happens.
func LinkHooks(server *mirrorcfg.Server, repo git.Repo) error {
	if server.Gitolite.Programs == "" {
		return nil
	}
	admin := filepath.Join(server.RepoBase, "gitolite-admin.git/hooks")
	files, err := os.ReadDir(admin)
	if err != nil {
		return fmt.Errorf("gitolite's hooks: %w", err)
	}
	hooks := filepath.Join(repo.Dir, "hooks")
	if err := os.MkdirAll(hooks, 0o777); err != nil {
		return err
	}
	update := false
	for _, f := range files {
		target, err := os.Readlink(filepath.Join(admin, f.Name()))
		if err != nil || strings.Contains(target, "/hooks/gitolite-admin/") {
			continue // git's samples, and what is for gitolite-admin alone
		}
		update = update || f.Name() == "update"
		if err := os.Symlink(target, filepath.Join(hooks, f.Name())); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if !update {
		return fmt.Errorf("%s has no update hook: run gitolite setup --hooks-only", admin)
	}
	return nil
}
