package git

import (
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestHistory(t *testing.T) {
	r := newRepo(t)
	tree := r.in("", "mktree")
	commit := func(parents ...string) string {
		args := []string{"commit-tree", "-m", strings.Join(parents, " "), tree}
		for _, p := range parents {
			args = append(args, "-p", p)
		}
		return r.git(args...)
	}
	a := commit()
	b := commit(a)
	c := commit(a, b)
	other := commit(b)
	r.git("tag", "-m", "x", "v1", c)
	tag := r.git("rev-parse", "v1")

	for _, c := range []struct {
		ancestor, descendant string
		want                 bool
	}{{a, b, true}, {b, a, false}, {a, a, true}, {b, c, true}, {c, other, false}, {a, tag, true}} {
		if got, err := r.IsAncestor(ctx, c.ancestor, c.descendant); err != nil || got != c.want {
			t.Errorf("IsAncestor(%s, %s) = %t, %v", c.ancestor, c.descendant, got, err)
		}
	}
	if _, err := r.IsAncestor(ctx, strings.Repeat("1", 40), a); err == nil {
		t.Error("an object that is missing has no ancestors")
	}
	beyond, err := r.Beyond(ctx, []string{a, b, c, tag}, []string{b})
	if err != nil || len(beyond) != 1 || !beyond[c] {
		t.Errorf("beyond b: %v, %v", beyond, err)
	}

	if parents, ok := r.LooseParents(c); !ok || !slices.Equal(parents, []string{a, b}) {
		t.Errorf("parents of c: %v, %t", parents, ok)
	}
	if parents, ok := r.LooseParents(a); !ok || len(parents) > 0 {
		t.Errorf("parents of a: %v, %t", parents, ok)
	}
	for _, oid := range []string{tree, tag, strings.Repeat("1", 40), "", "abc"} {
		if parents, ok := r.LooseParents(oid); ok {
			t.Errorf("%s is a commit with parents %v", oid, parents)
		}
	}
	r.git("repack", "-adq")
	r.git("prune-packed")
	if _, ok := r.LooseParents(a); ok {
		t.Error("a packed commit is loose")
	}
}

func TestUpdateRefs(t *testing.T) {
	r := newRepo(t)
	tree := r.in("", "mktree")
	a, b := r.git("commit-tree", "-m", "a", tree), r.git("commit-tree", "-m", "b", tree)
	zero := strings.Repeat("0", 40)
	must := func(ok bool, updates ...RefUpdate) {
		t.Helper()
		if err := r.UpdateRefs(ctx, updates); (err == nil) != ok {
			t.Errorf("%v: %v", updates, err)
		}
	}
	refs := func(want string) {
		t.Helper()
		if got := r.git("for-each-ref", "--format=%(refname:short) %(subject)"); strings.ReplaceAll(got, "\n", ", ") != want {
			t.Errorf("refs %q, want %q", got, want)
		}
	}
	must(true)
	must(true, RefUpdate{"refs/heads/x", zero, a}, RefUpdate{"refs/heads/y", zero, a})
	must(false, RefUpdate{"refs/heads/x", a, b}, RefUpdate{"refs/heads/y", zero, b}) // y is there
	must(false, RefUpdate{"refs/heads/x", b, a}, RefUpdate{"refs/heads/z", zero, a})
	must(false, RefUpdate{"refs/heads/z z", zero, a})
	must(false, RefUpdate{"refs/heads/z\ndelete", zero, a})
	must(false, RefUpdate{"HEAD", zero, a})
	refs("x a, y a")
	must(true, RefUpdate{"refs/heads/x", a, b}, RefUpdate{"refs/heads/y", a, zero}, RefUpdate{`refs/heads/"q`, zero, a})
	refs(`"q a, x b`)
}

// uploadPack is a Conn.
type uploadPack struct {
	io.Reader
	io.WriteCloser
}

func (u uploadPack) CloseWrite() error { return u.Close() }

func TestFetch(t *testing.T) {
	from, to := newRepo(t), newRepo(t)
	tree := from.in("", "mktree")
	a := from.git("commit-tree", "-m", "a", tree)
	b := from.git("commit-tree", "-m", "b", "-p", a, tree)
	from.git("update-ref", "refs/heads/main", b)
	from.git("update-ref", "refs/heads/old", a)
	from.git("update-ref", "refs/mirror/x", b)
	fetch := func(refspecs ...string) error {
		cmd := exec.Command("git", "upload-pack", "--strict", "--", from.Dir)
		cmd.Env = environ()
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		return to.Fetch(ctx, uploadPack{out, in}, refspecs)
	}
	refs := func() string {
		return strings.ReplaceAll(to.git("for-each-ref", "--format=%(refname) %(subject)"), "\n", ", ")
	}
	if err := fetch(a + ":refs/rescued/1/refs/heads/old"); err != nil {
		t.Fatal(err)
	}
	if got, want := refs(), "refs/rescued/1/refs/heads/old a"; got != want {
		t.Errorf("refs %q, want %q", got, want)
	}
	if err := fetch("+refs/*:refs/pull/*", "^refs/mirror/*"); err != nil {
		t.Fatal(err)
	}
	if got, want := refs(), "refs/pull/heads/main b, refs/pull/heads/old a, refs/rescued/1/refs/heads/old a"; got != want {
		t.Errorf("refs %q, want %q", got, want)
	}
	for _, bad := range []string{"refs/heads/none:refs/x", strings.Repeat("1", 40) + ":refs/x"} {
		if err := fetch(bad); err == nil || !strings.Contains(err.Error(), "git fetch: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	// A connection that ends at once.
	if err := to.Fetch(ctx, uploadPack{strings.NewReader(""), nopCloser{io.Discard}}, []string{"refs/heads/main:refs/x"}); err == nil {
		t.Error("a peer that says nothing has refs")
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
