package rescue

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

func TestMain(m *testing.M) {
	for key, value := range map[string]string{
		"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
		"GIT_AUTHOR_NAME": "Alice", "GIT_AUTHOR_EMAIL": "alice@example.org",
		"GIT_COMMITTER_NAME": "Alice", "GIT_COMMITTER_EMAIL": "alice@example.org",
	} {
		os.Setenv(key, value)
	}
	os.Exit(m.Run())
}

var when = time.Date(2026, 11, 22, 3, 55, 57, 999, time.FixedZone("", 3600))

const oid = "1234abcd5678901234567890123456789012abcd"

func TestName(t *testing.T) {
	for want, n := range map[string]Name{
		"refs/mirror/rescued/20261122T025557Z-1234abcd/refs/heads/main":                                NewName("", when, oid, "refs/heads/main"),
		"refs/mirror/rescued/sam/20261122T025557Z-1234abcd/refs/heads/a/b":                             NewName("sam", when, oid, "refs/heads/a/b"),
		"refs/mirror/rescued/20261122T025557Z-1234abcd/20261122T025557Z-1234abcd/refs/refs/heads/refs": NewName("20261122T025557Z-1234abcd", when, oid, "refs/refs/heads/refs"),
	} {
		if n.Full() != want {
			t.Errorf("%s, want %s", n.Full(), want)
		}
		for _, text := range []string{n.Full(), n.Short()} {
			if got, ok := ParseName(text); !ok || got != n {
				t.Errorf("%s reads as %+v, %v", text, got, ok)
			}
		}
	}
	for _, bad := range []string{
		"", "refs/mirror/rescued/", "refs/heads/main", "20261122T025557Z-1234abcd", "20261122T025557Z-1234abcd/", "20261122T025557Z-1234abcd/main",
		"20261122T025557Z-1234abc/refs/heads/x", "20261122T025557Z-1234ABCD/refs/heads/x", "20261322T025557Z-1234abcd/refs/heads/x",
		"20261122T025557Z-1234abcd/refs/heads/../x", "20261122T025557Z-1234abcd/refs/", "sam/sam/20261122T025557Z-1234abcd/refs/heads/x",
		"-sam/20261122T025557Z-1234abcd/refs/heads/x", "refs/mirror/other/20261122T025557Z-1234abcd/refs/heads/x", "20261122T025557Z-1234abcd/refs/heads/x\n",
	} {
		if n, ok := ParseName(bad); ok {
			t.Errorf("%q reads as %+v", bad, n)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("refs/mirror/rescued/20261122T025557Z-1234abcd/refs/heads/main")
	f.Add("sam/20261122T025557Z-1234abcd/refs/heads/main")
	f.Add("20261122T025557Z-1234abcd/20261122T025557Z-1234abcd/refs/heads/main")
	f.Fuzz(func(t *testing.T, text string) {
		n, ok := ParseName(text)
		if !ok {
			return
		}
		if text != n.Full() && text != n.Short() {
			t.Errorf("%q reads as %q", text, n.Full())
		}
		if strings.ContainsAny(text, " ~^:?*[\\\n") || strings.Contains(text, "..") || !strings.HasPrefix(n.Ref, "refs/") {
			t.Errorf("%q is no ref", text)
		}
		e := Entry{Name: n.Short(), Ref: n.Ref, OID: n.Digits + oid[8:], Time: n.Time, Peer: n.Peer}
		if err := e.Check(); err != nil {
			t.Error(err)
		}
		for _, other := range []Entry{{}, {e.Name, e.Ref, oid[:39], e.Time, e.Peer}, {e.Name, e.Ref + "x", e.OID, e.Time, e.Peer}, {e.Name, e.Ref, e.OID, e.Time.Add(1), e.Peer},
			{e.Name, e.Ref, e.OID, e.Time, e.Peer + "x"}, {n.Full(), e.Ref, e.OID, e.Time, e.Peer}, {e.Name, e.Ref, strings.Repeat("x", 40), e.Time, e.Peer}} {
			if other.Check() == nil {
				t.Errorf("%+v passes", other)
			}
		}
	})
}

func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// newRepo is a bare repository with one commit, which no ref has.
func newRepo(t testing.TB, dir string) (git.Repo, string) {
	t.Helper()
	run(t, "", "init", "-q", "--bare", "-b", "main", dir)
	tree := run(t, dir, "hash-object", "-w", "-t", "tree", "/dev/null")
	return git.Repo{Dir: dir}, run(t, dir, "commit-tree", "-m", "only here", tree)
}

func names(entries []Entry) []string {
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name)
	}
	return list
}

func TestKeepListDrop(t *testing.T) {
	ctx := t.Context()
	repo, commit := newRepo(t, t.TempDir()+"/a.git")
	values := []Value{{"refs/heads/main", commit}, {"refs/heads/a/b", commit}}
	kept, err := Keep(ctx, repo, "", values, when)
	if err != nil || len(kept) != 2 || kept[0].Before || kept[0].Name != NewName("", when, commit, "refs/heads/main").Full() {
		t.Fatalf("%+v, %v", kept, err)
	}
	// Later, once more with another: the first stays what it was.
	later := when.Add(time.Hour)
	kept, err = Keep(ctx, repo, "", append(values, Value{"refs/tags/v1", commit}), later)
	if err != nil || !kept[0].Before || kept[0].Name != NewName("", when, commit, "refs/heads/main").Full() || kept[2].Before {
		t.Fatalf("%+v, %v", kept, err)
	}
	// What a copy had is another matter.
	if kept, err = Keep(ctx, repo, "sam", values[:1], later); err != nil || kept[0].Before {
		t.Fatalf("%+v, %v", kept, err)
	}
	run(t, repo.Dir, "update-ref", "refs/mirror/rescued/made-by-hand", commit)
	run(t, repo.Dir, "pack-refs", "--all")
	entries, err := List(ctx, repo)
	want := []string{NewName("", when, commit, "refs/heads/a/b").Short(), NewName("", when, commit, "refs/heads/main").Short(),
		NewName("", later, commit, "refs/tags/v1").Short(), NewName("sam", later, commit, "refs/heads/main").Short()}
	if err != nil || !slices.Equal(names(entries), want) {
		t.Fatalf("%q, %v", names(entries), err)
	}
	for _, e := range entries {
		if err := e.Check(); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "refs/heads/main", want[0][1:], want[0] + "/", "made-by-hand"} {
		if _, err := Drop(ctx, repo, bad); !errors.Is(err, ErrNotRescued) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, name := range []string{want[0], Prefix + "/" + want[3]} {
		if e, err := Drop(ctx, repo, name); err != nil || e.OID != commit {
			t.Errorf("%+v, %v", e, err)
		}
	}
	if entries, err = List(ctx, repo); err != nil || !slices.Equal(names(entries), want[1:3]) {
		t.Errorf("%q, %v", names(entries), err)
	}
}

// All or none.
func TestKeepFails(t *testing.T) {
	repo, commit := newRepo(t, t.TempDir()+"/a.git")
	if _, err := Keep(t.Context(), repo, "", []Value{{"refs/heads/main", commit}, {"refs/heads/gone", oid}}, when); err == nil {
		t.Error("a value without its object is kept")
	}
	if entries, err := List(t.Context(), repo); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

// One broken rescued ref neither hides the others nor stops a rescue.
func TestBroken(t *testing.T) {
	repo, commit := newRepo(t, t.TempDir()+"/a.git")
	if _, err := Keep(t.Context(), repo, "", []Value{{"refs/heads/main", commit}}, when); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(repo.Dir, NewName("", when, commit, "refs/heads/broken").Full())
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	entries, err := List(t.Context(), repo)
	var broken *git.BrokenRefs
	if !errors.As(err, &broken) || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if kept, err := Keep(t.Context(), repo, "", []Value{{"refs/heads/main", commit}, {"refs/heads/other", commit}}, when); err != nil || !kept[0].Before || kept[1].Before {
		t.Errorf("%+v, %v", kept, err)
	}
}

func TestRestore(t *testing.T) {
	ctx := t.Context()
	repo, commit := newRepo(t, t.TempDir()+"/a.git")
	for as, want := range map[string]string{"saved": "refs/heads/saved", "refs/tags/v1": "refs/tags/v1", "a/b": "refs/heads/a/b"} {
		if ref, err := Restore(ctx, repo, commit, as); err != nil || ref != want || run(t, repo.Dir, "rev-parse", want) != commit {
			t.Errorf("%s: %s, %v", as, ref, err)
		}
	}
	if _, err := Restore(ctx, repo, commit, "saved"); err == nil || !strings.Contains(err.Error(), "refs/heads/saved is there already") {
		t.Error(err)
	}
	for _, as := range []string{"", "-x", "a..b", "a b", "refs/mirror/x", "refs/mirror", "x.lock", "refs/", "a:b", "*"} {
		if ref, err := Restore(ctx, repo, commit, as); err == nil {
			t.Errorf("%q makes %s", as, ref)
		}
	}
	tree := run(t, repo.Dir, "rev-parse", commit+"^{tree}")
	for _, oid := range []string{tree, oid} {
		if _, err := Restore(ctx, repo, oid, "other"); err == nil {
			t.Errorf("%s is a branch", oid)
		}
	}
}

func TestExpire(t *testing.T) {
	base := t.TempDir()
	server, err := mirrorcfg.Parse("x", "hostname = \"sam\"\nrepo_base = \""+base+"\"\n[guard]\nkeep_rescued = \"48h\"\n")
	if err != nil {
		t.Fatal(err)
	}
	a, commit := newRepo(t, base+"/a.git")
	newRepo(t, base+"/b.git")
	day := 24 * time.Hour
	for ref, at := range map[string]time.Time{"refs/heads/old": when.Add(-3 * day), "refs/heads/new": when.Add(-day), "refs/heads/future": when.Add(day), "refs/heads/1970": time.Unix(100, 0)} {
		if _, err := Keep(t.Context(), a, "", []Value{{ref, commit}}, at); err != nil {
			t.Fatal(err)
		}
	}
	dropped, err := Expire(t.Context(), server, when)
	if err != nil || len(dropped) != 1 || dropped[0].Repository != "a" || dropped[0].Ref != "refs/heads/old" || dropped[0].OID != commit {
		t.Errorf("%+v, %v", dropped, err)
	}
	if entries, err := List(t.Context(), a); err != nil || len(entries) != 3 {
		t.Errorf("%+v, %v", entries, err)
	}
	server.Guard.KeepRescued = 0
	if dropped, err := Expire(t.Context(), server, when.Add(1000*day)); err != nil || len(dropped) > 0 {
		t.Errorf("%+v, %v", dropped, err)
	}
}
