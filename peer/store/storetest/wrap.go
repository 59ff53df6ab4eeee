package storetest

import (
	"context"
	"io"
	"iter"
	"time"

	"mirror-shell/peer/store"
)

// Op is an operation on a Store that a hook is told of.
type Op struct {
	Name string // put, get, list, delete, retain, retained
	Key  string // list: the prefix
}

// Hooks are called around the operations of a Store; nil ones are not.
type Hooks struct {
	// Before the operation. An error is returned in place of it.
	Before func(Op) error
	// After the operation, with its error. What it returns is the operation's
	// error: one for a Put that succeeded is a lost answer.
	After func(Op, error) error
	// Content of a Get in place of what is stored.
	Content func(Op, io.ReadCloser) io.ReadCloser
}

// Wrap returns the store with hooks. It is a Retainer and a Counter where the store is.
func Wrap(s store.Store, h Hooks) store.Store {
	w := &wrapped{s, h}
	r, retains := s.(store.Retainer)
	c, counts := s.(store.Counter)
	switch {
	case retains && counts:
		return struct {
			*wrapped
			retainer
			store.Counter
		}{w, retainer{r, w}, c}
	case retains:
		return struct {
			*wrapped
			retainer
		}{w, retainer{r, w}}
	case counts:
		return struct {
			*wrapped
			store.Counter
		}{w, c}
	}
	return w
}

type wrapped struct {
	s store.Store
	h Hooks
}

func (w *wrapped) around(op Op, f func() error) error {
	if w.h.Before != nil {
		if err := w.h.Before(op); err != nil {
			return err
		}
	}
	err := f()
	if w.h.After != nil {
		err = w.h.After(op, err)
	}
	return err
}

func (w *wrapped) Put(ctx context.Context, key string, b store.Blob) error {
	return w.around(Op{"put", key}, func() error { return w.s.Put(ctx, key, b) })
}

func (w *wrapped) Get(ctx context.Context, key string, offset, length int64) (r io.ReadCloser, err error) {
	op := Op{"get", key}
	err = w.around(op, func() (err error) {
		r, err = w.s.Get(ctx, key, offset, length)
		return err
	})
	switch {
	case err != nil && r != nil:
		r.Close()
		return nil, err
	case err == nil && w.h.Content != nil:
		r = w.h.Content(op, r)
	}
	return r, err
}

func (w *wrapped) List(ctx context.Context, prefix, after string, limit int) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		stopped := false
		err := w.around(Op{"list", prefix}, func() error {
			for info, err := range w.s.List(ctx, prefix, after, limit) {
				if err != nil {
					return err
				}
				if stopped = !yield(info, nil); stopped {
					return nil
				}
			}
			return nil
		})
		if err != nil && !stopped {
			yield(store.Info{}, err)
		}
	}
}

func (w *wrapped) Delete(ctx context.Context, key string) error {
	return w.around(Op{"delete", key}, func() error { return w.s.Delete(ctx, key) })
}

type retainer struct {
	r store.Retainer
	w *wrapped
}

func (r retainer) Retain(ctx context.Context, key string, until time.Time) error {
	return r.w.around(Op{"retain", key}, func() error { return r.r.Retain(ctx, key, until) })
}

func (r retainer) Retained(ctx context.Context, key string) (until time.Time, err error) {
	err = r.w.around(Op{"retained", key}, func() (err error) {
		until, err = r.r.Retained(ctx, key)
		return err
	})
	return until, err
}
