package store_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

func TestDirectoryModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "s")
	s := open(t, store.Options{URL: "file://" + dir})
	if err := s.Put(t.Context(), "a/b/c", storetest.Bytes([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"": 0o700, "a": 0o700, "a/b": 0o700, "a/b/c": 0o600, ".tmp": 0o700} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v; want %v", name, info, err, want)
		}
	}
	if _, ok := s.(store.Retainer); ok {
		t.Error("a directory says that it retains")
	}
	if err := s.Delete(t.Context(), "a/b/c"); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("empty directories are left: %v", entries)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, ".tmp")); len(entries) != 0 {
		t.Errorf("temporary files are left: %v", entries)
	}
}

// What a killed writer left is removed, what somebody may be writing is not.
func TestDirectoryLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old, young := filepath.Join(dir, ".tmp/old"), filepath.Join(dir, ".tmp/young")
	os.Mkdir(filepath.Dir(old), 0o700)
	for _, file := range []string{old, young} {
		if err := os.WriteFile(file, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ago := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(old, ago, ago); err != nil {
		t.Fatal(err)
	}
	open(t, store.Options{URL: dir})
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Error(err)
	}
}

// Symbolic links lead nowhere outside, and what is no file is no blob.
func TestDirectoryForeignFiles(t *testing.T) {
	t.Parallel()
	outside, dir := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Symlink(outside, filepath.Join(dir, "out")), os.Symlink(secret, filepath.Join(dir, "file")),
		os.Symlink("../"+filepath.Base(outside), filepath.Join(dir, "relative")), syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
		os.WriteFile(filepath.Join(dir, ".hidden"), nil, 0o600), os.WriteFile(filepath.Join(dir, "with space"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, store.Options{URL: dir})
	if keys, err := storetest.Keys(t.Context(), s, "", "", 0); len(keys) > 0 || err != nil {
		t.Errorf("%q, %v are listed", keys, err)
	}
	for _, key := range []string{"out/secret", "file", "relative/secret", "pipe"} {
		if got, err := storetest.Read(t.Context(), s, key); err == nil {
			t.Errorf("%s: read %q", key, got)
		}
		if err := s.Put(t.Context(), key, storetest.Bytes([]byte("x"))); err == nil {
			t.Errorf("%s: written", key)
		}
	}
	for _, key := range []string{"out/secret", "out/new", "relative/secret"} {
		s.Delete(t.Context(), key)
		s.Put(t.Context(), key, storetest.Bytes([]byte("x")))
	}
	if got, err := os.ReadFile(secret); string(got) != "secret" || err != nil {
		t.Errorf("outside is %q, %v", got, err)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("outside has %v", entries)
	}
}

// A disk that is full, by the limit for the size of one file, and a directory that is gone.
func TestDirectoryFaults(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := filepath.Join(parent, "s")
	s := open(t, store.Options{URL: dir})
	if err := s.Put(t.Context(), "a/b", storetest.Bytes([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if keys, err := storetest.Keys(t.Context(), s, "", "", 0); err == nil && len(keys) > 0 {
		t.Errorf("%q are listed", keys)
	}
	if err := s.Put(t.Context(), "a/c", storetest.Bytes([]byte("x"))); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("put into a directory that is gone: %v", err)
	}
	if _, err := store.Open(t.Context(), store.Options{URL: filepath.Join(parent, "not/mounted")}); err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("open below a directory that is not there: %v", err)
	}
	file := filepath.Join(parent, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), store.Options{URL: file}); err == nil {
		t.Error("a file was opened as a store")
	}
	if _, err := store.Open(t.Context(), store.Options{URL: parent, LockMode: "compliance"}); err == nil {
		t.Error("a directory was opened with a lock")
	}
}

// A blob that is cut while it is read is an error, not its end.
func TestDirectoryCutWhileRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, store.Options{URL: dir})
	if err := s.Put(t.Context(), "x", storetest.Bytes(bytes.Repeat([]byte("x"), 1<<20))); err != nil {
		t.Fatal(err)
	}
	r, err := s.Get(t.Context(), "x", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.Truncate(filepath.Join(dir, "x"), 1000); err != nil {
		t.Fatal(err)
	}
	if n, err := bytes.NewBuffer(nil).ReadFrom(r); err == nil {
		t.Errorf("%d bytes and no error", n)
	}
}
