package refcache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"mirror-shell/internal/git"
)

// stamp is what stat says of a file; two equal stamps of a path mean that it
// has not been changed or replaced in between, unless that happened within the
// clock's grain (see settled). The change time cannot be set back, as rsync and
// tar do with the modification time.
type stamp struct {
	Path  string `json:"p"`
	MTime int64  `json:"m,omitempty"` // unix ns; all zero: not there
	CTime int64  `json:"c,omitempty"`
	Size  int64  `json:"s,omitempty"` // 0 for directories
	Inode uint64 `json:"i,omitempty"`
}

// stampOf looks at path. Anything but "it is there" and "it is not there" is an
// error.
func stampOf(path string) (stamp, error) {
	s := stamp{Path: path}
	info, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if info.Mode()&fs.ModeSymlink != 0 { // what counts is what is behind it
		if info, err = os.Stat(path); os.IsNotExist(err) {
			return s, nil
		} else if err != nil {
			return s, err
		}
	}
	s.MTime = info.ModTime().UnixNano()
	if !info.IsDir() {
		s.Size = info.Size()
	}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.CTime, s.Inode = sys.Ctim.Nano(), sys.Ino
	}
	return s, nil
}

// grain is how far apart two changes must be to be told apart for sure; file
// systems keep times in steps of up to two seconds.
var grain = 2 * time.Second

// settled reports whether all stamps are old enough that a later change would
// show.
func settled(stamps []stamp, now time.Time) bool {
	limit := now.Add(-grain).UnixNano()
	for _, s := range stamps {
		if s.MTime > limit || s.CTime > limit {
			return false
		}
	}
	return true
}

// unchanged looks at all the paths again.
func unchanged(stamps []stamp) bool {
	for _, s := range stamps {
		if now, err := stampOf(s.Path); err != nil || now != s {
			return false
		}
	}
	return len(stamps) > 0
}

// refStamps are the files and directories by which a change of any ref or of
// HEAD shows: git replaces files, which changes the directory.
//
// No stamps, and no error, mean that the refs cannot be relied on to stay as they
// are without showing it: something that is neither file nor directory stands
// among them, they are elsewhere, or git removed a directory while we looked.
func refStamps(dir string) ([]stamp, error) {
	var stamps []stamp
	add := func(path string) error {
		s, err := stampOf(path)
		stamps = append(stamps, s)
		return err
	}
	for _, name := range []string{"HEAD", "packed-refs", "reftable/tables.list", "commondir"} {
		if err := add(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	if elsewhere := stamps[len(stamps)-1]; elsewhere.Inode != 0 {
		return nil, nil
	}
	err := filepath.WalkDir(filepath.Join(dir, "refs"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir() && !d.Type().IsRegular():
			return git.ErrUnusual
		}
		return add(path)
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, git.ErrUnusual) {
		return nil, nil
	}
	return stamps, err
}
