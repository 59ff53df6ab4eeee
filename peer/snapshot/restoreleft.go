package snapshot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/refset"
)

// Left is a directory that a restore left which was killed.
type Left struct {
	Dir      string // absolute
	Target   string // where it was restored to
	Replaced bool   // it is what was at the target before, whole; else it is rubbish
}

// LeftIn returns what restores that were killed left in a directory, and nothing of those that are at work. The
// next restore to the same target tidies that up.
func LeftIn(parent string) ([]Left, error) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	var all []Left
	for _, e := range entries {
		target, ours := refset.BuildOf(e.Name())
		if !ours || !e.IsDir() || restoring(filepath.Join(parent, target)) {
			continue
		}
		l := Left{Dir: filepath.Join(parent, e.Name()), Target: filepath.Join(parent, target)}
		if l.Replaced, err = wasReplaced(l.Dir); err == nil { // else it was at work until now
			all = append(all, l)
		}
	}
	return all, nil
}

// wasReplaced reports whether a directory that has the name of one in the making is the repository that was replaced.
func wasReplaced(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return false, err
	}
	_, err = os.Lstat(filepath.Join(dir, halfMade))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// restoring reports whether a restore to the target is at work.
func restoring(target string) bool {
	f, err := os.OpenFile(lockFile(target), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// removeBuild removes a repository in the making. What says that it is one goes last: who is killed meanwhile leaves
// nothing that looks like a repository that was replaced.
func removeBuild(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.Name() != halfMade {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// lockFile is what a restore to the target locks.
func lockFile(target string) string {
	return filepath.Join(filepath.Dir(target), refset.BuildName(target)+"lock")
}

// isBuild reports whether a name in the directory of a target is one of what a restore to it makes.
func isBuild(name, target string) bool {
	of, ours := refset.BuildOf(name)
	return ours && of == filepath.Base(target)
}
