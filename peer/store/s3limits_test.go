package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

// Rates are kept by all operations together, and a slow rate is no stall.
func TestLimits(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	for name, o := range map[string]store.Options{
		"directory": {URL: t.TempDir() + "/s"},
		"s3":        {URL: server.URL(server.Bucket(t, false)), CredentialsFile: server.CredentialsFile, Stall: 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.BytesPerSecond = 400_000
			s := open(t, o)
			begun := time.Now()
			done := make(chan error, 2)
			for _, key := range []string{"a", "b"} {
				go func() { done <- s.Put(t.Context(), key, storetest.Bytes(make([]byte, 200_000))) }()
			}
			if err := errors.Join(<-done, <-done); err != nil {
				t.Error(err)
			}
			if took := time.Since(begun); took < 800*time.Millisecond || took > 5*time.Second {
				t.Errorf("400 kB at 400 kB/s took %v", took)
			}
			begun = time.Now()
			if _, err := storetest.Read(t.Context(), s, "a"); err != nil || time.Since(begun) < 350*time.Millisecond {
				t.Errorf("a read of 200 kB: %v, %v", err, time.Since(begun))
			}
			o.BytesPerSecond, o.RequestsPerSecond = 0, 10
			s = open(t, o)
			begun = time.Now()
			for range 6 {
				storetest.Keys(t.Context(), s, "", "", 1)
			}
			if took := time.Since(begun); took < 450*time.Millisecond || took > 5*time.Second {
				t.Errorf("6 requests at 10/s took %v", took)
			}
		})
	}
}

// No more transfers at a time than allowed; a reader is one until its end.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	s := open(t, store.Options{URL: t.TempDir(), Concurrency: 1})
	if err := s.Put(t.Context(), "a", storetest.Bytes([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	r, err := s.Get(t.Context(), "a", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Get(ctx, "a", 0, -1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second transfer: %v", err)
	}
	r.Close()
	r.Close()
	if _, err := storetest.Read(t.Context(), s, "a"); err != nil {
		t.Error(err)
	}
}
