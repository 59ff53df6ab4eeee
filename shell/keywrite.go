package shell

// Reading and replacing authorized_keys on disk.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/internal/durable"
)

// keyLockWait bounds the wait for another edit; an edit takes milliseconds.
const keyLockWait = 10 * time.Second

// read parses the file; a missing one has no lines.
func (a AuthorizedKeys) read() ([]keyLine, error) {
	data, err := os.ReadFile(a.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read authorized_keys: %w", err)
	}
	return splitKeyLines(data), nil
}

// edit replaces the file by what change makes of its lines, under the lock; an
// unchanged file is not written. create makes the directory when it is missing;
// without it a missing file is given to change as no lines, without a lock.
func (a AuthorizedKeys) edit(create bool, change func([]keyLine) ([]keyLine, error)) (changed bool, err error) {
	target, err := keyLinkTarget(a.Path)
	if err != nil {
		return false, err
	}
	dir := filepath.Dir(target)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if !create {
			_, err := change(nil)
			return false, err
		}
		if err := makeKeyDir(dir); err != nil {
			return false, err
		}
	}
	unlock, err := lockKeys(target)
	if err != nil {
		return false, err
	}
	defer unlock()

	lines, err := AuthorizedKeys{Path: target}.read()
	if err != nil {
		return false, err
	}
	edited, err := change(lines)
	if err != nil {
		return false, err
	}
	data := joinKeyLines(edited)
	if bytes.Equal(data, joinKeyLines(lines)) {
		return false, nil
	}
	return true, replaceKeys(target, data)
}

// keyLinkTarget follows path while it is a symlink, to a file that may not exist
// yet: the rename must replace the target, and never the link.
func keyLinkTarget(path string) (string, error) {
	for range 20 {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return path, nil
		}
		if err != nil {
			return "", err
		}
		if info.Mode().IsRegular() {
			return path, nil
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return "", fmt.Errorf("%s is not a regular file; move it away", path)
		}
		link, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(path), link)
		}
		path = link
	}
	return "", fmt.Errorf("%s: too many symlinks; make authorized_keys a file", path)
}

// makeKeyDir makes ~/.ssh, but not the home directory: where that is missing the
// path is wrong.
func makeKeyDir(dir string) error {
	home := filepath.Dir(dir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the directory of authorized_keys: %w", err)
	}
	if err := giveKeysTo(dir, home); err != nil {
		return err
	}
	return durable.SyncDir(home)
}

// lockKeys takes the lock of target. The lock file stays: unlinking it would let
// two processes hold locks on two files of that name.
func lockKeys(target string) (unlock func(), err error) {
	path := target + ".lock"
	// O_NOFOLLOW: root, working in another account's directory, must not
	// create files where a symlink of that account points.
	l := flock.New(path, flock.SetFlag(os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW), flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(context.Background(), keyLockWait)
	defer cancel()
	ok, err := l.TryLockContext(ctx, 10*time.Millisecond)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("another program has held %s for %v; wait for it to end, then try again", path, keyLockWait)
	}
	if err != nil || !ok {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := giveKeysTo(path, filepath.Dir(target)); err != nil {
		l.Close()
		return nil, err
	}
	return func() { l.Close() }, nil
}

// replaceKeys writes data beside target and renames it over target, so that a
// crash or a full disk leaves the old file or the new one, whole.
//
// A new file has mode 0600 and the owner of its directory. An existing one keeps
// its owner and the others' right to read: a file that root keeps under
// /etc/ssh is read by sshd as the user who logs in.
func replaceKeys(target string, data []byte) error {
	mode, owner := fs.FileMode(0o600), filepath.Dir(target)
	if info, err := os.Stat(target); err == nil {
		mode, owner = mode|info.Mode().Perm()&0o644, target
	}
	f, err := os.CreateTemp(filepath.Dir(target), ".authorized_keys-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed, as it should
	_, err = f.Write(data)
	if err == nil {
		err = giveKeysTo(f.Name(), owner)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the new authorized_keys: %w; the old one is unchanged", err)
	}
	if err := os.Rename(f.Name(), target); err != nil {
		return fmt.Errorf("%w; the old file is unchanged", err)
	}
	return durable.SyncDir(filepath.Dir(target))
}

// giveKeysTo gives path the owner and group of model when root is at work in
// another account's directory; sshd refuses files of a wrong owner.
func giveKeysTo(path, model string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var want, have syscall.Stat_t
	if err := syscall.Stat(model, &want); err != nil {
		return fmt.Errorf("stat %s: %w", model, err)
	}
	if err := syscall.Lstat(path, &have); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if have.Uid == want.Uid && have.Gid == want.Gid {
		return nil
	}
	return os.Lchown(path, int(want.Uid), int(want.Gid))
}
