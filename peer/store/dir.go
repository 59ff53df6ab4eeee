package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"mirror-shell/internal/durable"
)

// directory is a store in a directory of this machine. A blob is a file (0600) whose
// path below the directory is the key, written once:
//
//	.tmp/RANDOM             being written; fsynced; then linked to
//	KEY                     link(2) fails when the name is taken, whoever took it, in
//	                        whatever process; then its directory is fsynced, and those above
//	                        whose own names may not be on the disk (see settled)
//
// So a name is there with all of its content or not at all, also after a power cut. What
// a killed process left in .tmp is removed by an Open a day later. Directories that
// become empty are removed. Nothing outside is touched, whatever symbolic links lie
// within (os.Root).
type directory struct {
	*limits
	path    string
	root    *os.Root
	settled settled
}

const (
	tempDir = ".tmp" // no key: it begins with a dot
	// tempAge is how long a file has to lie in .tmp without having been written to, until
	// nobody can be writing it any more. Who still is, finds his file gone and fails.
	tempAge = 24 * time.Hour
)

func openDirectory(dir string, o Options) (*directory, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("open store %s: the directory cannot be made: is its disk mounted, and writable? %w", dir, denied(err))
	} else if err := settleNew(dir, err == nil); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, denied(err))
	}
	d := &directory{limits: newLimits(o), path: dir, root: root}
	if err := d.clean(); err != nil {
		o.Log.Warn("what killed writers left cannot be removed", "store", dir, "error", err)
	}
	return d, nil
}

// settleNew brings the name of the store's own directory to the disk unless that was done before the first blob came into it. An
// empty one that is found may have been made a moment ago, by another process that did not come that far.
func settleNew(dir string, made bool) error {
	if !made {
		entries, err := os.ReadDir(dir)
		if err != nil || slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != tempDir }) {
			return nil // what is wrong with it is found where it is used
		}
	}
	err := durable.SyncDir(filepath.Dir(dir))
	if !made && errors.Is(err, fs.ErrPermission) {
		return nil // somebody else made it, where we may not look
	}
	return err
}

// clean removes what killed writers left long ago.
func (d *directory) clean() error {
	entries, err := fs.ReadDir(d.root.FS(), tempDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		info, infoErr := entry.Info()
		if infoErr != nil || time.Since(info.ModTime()) < tempAge {
			continue // gone in the meantime, or young
		}
		if rmErr := d.root.Remove(path.Join(tempDir, entry.Name())); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	return err
}

// denied adds ErrDenied to what the file system's permissions refuse.
func denied(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return err
}

func (d *directory) Put(ctx context.Context, key string, b Blob) error {
	err := d.put(ctx, key, b)
	if err == nil || errors.Is(err, ErrExists) {
		// The process that published what exists may not have come that far, and who hears
		// that a blob exists relies on it. One that was deleted since did exist when we looked.
		if unsettled := d.syncAbove(key); unsettled != nil && !(err != nil && errors.Is(unsettled, fs.ErrNotExist)) {
			err = unsettled
		}
	}
	return d.putError(key, err)
}

// PutDeferred implements Deferrer: what is left to Settle are the names.
func (d *directory) PutDeferred(ctx context.Context, key string, b Blob) error {
	return d.putError(key, d.put(ctx, key, b))
}

func (d *directory) putError(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("put %q into %s: %w", key, d.path, denied(err))
}

// put writes and names a blob. The name is not on the disk yet, also that of one
// that is ErrExists.
func (d *directory) put(ctx context.Context, key string, b Blob) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	release, err := d.transfer(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := d.request(ctx); err != nil {
		return err
	}
	if _, err := d.root.Lstat(key); err == nil { // saves writing what is there
		return d.taken(key)
	}
	temp := path.Join(tempDir, rand.Text())
	defer d.root.Remove(temp)
	if err := d.write(ctx, temp, b); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return d.publish(temp, key)
}

// write puts the content into a new file and on the disk.
func (d *directory) write(ctx context.Context, temp string, b Blob) (err error) {
	content, closer, err := b.open()
	if err != nil {
		return err
	}
	defer closer.Close()
	if err := d.root.Mkdir(tempDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, min(b.Size+1, 256<<10)) // one more, to see the end
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, rerr := content.Read(d.part(buf))
		if _, err := f.Write(buf[:n]); err != nil {
			return err
		}
		d.count.sent.Add(int64(n))
		if err := d.moved(ctx, n); err != nil {
			return err
		}
		if rerr == io.EOF {
			return f.Sync()
		}
		if rerr != nil {
			return rerr
		}
	}
}

// publish gives a written file its key. A Delete in another process may remove the
// directory that has just been made, because it is empty: then once more.
func (d *directory) publish(temp, key string) error {
	for tries := 0; ; tries++ {
		err := d.root.MkdirAll(path.Dir(key), 0o700)
		if err == nil {
			err = d.link(temp, key)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fs.ErrExist) && !errors.Is(err, syscall.ENOTDIR):
			return d.taken(key)
		case errors.Is(err, syscall.ENOTDIR):
			return fmt.Errorf("a key that is its beginning is taken: %w", err)
		case errors.Is(err, fs.ErrNotExist) && tries < 10:
			if _, err := d.root.Lstat(temp); err != nil {
				return fmt.Errorf("what was written has been removed: %w", err)
			}
		default:
			return err
		}
	}
}

// link gives a file a second name that must be new. File systems without links (FAT, some
// network ones) can rename without replacing.
func (d *directory) link(temp, key string) error {
	err := d.root.Link(temp, key)
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOTSUP) && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, syscall.EMLINK) {
		return err
	}
	return d.rename(temp, key)
}

func (d *directory) rename(temp, key string) error {
	from, err := d.root.Open(path.Dir(temp))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := d.root.Open(path.Dir(key))
	if err != nil {
		return err
	}
	defer to.Close()
	err = unix.Renameat2(int(from.Fd()), path.Base(temp), int(to.Fd()), path.Base(key), unix.RENAME_NOREPLACE)
	if err != nil {
		return fmt.Errorf("link and rename without replacing: %w", err)
	}
	return nil
}

// taken returns ErrExists for a key that is taken.
func (d *directory) taken(key string) error {
	info, err := d.root.Lstat(key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrExists // it did when we looked
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("the key is the beginning of others, or no file: %w", syscall.EISDIR)
	}
	return ErrExists
}

func (d *directory) syncDir(name string) error {
	f, err := d.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *directory) Delete(ctx context.Context, key string) error {
	if err := d.remove(ctx, key); err != nil {
		return fmt.Errorf("delete %q from %s: %w", key, d.path, denied(err))
	}
	return nil
}

func (d *directory) remove(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if err := d.request(ctx); err != nil {
		return err
	}
	info, err := d.root.Lstat(key)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return nil // other keys begin with it; it is none itself
	}
	if err := d.root.Remove(key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for dir := path.Dir(key); ; dir = path.Dir(dir) {
		if err := d.syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if dir == "." {
			return nil
		}
		// Only an empty directory can be removed; the last name is durably gone.
		if d.root.Remove(dir) != nil {
			return nil
		}
	}
}
