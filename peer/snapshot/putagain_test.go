package snapshot

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"mirror-shell/internal/git"
)

// halfway is an encrypted vault, with a repository whose first backup put its data and came no further: an LFS object is damaged.
func halfway(t *testing.T) (v *Vault, m *memory, src Source) {
	t.Helper()
	v, m = testVault(t)
	reseal(t, v)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	object := filepath.Join(r.Dir, "lfs/objects/2c/f2/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
	if err := errors.Join(os.MkdirAll(filepath.Dir(object), 0o700), os.WriteFile(object, []byte("hallo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	src = sourceOf(t, r)
	failHalfway(t, v, src)
	return v, m, src
}

// reseal gives a vault new keys.
func reseal(t *testing.T, v *Vault) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	v.Recipients, v.Identities = []age.Recipient{id.Recipient()}, append(v.Identities, id)
}

func failHalfway(t *testing.T, v *Vault, src Source) {
	t.Helper()
	if _, err := v.Take(t.Context(), src); !errors.Is(err, ErrSource) {
		t.Fatalf("%v", err)
	}
}

func mend(t *testing.T, r git.Repo) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(r.Dir, "lfs")); err != nil {
		t.Fatal(err)
	}
}

// What is remembered of an attempt is a key, and another encryption of the same content may be there by now: of this server, when
// prune deleted the first one and the answer to the second was lost, or of another.
func TestPutAgainIsTheSameBytes(t *testing.T) {
	v, m, src := halfway(t)
	note := filepath.Join(src.Memory, "attempt")
	remembered, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range m.keys() {
		delete(m.blobs, key)
	}
	failHalfway(t, v, src)
	if err := os.WriteFile(note, remembered, 0o600); err != nil {
		t.Fatal(err)
	}
	mend(t, src.Repo)
	takeNow(t, v, src)
}

// A file that a power cut or a disk changed costs an upload, and nothing else.
func TestPutAgainDamaged(t *testing.T) {
	v, m, src := halfway(t)
	note := filepath.Join(src.Memory, "attempt")
	remembered, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	mend(t, src.Repo)
	text := string(remembered)
	damaged := map[string]string{
		"cut":                  text[:len(text)/2],
		"of another":           strings.ReplaceAll(text, `"key":"data/group/ip1.git/`, `"key":"data/group/ip2.git/`),
		"nonsense":             "\x00\n{}\n" + text[1:],
		"other recipients":     strings.ReplaceAll(text, `"sealed_for":"`, `"sealed_for":"0`),
		"a line that is large": strings.Repeat("x", 1<<20) + "\n" + text,
	}
	for _, field := range []string{`"sha256":"`, `"stored_sha256":"`, `"stored_size":`, `"size":`, `"encoding":"`, `"key":"data/group/ip1.git/pack-`} {
		if !strings.Contains(text, field) {
			t.Fatalf("no %s in %s", field, text)
		}
		changed := []byte(text)
		for i := 0; ; {
			at := strings.Index(text[i:], field)
			if at < 0 {
				break
			}
			i += at + len(field)
			changed[i] ^= 1
		}
		damaged[field] = string(changed)
	}
	for what, text := range damaged {
		t.Run(fmt.Sprintf("%.12s", what), func(t *testing.T) {
			for _, key := range m.keys() {
				if strings.HasPrefix(key, "snapshots/") || strings.HasPrefix(key, "checks/") {
					delete(m.blobs, key)
				}
			}
			if err := errors.Join(os.RemoveAll(src.Memory), os.MkdirAll(src.Memory, 0o700), os.WriteFile(note, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
			takeNow(t, v, src)
		})
	}
}

// New recipients have everything put anew, and each attempt of that only once.
func TestPutAgainForNewRecipients(t *testing.T) {
	v, m, src := halfway(t)
	mend(t, src.Repo)
	takeNow(t, v, src)
	reseal(t, v)
	broken := errors.New("no manifest today")
	m.before = func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, "snapshots/") {
			return broken
		}
		return nil
	}
	puts := 0
	for i := range 4 {
		if _, err := v.Take(t.Context(), src); !errors.Is(err, broken) {
			t.Fatal(err)
		}
		if i == 0 {
			puts = m.puts
		}
	}
	if m.puts != puts {
		t.Errorf("three more attempts put %d blobs", m.puts-puts)
	}
	m.before = nil
	got := takeNow(t, v, src)
	v.Identities = v.Identities[1:]
	compare(t, v, got.Name, src.Repo)
}

func (m *memory) keys() []string { return slices.Sorted(maps.Keys(m.blobs)) }

// Where everything is taken anew because the packs are too many, and their indexes cannot be read, history is walked through as in a first snapshot: what
// the one before had may be damaged here by now.
func TestTakeAnewForManyPacksIsWalked(t *testing.T) {
	v, m := testVault(t)
	reseal(t, v)
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	first := take1(t, v, src).Name
	manifest, err := v.Load(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	idx := manifest.Packs[0]
	for i := range maxPacksRetained + 1 {
		p := idx
		p.Name = fmt.Sprintf("pack-%040x", i)
		manifest.Packs = append(manifest.Packs, p)
	}
	manifest.Previous, manifest.Time = first.Sum, first.Time.Add(1e6)
	name, _, err := v.publish(t.Context(), manifest)
	if err != nil {
		t.Fatal(err)
	}
	memoryDir(src.Memory).keepManifest(name.Sum, manifest)
	v.Identities = nil // that is elsewhere, as it should be

	commitTo(t, r, "refs/heads/main", "2 second")
	old := run(t, r.Dir, "rev-parse", "main~1^{tree}")
	if err := os.Remove(filepath.Join(r.Dir, "objects", old[:2], old[2:])); err != nil {
		t.Fatal(err)
	}
	got, err := v.Take(t.Context(), src)
	if !errors.Is(err, ErrSource) {
		t.Fatalf("a snapshot without %s is taken for whole: %+v, %v", old, got, err)
	}
	if bad := keysWith(m, "-"+checkBad+"-"); len(bad) != 1 {
		t.Errorf("%v", bad)
	}
}

func keysWith(m *memory, part string) []string {
	return slices.DeleteFunc(m.keys(), func(key string) bool { return !strings.Contains(key, part) })
}
