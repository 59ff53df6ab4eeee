package storetest

import (
	"errors"
	"io/fs"
	"testing"

	"mirror-shell/peer/store"
)

// deferred blobs are blobs. What a power cut leaves of them cannot be seen here.
func deferred(t *testing.T, s store.Store) {
	d, ok := s.(store.Deferrer)
	if !ok {
		t.Skip("it defers nothing")
	}
	for _, key := range []string{"x/y/a", "x/b"} {
		if err := d.PutDeferred(t.Context(), key, Bytes([]byte(key))); err != nil {
			t.Fatal(err)
		}
		if err := d.PutDeferred(t.Context(), key, Bytes([]byte("again"))); !errors.Is(err, store.ErrExists) {
			t.Errorf("put again: %v, want that it exists", err)
		}
		if err := s.Put(t.Context(), key, Bytes([]byte("again"))); !errors.Is(err, store.ErrExists) {
			t.Errorf("put again: %v, want that it exists", err)
		}
		mustHave(t, s, key, []byte(key))
	}
	if err := d.PutDeferred(t.Context(), "x/short", store.Blob{Size: 2, Open: Bytes([]byte("1")).Open}); err == nil {
		t.Error("content that is too short was put")
	}
	mustLack(t, s, "x/short")
	for range 2 {
		if err := d.Settle(t.Context(), []string{"x/y/a", "x/b", "x/y/a"}); err != nil {
			t.Error(err)
		}
	}
	if err := s.Delete(t.Context(), "x/y/a"); err != nil {
		t.Fatal(err)
	}
	if err := d.Settle(t.Context(), []string{"x/y/a"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("settle what was deleted: %v, want that it is not there", err)
	}
	mustPut(t, s, "x/y/a", []byte("new"))
	if err := d.Settle(t.Context(), nil); err != nil {
		t.Error(err)
	}
}
