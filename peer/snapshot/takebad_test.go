package snapshot

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mirror-shell/internal/git"
)

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
