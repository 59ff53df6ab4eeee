package snapshot

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/git"
	"mirror-shell/peer/store"
)

// written is a ref as it stands in the repository.
func written(t testing.TB, dir string, names ...string) map[string]git.RawRef {
	t.Helper()
	refs, err := git.Repo{Dir: dir}.RawRefs(t.Context(), names, true)
	if err != nil {
		t.Fatal(err)
	}
	return refs
}

func restoreTo(t testing.TB, v *Vault, name Name) (dir string, done Restored) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "ip1.git")
	done, err := v.Restore(t.Context(), name, dir, RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return dir, done
}

// Symbolic refs come back as they stood, whether they point to something, to another one, or to nothing.
func TestSymbolicRefs(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	before := takeNow(t, v, src)
	run(t, r.Dir, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
	run(t, r.Dir, "symbolic-ref", "refs/heads/chain", "refs/heads/alias")
	if m := compare(t, v, takeNow(t, v, src).Name, r); m.Format != 1 {
		t.Errorf("format %d: an old program could read it", m.Format)
	}
	targets := map[string]string{
		"refs/heads/alias": "refs/heads/main", "refs/heads/chain": "refs/heads/alias", "refs/remotes/origin/HEAD": "refs/remotes/origin/gone",
		"refs/heads/unborn": "refs/heads/next", "refs/heads/head": "HEAD",
	}
	for name, target := range targets {
		run(t, r.Dir, "symbolic-ref", name, target)
	}
	taken, err := v.Take(t.Context(), src)
	if err != nil || taken.Unchanged || taken.Note != "" || taken.Uploaded != 0 {
		t.Fatalf("%+v, %v", taken, err)
	}
	m, err := v.Load(t.Context(), taken.Name)
	if err != nil || m.Format != 2 || !maps.Equal(m.SymRefs, targets) {
		t.Fatalf("%+v, %v", m, err)
	}
	if again, err := v.Take(t.Context(), src); err != nil || !again.Unchanged {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := v.practise(t.Context(), taken.Name); err != nil {
		t.Errorf("drill: %v", err)
	}
	dir, _ := restoreTo(t, v, taken.Name)
	names := slices.Collect(maps.Keys(m.SymRefs))
	if want, got := written(t, r.Dir, names...), written(t, dir, names...); !cmp.Equal(want, got) || len(got) != len(targets) {
		t.Errorf("restored %v, want %v", got, want)
	}
	// A target alone is a change, of which the digest knows nothing.
	run(t, r.Dir, "symbolic-ref", "refs/heads/unborn", "refs/heads/other")
	next := takeNow(t, v, src)
	if next.Unchanged || next.Name.Digest != taken.Name.Digest || next.Name.Digest == before.Name.Digest {
		t.Errorf("%+v", next)
	}
}

// What git itself takes for no ref is left out, and said.
func TestSymbolicRefToNonsense(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	for name, text := range map[string]string{"refs/heads/x": "ref: ../../config\n", "refs/heads/y": "ref: main-worktree/HEAD\n"} {
		if err := os.WriteFile(filepath.Join(r.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	taken, err := v.Take(t.Context(), sourceOf(t, r))
	if err != nil || !strings.Contains(taken.Note, `"../../config" is none that git reads, and was left out`) || !strings.Contains(taken.Note, "kept as an ordinary ref") {
		t.Fatalf("%+v, %v", taken, err)
	}
	dir, _ := restoreTo(t, v, taken.Name)
	if got := written(t, dir, "refs/heads/x", "refs/heads/y"); len(got) != 1 || got["refs/heads/y"].OID == "" {
		t.Errorf("%v", got)
	}
}

// What only a linked worktree stands on is kept; the worktree is not.
func TestWorktrees(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	src := sourceOf(t, r)
	first := commitTo(t, r, "refs/heads/main", "1 first")
	plain := takeNow(t, v, src)
	trees := t.TempDir()
	run(t, r.Dir, "worktree", "add", "-q", "-b", "topic", filepath.Join(trees, "branch"), "main")
	run(t, r.Dir, "worktree", "add", "-q", "--detach", filepath.Join(trees, "wt"), "main")
	run(t, filepath.Join(trees, "wt"), "commit", "-q", "--allow-empty", "-m", "nowhere else")
	alone := run(t, filepath.Join(trees, "wt"), "rev-parse", "HEAD")
	run(t, filepath.Join(trees, "wt"), "update-ref", "refs/bisect/bad", first)
	run(t, r.Dir, "update-ref", "-d", "refs/heads/none") // nothing
	taken, err := v.Take(t.Context(), src)
	if err != nil || taken.Note != "" {
		t.Fatalf("%+v, %v", taken, err)
	}
	m, err := v.Load(t.Context(), taken.Name)
	if err != nil || m.Format != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	want := map[string]string{"refs/heads/main": first, "refs/heads/topic": first, worktreeRefs + "wt/HEAD": alone, worktreeRefs + "wt/bisect/bad": first}
	if !maps.Equal(m.Refs, want) {
		t.Errorf("%v", m.Refs)
	}
	dir, done := restoreTo(t, v, taken.Name)
	if got := run(t, dir, "log", "-1", "--format=%s", worktreeRefs+"wt/HEAD"); got != "nowhere else" || len(done.Notes) != 1 {
		t.Errorf("%s, %q", got, done.Notes)
	}
	// Without the branch of the other worktree the digest would be as before.
	run(t, r.Dir, "update-ref", "-d", "refs/heads/topic")
	if got, err := v.Take(t.Context(), src); err != nil || got.Name.Digest != plain.Name.Digest || got.Unchanged {
		t.Errorf("%+v, %v", got, err)
	}
	// The restored one is backed up, and has such a worktree again.
	run(t, dir, "worktree", "add", "-q", "--detach", filepath.Join(t.TempDir(), "wt"), "main")
	again, err := v.Take(t.Context(), Source{Repository: "group/ip2", Repo: git.Repo{Dir: dir}})
	if err != nil {
		t.Fatal(err)
	}
	if m, err = v.Load(t.Context(), again.Name); err != nil || m.Refs[worktreeRefs+"wt/HEAD"] != alone || m.Refs[worktreeRefs+"wt-"+first[:8]+"/HEAD"] != first {
		t.Errorf("%v, %v", m.Refs, err)
	}
}

// Whatever names there are already, what worktrees stand on is kept under one that can stand beside them.
func TestWorktreesWhoseNamesAreTaken(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	main := commitTo(t, r, "refs/heads/main", "1 first")
	trees, want := t.TempDir(), map[string]bool{}
	add := func(name string) string {
		run(t, r.Dir, "worktree", "add", "-q", "--detach", filepath.Join(trees, name), "main")
		run(t, filepath.Join(trees, name), "commit", "-q", "--allow-empty", "-m", "in "+name)
		oid := run(t, filepath.Join(trees, name), "rev-parse", "HEAD")
		want[oid] = true
		return oid
	}
	above := add("above")
	run(t, r.Dir, "update-ref", worktreeRefs+"above", main)
	run(t, r.Dir, "update-ref", worktreeRefs+"below/HEAD/x", main)
	below := add("below")
	taken := add("taken")
	run(t, r.Dir, "update-ref", worktreeRefs+"taken/HEAD", main)
	for oid, name := range map[string]string{above: "above", below: "below", taken: "taken"} {
		add(name + "-" + oid[:8])
	}
	got, err := v.Take(t.Context(), sourceOf(t, r))
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := restoreTo(t, v, got.Name)
	refs, err := git.Repo{Dir: dir}.Refs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, oid := range refs {
		delete(want, oid)
	}
	if len(want) > 0 || got.Note != "" {
		t.Errorf("%v are in no ref of %v; %q", want, refs, got.Note)
	}
	for _, name := range []string{"above", "below/HEAD/x", "taken/HEAD"} {
		run(t, r.Dir, "update-ref", "-d", worktreeRefs+name)
	}
	run(t, r.Dir, "update-ref", "refs/mirror", main)
	if got, err := v.Take(t.Context(), sourceOf(t, r)); err != nil || !strings.Contains(got.Note, "no name that a ref may have here") {
		t.Errorf("%+v, %v", got, err)
	}
}

// A worktree that is broken breaks no backup: it is said what was left out.
func TestBrokenWorktrees(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	for name, head := range map[string]string{"gone": strings.Repeat("1", 40) + "\n", "half": "", "good": "ref: refs/heads/main\n"} {
		if err := os.MkdirAll(filepath.Join(r.Dir, "worktrees", name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.Dir, "worktrees", name, "HEAD"), []byte(head), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	taken, err := v.Take(t.Context(), sourceOf(t, r))
	if err != nil || !strings.Contains(taken.Note, "worktrees/gone/HEAD cannot be read") || !strings.Contains(taken.Note, "worktrees/half/HEAD") || strings.Contains(taken.Note, "good") {
		t.Errorf("%+v, %v", taken, err)
	}
}

// A vault that was written when there was format 1 only.
func TestVaultOfFormat1(t *testing.T) {
	place, err := store.Open(t.Context(), store.Options{URL: copyVault(t, "testdata/vault-1")})
	if err != nil {
		t.Fatal(err)
	}
	v := &Vault{Store: place, Scratch: t.TempDir(), Server: "frodo"}
	name, err := v.Latest(t.Context(), "ip1")
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := restoreTo(t, v, name)
	const main = "6730bf368e96a09b6198c78abf2b8ac4cc69cf94"
	want := map[string]git.RawRef{
		"refs/heads/alias": {Target: "refs/heads/main"}, "refs/heads/main": {OID: main}, "refs/tags/v1": {OID: "ec7e26c85c6189a431ecb2209704ff823df14251"},
		"refs/mirror/rescued/20261122T035557Z-12345678/refs/heads/old": {OID: main},
	}
	if got := written(t, dir, slices.Collect(maps.Keys(want))...); !cmp.Equal(got, want) {
		t.Errorf("%v", got)
	}
	taken, err := v.Take(t.Context(), Source{Repository: "ip1", Repo: git.Repo{Dir: dir}})
	if err != nil || !taken.Unchanged || taken.Name != name {
		t.Errorf("taken again: %+v, %v", taken, err)
	}
}

// copyVault copies a vault, because a store may write beside it.
func copyVault(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "vault")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// Format 1 cannot say what format 2 says, and what is newer than both is refused in so many words.
func TestManifestFormats(t *testing.T) {
	m := Manifest{Format: 1, ObjectFormat: "sha1", Head: "refs/heads/main", Refs: map[string]string{}, SymRefs: map[string]string{"refs/heads/a": "refs/heads/b"}, Repository: "ip1"}
	if err := m.check(); err == nil || !strings.Contains(err.Error(), "format 1 cannot have") {
		t.Error(err)
	}
	m.Format = 2
	if err := m.check(); err != nil {
		t.Error(err)
	}
	for _, target := range []string{"../x", "config", "refs/../x", "", "HEAD/x"} {
		m.SymRefs["refs/heads/a"] = target
		if m.check() == nil {
			t.Errorf("%q is taken for the target of a symbolic ref", target)
		}
	}
	m.SymRefs = map[string]string{"refs/heads/a": "refs/heads/b", "refs/heads/a/c": "refs/heads/b"}
	if err := checkNames(&m); err == nil {
		t.Error("a file and a directory")
	}
	if _, err := parseManifest([]byte(`{"format":3}`)); err == nil || !strings.Contains(err.Error(), "format 3, and this version of mirror-shell reads up to 2: use a newer one") {
		t.Error(err)
	}
}

// What is read of a manifest can be written again, and names nothing that a restore could be led astray by.
func FuzzManifest(f *testing.F) {
	const head = `{"format":2,"repository":"ip1","object_format":"sha1","head":"refs/heads/main","digest":"","refs":{`
	f.Add([]byte(head + `"refs/heads/main":"6730bf368e96a09b6198c78abf2b8ac4cc69cf94"},"symrefs":{"refs/heads/a":"HEAD","refs/heads/\\xff":"refs/heads/\\xfe"}}`))
	f.Add([]byte(head + `},"symrefs":{"refs/heads/../../config":"refs/heads/b"}}`))
	f.Add([]byte(`{"format":1,"repository":"ip1","object_format":"sha1","detached":"6730bf368e96a09b6198c78abf2b8ac4cc69cf94","symrefs":{"refs/heads/a":"refs/heads/b"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data)
		if err != nil {
			return
		}
		for name, target := range m.SymRefs {
			if !filepath.IsLocal(name) || !strings.HasPrefix(name, "refs/") || strings.ContainsAny(target, "\n\x00") {
				t.Errorf("%q to %q", name, target)
			}
			if _, ok := m.Refs[name]; !ok && m.Format < 2 {
				t.Errorf("format %d with %q to nothing", m.Format, name)
			}
		}
		text, err := m.encodeJSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseManifest(text)
		if err != nil || again.State() != m.State() || !maps.Equal(again.SymRefs, m.SymRefs) {
			t.Errorf("%v: %s is read back as %+v", err, text, again)
		}
	})
}
