package git

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// plainRepo is a repository with two commits and an annotated tag; its git is
// returned, too.
func plainRepo(t *testing.T, format string) (r Repo, run func(stdin string, args ...string) string) {
	t.Helper()
	r = Repo{Dir: filepath.Join(t.TempDir(), "r.git")}
	run = func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"--git-dir", r.Dir, "-c", "user.name=f", "-c", "user.email=f@example.org"}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("", "init", "-q", "--bare", "--object-format="+format, r.Dir)
	tree := run("", "mktree")
	first := run("", "commit-tree", "-m", "one", tree)
	run("", "update-ref", "refs/heads/main", first)
	run("", "update-ref", "refs/heads/other", run("", "commit-tree", "-m", "two", "-p", first, tree))
	run("", "tag", "-a", "-m", "annotated", "v1", first)
	return r, run
}

// What is read in this process is what git reads.
func TestPlainRefs(t *testing.T) {
	for name, change := range map[string]func(r Repo, run func(string, ...string) string){
		"loose":      func(Repo, func(string, ...string) string) {},
		"all packed": func(_ Repo, run func(string, ...string) string) { run("", "pack-refs", "--all") },
		"both": func(_ Repo, run func(string, ...string) string) {
			run("", "pack-refs", "--all")
			run("", "update-ref", "refs/heads/main", "refs/heads/other")
			run("", "update-ref", "refs/heads/x/y/z", "refs/heads/other")
			run("", "update-ref", "-d", "refs/heads/other")
		},
		"thousands": func(_ Repo, run func(string, ...string) string) {
			var updates strings.Builder
			for i := range 5000 {
				fmt.Fprintf(&updates, "create refs/heads/topic/%d refs/heads/main\n", i)
			}
			run(updates.String(), "update-ref", "--stdin")
			run("", "pack-refs", "--all")
			run("", "update-ref", "-d", "refs/heads/topic/8")
			run("", "update-ref", "refs/heads/topic/9", "refs/heads/other")
		},
		"none": func(r Repo, _ func(string, ...string) string) {
			os.RemoveAll(filepath.Join(r.Dir, "refs/heads"))
			os.RemoveAll(filepath.Join(r.Dir, "refs/tags"))
		},
	} {
		r, run := plainRepo(t, "sha1")
		change(r, run)
		want, err := r.Refs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r.PlainRefs(); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %d refs, %v; git has %d", name, len(got), err, len(want))
		}
	}
}

// What is unusual is left to git, which reads it or says what is wrong.
func TestUnusualRefs(t *testing.T) {
	for name, change := range map[string]func(r Repo, run func(string, ...string) string) (fails bool){
		"symbolic": func(_ Repo, run func(string, ...string) string) bool {
			run("", "symbolic-ref", "refs/heads/alias", "refs/heads/main")
			return false
		},
		"many loose": func(_ Repo, run func(string, ...string) string) bool {
			var updates strings.Builder
			for i := range maxLoose + 5 {
				fmt.Fprintf(&updates, "create refs/heads/topic/%d refs/heads/main\n", i)
			}
			run(updates.String(), "update-ref", "--stdin")
			return false
		},
		"worktree config": func(_ Repo, run func(string, ...string) string) bool {
			run("", "config", "extensions.worktreeConfig", "true")
			return false
		},
		"empty file": func(r Repo, _ func(string, ...string) string) bool {
			os.WriteFile(filepath.Join(r.Dir, "refs/heads/broken"), nil, 0o600)
			return true
		},
		"garbage": func(r Repo, _ func(string, ...string) string) bool {
			os.WriteFile(filepath.Join(r.Dir, "refs/heads/broken"), []byte("garbage\n"), 0o600)
			return true
		},
	} {
		r, run := plainRepo(t, "sha1")
		fails := change(r, run)
		if _, err := r.PlainRefs(); !errors.Is(err, ErrUnusual) {
			t.Errorf("%s: %v", name, err)
		}
		got, err := r.ReadRefs(t.Context())
		if want, _ := r.Refs(t.Context()); (err != nil) != fails || !maps.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
	r, _ := plainRepo(t, "sha256")
	if got, err := r.ReadRefs(t.Context()); err != nil || len(got) != 3 {
		t.Errorf("sha256: %v, %v", got, err)
	}
}

// What git refuses to read in packed-refs is never read in its place.
func TestBrokenPackedRefs(t *testing.T) {
	r, run := plainRepo(t, "sha1")
	run("", "pack-refs", "--all")
	good, err := os.ReadFile(filepath.Join(r.Dir, "packed-refs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := checkPacked(good); err != nil {
		t.Fatal(err)
	}
	oid := run("", "rev-parse", "refs/heads/other")
	for name, text := range map[string]string{
		"cut off":         strings.TrimSuffix(string(good), "\n"),
		"bad id":          strings.Replace(string(good), oid, "x"+oid[1:], 1),
		"short id":        strings.Replace(string(good), oid, oid[1:], 1),
		"stray line":      string(good) + "nonsense\n",
		"upper-case hash": strings.Replace(string(good), oid, strings.ToUpper(oid), 1),
	} {
		if checkPacked([]byte(text)) == nil {
			t.Errorf("%s: read without git", name)
		}
	}
}
