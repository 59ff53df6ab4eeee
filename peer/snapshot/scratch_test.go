package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a killed backup left is removed by the next, and nothing that is in use, young or not ours.
func TestScratchIsTidied(t *testing.T) {
	v, _ := testVault(t)
	used, remove, err := v.scratchDir("take")
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	make := func(name string, at time.Time) string {
		dir := filepath.Join(v.Scratch, name)
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "pack"), nil, 0o600), os.Chtimes(dir, at, at)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	left, young, foreign := make("drill-17", old), make("take-18", time.Now()), make("taken", old)
	if err := os.Chtimes(used, old, old); err != nil {
		t.Fatal(err)
	}
	_, again, err := v.scratchDir("take")
	if err != nil {
		t.Fatal(err)
	}
	again()
	for dir, want := range map[string]bool{used: true, left: false, young: true, foreign: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: %v", dir, err)
		}
	}
	remove()
	if _, err := os.Stat(used); err == nil {
		t.Error("not removed")
	}
}
