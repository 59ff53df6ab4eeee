package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

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
	storetest.Run(t, func(t testing.TB) store.Store {
		o := store.Options{URL: server.URL(server.Bucket(t, true) + "/below/this"), LockMode: "compliance"}
		return server.Open(t, "", o)
	})
}

// A bucket without versions is the same, but that nothing is retained.
func TestS3Plain(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	s := server.Open(t, server.Bucket(t, false), store.Options{})
	if _, ok := s.(store.Retainer); ok {
		t.Error("a store without a lock mode says that it retains")
	}
	for _, size := range []int{0, 100, 9 << 20} {
		content := storetest.Random(1, size)
		b := storetest.Bytes(content)
		b.Retain = time.Now().Add(time.Hour) // ignored
		for range 2 {
			if err := s.Put(t.Context(), "a/b", b); err != nil {
				t.Fatal(err)
			}
			if err := s.Put(t.Context(), "a/b", b); !errors.Is(err, store.ErrExists) {
				t.Errorf("%v, want that it exists", err)
			}
			if got, err := storetest.Read(t.Context(), s, "a/b"); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if err := s.Delete(t.Context(), "a/b"); err != nil {
				t.Error(err)
			}
			if _, err := storetest.Read(t.Context(), s, "a/b"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v, want that it is gone", err)
			}
		}
	}
}

// However large the blobs and many the uploads, the store holds 16 MiB of them.
func TestS3Memory(t *testing.T) {
	server := storetest.S3(t)
	s := server.Open(t, server.Bucket(t, false), store.Options{})
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // what is in use, not the garbage
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak uint64
	done := make(chan struct{})
	var uploads, watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapInuse)
			}
		}
	})
	for i := range 4 {
		uploads.Go(func() {
			b := store.Blob{Size: 40 << 20, Open: func() (io.ReadCloser, error) {
				return io.NopCloser(io.LimitReader(zeros{}, 40<<20)), nil
			}}
			if err := s.Put(t.Context(), fmt.Sprintf("k%d", i), b); err != nil {
				t.Error(err)
			}
		})
	}
	uploads.Wait()
	close(done)
	watcher.Wait()
	if used := int64(peak) - int64(before.HeapInuse); used > 24<<20 {
		t.Errorf("%d MiB of memory for four uploads of 40 MiB", used>>20)
	} else {
		t.Logf("%d MiB", used>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func open(t testing.TB, o store.Options) store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
