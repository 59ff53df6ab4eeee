package store

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
)

// settled remembers directories whose own names are on the disk, with those of all that are
// above them. A blob that comes to one of these costs an fsync of it, and not one of each
// directory up to the root: a first backup of a small repository with seven blobs spent most of its time on 28.
//
// A directory is removed when it becomes empty, by whatever process, and may be made again
// under the same name, which is not on the disk then. So it is remembered by a descriptor: as
// long as that is open no other directory can have the same inode number, and one look tells whether the name is
// still that directory's.
type settled struct {
	mu   sync.Mutex
	dirs map[string]*os.File // by path below the root
}

// maxSettled bounds the descriptors that are kept open. Most directories are those of one repository, and
// of no use when it is done.
const maxSettled = 64

// knows reports whether the name of a directory, which info was just read for, is on the disk.
func (s *settled) knows(dir string, info fs.FileInfo) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.dirs[dir]
	if f == nil {
		return false
	}
	known, err := f.Stat()
	return err == nil && os.SameFile(known, info)
}

// learn takes over f, a descriptor of a directory whose name is on the disk.
func (s *settled) learn(dir string, f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dirs == nil {
		s.dirs = map[string]*os.File{}
	}
	if old := s.dirs[dir]; old != nil {
		old.Close()
		delete(s.dirs, dir)
	}
	for other, old := range s.dirs { // in no order: any choice is right
		if len(s.dirs) < maxSettled {
			break
		}
		old.Close()
		delete(s.dirs, other)
	}
	s.dirs[dir] = f
}

// Settle implements Deferrer: one fsync for each directory that the keys are in, and for those above as needed.
func (d *directory) Settle(ctx context.Context, keys []string) error {
	done := map[string]bool{}
	for _, key := range keys {
		if done[path.Dir(key)] {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := d.syncAbove(key); err != nil {
			return fmt.Errorf("settle %q in %s: %w", key, d.path, denied(err))
		}
		done[path.Dir(key)] = true
	}
	return nil
}

// syncAbove brings the name of a key's file to the disk, and those of the directories above it unless they are
// known to be there. Another process may just have made them, so that we did not is no reason.
func (d *directory) syncAbove(key string) error {
	var fresh []*os.File // directories above the key, the nearest first, whose names are being brought to the disk
	defer func() {
		for _, f := range fresh {
			if f != nil {
				f.Close()
			}
		}
	}()
	dir := path.Dir(key)
	for ; ; dir = path.Dir(dir) {
		f, err := d.root.Open(dir) // before its name is synced: see below
		if err != nil {
			return err
		}
		fresh = append(fresh, f)
		if err := f.Sync(); err != nil {
			return err
		}
		if dir == "." {
			break
		}
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if d.settled.knows(dir, info) {
			break
		}
	}
	return d.learnBelow(key, fresh)
}

// learnBelow remembers the directories above a key, up to the last of them, whose names were just synced. Each was
// open before that; if the name is still its own, then it was its own meanwhile, too.
func (d *directory) learnBelow(key string, dirs []*os.File) error {
	dir := path.Dir(key)
	for i, f := range dirs[:len(dirs)-1] {
		now, err := d.root.Lstat(dir)
		if err != nil {
			return err
		}
		was, err := f.Stat()
		if err != nil {
			return err
		}
		if !os.SameFile(was, now) {
			return fmt.Errorf("directory %s was removed meanwhile: %w", dir, fs.ErrNotExist)
		}
		d.settled.learn(dir, f)
		dirs[i] = nil
		dir = path.Dir(dir)
	}
	return nil
}
