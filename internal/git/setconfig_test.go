package git

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSetConfig(t *testing.T) {
	r := newRepo(t)
	value := "master frodo\nslaves \nrefs refs/heads/* !refs/x;y#z \"q\" \\\n"
	for _, v := range []string{"", "a b", value} {
		r.git("config", "--add", "gitolite.mirror.x", "other")
		if err := r.SetConfig(ctx, "gitolite.mirror.X", v); err != nil {
			t.Fatal(err)
		}
		entries, err := r.Config(ctx, `^gitolite\.mirror\.x$`)
		if diff := cmp.Diff([]ConfigEntry{{Key: "gitolite.mirror.x", Value: v}}, entries); diff != "" || err != nil {
			t.Errorf("%v: %s", err, diff)
		}
	}
	if has, err := r.HasConfig("gitolite \"MIRROR"); !has || err != nil {
		t.Errorf("HasConfig: %v, %v", has, err)
	}
	r.git("config", "--add", "gitolite.mirror.x", "other")
	for range 2 { // the second time it is not there
		if err := r.UnsetConfig(ctx, "gitolite.mirror.x"); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := r.Config(ctx, `^gitolite\.mirror\.`); len(entries) != 0 || err != nil {
		t.Errorf("%v, %v", entries, err)
	}
	if err := os.WriteFile(r.ConfigFile()+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.SetConfig(ctx, "gitolite.mirror.x", "y"); err == nil {
		t.Error("written in spite of a lock")
	}
	if has, err := (Repo{t.TempDir()}).HasConfig("x"); has || err != nil {
		t.Errorf("no config file: %v, %v", has, err)
	}
}

func TestTree(t *testing.T) {
	r := newRepo(t)
	if _, err := r.Tree(ctx, ".", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no commit: %v", err)
	}
	blob, long := r.in("x = 1\n", "hash-object", "-w", "--stdin"), r.in(strings.Repeat("#", 1<<20), "hash-object", "-w", "--stdin")
	sub := r.in("100644 blob "+blob+"\tsam.toml\n100755 blob "+blob+"\tfrodo.toml\n120000 blob "+blob+"\tlink.toml\n100644 blob "+long+"\tlong.toml\n", "mktree")
	top := r.in("100644 blob "+blob+"\ta.toml\n040000 tree "+sub+"\td\n040000 tree "+sub+"\tdd\n", "mktree")
	r.git("update-ref", "refs/heads/main", r.git("commit-tree", "-m", "x", top))
	tree, err := r.Tree(ctx, "d", 10)
	if err != nil {
		t.Fatal(err)
	}
	names, err := tree.Glob("*.toml")
	if diff := cmp.Diff([]string{"frodo.toml", "long.toml", "sam.toml"}, names); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
	if text, err := tree.ReadFile("sam.toml"); string(text) != "x = 1\n" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	for _, absent := range []string{"link.toml", "a.toml", "../a.toml", "none"} {
		if _, err := tree.ReadFile(absent); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", absent, err)
		}
	}
	if _, err := tree.ReadFile("long.toml"); !errors.Is(err, errTooLong) {
		t.Errorf("long file: %v", err)
	}
	if _, err := tree.Glob("["); err == nil {
		t.Error("a bad pattern is accepted")
	}
	all, err := r.Tree(ctx, ".", 10)
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := all.Glob("*/sam.toml"); len(names) != 2 {
		t.Errorf("%q", names)
	}
	if text, err := all.ReadFile(filepath.Join("dd", "frodo.toml")); len(text) != 6 || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

func TestTreeFiles(t *testing.T) {
	r := newRepo(t)
	if _, err := r.TreeFiles(ctx, "d", 10, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no commit: %v", err)
	}
	blob, long := r.in("x = 1\n\n", "hash-object", "-w", "--stdin"), r.in(strings.Repeat("#", 1<<20), "hash-object", "-w", "--stdin")
	empty := r.in("", "hash-object", "-w", "--stdin")
	sub := r.in("100644 blob "+blob+"\tb\n100755 blob "+empty+"\ta\n120000 blob "+blob+"\tlink\n100644 blob "+long+"\tlong\n", "mktree")
	d := r.in("040000 tree "+sub+"\tsub\n100644 blob "+blob+"\tx y\n160000 commit "+strings.Repeat("1", 40)+"\tz\n", "mktree")
	top := r.in("040000 tree "+d+"\td\n040000 tree "+d+"\tdd\n", "mktree")
	r.git("update-ref", "refs/heads/main", r.git("commit-tree", "-m", "x", top))
	files, err := r.TreeFiles(ctx, "d", 6, 10)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, f := range files {
		got = append(got, fmt.Sprintf("%s %q %v", f.Path, f.Data, f.Err))
	}
	want := []string{`sub/a "" <nil>`, `sub/b "x = 1\n\n" <nil>`, `sub/link "" not a plain file`, `sub/long "" the file is too long`, `x y "x = 1\n\n" <nil>`, `z "" not a plain file`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := r.TreeFiles(ctx, "d", 5, 10); err == nil || !strings.Contains(err.Error(), "more than 5 files") {
		t.Errorf("too many: %v", err)
	}
	if files, err := r.TreeFiles(ctx, "none", 5, 10); len(files) != 0 || err != nil {
		t.Errorf("no such directory: %v, %v", files, err)
	}
	r.damage(blob, "")
	if files, err := r.TreeFiles(ctx, "d", 6, 10); err != nil || files[1].Err == nil || files[0].Err != nil {
		t.Errorf("a missing object: %+v, %v", files, err)
	}
}
