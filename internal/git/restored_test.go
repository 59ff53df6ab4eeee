package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzReadBatch: what was printed is what is read, and anything else is an error or less of it, never more.
func FuzzReadBatch(f *testing.F) {
	f.Add([]byte("aa blob 3\nabc\nbb tree 0\n\n"))
	f.Add([]byte("aa missing\n"))
	f.Add([]byte("aa blob 9223372036854775807\nabc"))
	f.Add([]byte("aa blob 3\nab"))
	f.Fuzz(func(t *testing.T, printed []byte) {
		var again bytes.Buffer
		count, err := readBatch(bytes.NewReader(printed), func(oid, kind string, size int64, content io.Reader) error {
			data, err := io.ReadAll(content)
			fmt.Fprintf(&again, "%s %s %d\n%s\n", oid, kind, size, data)
			return err
		})
		if err == nil && again.Len() > len(printed)+count {
			t.Errorf("%d objects of %q", count, printed)
		}
	})
}

// What an object's reader leaves is passed over; its error ends all; what git says is missing is an error.
func TestReadBatch(t *testing.T) {
	printed := "aa blob 3\nabc\nbb tree 0\n\n"
	var ids []string
	n, err := readBatch(strings.NewReader(printed), func(oid, _ string, _ int64, _ io.Reader) error { ids = append(ids, oid); return nil })
	if n != 2 || err != nil || strings.Join(ids, " ") != "aa bb" {
		t.Error(n, err, ids)
	}
	stop := errors.New("stop")
	if _, err := readBatch(strings.NewReader(printed), func(string, string, int64, io.Reader) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	nothing := func(string, string, int64, io.Reader) error { return nil }
	for i := 1; i < len(printed)-1; i++ {
		if _, err := readBatch(strings.NewReader(printed[:i]), nothing); err == nil && i != len("aa blob 3\nabc\n") {
			t.Errorf("cut after %d: no error", i)
		}
	}
	if _, err := readBatch(strings.NewReader("aa missing\n"), nothing); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
}

func TestSetFormat(t *testing.T) {
	dir := t.TempDir()
	// The directory's own config is one that git must not mind.
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte("[core]\n\trepositoryformatversion = 99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kept")
	for format, version := range map[string]string{"sha1": "0", "sha256": "1"} {
		if err := os.WriteFile(file, []byte("[a]\n\tb = c\n[extensions]\n\tobjectformat = sha1\n\tobjectformat = sha256\n\trefstorage = reftable\n[include]\n\tpath = /nowhere\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := SetFormat(t.Context(), file, format); err != nil {
			t.Fatal(err)
		}
		entries, err := FileConfig(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, e := range entries {
			got[e.Key] += e.Value
		}
		want := map[string]string{"sha1": "", "sha256": "sha256"}[format]
		if got["a.b"] != "c" || got["extensions.refstorage"] != "" || got["extensions.objectformat"] != want || got["core.repositoryformatversion"] != version {
			t.Errorf("%s: %v", format, got)
		}
	}
}

// The check reads no other objects than those below the directory, and ends early without waiting for git.
func TestPackedObjects(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r.git")
	for _, args := range [][]string{{"init", "-q", "--bare", dir}, {"-C", dir, "-c", "user.name=a", "-c", "user.email=a@b", "commit-tree", "-m", "x", "4b825dc642cb6eb9a060e54bf8d69288fbee4904"}} {
		cmd := exec.Command("git", args...)
		if args[0] == "-C" {
			mktree := exec.Command("git", "-C", dir, "mktree")
			if err := mktree.Run(); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	r := Repo{Dir: dir}
	n, err := r.PackedObjects(t.Context(), filepath.Join(dir, "objects"), nil, func(string, string, int64, io.Reader) error { return nil })
	if n != 2 || err != nil {
		t.Error(n, err)
	}
	if n, err := r.PackedObjects(t.Context(), t.TempDir(), nil, func(string, string, int64, io.Reader) error { return nil }); n != 0 || err != nil {
		t.Error(n, err)
	}
	stop := errors.New("stop")
	if _, err := r.PackedObjects(t.Context(), filepath.Join(dir, "objects"), nil, func(string, string, int64, io.Reader) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.PackedObjects(ctx, filepath.Join(dir, "objects"), nil, func(string, string, int64, io.Reader) error { return nil }); err == nil {
		t.Error("no error although the context ended")
	}
}
