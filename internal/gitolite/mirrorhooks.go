package gitolite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// MirrorHooks returns the directory of the hooks that a mirror push is to run, for git's
// core.hooksPath; "" for the repository's own. It is another one where gitolite is: its update
// hook, which lets every ref of a mirror push pass, takes perl a tenth of a second for
// each. With a thousand refs the pusher sees no byte move for so long that it gives
// up, and each time again.
//
// The directory is REPO.git/mirror-shell/hooks: a link to every hook but that one.
func MirrorHooks(server *mirrorcfg.Server, cfg *mirrorcfg.Repo, repo git.Repo) (string, error) {
	if cfg.HooksPath != "" {
		return "", nil
	}
	own := filepath.Join(repo.Dir, "hooks")
	end, err := filepath.EvalSymlinks(filepath.Join(own, "update"))
	if err != nil || !server.Gitolite.IsUpdateHook(end) {
		return "", nil
	}
	dir := filepath.Join(refset.Dir(repo.Dir), "hooks")
	if err := linkHooks(own, dir); err != nil {
		return "", fmt.Errorf("hooks for mirror pushes: %w", err)
	}
	return dir, nil
}

// linkHooks makes dir one of links to what is in own, but update and git's samples. Another
// push may be doing the same.
func linkHooks(own, dir string) error {
	files, err := os.ReadDir(own)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var wanted []string
	for _, f := range files {
		if name := f.Name(); name != "update" && !strings.HasSuffix(name, ".sample") {
			wanted = append(wanted, name)
		}
	}
	up, err := filepath.Rel(dir, own) // it may be renamed with the repository
	if err != nil {
		return err
	}
	for _, name := range wanted {
		if err := os.Symlink(filepath.Join(up, name), filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	linked, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range linked {
		if slices.Contains(wanted, f.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
