package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
)

// beside begins the names of what a restore makes in the directory of its target.
func beside(target string) string { return refset.BuildName(target) }

// standing is what is at the target of a restore.
type standing int

const (
	nothing    standing = iota // not even a directory, or an empty one
	repository                 // to be moved aside
)

// inspect looks at the target, and refuses it (ErrTarget) where the restored repository may not go.
func inspect(target string, replace bool) (standing, error) {
	info, err := os.Lstat(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nothing, nil
	}
	if err != nil {
		return 0, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return 0, fmt.Errorf("%w: %s is a symbolic link: name the directory itself", ErrTarget, target)
	}
	if !info.IsDir() {
		return 0, fmt.Errorf("%w: %s is no directory", ErrTarget, target)
	}
	entries, err := os.ReadDir(target)
	switch {
	case err != nil:
		return 0, err
	case len(entries) == 0:
		return nothing, nil
	case !git.IsRepository(target):
		return 0, fmt.Errorf("%w: %s is neither empty nor a repository: nothing there is touched", ErrTarget, target)
	case !replace:
		return 0, fmt.Errorf("%w: there is a repository at %s: restore in place to have it moved aside, or elsewhere", ErrTarget, target)
	}
	return repository, nil
}

// lockTarget keeps other restores from the same target until unlock. Only its holder touches what is
// beside the target, so whatever a restore finds there was left by one that is dead.
func lockTarget(target string) (unlock func(), err error) {
	file := lockFile(target)
	for range 100 {
		f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%w: another restore to %s is running", ErrTarget, target)
			}
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
		// Its last holder may have removed it while we opened it.
		ours, err1 := f.Stat()
		there, err2 := os.Lstat(file)
		if err1 == nil && err2 == nil && os.SameFile(ours, there) {
			return func() { os.Remove(file); f.Close() }, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("lock %s: it is always another file", file)
}

// tidy removes what a killed restore to the same target left half made, and gives a repository that it
// had moved out of the way, and no more, the name that it was to get. It is called under the target's lock.
func tidy(target string, now time.Time) (notes []string, err error) {
	entries, err := os.ReadDir(filepath.Dir(target))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.IsDir() || !isBuild(e.Name(), target) {
			continue // also what is beside a target whose name begins with ours
		}
		dir := filepath.Join(filepath.Dir(target), e.Name())
		replaced, err := wasReplaced(dir)
		if err == nil && replaced {
			var kept string
			kept, err = setAside(dir, target, now)
			notes = append(notes, fmt.Sprintf("a restore that was killed had replaced a repository, which is now %s: what was pushed meanwhile is only there", kept))
		} else if err == nil {
			notes = append(notes, "removed "+dir+", which a restore that was killed had left")
			err = removeBuild(dir)
		}
		if err != nil {
			return notes, err
		}
	}
	return notes, os.RemoveAll(filepath.Join(target, halfMade)) // killed between the swap and its removal
}

// setAside renames a repository to NAME.before-restore-TIME beside the target, a name that nobody has.
func setAside(dir, target string, now time.Time) (string, error) {
	base := refset.AsideName(target) + now.UTC().Format("20060102T150405Z")
	for i := 1; i < 100; i++ {
		to := base
		if i > 1 {
			to = fmt.Sprintf("%s-%d", base, i)
		}
		err := durable.RenameNew(dir, to)
		if err == nil || !errors.Is(err, fs.ErrExist) {
			return to, err
		}
	}
	return "", fmt.Errorf("%s and 99 more names are taken", base)
}

// swap puts the build in the target's place. It returns where the old repository is now, or "".
func (b *build) swap(target string, replace bool, now time.Time) (before string, err error) {
	is, err := inspect(target, replace)
	if err != nil {
		return "", err
	}
	if is == nothing {
		os.Remove(target) // an empty directory; rename would replace that too, but not every kind of rename
		if err := durable.RenameNew(b.dir, target); err != nil {
			return "", err
		}
		b.dir = ""
	} else if before, err = b.exchange(target, now); err != nil {
		return before, err
	}
	// From here on the new repository is in place, and no error takes it away.
	if err := errors.Join(b.root.Remove(halfMade), durable.SyncDir(target), durable.SyncDir(filepath.Dir(target))); err != nil {
		return before, fmt.Errorf("%w, but not all of that is on the disk for sure: %w", errPlaced, err)
	}
	return before, nil
}

// exchange swaps the build with the repository at the target, in one step where the file system can, and then
// renames the old one.
func (b *build) exchange(target string, now time.Time) (before string, err error) {
	if old, err := os.Stat(target); err == nil {
		if err := b.root.Chmod(".", old.Mode()&(fs.ModePerm|fs.ModeSetgid)); err != nil {
			return "", err
		}
	}
	err = unix.Renameat2(unix.AT_FDCWD, b.dir, unix.AT_FDCWD, target, unix.RENAME_EXCHANGE)
	if err == nil {
		old := b.dir
		b.dir = "" // it is not ours now
		if before, err = setAside(old, target, now); err != nil {
			return old, fmt.Errorf("%w, and the old one is at %s: %w", errPlaced, old, err)
		}
		return before, nil
	}
	if !durable.Unsupported(err) {
		return "", fmt.Errorf("swap %s and %s: %w", b.dir, target, err)
	}
	// In two steps. Who is killed in between leaves the old repository under its new name.
	if before, err = setAside(target, target, now); err != nil {
		return "", err
	}
	if err := os.Rename(b.dir, target); err != nil {
		return "", errors.Join(err, os.Rename(before, target))
	}
	b.dir = ""
	return before, nil
}
