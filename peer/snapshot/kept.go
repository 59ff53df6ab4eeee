package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"mirror-shell/mirrorcfg"
)

// DefaultExclude are the files that are not kept although they are included, when Exclude is nil: git's
// examples of hooks, which never run.
var DefaultExclude = []string{"hooks/*.sample"}

// kept opens the files that a capture lists. Nothing outside of the repository is read through
// it, whatever symbolic links say.
type kept struct {
	files, lfs *os.Root
	leftOut    []string // of the files that the patterns choose, those with names that no snapshot can hold; a directory's ends in "/"
}

func (k *kept) close() {
	for _, root := range []*os.Root{k.files, k.lfs} {
		if root != nil {
			root.Close()
		}
	}
}

// openBelow opens a regular file below root.
func openBelow(root *os.Root, name string) (*os.File, os.FileInfo, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // somebody may have made a pipe
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", name, errNotRegular)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

var errNotRegular = errors.New("not a regular file")

// keep lists the files and LFS objects to be kept, with the SHA-256 of the files: of those
// that are as they were at the last look it is remembered.
func (v *Vault) keep(ctx context.Context, dir string, m memoryDir) (_ *kept, files []File, objects []LFS, err error) {
	k := &kept{}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if k.files, err = os.OpenRoot(dir); err != nil {
		return nil, nil, nil, err
	}
	if files, k.leftOut, err = v.keepFiles(ctx, k.files, m); err != nil {
		return nil, nil, nil, err
	}
	// Where LFS objects are on another disk, it is that directory which is a symbolic link.
	k.lfs, err = os.OpenRoot(filepath.Join(dir, "lfs", "objects"))
	if errors.Is(err, fs.ErrNotExist) {
		return k, files, nil, nil
	}
	if err == nil {
		objects, err = v.keepLFS(ctx, k.lfs)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("LFS objects: %w", err)
	}
	return k, files, objects, nil
}

// chosen reports whether the vault's patterns choose a path.
func (v *Vault) chosen(name string) bool {
	include, exclude := v.patterns()
	return matchAny(include, name) && !matchAny(exclude, name)
}

func (v *Vault) patterns() (include, exclude []string) {
	include, exclude = v.Include, v.Exclude
	if include == nil {
		include = DefaultInclude
	}
	if exclude == nil {
		exclude = DefaultExclude
	}
	return include, exclude
}

func matchAny(globs []string, name string) bool {
	for _, glob := range globs {
		if mirrorcfg.MatchGlob(glob, name) {
			return true
		}
	}
	return false
}

// enter reports whether something below a directory at the top may be chosen.
func (v *Vault) enter(dir string) bool {
	include, _ := v.patterns()
	for _, glob := range include {
		first, _, _ := strings.Cut(glob, "/")
		if ok, err := path.Match(first, dir); first == "**" || ok && err == nil {
			return true
		}
	}
	return false
}

func (v *Vault) keepFiles(ctx context.Context, root *os.Root, m memoryDir) (files []File, leftOut []string, err error) {
	old, now := m.fileSums(), map[string]fileSum{}
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && name != ".":
			return nil // gone since it was listed
		case err != nil:
			return err
		case !nameable(name):
			if v.misses(name, d) {
				leftOut = append(leftOut, displayed(name, d))
			}
			return skip(d)
		case d.IsDir() && name != "." && (!keepable(name) || !strings.Contains(name, "/") && !v.enter(name)):
			return fs.SkipDir
		case d.IsDir() || !keepable(name) || !v.chosen(name):
			return ctx.Err()
		}
		file, sum, err := keepFile(root, name, old[name])
		if errors.Is(err, errNotRegular) || errors.Is(err, fs.ErrNotExist) || d.Type()&fs.ModeSymlink != 0 && err != nil {
			v.log().Debug("not kept: neither a file nor a link to one in the repository", "path", name, "error", err)
			return nil
		}
		if err != nil {
			return err
		}
		files, now[name] = append(files, file), sum
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	m.keepFileSums(old, now)
	return files, leftOut, nil
}

// misses reports whether the patterns choose what cannot be kept because of its name: a file, or what may be in a directory.
func (v *Vault) misses(name string, d fs.DirEntry) bool {
	switch {
	case d.IsDir():
		return v.chosen(name + "/x")
	case d.Type().IsRegular():
		return v.chosen(name)
	}
	return false
}

func displayed(name string, d fs.DirEntry) string {
	if d.IsDir() {
		name += "/"
	}
	return name
}

func skip(d fs.DirEntry) error {
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

// maxLeftOut is how many names a note has: it is one line of a table.
const maxLeftOut = 5

// note says what was left out because of its name, "" for nothing.
func (k *kept) note() string {
	if len(k.leftOut) == 0 {
		return ""
	}
	quoted := make([]string, 0, maxLeftOut)
	for _, name := range k.leftOut[:min(len(k.leftOut), maxLeftOut)] {
		quoted = append(quoted, fmt.Sprintf("%.100q", name))
	}
	text := fmt.Sprintf("%d files or directories have names that no snapshot can hold, and were left out: %s", len(k.leftOut), strings.Join(quoted, ", "))
	if more := len(k.leftOut) - len(quoted); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// keepFile looks at one file, and reads it unless it is as it was.
func keepFile(root *os.Root, name string, old fileSum) (File, fileSum, error) {
	info, err := root.Stat(name)
	if err != nil {
		return File{}, fileSum{}, err
	}
	if !info.Mode().IsRegular() {
		return File{}, fileSum{}, errNotRegular
	}
	file := File{Path: name, Mode: keptMode(info.Mode()), Object: Object{Size: info.Size()}}
	sum := stamp(info)
	if sum.same(old) {
		file.SHA256 = old.SHA256
		return file, old, nil
	}
	f, info, err := openBelow(root, name)
	if err != nil {
		return File{}, fileSum{}, err
	}
	defer f.Close()
	hash := sha256.New()
	sum = stamp(info)
	if file.Size, err = io.Copy(hash, f); err != nil {
		return File{}, fileSum{}, err
	}
	file.SHA256 = hex.EncodeToString(hash.Sum(nil))
	sum.SHA256, sum.Size = file.SHA256, file.Size
	return file, sum, nil
}

// keptMode is what is kept of a file's permissions: whether its owner may execute it, and whether it is closed to others, or to the
// group too, as is a config with a password in it.
func keptMode(mode fs.FileMode) uint32 {
	kept := uint32(0o644)
	if mode&0o100 != 0 {
		kept = 0o755
	}
	for _, others := range []fs.FileMode{0o007, 0o077} {
		if mode&others == 0 {
			kept &^= uint32(others)
		}
	}
	return kept
}

// fileSum is what a file was when it was read.
type fileSum struct {
	Size   int64  `json:"size"`
	Inode  uint64 `json:"inode"`
	Change int64  `json:"change"` // ctime in nanoseconds: nobody sets it back
	Modify int64  `json:"modify"` // mtime
	Read   int64  `json:"read"`   // when it was read
	SHA256 string `json:"sha256"`
}

// settle is how long before a reading a file must have changed last for its times to tell of
// a later change: they have the resolution of a kernel's tick, of seconds on some file systems.
const settle = 3 * time.Second

func stamp(info os.FileInfo) fileSum {
	s := fileSum{Size: info.Size(), Modify: info.ModTime().UnixNano(), Read: time.Now().UnixNano()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		s.Inode, s.Change = sys.Ino, sys.Ctim.Nano()
	}
	return s
}

// same reports whether a file that was read as old says has not changed since.
func (s fileSum) same(old fileSum) bool {
	settled := old.Read-max(old.Change, old.Modify) > int64(settle)
	return old.SHA256 != "" && settled && s.Size == old.Size && s.Inode == old.Inode && s.Change == old.Change && s.Modify == old.Modify
}

// keepLFS lists the LFS objects, by their names alone: aa/bb/OID. What is there once is there for good.
func (v *Vault) keepLFS(ctx context.Context, root *os.Root) ([]LFS, error) {
	var objects []LFS
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && name != ".":
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return ctx.Err()
		}
		oid := path.Base(name)
		if sha256Hex.MatchString(oid) && name == lfsPath(oid) && v.chosen("lfs/objects/"+name) {
			objects = append(objects, LFS{OID: oid})
		}
		return nil
	})
	return objects, err
}

// lfsPath is where git-lfs keeps an object below lfs/objects.
func lfsPath(oid string) string { return oid[:2] + "/" + oid[2:4] + "/" + oid }
