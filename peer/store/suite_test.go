package store_test

import (
	"testing"

	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

func TestDirectory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t testing.TB) store.Store {
		return open(t, store.Options{URL: t.TempDir() + "/store"})
	})
}

func TestS3(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t testing.TB) store.Store {
			return server.Open(t, server.Bucket(t, false), store.Options{})
		})
	})
	t.Run("locked", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t testing.TB) store.Store {
			o := store.Options{URL: server.URL(server.Bucket(t, true) + "/below/this"), LockMode: "compliance"}
			return server.Open(t, "", o)
		})
	})
	t.Run("governance", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t testing.TB) store.Store {
			return server.Open(t, server.Bucket(t, true), store.Options{LockMode: "governance"})
		})
	})
}

func open(t testing.TB, o store.Options) store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
