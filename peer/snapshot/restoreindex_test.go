package snapshot

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/git"
)

// readPackFiles returns the bytes of a repository's only pack and index.
func readPackFiles(t testing.TB, repo string) (pack, index []byte) {
	t.Helper()
	run(t, repo, "repack", "-adq")
	files, _ := filepath.Glob(repo + "/objects/pack/*.pack")
	pack, err1 := os.ReadFile(files[0])
	index, err2 := os.ReadFile(strings.TrimSuffix(files[0], ".pack") + ".idx")
	if err := errors.Join(err1, err2); err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	return pack, index
}

// signed replaces the checksum at the end of the file.
func signed(data []byte) []byte {
	sum := sha1.Sum(data[:len(data)-20])
	return append(data[:len(data)-20:len(data)-20], sum[:]...)
}

// withPack is the manifest of the repository with other bytes in its only pack.
func withPack(t testing.TB, v *Vault, repo string, pack, index []byte) Name {
	t.Helper()
	m := describeRepo(t, v, repo, time.Now())
	n := len(v.Store.(*memory).blobs)
	m.Packs[0].Pack = storeContent(t, v, fmt.Sprintf("%spack~%08d", dataOf(m.Repository), n), pack, false)
	m.Packs[0].Index = storeContent(t, v, fmt.Sprintf("%sidx~%08d", dataOf(m.Repository), n), index, false)
	name, _, err := v.publish(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// A snapshot whose maker had damaged objects has the right checksums everywhere. The full check finds each
// object that is not what its id says.
func TestRestoreWrongObjects(t *testing.T) {
	v, _ := testVault(t)
	repo := packedRepo(t, "sha1")
	pack, index := readPackFiles(t, repo)
	count := int(binary.BigEndian.Uint32(pack[8:]))
	full := func(name Name) error {
		_, err := v.Restore(t.Context(), name, filepath.Join(ramDir(t), "ip1.git"), RestoreOptions{})
		return err
	}
	if err := full(withPack(t, v, repo, pack, index)); err != nil {
		t.Fatal(err)
	}
	// An id in the index that is not that of the object.
	bad := bytes.Clone(index)
	bad[8+1024+20*(count/2)+19] ^= 1
	oid := hex.EncodeToString(bad[8+1024+20*(count/2):][:20])
	if err := full(withPack(t, v, repo, pack, signed(bad))); !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), oid) && !strings.Contains(err.Error(), "no pack has") {
		t.Errorf("%v does not name %s", err, oid)
	}
	// A byte of the pack, with the checksums that fit.
	for i := 12; i < len(pack)-20; i += 1 + len(pack)/12 {
		badPack, badIndex := bytes.Clone(pack), bytes.Clone(index)
		badPack[i] ^= 0x10
		badPack = signed(badPack)
		copy(badIndex[len(badIndex)-40:], badPack[len(badPack)-20:])
		err := full(withPack(t, v, repo, badPack, signed(badIndex)))
		harmless := err == nil && bytes.Equal(idsIn(t, badPack), index[8+1024:][:20*count])
		if !errors.Is(err, ErrIncomplete) && !harmless {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

// idsIn returns what git says that a pack's objects are. There are bits in a pack of which no object
// is made: those behind the end of a deflate stream, to the next whole byte.
func idsIn(t testing.TB, pack []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.pack"), pack, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "index-pack", "x.pack")
	index, err := os.ReadFile(filepath.Join(dir, "x.idx"))
	if err != nil {
		t.Fatal(err)
	}
	return index[8+1024:][:20*binary.BigEndian.Uint32(pack[8:])]
}

// Objects that refs do not reach may lack what they name.
func TestRestoreRemains(t *testing.T) {
	v, _ := testVault(t)
	repo := packedRepo(t, "sha1")
	lost := commitTo(t, git.Repo{Dir: repo}, "refs/heads/gone", "lost")
	run(t, repo, "repack", "-adq")
	// The commit's tree goes, and the commit stays, reached by no ref.
	tree := run(t, repo, "rev-parse", lost+"^{tree}")
	run(t, repo, "update-ref", "-d", "refs/heads/gone")
	keep := []string{}
	for line := range strings.Lines(run(t, repo, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)") + "\n") {
		if oid := strings.TrimSpace(line); oid != tree {
			keep = append(keep, oid)
		}
	}
	packOnly(t, repo, keep)
	name := publishRepo(t, v, repo, time.Now())
	target := filepath.Join(t.TempDir(), "ip1.git")
	if _, err := v.Restore(t.Context(), name, target, RestoreOptions{}); err != nil {
		t.Error(err)
	}
	if got := run(t, target, "cat-file", "-t", lost); got != "commit" {
		t.Error(got)
	}
	// As soon as a ref reaches it, it counts.
	m := describeRepo(t, v, repo, time.Now())
	m.Refs["refs/heads/gone"] = lost
	bad, _, err := v.publish(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Restore(t.Context(), bad, target+"2", RestoreOptions{}); !errors.Is(err, ErrIncomplete) || !strings.Contains(err.Error(), tree) {
		t.Errorf("%v does not name %s", err, tree)
	}
}

// packOnly leaves a repository with one pack of exactly these objects.
func packOnly(t testing.TB, repo string, oids []string) {
	t.Helper()
	cmd := gitCommand(repo, "pack-objects", "-q", filepath.Join(repo, "pack"))
	cmd.Stdin = strings.NewReader(strings.Join(oids, "\n") + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	old, _ := filepath.Glob(repo + "/objects/*/*")
	for _, file := range old {
		os.RemoveAll(file)
	}
	for _, ext := range []string{".pack", ".idx"} {
		name := "pack-" + strings.TrimSpace(string(out)) + ext
		if err := os.Rename(filepath.Join(repo, name), filepath.Join(repo, "objects", "pack", name)); err != nil {
			t.Fatal(err)
		}
	}
}

// Indexes of version 1 are still found in old repositories.
func TestIndexVersions(t *testing.T) {
	v, _ := testVault(t)
	repo := packedRepo(t, "sha1")
	pack, _ := readPackFiles(t, repo)
	file := filepath.Join(t.TempDir(), "x.pack")
	if err := os.WriteFile(file, pack, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, repo, "index-pack", "--index-version=1", file)
	index, err := os.ReadFile(strings.TrimSuffix(file, ".pack") + ".idx")
	if err != nil || bytes.HasPrefix(index, indexHeader) {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "ip1.git")
	if _, err := v.Restore(t.Context(), withPack(t, v, repo, pack, index), target, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	sameRepo(t, target, repo)
}

// No index makes matchPack or the search in it fail in another way than with an error.
func FuzzIndex(f *testing.F) {
	repo := packedRepo(f, "sha1")
	pack, index := readPackFiles(f, repo)
	f.Add(index, true)
	f.Add(index[:1032], true)
	f.Add([]byte{}, false)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, sign bool) {
		if sign && len(data) > 20 {
			data = signed(bytes.Clone(data))
		}
		files := [2]*os.File{}
		for i, content := range [][]byte{pack, data} {
			file, err := os.CreateTemp(dir, "x")
			if err != nil {
				t.Fatal(err)
			}
			defer os.Remove(file.Name())
			defer file.Close()
			file.Write(content)
			files[i] = file
		}
		w, err := newSought([]string{strings.Repeat("a", 40)})
		if err != nil {
			t.Fatal(err)
		}
		if err := matchPack(files[0], files[1], sha1.New, w); err != nil {
			return
		}
		s := newIDSet(20)
		defer s.close()
		if err := s.add(files[1]); err != nil {
			t.Fatal(err)
		}
		for i := range 256 {
			s.has(append([]byte{byte(i)}, make([]byte, 19)...))
		}
	})
}

// Links are found as they were written, and nothing else makes the reader fail.
func FuzzLinks(f *testing.F) {
	f.Add("tree", []byte("100644 a\x00aaaaaaaaaaaaaaaaaaaa160000 b\x00bbbbbbbbbbbbbbbbbbbb"))
	f.Add("commit", []byte("tree "+strings.Repeat("a1", 20)+"\nparent "+strings.Repeat("b2", 20)+"\nauthor x\n\nparent x"))
	f.Add("tag", []byte("object "+strings.Repeat("a1", 20)+"\ntype commit\n"))
	f.Fuzz(func(t *testing.T, kind string, content []byte) {
		var all [][]byte
		links(kind, content, 20, func(oid []byte) { all = append(all, slices.Clone(oid)) })
		for _, oid := range all {
			if !bytes.Contains(content, oid) && !bytes.Contains(bytes.ToLower(content), []byte(hex.EncodeToString(oid))) {
				t.Errorf("%x is not in it", oid)
			}
		}
	})
}
