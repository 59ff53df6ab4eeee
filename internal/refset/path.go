package refset

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"mirror-shell/internal/durable"
)

// Dir is the directory of ours inside a repository (the path of the bare
// repository is given). What is remembered of a repository's copies stands in the
// repository, and not in this server's state directory: it is then shared by all
// nodes that serve the repository, moves when it is renamed, and above all is
// rolled back with it. A repository restored from last week's backup must not
// believe that it knows what it has sent since.
func Dir(repoDir string) string { return filepath.Join(repoDir, base) }

const base = "mirror-shell"

// MakeDirs makes dir, which is Dir(repoDir) or in it, with mode 0700. It never makes the repository:
// one that was moved or deleted a moment ago would leave a directory by its name, in the way of the next.
func MakeDirs(dir string) error { return durable.MakeDirsFrom(base, dir, durable.SyncDir) }

// MakeCacheDirs is MakeDirs for locks and caches, which a power cut may take away.
func MakeCacheDirs(dir string) error {
	return durable.MakeDirsFrom(base, dir, func(string) error { return nil })
}

// Path is where the log of a repository at a peer is kept.
func Path(repoDir, peer string) string {
	return filepath.Join(peersDir(repoDir), element(peer)+suffix)
}

// Received is where a slave keeps the log of what the master has set in a
// repository.
func Received(repoDir string) string {
	return filepath.Join(Dir(repoDir), "received"+suffix)
}

const suffix = ".refs"

func peersDir(repoDir string) string { return filepath.Join(Dir(repoDir), "peers") }

// element makes one file name of any name, different ones of different names.
func element(name string) string {
	if name == "" || name == "." || name == ".." {
		return "%" + name // escaping leaves dots alone, and joining would swallow these
	}
	return url.PathEscape(name)
}

// Remove forgets a repository at all peers, and what of its syncs was held or
// approved. Having nothing to forget is no error.
func Remove(repoDir string) error {
	files, err := os.ReadDir(peersDir(repoDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget refs at peers: %w", err)
	}
	var errs []error
	for _, f := range files {
		if name := f.Name(); !strings.HasSuffix(name, ".lock") {
			if err := os.Remove(filepath.Join(peersDir(repoDir), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("forget refs at peers: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
