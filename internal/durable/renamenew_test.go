package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestRenameNew(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"from", "empty"} {
		if err := os.Mkdir(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", at("link")); err != nil {
		t.Fatal(err)
	}
	for _, taken := range []string{"empty", "file", "link"} {
		if err := RenameNew(at("from"), at(taken)); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", taken, err)
		}
	}
	if err := RenameNew(at("missing"), at("to")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := RenameNew(at("from"), at("to")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(at("to")); err != nil {
		t.Error(err)
	}
}
