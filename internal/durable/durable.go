// Package durable writes small files such that a power cut, a crash or a full disk
// leaves what was there before or what was to be there, whole, and never half of it.
//
// # What a power cut leaves
//
// write(2) changes the page cache only. The kernel brings content and names to the
// disk when it likes, and in any order: a file that was written and renamed may come
// back with its new name and nothing in it. Three things are separate, and each
// has its fsync:
//
//   - A file's content is on the disk after fsync of the file ([Create]).
//   - A name, be it a new one, one that a rename gave to another file, or one that was
//     removed, is an entry of its directory, and on the disk after fsync of the
//     directory ([SyncDir]).
//   - A directory is itself an entry of the one above. A file that was fsynced, in a
//     directory that was fsynced, is lost with a directory that nobody remembers
//     ([MakeDirs]).
//
// # The order
//
// [Replace] writes under another name, fsyncs that file, renames it over the old one
// and fsyncs the directory. Content comes before the name, because the disk may
// have the rename first. The rename is atomic: who opens the file, before or after a
// power cut, finds the old content or the new. Once the directory is on the disk too, it is
// the new one for good, and only then may anybody be told so.
//
// Whoever needs another last step (a name that must be new, a link that must not
// replace, an owner to be set) puts it together of Create, SyncDir and MakeDirs in the same
// order. For what may be lost because it can be made again, os.Rename alone is
// right: each fsync costs milliseconds.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace makes data the content of a file of mode 0600, whether it is there or not,
// such that a reader, also one after a power cut, finds the old content or the new.
// When it returns nil the new one survives. After an error either may be there
// (a failed fsync of the directory tells neither), and nothing else is left.
//
// One process at a time may replace the same file: what is being written has the fixed
// name .NAME.tmp beside it, so that what a killed process left goes with the next call.
func Replace(path string, data []byte) error {
	dir, name := filepath.Split(path)
	dir = filepath.Clean(dir)
	temp := filepath.Join(dir, "."+name+".tmp")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := Create(temp, data); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		os.Remove(temp)
		return err
	}
	return SyncDir(dir)
}

// Create makes a file of mode 0600 with data in it and on the disk; its name is not
// yet (see SyncDir). What is there already is an error that wraps fs.ErrExist, and stays
// as it is. It leaves nothing behind on failure.
func Create(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// SyncDir brings the names in a directory to the disk, those that were created,
// renamed or removed.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MakeDirs is os.MkdirAll with mode 0700 that also brings the name of each directory
// it makes to the disk. What is there costs one failed mkdir(2) and no fsync; a file of that
// name is no error here, and fails where it is used as a directory.
func MakeDirs(dir string) error { return MakeDirsFrom("", dir, SyncDir) }

// MakeDirsFrom is MakeDirs that makes nothing above the first directory on the way up which
// is called base: what that one should be in has to be there. The error is fs.ErrNotExist when it is not.
// sync is called for what each new directory is in.
func MakeDirsFrom(base, dir string, sync func(dir string) error) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case err == nil:
		return sync(filepath.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir && filepath.Base(dir) != base:
		if err := MakeDirsFrom(base, filepath.Dir(dir), sync); err != nil {
			return err
		}
		return MakeDirsFrom(base, dir, sync)
	}
	return err
}
