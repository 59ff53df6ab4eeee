package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
)

// run runs git and returns what it prints.
func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := tryRun(dir, args...)
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return out
}

func tryRun(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-c", "gc.auto=0", "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
	cmd.Dir = dir
	cmd.Env = proc.Env("LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// newSource makes an empty bare repository.
func newSource(t testing.TB, args ...string) git.Repo {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "r:1 \"x.git") // ":" and quotes separate what git reads from its environment
	run(t, ".", append(append([]string{"init", "-q", "--bare", "-b", "main"}, args...), dir)...)
	return git.Repo{Dir: dir}
}

// commitTo adds a commit with a file to a ref, on top of what it has, and returns its id.
func commitTo(t testing.TB, r git.Repo, ref, text string) string {
	t.Helper()
	id, err := tryCommit(r, ref, text)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// tryCommit fails when a gc takes what nothing reaches yet.
func tryCommit(r git.Repo, ref, text string) (string, error) {
	var failed error
	stdin := func(in string, args ...string) string {
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@b", "--git-dir=" + r.Dir}, args...)...)
		cmd.Env, cmd.Stdin = proc.Env("LC_ALL=C"), strings.NewReader(in)
		out, err := cmd.Output()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("git %v: %w", args, err))
		}
		return strings.TrimSpace(string(out))
	}
	blob := stdin(text, "hash-object", "-w", "--stdin")
	tree := stdin("100644 blob "+blob+"\tfile-"+text[:1]+"\n", "mktree")
	args := []string{"commit-tree", tree, "-m", text[:1]}
	if parent, err := tryRun(r.Dir, "rev-parse", "-q", "--verify", ref); err == nil {
		args = append(args, "-p", parent)
	}
	id := stdin("", args...)
	if failed == nil {
		_, failed = tryRun(r.Dir, "update-ref", ref, id)
	}
	return id, failed
}

func sourceOf(t testing.TB, r git.Repo) Source {
	return Source{Repository: "group/ip1", Repo: r, Memory: filepath.Join(t.TempDir(), "memory")}
}

// takeNow takes a snapshot and has the vault's content compared with the repository.
func takeNow(t testing.TB, v *Vault, src Source) Result {
	t.Helper()
	result, err := v.Take(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, v, result.Name, src.Repo)
	return result
}

// revive makes a repository of a snapshot, in the simplest way that there is.
func revive(t testing.TB, v *Vault, name Name) (git.Repo, *Manifest) {
	t.Helper()
	m, err := v.Load(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	r := newSource(t, "--object-format="+m.ObjectFormat)
	for _, p := range m.Packs {
		for suffix, o := range map[string]Object{".pack": p.Pack, ".idx": p.Index} {
			f, err := v.download(t.Context(), o, filepath.Join(r.Dir, "objects", "pack", p.Name+suffix))
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		run(t, r.Dir, "verify-pack", "objects/pack/"+p.Name+".idx")
	}
	var text strings.Builder
	for ref, id := range m.Refs {
		fmt.Fprintf(&text, "create %s %s\n", ref, id)
	}
	cmd := exec.Command("git", "--git-dir="+r.Dir, "update-ref", "--stdin")
	cmd.Stdin, cmd.Env = strings.NewReader(text.String()), proc.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("update-ref: %v: %s", err, out)
	}
	if m.Detached != "" {
		run(t, r.Dir, "update-ref", "--no-deref", "HEAD", m.Detached)
	} else {
		run(t, r.Dir, "symbolic-ref", "HEAD", m.Head)
	}
	return r, m
}

// compare has git look whether a snapshot is whole, and compares refs and files with the repository.
func compare(t testing.TB, v *Vault, name Name, want git.Repo) *Manifest {
	t.Helper()
	r, m := revive(t, v, name)
	if out, err := tryRun(r.Dir, "fsck", "--full", "--no-dangling"); err != nil {
		t.Fatalf("fsck: %v: %s", err, out)
	}
	refs, err := want.Refs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(refs, m.Refs) {
		t.Fatalf("refs are %v, want %v", m.Refs, refs)
	}
	for _, f := range m.Files {
		content, err := v.open(t.Context(), f.Object)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(content)
		wantText, _ := os.ReadFile(filepath.Join(want.Dir, f.Path))
		if err != nil || !bytes.Equal(got, wantText) {
			t.Fatalf("%s: %v, %q", f.Path, err, got)
		}
	}
	return m
}

// requests counts what a function asks of the store.
func requests(m *memory, do func()) (ops []string) {
	var mu sync.Mutex
	m.before = func(op, key string) error {
		mu.Lock()
		defer mu.Unlock()
		ops = append(ops, op+" "+key)
		return nil
	}
	do()
	m.before = nil
	return ops
}
