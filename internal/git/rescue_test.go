package git

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// history makes commits, each with the one before as its parent, and no refs.
func history(r repo, messages ...string) []string {
	r.t.Helper()
	tree := r.git("hash-object", "-w", "-t", "tree", "/dev/null")
	var oids []string
	for i, message := range messages {
		args := []string{"commit-tree", "-m", message, tree}
		if i > 0 {
			args = append(args, "-p", oids[i-1])
		}
		oids = append(oids, r.git(args...))
	}
	return oids
}

func TestCommitsOutside(t *testing.T) {
	repo := newRepo(t)
	dir := repo.Dir
	c := history(repo, "a", "b", "c")
	missing := strings.Repeat("1", 40)
	tree := repo.git("rev-parse", c[0]+"^{tree}")
	repo.git("tag", "-a", "-m", "b", "v1", c[1])
	tag := repo.git("rev-parse", "v1")
	for name, tips := range map[string][]string{"commit": {c[1]}, "tag": {tag}, "and useless ones": {missing, tree, c[1]}} {
		got, err := repo.CommitsOutside(t.Context(), c, tips, nil)
		if d := cmp.Diff(map[string]bool{c[2]: true}, got); err != nil || d != "" {
			t.Errorf("%s: %v, %s", name, err, d)
		}
	}
	if got, err := repo.CommitsOutside(t.Context(), c, nil, nil); err != nil || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := repo.CommitsOutside(t.Context(), nil, c, nil); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.Remove(filepath.Join(dir, "objects", c[0][:2], c[0][2:])); err != nil {
		t.Fatal(err)
	}
	if got, err := repo.CommitsOutside(t.Context(), c[2:], nil, nil); err == nil {
		t.Errorf("an incomplete history gives %v", got)
	}
	types, err := repo.Types(t.Context(), []string{c[0], c[1], tag, tree, missing})
	if d := cmp.Diff(map[string]string{c[1]: "commit", tag: "tag", tree: "tree"}, types); err != nil || d != "" {
		t.Errorf("%v, %s", err, d)
	}
}

func TestOutsideOfAllRefs(t *testing.T) {
	repo := newRepo(t)
	c := history(repo, "in main", "kept only", "kept only, too")
	for ref, oid := range map[string]string{"refs/heads/main": c[0], "refs/mirror/rescued/x": c[1], "refs/mirror/y": c[2]} {
		repo.git("update-ref", ref, oid)
	}
	if n, err := repo.CountOutside(t.Context(), c[2], "refs/mirror"); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	var log strings.Builder
	if err := repo.LogOutside(t.Context(), &log, c[2], "refs/mirror"); err != nil || strings.Count(log.String(), "kept only") != 2 || strings.Contains(log.String(), "in main") {
		t.Errorf("%v, %s", err, log.String())
	}
	if subject, err := repo.Subject(t.Context(), c[1]); err != nil || subject != "kept only" {
		t.Errorf("%q, %v", subject, err)
	}
	refs, err := repo.RefsBelow(t.Context(), "refs/mirror/rescued")
	if d := cmp.Diff(map[string]string{"refs/mirror/rescued/x": c[1]}, refs); err != nil || d != "" {
		t.Errorf("%v, %s", err, d)
	}
}

func TestCreateAndDeleteRefs(t *testing.T) {
	repo := newRepo(t)
	c := history(repo, "a", "b")
	if err := repo.CreateRefs(t.Context(), map[string]string{`refs/heads/"a$b`: c[0], "refs/heads/x": c[0]}); err != nil {
		t.Fatal(err)
	}
	if err := repo.CreateRefs(t.Context(), map[string]string{"refs/heads/new": c[0], "refs/heads/x": c[1]}); !errors.Is(err, ErrRefExists) {
		t.Error(err)
	}
	if err := repo.DeleteRef(t.Context(), "refs/heads/x", c[1]); err == nil {
		t.Error("deleted in spite of another value")
	}
	if err := repo.DeleteRef(t.Context(), "refs/heads/x", c[0]); err != nil {
		t.Error(err)
	}
	if refs := repo.git("for-each-ref", "--format=%(refname)"); refs != `refs/heads/"a$b` {
		t.Error(refs)
	}
}

func TestRawRefs(t *testing.T) {
	repo := newRepo(t)
	dir := repo.Dir
	oid := history(repo, "a")[0]
	may := func(want bool) {
		t.Helper()
		if got, err := repo.MayHaveRefsBelow("refs/mirror/rescued"); err != nil || got != want {
			t.Errorf("may have rescued refs: %v, %v", got, err)
		}
	}
	may(false)
	for _, ref := range []string{"refs/heads/packed", "refs/heads/both", "refs/mirror/rescued/x"} {
		repo.git("update-ref", ref, oid)
	}
	may(true)
	repo.git("pack-refs", "--all", "--prune")
	may(true)
	repo.git("update-ref", "-d", "refs/mirror/rescued/x")
	os.RemoveAll(filepath.Join(dir, "refs/mirror"))
	may(false)
	repo.git("update-ref", "refs/heads/loose/x", oid)
	repo.git("symbolic-ref", "refs/heads/alias", "refs/heads/packed")
	for file, text := range map[string]string{"refs/heads/empty": "", "refs/heads/both": strings.Repeat("1", 40) + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("packed", filepath.Join(dir, "refs/heads/link")); err != nil {
		t.Fatal(err)
	}
	names := []string{"refs/heads/packed", "refs/heads/both", "refs/heads/loose/x", "refs/heads/loose", "refs/heads/loose/x/y", "refs/heads/alias", "refs/heads/empty", "refs/heads/link", "refs/heads/none"}
	want := map[string]RawRef{"refs/heads/both": {OID: strings.Repeat("1", 40)}, "refs/heads/loose/x": {OID: oid}, "refs/heads/alias": {Target: "refs/heads/packed"}, "refs/heads/empty": {}, "refs/heads/link": {Target: "packed"}}
	got, err := repo.RawRefs(t.Context(), names, false)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v, %s", err, d)
	}
	want["refs/heads/packed"] = RawRef{OID: oid}
	got, err = repo.RawRefs(t.Context(), names, true)
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v, %s", err, d)
	}
}
