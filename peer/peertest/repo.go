package peertest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"mirror-shell/internal/git"
)

// Repo is a real bare repository in a temporary directory. Its default branch
// is main.
type Repo struct {
	t      testing.TB
	Dir    string
	Format string // "sha1" or "sha256"
}

// NewRepo makes an empty repository.
func NewRepo(t testing.TB, format string) *Repo {
	t.Helper()
	r := &Repo{t, filepath.Join(t.TempDir(), "r.git"), format}
	run(t, nil, "git", "init", "-q", "--bare", "--object-format="+format, "--initial-branch=main", r.Dir)
	return r
}

// Git runs git on the repository and returns its output, trimmed.
func (r *Repo) Git(args ...string) string {
	r.t.Helper()
	return run(r.t, nil, append([]string{"git", "--git-dir=" + r.Dir}, args...)...)
}

// commits numbers all commits of a test process: no two are equal.
var commits atomic.Int64

// NewCommit makes a commit with a file of its own, and no ref to it.
func (r *Repo) NewCommit(parents ...string) string {
	r.t.Helper()
	n := commits.Add(1)
	blob := run(r.t, strings.NewReader(fmt.Sprintf("content %d\n", n)), "git", "--git-dir="+r.Dir, "hash-object", "-w", "--stdin")
	tree := run(r.t, strings.NewReader("100644 blob "+blob+"\tfile\n"), "git", "--git-dir="+r.Dir, "mktree")
	args := []string{"commit-tree", "-m", fmt.Sprintf("commit %d", n), tree}
	for _, p := range parents {
		args = append(args, "-p", p)
	}
	return r.Git(args...)
}

// Commit puts a new commit on top of ref, which is made if need be.
func (r *Repo) Commit(ref string) string {
	r.t.Helper()
	var parents []string
	if tip := r.Refs()[ref]; tip != "" {
		parents = []string{tip}
	}
	return r.Set(ref, r.NewCommit(parents...))
}

// Set sets ref, and returns its value.
func (r *Repo) Set(ref, oid string) string {
	r.t.Helper()
	r.Git("update-ref", ref, oid)
	return oid
}

// SetAll sets many refs in one go.
func (r *Repo) SetAll(refs map[string]string) {
	r.t.Helper()
	var text strings.Builder
	for ref, oid := range refs {
		fmt.Fprintf(&text, "update %s %s\n", ref, oid)
	}
	run(r.t, strings.NewReader(text.String()), "git", "--git-dir="+r.Dir, "update-ref", "--stdin")
}

// Delete deletes ref.
func (r *Repo) Delete(ref string) {
	r.t.Helper()
	r.Git("update-ref", "-d", ref)
}

// Refs returns all refs.
func (r *Repo) Refs() map[string]string {
	r.t.Helper()
	refs := map[string]string{}
	for line := range strings.Lines(r.Git("for-each-ref", "--format=%(objectname) %(refname)")) {
		oid, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
		refs[ref] = oid
	}
	return refs
}

// Head returns what HEAD points to.
func (r *Repo) Head() string {
	r.t.Helper()
	return r.Git("symbolic-ref", "HEAD")
}

// Has reports whether the object is in the repository.
func (r *Repo) Has(oid string) bool {
	cmd := exec.Command("git", "--git-dir="+r.Dir, "cat-file", "-e", oid)
	cmd.Env = Environ()
	return cmd.Run() == nil
}

// Damage removes the loose file of an object, or with content replaces it.
func (r *Repo) Damage(oid string, content ...string) {
	r.t.Helper()
	file := filepath.Join(r.Dir, "objects", oid[:2], oid[2:])
	if err := os.Remove(file); err != nil {
		r.t.Fatal(err)
	}
	for _, text := range content {
		r.Write(strings.TrimPrefix(file, r.Dir+"/"), text)
	}
}

// Write writes a file in the repository's directory.
func (r *Repo) Write(name, text string) {
	r.t.Helper()
	file := filepath.Join(r.Dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// Hook installs a shell script as a hook.
func (r *Repo) Hook(name, script string) {
	r.t.Helper()
	r.Write("hooks/"+name, "#!/bin/sh\n"+script+"\n")
	if err := os.Chmod(filepath.Join(r.Dir, "hooks", name), 0o755); err != nil {
		r.t.Fatal(err)
	}
}

// Fsck fails the test when history is incomplete.
func (r *Repo) Fsck() {
	r.t.Helper()
	r.Git("fsck", "--connectivity-only")
}

// Fill puts n branches into the repository, each a commit on top of the one before,
// in packed refs, and returns them.
func (r *Repo) Fill(n int) map[string]string {
	r.t.Helper()
	var in bytes.Buffer
	for i := range n {
		fmt.Fprintf(&in, "commit refs/heads/b%05d\nmark :%d\ncommitter a <a@b> %d +0000\ndata 2\nm\n", i, i+1, 1700000000+i)
		if i > 0 {
			fmt.Fprintf(&in, "from :%d\n", i)
		}
		text := fmt.Sprint(i)
		fmt.Fprintf(&in, "M 100644 inline f\ndata %d\n%s\n", len(text), text)
	}
	run(r.t, &in, "git", "--git-dir="+r.Dir, "fast-import", "--quiet")
	r.Git("pack-refs", "--all")
	return maps.Clone(r.Refs())
}

// Mirror is the repository as package peer takes it.
func (r *Repo) Mirror() git.Repo { return git.Repo{Dir: r.Dir} }

// Environ is the environment for git in tests: nobody's settings, one author.
func Environ() []string {
	env := []string{"LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=alice", "GIT_AUTHOR_EMAIL=alice@example.org", "GIT_COMMITTER_NAME=alice", "GIT_COMMITTER_EMAIL=alice@example.org"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		env = append(env, name+"="+os.Getenv(name))
	}
	return env
}

func run(t testing.TB, stdin io.Reader, argv ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stderr = Environ(), stdin, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}
