package snapshot

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
)

// The first programs knew format 1 and less of it. What they would take for damage, or for something else than it is, has a format that
// they refuse; what they understand stays theirs to read. Whatever says so was format 1 once, and is read as that.
func TestFormat(t *testing.T) {
	main := map[string]string{"refs/heads/main": strings.Repeat("a", 40)}
	for name, c := range map[string]struct {
		m    Manifest
		want int
	}{
		"plain":                     {Manifest{Refs: main, Head: "refs/heads/main", SymRefs: map[string]string{"refs/heads/main": "refs/heads/other"}}, 1},
		"files":                     {Manifest{Refs: main, Files: []File{{Path: "config", Mode: 0o644}, {Path: "hooks/update", Mode: 0o755}}}, 1},
		"encrypted":                 {Manifest{Refs: main, SealedFor: strings.Repeat("e", 32)}, 2},
		"a file closed to others":   {Manifest{Refs: main, Files: []File{{Path: "config", Mode: 0o600}}}, 2},
		"a name that is no text":    {Manifest{Refs: map[string]string{"refs/heads/\xff": strings.Repeat("a", 40)}}, 2},
		"HEAD to such a name":       {Manifest{Refs: main, Head: "refs/heads/\xff"}, 2},
		"a symbolic ref to nothing": {Manifest{Refs: main, SymRefs: map[string]string{"refs/heads/a": "refs/heads/none"}}, 2},
		"a symbolic ref to HEAD":    {Manifest{Refs: main, SymRefs: map[string]string{"refs/heads/main": "HEAD"}}, 2},
	} {
		if got := c.m.format(); got != c.want {
			t.Errorf("%s: format %d, want %d", name, got, c.want)
		}
	}
}

// A snapshot of an encrypted vault has format 2; one that says the same as format 1 is from a few versions ago, and read like it.
func TestFormatOfTaken(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	if err := os.Chmod(filepath.Join(r.Dir, "config"), 0o644); err != nil {
		t.Fatal(err)
	}
	load := func() *Manifest {
		t.Helper()
		m, err := v.Load(t.Context(), takeNow(t, v, src).Name)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := load(); m.Format != 1 {
		t.Errorf("format %d", m.Format)
	}
	if err := os.Chmod(filepath.Join(r.Dir, "config"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := load()
	if m.Format != 2 {
		t.Errorf("format %d of a private file", m.Format)
	}
	m.SealedFor = strings.Repeat("e", 32)
	m.Format = 1
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseManifest(data); err != nil {
		t.Errorf("of an older program: %v", err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	v.Recipients, v.Identities = []age.Recipient{id.Recipient()}, []age.Identity{id}
	if m := load(); m.Format != 2 || m.SealedFor == "" {
		t.Errorf("format %d of an encrypted one", m.Format)
	}
}
