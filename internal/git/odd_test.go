package git

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// A value that looks like an option is a value.
func TestSetConfigOfOptions(t *testing.T) {
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	repo, err := Init(t.Context(), filepath.Join(t.TempDir(), "x.git"), "sha1")
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"-x", "--unset", "--file=/nonexistent/x", "--", "--- title ---", "--global", "-h", "", " a ", "#;\"\\"} {
		if err := repo.SetConfig(t.Context(), "gitweb.description", value); err != nil {
			t.Errorf("%q: %v", value, err)
			continue
		}
		entries, err := repo.Config(t.Context(), `^gitweb\.`)
		if err != nil || len(entries) != 1 || entries[0].Value != value {
			t.Errorf("%q: %+v, %v", value, entries, err)
		}
	}
}

// A few kilobytes of trees that name each other a thousand million times end nobody's memory.
func TestTreeOfTrees(t *testing.T) {
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	before := maxListing
	maxListing = 1 << 20
	t.Cleanup(func() { maxListing = before })
	repo, err := Init(t.Context(), filepath.Join(t.TempDir(), "x.git"), "sha1")
	if err != nil {
		t.Fatal(err)
	}
	write := func(in string, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if _, err := repo.run(t.Context(), strings.NewReader(in), &out, args...); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String())
	}
	entry := "100644 blob " + write("x", "hash-object", "-w", "--stdin")
	for range 9 {
		var tree strings.Builder
		for i := range 10 {
			fmt.Fprintf(&tree, "%s\t%d\n", entry, i)
		}
		entry = "040000 tree " + write(tree.String(), "mktree")
	}
	commit := write("", "-c", "user.name=x", "-c", "user.email=x", "commit-tree", "-m", "x", strings.TrimPrefix(entry, "040000 tree "))
	write("", "update-ref", "HEAD", commit)
	if _, err := repo.Tree(t.Context(), ".", 100); err == nil || !strings.Contains(err.Error(), "too many files") {
		t.Error(err)
	}
	if _, err := repo.TreeFiles(t.Context(), "keys", 100, 100); err == nil || !strings.Contains(err.Error(), "too many files") {
		t.Error(err)
	}
}
