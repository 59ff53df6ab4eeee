package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDisplaced(t *testing.T) {
	const mine = "#!/bin/sh\n"
	for name, c := range map[string]struct {
		common, dir string // names of files, or NAME>TARGET of links
		kept, not   string // what is displaced, with and without a second name for it
	}{
		"nothing":                  {"", "update", "", ""},
		"one to be kept":           {"", "pre-receive", "", "pre-receive"},
		"one that was kept":        {"", "pre-receive.next", "", ""},
		"two":                      {"", "pre-receive pre-receive.next", "pre-receive", "pre-receive"},
		"everybody's":              {"pre-receive", "pre-receive>common/pre-receive pre-receive.next>common/pre-receive.next", "", ""},
		"beside everybody's":       {"pre-receive", "pre-receive", "pre-receive", "pre-receive"},
		"where everybody's is":     {"post-receive.next", "post-receive.next", "post-receive.next", "post-receive.next"},
		"of another name":          {"update post-checkout", "post-checkout post-commit", "post-checkout", "post-checkout"},
		"a link elsewhere":         {"", "pre-receive>mine", "", "pre-receive"},
		"a link to nothing":        {"post-commit", "post-commit>/nowhere/post-commit", "", ""},
		"a directory":              {"post-commit", "post-commit/", "post-commit", "post-commit"},
		"hidden, which none links": {".x", ".x", "", ""},
	} {
		base := t.TempDir()
		common, dir := filepath.Join(base, "common"), filepath.Join(base, "hooks")
		put := func(where, files string) {
			t.Helper()
			err := os.MkdirAll(where, 0o700)
			for file := range strings.FieldsSeq(files) {
				from, to, link := strings.Cut(file, ">")
				path := filepath.Join(where, from)
				switch {
				case link && filepath.IsAbs(to):
					err = os.Symlink(to, path)
				case link:
					err = os.Symlink(filepath.Join(base, to), path)
				case strings.HasSuffix(file, "/"):
					err = os.Mkdir(path, 0o700)
				default:
					err = os.WriteFile(path, []byte(mine), 0o700)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		put(base, "mine")
		put(common, c.common)
		put(dir, c.dir)
		for kept, want := range map[bool]string{true: c.kept, false: c.not} {
			got, err := Displaced(common, dir, kept)
			if strings.Join(got, " ") != want || err != nil {
				t.Errorf("%s, kept %t: %q, %v, want %q", name, kept, got, err, want)
			}
		}
	}
	if got, err := Displaced(filepath.Join(t.TempDir(), "none"), t.TempDir(), true); len(got) > 0 || err != nil {
		t.Errorf("without the directory: %q, %v", got, err)
	}
}
