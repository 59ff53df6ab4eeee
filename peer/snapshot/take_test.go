package snapshot

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

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

func TestTakeHistory(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			v, m := testVault(t)
			r := newSource(t, "--object-format="+format)
			src := sourceOf(t, r)
			if got := takeNow(t, v, src); got.Packs != 0 || got.Unchanged {
				t.Fatalf("an empty repository: %+v", got)
			}
			commitTo(t, r, "refs/heads/main", "1 first")
			second := commitTo(t, r, "refs/heads/main", "2 second")
			commitTo(t, r, "refs/mirror/rescued/x", "3 rescued")
			first := takeNow(t, v, src)
			if first.Packs != 1 || !first.Checked || first.Note != "" {
				t.Fatalf("%+v", first)
			}
			run(t, r.Dir, "tag", "-a", "-m", "t", "v1", second)
			run(t, r.Dir, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
			got := takeNow(t, v, src)
			if manifest := compare(t, v, got.Name, r); manifest.SymRefs["refs/heads/alias"] != "refs/heads/main" || got.Packs != 2 {
				t.Fatalf("%+v, %+v", got, manifest)
			}
			run(t, r.Dir, "repack", "-adq")
			run(t, r.Dir, "pack-refs", "--all")
			puts := m.puts
			if got := takeNow(t, v, src); !got.Unchanged || m.puts != puts {
				t.Fatalf("a repack changed something: %+v", got)
			}
			// A deletion, a branch on an old commit: refs only.
			run(t, r.Dir, "update-ref", "-d", "refs/mirror/rescued/x")
			run(t, r.Dir, "update-ref", "refs/heads/old", second+"~1")
			if got := takeNow(t, v, src); got.Packs != 2 || got.Uploaded != 0 || m.puts != puts+1 {
				t.Fatalf("only refs changed: %+v", got)
			}
			run(t, r.Dir, "update-ref", "--no-deref", "HEAD", second)
			got = takeNow(t, v, src)
			if manifest := compare(t, v, got.Name, r); manifest.Detached != second || manifest.Head != "" || manifest.Previous == "" {
				t.Fatalf("%+v", manifest)
			}
			// A force push, and a gc that takes away what the base has.
			run(t, r.Dir, "update-ref", "-d", "refs/heads/alias")
			run(t, r.Dir, "update-ref", "refs/heads/main", second+"~1")
			run(t, r.Dir, "symbolic-ref", "HEAD", "refs/heads/main")
			run(t, r.Dir, "tag", "-d", "v1")
			run(t, r.Dir, "-c", "gc.pruneExpire=now", "gc", "-q", "--prune=now")
			commitTo(t, r, "refs/heads/main", "4 instead")
			takeNow(t, v, src)
			compareOld(t, v, first.Name)
			leftovers(t, v)
		})
	}
}

// compareOld has git look whether an older snapshot is whole still.
func compareOld(t *testing.T, v *Vault, name Name) {
	t.Helper()
	r, _ := revive(t, v, name)
	if out, err := tryRun(r.Dir, "fsck", "--full"); err != nil {
		t.Fatalf("fsck: %v: %s", err, out)
	}
}

func leftovers(t *testing.T, v *Vault) {
	t.Helper()
	if entries, err := os.ReadDir(v.Scratch); err != nil || len(entries) != 0 {
		t.Errorf("left in the scratch directory: %v, %v", entries, err)
	}
}

func TestTakeRequests(t *testing.T) {
	v, m := testVault(t)
	r := newSource(t)
	src := sourceOf(t, r)
	for i := range 20 {
		commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d %s", i, strings.Repeat("x", i)))
	}
	takeNow(t, v, src)
	if ops := requests(m, func() { take1(t, v, src) }); len(ops) > 1 {
		t.Errorf("unchanged: %q", ops)
	}
	src.ID = "night-1"
	if ops := requests(m, func() { take1(t, v, src) }); len(ops) > 2 || !strings.HasPrefix(ops[len(ops)-1], "put checks/") {
		t.Errorf("unchanged, with an ID: %q", ops)
	}
	src.ID = ""
	fresh := src
	fresh.Memory = ""
	if ops := requests(m, func() { take1(t, v, fresh) }); len(ops) > 2 {
		t.Errorf("unchanged, nothing remembered: %q", ops)
	}
	old := run(t, r.Dir, "rev-parse", "main")
	commitTo(t, r, "refs/heads/main", "21 more")
	var result Result
	if ops := requests(m, func() { result = take1(t, v, src) }); len(ops) > 6 {
		t.Errorf("one commit: %q", ops)
	}
	var pack bytes.Buffer
	if err := r.Pack(t.Context(), &pack, []string{"refs/heads/main"}, []string{old}, git.PackOptions{Thick: true}); err != nil {
		t.Fatal(err)
	}
	manifest := compare(t, v, result.Name, r)
	if got := manifest.Packs[1].Pack.Size; float64(got) > 1.2*float64(pack.Len()) {
		t.Errorf("%d bytes, and git needs %d", got, pack.Len())
	}
}

func take1(t *testing.T, v *Vault, src Source) Result {
	t.Helper()
	result, err := v.Take(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// Whatever request fails, what is published is whole, and the next attempt succeeds.
func TestTakeCutAnywhere(t *testing.T) {
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	run(t, r.Dir, "repack", "-adq")
	commitTo(t, r, "refs/heads/main", "2 loose")
	for cut := 0; ; cut++ {
		v, m := testVault(t)
		src := sourceOf(t, r)
		var mu sync.Mutex
		n, broken := 0, errors.New("cut")
		m.before = func(string, string) error {
			mu.Lock()
			defer mu.Unlock()
			n++
			if n == cut+1 {
				return broken
			}
			return nil
		}
		result, err := v.Take(t.Context(), src)
		m.before = nil
		if err == nil {
			compare(t, v, result.Name, r)
			if cut < 6 {
				t.Errorf("only %d requests", cut)
			}
			return
		}
		if !errors.Is(err, broken) || errors.Is(err, ErrSource) {
			t.Fatalf("%v", err)
		}
		if _, err := v.Latest(t.Context(), src.Repository); !errors.Is(err, ErrNoSnapshot) {
			t.Fatalf("request %d failed, and there is a snapshot: %v", cut, err)
		}
		leftovers(t, v)
		takeNow(t, v, src)
	}
}

func TestUpdateCutAnywhere(t *testing.T) {
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	v, m := testVault(t)
	src := sourceOf(t, r)
	broken := errors.New("cut")
	for cut := 1; ; cut++ {
		good := take1(t, v, src)
		commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d next", cut))
		var n atomic.Int64
		m.before = func(string, string) error {
			if n.Add(1) == int64(cut) {
				return broken
			}
			return nil
		}
		_, err := v.Take(t.Context(), src)
		m.before = nil
		if err == nil {
			if cut < 5 {
				t.Errorf("only %d requests", cut-1)
			}
			break
		}
		if latest, latestErr := v.Latest(t.Context(), src.Repository); !errors.Is(err, broken) || latestErr != nil || latest != good.Name {
			t.Fatalf("request %d failed: %v; the latest is %+v, %v", cut, err, latest, latestErr)
		}
		leftovers(t, v)
	}
	takeNow(t, v, src)
}

// Who was killed between publishing and walking does not know whether the snapshot is whole.
func TestTakeUnchecked(t *testing.T) {
	v, m := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	first := takeNow(t, v, src)
	memoryDir(src.Memory).remember(recalled{Sum: first.Name.Sum, Unchecked: true})
	for key := range m.blobs {
		if strings.HasPrefix(key, "checks/") {
			delete(m.blobs, key)
		}
	}
	second := takeNow(t, v, src)
	if second.Unchanged || !second.Checked || second.Note == "" {
		t.Errorf("%+v", second)
	}
	if third := takeNow(t, v, src); !third.Unchanged || third.Note != "" || third.Name != second.Name {
		t.Errorf("%+v", third)
	}
}

func TestTakeWithID(t *testing.T) {
	v, m := testVault(t)
	r := newSource(t)
	src := sourceOf(t, r)
	src.ID = "night-1"
	first := takeNow(t, v, src)
	puts := m.puts
	if again := takeNow(t, v, src); first.Name.ID != "night-1" || again.Name != first.Name || m.puts != puts {
		t.Errorf("%+v", again)
	}
	src.ID = "night-2"
	if got := takeNow(t, v, src); got.Name != first.Name || !slices.Equal(kinds(t, v), []string{checkSame}) {
		t.Errorf("%+v, %v", got, kinds(t, v))
	}
	src.ID = "-"
	if _, err := v.Take(t.Context(), src); err == nil {
		t.Error("an ID that is none")
	}
	src.ID, src.Repository = "", "../x"
	if _, err := v.Take(t.Context(), src); err == nil {
		t.Error("a repository that is none")
	}
}

// What is remembered is a cache: damaged in any way it costs requests, never truth.
func TestTakeForgets(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	take1(t, v, src)
	for i, name := range []string{"manifest", "files", "state"} {
		path := filepath.Join(src.Memory, name)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for j, damaged := range [][]byte{nil, data[:len(data)/2], append([]byte("x"), data...), bytes.ToUpper(data)} {
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := take1(t, v, src); !got.Unchanged {
				t.Errorf("%s, damaged in way %d: %+v", name, j, got)
			}
			commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d next", 10*i+j))
			if got := take1(t, v, src); got.Note != "" || got.Uploaded == 0 {
				t.Errorf("%s, damaged in way %d: %+v", name, j, got)
			}
		}
	}
	takeNow(t, v, src)
}

func TestTakeDamagedSource(t *testing.T) {
	corrupt := func(t *testing.T, path string, change func([]byte) []byte) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err == nil {
			err = errors.Join(os.Remove(path), os.WriteFile(path, change(data), 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	loose := func(r git.Repo, id string) string { return filepath.Join(r.Dir, "objects", id[:2], id[2:]) }
	empty := func([]byte) []byte { return nil }
	flip := func(data []byte) []byte { data[len(data)/2] ^= 0x10; return data }
	pack := func(t *testing.T, r git.Repo, suffix string) string {
		run(t, r.Dir, "repack", "-adq")
		files, _ := filepath.Glob(filepath.Join(strings.NewReplacer(`"`, `\"`).Replace(r.Dir), "objects/pack/*"+suffix))
		if len(files) != 1 {
			t.Fatal(files)
		}
		return files[0]
	}
	t.Run("a loose object that is needed", func(t *testing.T) {
		v, m := testVault(t)
		r := newSource(t)
		commitTo(t, r, "refs/heads/main", "1 first")
		id := run(t, r.Dir, "rev-parse", "main:file-1")
		corrupt(t, loose(r, id), empty)
		_, err := v.Take(t.Context(), sourceOf(t, r))
		if !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), id) || m.puts != 0 {
			t.Errorf("%v", err)
		}
		leftovers(t, v)
	})
	t.Run("a loose object that nothing reaches", func(t *testing.T) {
		v, _ := testVault(t)
		r := newSource(t)
		commitTo(t, r, "refs/heads/main", "1 first")
		id := commitTo(t, r, "refs/heads/other", "2 first")
		run(t, r.Dir, "update-ref", "-d", "refs/heads/other")
		corrupt(t, loose(r, id), empty)
		if got := takeNow(t, v, sourceOf(t, r)); !strings.Contains(got.Note, id) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("a value of a ref", func(t *testing.T) {
		v, m := testVault(t)
		r := newSource(t)
		id := commitTo(t, r, "refs/heads/main", "1 first")
		if err := os.Remove(loose(r, id)); err != nil {
			t.Fatal(err)
		}
		_, err := v.Take(t.Context(), sourceOf(t, r))
		if !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), id) || !strings.Contains(err.Error(), "refs/heads/main") || m.puts != 0 {
			t.Errorf("%v", err)
		}
	})
	for _, suffix := range []string{".pack", ".idx"} {
		t.Run("a bit of a "+suffix, func(t *testing.T) {
			v, _ := testVault(t)
			r := newSource(t)
			commitTo(t, r, "refs/heads/main", "1 first")
			corrupt(t, pack(t, r, suffix), flip)
			_, err := v.Take(t.Context(), sourceOf(t, r))
			if !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), "pack-") {
				t.Errorf("%v", err)
			}
			if _, err := v.Latest(t.Context(), "group/ip1"); err == nil {
				t.Error("there is a snapshot of it")
			}
		})
	}
	t.Run("history that is not there", func(t *testing.T) {
		v, _ := testVault(t)
		r := newSource(t)
		commitTo(t, r, "refs/heads/main", "1 first")
		commitTo(t, r, "refs/heads/main", "2 second")
		id := run(t, r.Dir, "rev-parse", "main~1:file-1")
		if err := os.Remove(loose(r, id)); err != nil {
			t.Fatal(err)
		}
		src := sourceOf(t, r)
		result, err := v.Take(t.Context(), src)
		if !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), id) || result.Name.Sum == "" {
			t.Fatalf("%+v, %v", result, err)
		}
		if bad := kinds(t, v); !slices.Equal(bad, []string{checkBad}) {
			t.Errorf("checks %v", bad)
		}
		for _, src.Memory = range []string{src.Memory, ""} {
			again, err := v.Take(t.Context(), src)
			if !errors.Is(err, ErrSource) || again.Name.Sum != "" {
				t.Errorf("again: %+v, %v", again, err)
			}
		}
		repaired, err := tryRun(r.Dir, "cat-file", "-e", id)
		if err == nil {
			t.Fatal(repaired)
		}
		cmd := exec.Command("git", "--git-dir="+r.Dir, "hash-object", "-w", "--stdin")
		cmd.Stdin = strings.NewReader("1 first")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
		if got := takeNow(t, v, src); got.Unchanged || got.Name.Sum == result.Name.Sum {
			t.Errorf("%+v", got)
		}
		takeNow(t, v, src)
	})
	t.Run("new history", func(t *testing.T) {
		v, m := testVault(t)
		r := newSource(t)
		commitTo(t, r, "refs/heads/main", "1 first")
		src := sourceOf(t, r)
		good := takeNow(t, v, src)
		commitTo(t, r, "refs/heads/main", "2 second")
		id := run(t, r.Dir, "rev-parse", "main:file-2")
		corrupt(t, loose(r, id), empty)
		puts := m.puts
		if _, err := v.Take(t.Context(), src); !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), id) {
			t.Errorf("%v", err)
		}
		if latest, err := v.Latest(t.Context(), src.Repository); err != nil || latest != good.Name || m.puts != puts {
			t.Errorf("%+v, %v", latest, err)
		}
		leftovers(t, v)
	})
}

func kinds(t *testing.T, v *Vault) (kinds []string) {
	t.Helper()
	for check, err := range v.checks(t.Context(), "group/ip1") {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, check.Kind)
	}
	return kinds
}

func TestTakeRefuses(t *testing.T) {
	v, m := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	id := commitTo(t, r, "refs/heads/main", "2 second")
	shallow, partial := newSource(t), newSource(t)
	run(t, shallow.Dir, "fetch", "-q", "--depth=1", "file://"+r.Dir, "main:main")
	run(t, partial.Dir, "config", "remote.origin.promisor", "true")
	broken := newSource(t)
	if err := os.WriteFile(filepath.Join(broken.Dir, "refs/heads/x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, repo := range map[string]git.Repo{"unshallow": shallow, "partial clone": partial, "refs/heads/x": broken, "not a repository": {Dir: t.TempDir()}} {
		_, err := v.Take(t.Context(), sourceOf(t, repo))
		if !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if m.puts != 0 || id == "" {
		t.Error("something was written")
	}
}

func TestTakeAlternates(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	borrower := newSource(t)
	if err := os.WriteFile(filepath.Join(borrower.Dir, "objects/info/alternates"), []byte(`"`+strings.ReplaceAll(filepath.Join(r.Dir, "objects"), `"`, `\"`)+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, borrower.Dir, "update-ref", "refs/heads/main", run(t, r.Dir, "rev-parse", "main"))
	src := sourceOf(t, borrower)
	takeNow(t, v, src)
	commitTo(t, borrower, "refs/heads/main", "2 second")
	if got := takeNow(t, v, src); got.Packs != 2 {
		t.Errorf("%+v", got)
	}
}

func TestTakeFiles(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, sealed := range []bool{false, true} {
		v, m := testVault(t)
		if sealed {
			v.Recipients, v.Identities = []age.Recipient{identity.Recipient()}, []age.Identity{identity}
		}
		r := newSource(t)
		commitTo(t, r, "refs/heads/main", "1 first")
		write := func(name, text string, mode os.FileMode) {
			path := filepath.Join(r.Dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
				t.Fatal(err)
			}
		}
		large := strings.Repeat("0123456789abcdef", 100_000)
		write("description", "a project", 0o600)
		write("hooks/update", large, 0o755)
		write("gl-perms", "a project", 0o644)
		write("mirror-shell/secret", "no", 0o600)
		write("lfs/objects/2c/f2/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", "hello", 0o644)
		write("lfs/objects/tmp/x", "no", 0o644)
		if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(r.Dir, "hooks/outside")), os.Symlink("update", filepath.Join(r.Dir, "hooks/inside"))); err != nil {
			t.Fatal(err)
		}
		src := sourceOf(t, r)
		got := takeNow(t, v, src)
		manifest := compare(t, v, got.Name, r)
		modes := map[string]uint32{}
		for _, f := range manifest.Files {
			modes[f.Path] = f.Mode
		}
		want := map[string]uint32{"config": 0o644, "description": 0o644, "gl-perms": 0o644, "hooks/update": 0o755, "hooks/inside": 0o755, "info/exclude": 0o644}
		if !maps.Equal(modes, want) || len(manifest.LFS) != 1 {
			t.Errorf("%v, %v", modes, manifest.LFS)
		}
		write("hooks/update", large+"x", 0o755)
		puts := m.puts
		if got := takeNow(t, v, src); got.Unchanged || m.puts != puts+2 { // the file and the manifest
			t.Errorf("%+v, %d puts", got, m.puts-puts)
		}
		write("lfs/objects/2c/f2/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9825", "hallo", 0o644)
		if _, err := v.Take(t.Context(), src); !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), "LFS object 2cf24") {
			t.Errorf("%v", err)
		}
		if sealed { // the key to read is elsewhere
			v.Identities = nil
			src.Memory = ""
			if err := os.RemoveAll(filepath.Join(r.Dir, "lfs")); err != nil {
				t.Fatal(err)
			}
			got, err := v.Take(t.Context(), src)
			if err != nil || !strings.Contains(got.Note, "encrypted") {
				t.Errorf("%+v, %v", got, err)
			}
			v.Identities = []age.Identity{identity}
			compare(t, v, got.Name, r)
		}
	}
}

func TestTakeCompacts(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	for i := range 3 {
		commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d %s", i, strings.Repeat("long ", 100*i)))
	}
	noise := make([]byte, 100_000)
	rand.Read(noise)
	commitTo(t, r, "refs/heads/main", fmt.Sprintf("x %x", noise))
	run(t, r.Dir, "repack", "-adq")
	src := sourceOf(t, r)
	first := take1(t, v, src)
	compacted := 0
	for i := range maxPacks + 5 {
		commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d more", i))
		if i == maxPacks-5 { // something in the small packs goes from here
			run(t, r.Dir, "update-ref", "refs/heads/main", "main~3")
			run(t, r.Dir, "gc", "-q", "--prune=now")
			commitTo(t, r, "refs/heads/main", "x instead")
		}
		if got := take1(t, v, src); got.Compacted {
			compacted++
			if got.Packs > 5 || got.Note != "" {
				t.Errorf("%+v", got)
			}
			compare(t, v, got.Name, r)
		}
	}
	if compacted != 1 {
		t.Errorf("compacted %d times", compacted)
	}
	takeNow(t, v, src)
	compareOld(t, v, first.Name)
}

func TestToMerge(t *testing.T) {
	for _, c := range []struct {
		sizes []int64
		limit int
		want  int // how many are merged
	}{
		{[]int64{1000, 1, 1, 1, 1}, 4, 4},
		{[]int64{1000, 1, 1, 1, 3, 100, 200}, 6, 5}, // four to come to half, and one more
		{[]int64{5, 5, 5, 5}, 3, 4},
		{[]int64{1, 2, 4, 8, 16, 32, 64, 128}, 6, 6},
	} {
		if got := toMerge(c.sizes, c.limit); len(got) != c.want || got[0] && c.sizes[0] == 1000 {
			t.Errorf("%v: %v", c.sizes, got)
		}
	}
}

// A repository of many small packs is taken in few, and none of what is in them is left out.
func TestTakeManyPacks(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	for i := range maxPacks + 2 {
		commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d", i))
		run(t, r.Dir, "repack", "-dq")
	}
	commitTo(t, r, "refs/heads/main", "x loose")
	if got := takeNow(t, v, sourceOf(t, r)); got.Packs > maxPacks/2 || got.Note != "" {
		t.Errorf("%+v", got)
	}
}

// Grafts hide history that is needed when they go.
func TestTakeGrafts(t *testing.T) {
	v, m := testVault(t)
	r := newSource(t)
	old := commitTo(t, r, "refs/heads/main", "1 old")
	hidden := commitTo(t, r, "refs/heads/main", "2 hidden")
	src := sourceOf(t, r)
	takeNow(t, v, src)
	tip := commitTo(t, r, "refs/heads/main", "3 tip")
	run(t, r.Dir, "repack", "-adq")
	if err := os.WriteFile(filepath.Join(r.Dir, "info/grafts"), []byte(tip+" "+old+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := takeNow(t, v, src)
	puts := m.puts
	if got.Unchanged || hidden == "" {
		t.Errorf("%+v", got)
	}
	run(t, r.Dir, "update-ref", "refs/heads/other", old)
	if got := takeNow(t, v, src); got.Uploaded != 0 || m.puts != puts+2 {
		t.Errorf("a pack that the base has was put again: %+v", got)
	}
	if err := os.Remove(filepath.Join(r.Dir, "info/grafts")); err != nil {
		t.Fatal(err)
	}
	commitTo(t, r, "refs/heads/main", "4 next")
	takeNow(t, v, src)
}

// With many refs git is told only of some, and what it packs is the same.
func TestTakeManyRefs(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	var in, packed strings.Builder
	const n = fewTips + 500
	for i := range n {
		fmt.Fprintf(&in, "commit refs/heads/main\ncommitter a <a@b> %d +0000\ndata 2\nx\nM 100644 inline f%d\ndata 5\n%05d\n", 1_000_000_000+i, i%10, i)
	}
	cmd := exec.Command("git", "--git-dir="+r.Dir, "-c", "fastimport.unpackLimit=0", "fast-import", "--quiet")
	cmd.Stdin, cmd.Env = strings.NewReader(in.String()), proc.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ids := strings.Fields(run(t, r.Dir, "rev-list", "--reverse", "main"))
	for i, id := range ids {
		if i%50 != 25 { // some commits have no ref
			fmt.Fprintf(&packed, "%s refs/heads/b%05d\n", id, i)
		}
	}
	if err := os.WriteFile(filepath.Join(r.Dir, "packed-refs"), []byte(packed.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	src := sourceOf(t, r)
	take1(t, v, src)
	for what, change := range map[string]func(){
		"a tip":                 func() { commitTo(t, r, "refs/heads/b02000", "x tip") },
		"a new branch of a tip": func() { run(t, r.Dir, "update-ref", "refs/heads/n1", ids[7]); commitTo(t, r, "refs/heads/n1", "y tip") },
		"a new branch of an old commit": func() {
			run(t, r.Dir, "update-ref", "refs/heads/n2", ids[25])
			commitTo(t, r, "refs/heads/n2", "z tip")
		},
		"a tag and a force push": func() {
			run(t, r.Dir, "tag", "-a", "-m", "t", "v1", ids[75])
			run(t, r.Dir, "update-ref", "refs/heads/b02000", ids[2])
			commitTo(t, r, "refs/heads/b02000", "w tip")
		},
	} {
		change()
		got := take1(t, v, src)
		if got.Uploaded > 5000 {
			t.Errorf("%s: %d bytes", what, got.Uploaded)
		}
	}
	takeNow(t, v, src)
}

// A gc, repacks and pushes run beside: every snapshot is whole.
func TestTakeBesideGC(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	group.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			// --prune=now beside pushes damages a repository: it may take an object that a ref is about to have.
			args := [][]string{{"repack", "-q"}, {"gc", "-q", "--prune=5.seconds.ago"}, {"repack", "-adq"}, {"repack", "-Adq"}}[i%4]
			_, _ = tryRun(r.Dir, args...)
		}
	})
	group.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = tryCommit(r, fmt.Sprintf("refs/heads/b%d", i%7), fmt.Sprintf("%d push", i))
		}
	})
	var taken []Name
	for i := range 12 {
		src := sourceOf(t, r)
		src.Repository = fmt.Sprintf("r%d", i%6) // half of them are first snapshots
		result, err := v.Take(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, result.Name)
	}
	stop()
	group.Wait()
	for _, name := range taken {
		compareOld(t, v, name)
	}
	leftovers(t, v)
}

func TestTakeTwoAtOnce(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	for range 3 {
		var names [3]Name
		var group sync.WaitGroup
		for i := range names {
			group.Go(func() {
				result, err := v.Take(t.Context(), sourceOf(t, r))
				if err != nil {
					t.Error(err)
				}
				names[i] = result.Name
			})
		}
		group.Wait()
		for _, name := range names {
			compare(t, v, name, r)
		}
		commitTo(t, r, "refs/heads/main", "2 next")
	}
}

// What is in the store already is used only where nobody is about to delete it.
func TestTakeFindsTakenKeys(t *testing.T) {
	v, m := testVault(t)
	now := time.Now()
	v.Now, m.now = func() time.Time { return now }, func() time.Time { return now }
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	run(t, r.Dir, "repack", "-adq")
	src := sourceOf(t, r)
	cut := errors.New("cut")
	m.before = func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, "snapshots/") {
			return cut
		}
		return nil
	}
	if _, err := v.Take(t.Context(), src); !errors.Is(err, cut) {
		t.Fatal(err)
	}
	m.before = nil
	young, err := v.Take(t.Context(), src)
	if err != nil || young.Uploaded != 0 {
		t.Errorf("what was put a moment ago was put again: %+v, %v", young, err)
	}
	delete(m.blobs, young.Name.Key())
	now = now.Add(v.grace()/2 + time.Second)
	old := takeNow(t, v, src)
	for _, o := range compare(t, v, old.Name, r).Objects() {
		if !strings.Contains(o.Key, "~") {
			t.Errorf("%s is used, which a prune may be about to delete", o.Key)
		}
	}
}

// A backup that takes long looks again whether all that it relies on is there.
func TestTakeLong(t *testing.T) {
	v, m := testVault(t)
	start, passed := time.Now(), atomic.Int64{}
	v.Now = func() time.Time { return start.Add(time.Duration(passed.Load())) }
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	base := takeNow(t, v, src)
	commitTo(t, r, "refs/heads/main", "2 second")
	var once sync.Once
	m.before = func(op, key string) error {
		if op == "put" && strings.HasSuffix(key, ".pack") {
			once.Do(func() {
				passed.Add(int64(v.grace()))
				m.mu.Lock()
				defer m.mu.Unlock()
				for key := range m.blobs { // the base is pruned
					if strings.HasPrefix(key, "data/") || key == base.Name.Key() {
						delete(m.blobs, key)
					}
				}
			})
		}
		return nil
	}
	got := takeNow(t, v, src)
	if got.Name.Time.Before(base.Name.Time) {
		t.Errorf("%+v", got)
	}
}

func TestTakeRetains(t *testing.T) {
	v, m := testVault(t)
	now := time.Now()
	v.Now, m.now, v.Retain = func() time.Time { return now }, func() time.Time { return now }, 40*24*time.Hour
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	takeNow(t, v, src)
	for day := range 100 {
		now = now.Add(24 * time.Hour)
		got := take1(t, v, src)
		if !got.Unchanged || got.Uploaded != 0 {
			t.Fatalf("day %d: %+v", day, got)
		}
		manifest, err := v.Load(t.Context(), got.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range manifest.Objects() {
			if left := m.retained[o.Key].Sub(now); left < v.Retain/4-24*time.Hour || m.retained[o.Key].Before(o.Retained) {
				t.Fatalf("day %d: %s is retained for %s, and should be until %s", day, o.Key, left, o.Retained)
			}
		}
	}
	if n := len(m.blobs); n > 25 {
		t.Errorf("%d blobs", n)
	}
}

func TestTakeClockGoesBack(t *testing.T) {
	v, _ := testVault(t)
	now := time.Now()
	v.Now = func() time.Time { return now }
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	first := takeNow(t, v, src)
	now = now.Add(-time.Hour)
	commitTo(t, r, "refs/heads/main", "2 second")
	second := takeNow(t, v, src)
	if !second.Name.Time.After(first.Name.Time) {
		t.Errorf("%s is not after %s", second.Name.Time, first.Name.Time)
	}
	if latest, err := v.Latest(t.Context(), src.Repository); err != nil || latest != second.Name {
		t.Errorf("%+v, %v", latest, err)
	}
}
