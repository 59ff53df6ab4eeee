package storetest

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"mirror-shell/peer/store"
)

func retention(t *testing.T, s store.Store) {
	r, ok := s.(store.Retainer)
	if !ok {
		t.Skip("this store retains nothing")
	}
	until := time.Now().Add(4 * time.Second)
	b := Bytes([]byte("kept"))
	b.Retain = until
	if err := s.Put(t.Context(), "kept", b); err != nil {
		t.Fatal(err)
	}
	big := Bytes(Random(6, 9<<20))
	big.Retain = time.Now().Add(time.Hour)
	if err := s.Put(t.Context(), "big", big); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "free", []byte("free"))
	for key, want := range map[string]time.Time{"kept": until, "big": big.Retain, "free": {}} {
		got, err := r.Retained(t.Context(), key)
		if err != nil || want.IsZero() != got.IsZero() || got.Before(want) || got.Sub(want) > 2*time.Second {
			t.Errorf("%s is retained until %v, %v; want %v", key, got, err, want)
		}
	}
	for _, key := range []string{"kept", "big"} {
		if err := s.Delete(t.Context(), key); !errors.Is(err, store.ErrLocked) {
			t.Errorf("delete %s: %v, want that it is locked", key, err)
		}
	}
	mustHave(t, s, "kept", []byte("kept"))
	if err := s.Delete(t.Context(), "free"); err != nil {
		t.Error(err)
	}
	retentionChanges(t, s, r, until)
}

func retentionChanges(t *testing.T, s store.Store, r store.Retainer, until time.Time) {
	if err := r.Retain(t.Context(), "big", time.Now().Add(time.Minute)); err != nil {
		t.Errorf("a shorter time: %v", err)
	}
	if got, err := r.Retained(t.Context(), "big"); err != nil || time.Until(got) < 50*time.Minute {
		t.Errorf("it was shortened to %v, %v", got, err)
	}
	longer := until.Add(2 * time.Second)
	if err := r.Retain(t.Context(), "kept", longer); err != nil {
		t.Error(err)
	}
	if got, err := r.Retained(t.Context(), "kept"); err != nil || got.Before(longer) {
		t.Errorf("extended until %v, %v", got, err)
	}
	mustPut(t, s, "later", []byte("later"))
	if err := r.Retain(t.Context(), "later", time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "later"); !errors.Is(err, store.ErrLocked) {
		t.Errorf("delete: %v, want that it is locked", err)
	}
	if err := r.Retain(t.Context(), "absent", time.Now().Add(time.Hour)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("retain what is not there: %v", err)
	}
	if _, err := r.Retained(t.Context(), "absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	time.Sleep(time.Until(longer.Add(1500 * time.Millisecond)))
	if err := s.Delete(t.Context(), "kept"); err != nil {
		t.Errorf("after its time: %v", err)
	}
	mustLack(t, s, "kept")
}
