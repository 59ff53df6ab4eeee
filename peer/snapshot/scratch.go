package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/lazyregexp"
	"mirror-shell/internal/proc"
)

// scratchName is what a directory below Vault.Scratch is called: what it is for, and random digits.
var scratchName = lazyregexp.New(`^(take|drill)-[0-9]+$`)

// scratchDir makes a directory below Vault.Scratch, and removes those that killed processes left, which may be as large
// as a repository. A directory is locked by the process that uses it. Remove may be called once.
func (v *Vault) scratchDir(purpose string) (dir string, remove func(), err error) {
	defer func() {
		if err != nil {
			err = v.inScratch(fmt.Errorf("scratch directory: %w", err))
		}
	}()
	if err := durable.MakeDirs(v.Scratch); err != nil {
		return "", nil, err
	}
	v.tidyScratch()
	if dir, err = os.MkdirTemp(v.Scratch, purpose+"-"); err != nil {
		return "", nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() {
		if err := os.RemoveAll(dir); err != nil {
			v.log().Warn("a scratch directory is left", "dir", dir, "error", err)
		}
		lock.Close()
	}, nil
}

// ErrNoRoom: the scratch directory, or the target of a restore, is on a disk that is full.
var ErrNoRoom = errors.New("no room for unfinished work")

// noRoom is how git says, in the C locale, that it could write no further.
var noRoom = lazyregexp.New(`(?i)no space left on device|out of disk ?space|disk quota exceeded|file too large`)

// inScratch returns err, which happened as something was written below Vault.Scratch, as an ErrNoRoom when the disk was full: then
// it is nobody's fault but this machine's, and trying again at once would fill it again. What git exited with is not
// part of that error, so that nobody takes the repository for damaged.
func (v *Vault) inScratch(err error) error {
	if !isFull(err) {
		return err
	}
	return fmt.Errorf("%w in %s%s: make room there, as much as is new in the repository, or make it a symbolic link to a directory on a larger disk: %s",
		ErrNoRoom, v.Scratch, freeText(v.Scratch), proc.OneLine(err.Error(), 300))
}

// isFull reports whether something could not be written, by us or by git, as a disk is full.
func isFull(err error) bool {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return true
	}
	var exited *proc.Error
	return errors.As(err, &exited) && noRoom.MatchString(exited.Stderr)
}

// freeText says in parentheses how much room there is, "" when that cannot be told. A disk may also have too many files.
func freeText(dir string) string {
	var disk unix.Statfs_t
	if unix.Statfs(dir, &disk) != nil {
		return ""
	}
	files := ""
	if disk.Files > 0 && disk.Ffree < 100 { // some file systems count none
		files = fmt.Sprintf(", and %d more files", disk.Ffree)
	}
	return fmt.Sprintf(" (%d kB are free%s)", disk.Bavail*uint64(disk.Bsize)/1000, files)
}

// lockDir locks a directory until the file is closed, or the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// unlockedFor is how old a directory has to be before it counts as left: it is locked right after it was made.
const unlockedFor = time.Minute

func (v *Vault) tidyScratch() {
	entries, err := os.ReadDir(v.Scratch)
	if err != nil {
		return // whoever makes a directory there hears of it
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || !scratchName.MatchString(e.Name()) || time.Since(info.ModTime()) < unlockedFor {
			continue
		}
		dir := filepath.Join(v.Scratch, e.Name())
		lock, err := lockDir(dir)
		if err != nil {
			continue // it is in use
		}
		if err := os.RemoveAll(dir); err != nil {
			v.log().Warn("what a killed process left cannot be removed", "dir", dir, "error", err)
		}
		lock.Close()
	}
}
