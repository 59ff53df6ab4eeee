package durable

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// RenameNew is rename(2) that never replaces anything, not even an empty directory: a
// taken name is fs.ErrExist. On a file system that cannot do that, such as some network
// ones, it looks first: the caller keeps others of ours away. Nothing is on disk for
// good before SyncDir of both directories.
func RenameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return nil
	case !Unsupported(err):
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: errors.Join(err, fs.ErrExist)}
	}
	return os.Rename(from, to)
}

// Unsupported reports that the kernel or the file system does not know that kind of rename.
func Unsupported(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP)
}
