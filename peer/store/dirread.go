package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"syscall"
)

func (d *directory) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := d.get(ctx, key, offset, length)
	if err != nil {
		return nil, fmt.Errorf("get %q from %s: %w", key, d.path, denied(err))
	}
	return r, nil
}

func (d *directory) get(ctx context.Context, key string, offset, length int64) (_ io.ReadCloser, err error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	release, err := d.transfer(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if err := d.request(ctx); err != nil {
		return nil, err
	}
	f, size, err := d.open(key)
	if err != nil {
		return nil, err
	}
	end, err := rangeEnd(size, offset, length)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &fileReader{ctx: ctx, d: d, f: f, key: key, next: offset, end: end, release: release}, nil
}

// open opens a blob's file, and nothing that is no file: opening a pipe would hang.
func (d *directory) open(key string) (*os.File, int64, error) {
	info, err := d.root.Lstat(key)
	if errors.Is(err, syscall.ENOTDIR) || err == nil && !info.Mode().IsRegular() {
		return nil, 0, fs.ErrNotExist
	}
	if err != nil {
		return nil, 0, err
	}
	f, err := d.root.Open(key)
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// rangeEnd returns where a read of length bytes from offset on ends in a blob of size
// bytes. A range that the blob does not have is an error.
func rangeEnd(size, offset, length int64) (int64, error) {
	if offset < 0 || offset > size || length > size-offset {
		return 0, fmt.Errorf("the blob has %d bytes, not %d from %d on: %w", size, length, offset, io.ErrUnexpectedEOF)
	}
	if length < 0 {
		return size, nil
	}
	return offset + length, nil
}

// fileReader reads the bytes from next to end of a blob's file.
type fileReader struct {
	ctx       context.Context
	d         *directory
	f         *os.File
	key       string
	next, end int64
	release   func()
}

func (r *fileReader) Read(p []byte) (int, error) {
	if r.next == r.end {
		r.release()
		return 0, io.EOF
	}
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	p = r.d.part(p)
	if int64(len(p)) > r.end-r.next {
		p = p[:r.end-r.next]
	}
	n, err := r.f.ReadAt(p, r.next)
	r.next += int64(n)
	r.d.count.received.Add(int64(n))
	if n > 0 {
		return n, r.d.moved(r.ctx, n) // an error comes again at the next call
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the file has been cut since
	}
	if err != nil {
		err = fmt.Errorf("get %q from %s: read at byte %d: %w", r.key, r.d.path, r.next, err)
	}
	return 0, err
}

func (r *fileReader) Close() error {
	r.release()
	return r.f.Close()
}

func (d *directory) List(ctx context.Context, prefix, after string, limit int) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := d.request(ctx); err != nil {
			yield(Info{}, fmt.Errorf("list %s: %w", d.path, err))
			return
		}
		w := walk{ctx: ctx, d: d, prefix: prefix, after: after, limit: limit, yield: yield}
		if err := w.all(); err != nil && err != errEnough {
			yield(Info{}, fmt.Errorf("list %s: %w", d.path, denied(err)))
		}
	}
}

// errEnough ends a walk.
var errEnough = errors.New("enough")

// walk is one listing.
type walk struct {
	ctx           context.Context
	d             *directory
	prefix, after string
	limit, seen   int
	yield         func(Info, error) bool
}

// all lists from the directory on that the prefix names: those above it may have thousands of others, which would have to be read
// and sorted for each listing.
func (w *walk) all() error {
	if _, err := w.d.root.Stat("."); err != nil {
		return err
	}
	i := strings.LastIndexByte(w.prefix, '/')
	if i < 0 || CheckKey(w.prefix[:i]) != nil {
		return w.dir(".")
	}
	return w.dir(w.prefix[:i])
}

// dir lists a directory in the order of whole keys. That is the order of names only when
// a directory's has its slash: "a.git/x" comes before "a/b", since "." comes before "/".
func (w *walk) dir(name string) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	entries, err := w.read(name)
	if err != nil {
		return err
	}
	keys := make([]string, 0, len(entries))
	for _, entry := range entries {
		key := entry.Name()
		if name != "." {
			key = name + "/" + key
		}
		if CheckKey(key) != nil {
			continue // .tmp, or nothing of ours
		}
		if entry.IsDir() {
			key += "/"
		}
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := w.entry(key); err != nil {
			return err
		}
	}
	return nil
}

// entry lists one name: a directory when it ends in a slash.
func (w *walk) entry(key string) error {
	if dir, ok := strings.CutSuffix(key, "/"); ok {
		wanted := strings.HasPrefix(key, w.prefix) || strings.HasPrefix(w.prefix, key)
		if !wanted || key < w.after && !strings.HasPrefix(w.after, key) {
			return nil // every key in there begins with this one
		}
		return w.dir(dir)
	}
	if !strings.HasPrefix(key, w.prefix) || key <= w.after {
		return nil
	}
	info, err := w.d.root.Lstat(key)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	w.seen++
	if !w.yield(Info{Key: key, Size: info.Size(), Time: info.ModTime()}, nil) || w.seen == w.limit {
		return errEnough
	}
	return nil
}

// read returns a directory's entries; none when it has been removed in the meantime. The
// store's own directory must be there: a disk that is gone is not an empty store.
func (w *walk) read(name string) ([]fs.DirEntry, error) {
	f, err := w.d.root.Open(name)
	if err == nil {
		defer f.Close()
		var entries []fs.DirEntry
		if entries, err = f.ReadDir(-1); err == nil {
			return entries, nil
		}
	}
	if name != "." && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
		return nil, nil
	}
	return nil, err
}
