package snapshot

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"filippo.io/age"

	"mirror-shell/internal/git"
)

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
		want := map[string]uint32{"config": 0o644, "description": 0o600, "gl-perms": 0o644, "hooks/update": 0o755, "hooks/inside": 0o755, "info/exclude": 0o644}
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
		// An attempt that fails again and again does not upload again and again.
		commitTo(t, r, "refs/heads/more", strings.Repeat("more ", 1000))
		puts = m.puts
		for range 5 {
			if _, err := v.Take(t.Context(), src); !errors.Is(err, ErrSource) {
				t.Errorf("%v", err)
			}
		}
		if m.puts > puts+2 { // a pack and its index
			t.Errorf("sealed: %v: five attempts put %d blobs", sealed, m.puts-puts)
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
