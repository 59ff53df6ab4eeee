package storetest

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"mirror-shell/peer/store"
)

func TestWrap(t *testing.T) {
	t.Parallel()
	inner, err := store.Open(t.Context(), store.Options{URL: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	refused, lost := errors.New("refused"), errors.New("answer lost")
	var seen []Op
	s := Wrap(inner, Hooks{
		Before: func(op Op) error {
			seen = append(seen, op)
			if op.Key == "no" {
				return refused
			}
			return nil
		},
		After: func(op Op, err error) error {
			if op == (Op{"put", "lost"}) {
				return lost
			}
			return err
		},
		Content: func(_ Op, r io.ReadCloser) io.ReadCloser {
			r.Close()
			return io.NopCloser(bytes.NewReader([]byte("lies")))
		},
	})
	if err := s.Put(t.Context(), "no", Bytes(nil)); err != refused {
		t.Errorf("%v", err)
	}
	if err := s.Put(t.Context(), "lost", Bytes([]byte("x"))); err != lost {
		t.Errorf("%v", err)
	}
	if got, err := Read(t.Context(), s, "lost"); string(got) != "lies" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if keys, err := Keys(t.Context(), s, "", "", 0); len(keys) != 1 || err != nil {
		t.Errorf("%q, %v", keys, err)
	}
	if err := s.Delete(t.Context(), "lost"); err != nil {
		t.Error(err)
	}
	if keys, err := Keys(t.Context(), s, "no", "", 0); len(keys) != 0 || err != refused {
		t.Errorf("%q, %v", keys, err)
	}
	if want := []string{"put", "put", "get", "list", "delete", "list"}; len(seen) != len(want) {
		t.Errorf("seen %v", seen)
	}
	if _, ok := s.(store.Retainer); ok {
		t.Error("a directory became a Retainer")
	}
	if _, ok := s.(store.Counter); !ok {
		t.Error("it does not count any more")
	}
}

// The suite holds for a store with hooks, and for one behind a proxy that does nothing.
func TestWrapAndFaultyAreTransparent(t *testing.T) {
	t.Parallel()
	server := S3(t)
	p := Faulty(t, server)
	o := store.Options{URL: URL(p.Endpoint, server.Bucket(t, true)), LockMode: "governance"}
	s := Wrap(server.Open(t, "", o), Hooks{})
	b := Bytes(Random(1, 9<<20))
	b.Retain = time.Now().Add(time.Hour)
	if err := s.Put(t.Context(), "k", b); err != nil {
		t.Fatal(err)
	}
	mustHave(t, s, "k", Random(1, 9<<20))
	if until, err := s.(store.Retainer).Retained(t.Context(), "k"); err != nil || until.Before(b.Retain) {
		t.Errorf("%v, %v", until, err)
	}
	if err := s.Delete(t.Context(), "k"); !errors.Is(err, store.ErrLocked) {
		t.Errorf("%v", err)
	}
	p.Inject(Fault{Match: Method("GET", "/k"), Flip: 4})
	got, err := Read(t.Context(), s, "k")
	if want := Random(1, 9<<20); err != nil || got[3] == want[3] || !bytes.Equal(got[4:], want[4:]) {
		t.Errorf("wrong bytes were not passed on: %v", err)
	}
}
