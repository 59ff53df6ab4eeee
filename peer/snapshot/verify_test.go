package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/git"
)

// twoSnapshots is a vault with two snapshots of a repository, whose second names the first.
func twoSnapshots(t testing.TB, sealed bool) (v *Vault, m *memory, repo string, all []Name) {
	t.Helper()
	v, m = testVault(t)
	if sealed {
		seal(t, v)
	}
	repo = packedRepo(t, "sha1")
	os.RemoveAll(repo + "/hooks")
	lfs := repo + "/lfs/objects/ab/cd/" + sumOf([]byte("large"))
	if err := errors.Join(os.MkdirAll(filepath.Dir(lfs), 0o755), os.WriteFile(lfs, []byte("large"), 0o444)); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	first := describeRepo(t, v, repo, now.Add(-time.Hour))
	n1, _, err := v.publish(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	commitTo(t, git.Repo{Dir: repo}, "refs/heads/main", "new")
	run(t, repo, "repack", "-dq")
	second := describeRepo(t, v, repo, now)
	second.Previous = n1.Sum
	// What was there is not stored again.
	for i, p := range second.Packs {
		for _, old := range first.Packs {
			if old.Name == p.Name {
				second.Packs[i] = old
			}
		}
	}
	n2, _, err := v.publish(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, o := range append(first.Objects(), second.Objects()...) {
		used[o.Key] = true
	}
	for key := range m.blobs {
		if strings.HasPrefix(key, "data/") && !used[key] {
			delete(m.blobs, key)
		}
	}
	return v, m, repo, []Name{n1, n2}
}

func TestVerify(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		v, m, _, _ := twoSnapshots(t, sealed)
		m.blobs["data/group/ip1.git/file-unneeded"] = []byte("12345")
		got, err := v.Verify(t.Context(), "group/ip1", VerifyOptions{ReadData: true, Drill: true})
		if err != nil || !got.OK() || got.Snapshots != 2 || got.Unreferenced != 1 || got.UnreferencedBytes != 5 || got.Bytes == 0 || got.Drill == nil {
			t.Errorf("%+v, %v", got, err)
		}
		left, _ := os.ReadDir(v.Scratch)
		if len(left) > 0 {
			t.Errorf("scratch has %v", left)
		}
		for c, err := range v.checks(t.Context(), "group/ip1") {
			if err != nil {
				t.Fatal(err)
			}
			check, err := v.loadCheck(t.Context(), c)
			if err != nil || check.Kind != checkDrill || check.Error != "" || check.Server != "frodo" || check.Bytes == 0 {
				t.Errorf("%+v, %v", check, err)
			}
		}
		if _, err := v.Verify(t.Context(), "other", VerifyOptions{}); !errors.Is(err, ErrNoSnapshot) {
			t.Error(err)
		}
		lost := errors.New("connection lost")
		m.before = func(operation, key string) error {
			if operation == "get" && strings.HasSuffix(key, ".pack") {
				return lost
			}
			return nil
		}
		if got, err := v.Verify(t.Context(), "group/ip1", VerifyOptions{ReadData: true}); !errors.Is(err, lost) {
			t.Errorf("%+v, %v", got, err)
		}
		if sealed {
			v.Identities = nil
			if _, err := v.Verify(t.Context(), "group/ip1", VerifyOptions{}); !errors.Is(err, ErrKey) {
				t.Error(err)
			}
		}
	}
}

// Whatever single object is changed, cut, grown or removed: verify names it, and no restore gives anything
// but what was backed up.
func TestEveryObjectDamaged(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		v, m, _, all := twoSnapshots(t, sealed)
		needed := map[string][]Name{}
		for _, name := range all {
			man, err := v.Load(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			needed[name.Key()] = []Name{name}
			for _, o := range man.Objects() {
				needed[o.Key] = append([]Name{name}, needed[o.Key]...)
			}
		}
		if len(needed) < 12 || len(needed) != len(m.blobs) {
			t.Fatalf("%d objects are needed, %d are there", len(needed), len(m.blobs))
		}
		for key, users := range needed {
			good := m.blobs[key]
			for what, bad := range damages(good) {
				if bad == nil {
					delete(m.blobs, key)
				} else {
					m.blobs[key] = bad
				}
				expectFault(t, v, what, key, users)
				expectNoWrongRestore(t, v, what, key, users, all)
				m.blobs[key] = good
				// Verify has marked what it found; the next damage is to be found in a vault without marks.
				maps.DeleteFunc(m.blobs, func(key string, _ []byte) bool { return strings.HasPrefix(key, "checks/") })
			}
		}
	}
}

// damages are ways to damage a blob; nil removes it.
func damages(good []byte) map[string][]byte {
	r := rand.New(rand.NewPCG(uint64(len(good)), 3))
	flip := func(i int) []byte {
		bad := bytes.Clone(good)
		bad[i] ^= 1 << r.IntN(8)
		return bad
	}
	all := map[string][]byte{"removed": nil, "cut": good[:len(good)-1], "grown": append(bytes.Clone(good), 0), "first": flip(0)}
	more := 1
	if os.Getenv("MIRROR_SHELL_LONG") != "" {
		all["empty"], all["last"], all["zero"], more = []byte{}, flip(len(good)-1), make([]byte, len(good)), 20
	}
	for range more {
		i := r.IntN(len(good))
		all[fmt.Sprintf("byte %d", i)] = flip(i)
	}
	return all
}

func expectFault(t *testing.T, v *Vault, what, key string, users []Name) {
	t.Helper()
	got, err := v.Verify(t.Context(), "group/ip1", VerifyOptions{ReadData: true})
	if err != nil {
		t.Errorf("%s %s: %v", what, key, err)
		return
	}
	i := slices.IndexFunc(got.Faults, func(f Fault) bool { return f.Key == key })
	if what == "removed" && strings.HasPrefix(key, "snapshots/") {
		// The newest that is removed is found by who remembers it.
		if users[0].Time.Before(time.Now().Add(-time.Minute)) != (len(got.Faults) == 1) {
			t.Errorf("%s %s: %+v", what, key, got.Faults)
		}
		got, err := v.Verify(t.Context(), "group/ip1", VerifyOptions{Expect: users[0].Sum})
		if err != nil || got.OK() {
			t.Errorf("%s %s: %v, %+v", what, key, err, got)
		}
		return
	}
	if i < 0 || len(got.Faults) != 1 {
		t.Errorf("%s %s: %+v", what, key, got.Faults)
		return
	}
	if diff := cmp.Diff(users, got.Faults[i].Snapshots); diff != "" {
		t.Errorf("%s %s: %s", what, key, diff)
	}
}

// ramDir is a directory where fsync costs nothing, when the machine has one.
func ramDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "mirror-shell-test-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func expectNoWrongRestore(t *testing.T, v *Vault, what, key string, users, all []Name) {
	t.Helper()
	for _, name := range all {
		if what != "removed" && !slices.Contains(users, name) {
			continue
		}
		base := ramDir(t)
		_, err := v.Restore(t.Context(), name, base+"/ip1.git", RestoreOptions{Check: Checksums})
		left := names(t, base)
		if slices.Contains(users, name) {
			if err == nil || len(left) > 0 {
				t.Errorf("%s %s: %v, left %v", what, key, err, left)
			}
			if err != nil && !strings.Contains(err.Error(), key) {
				t.Errorf("%s %s: not named in %v", what, key, err)
			}
		} else if err != nil {
			t.Errorf("%s %s: %v", what, key, err)
		}
	}
}

func TestVerifyChain(t *testing.T) {
	v, m, _, all := twoSnapshots(t, false)
	first := m.blobs[all[0].Key()]
	delete(m.blobs, all[0].Key())
	verify := func(o VerifyOptions) Findings {
		t.Helper()
		got, err := v.Verify(t.Context(), "group/ip1", o)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, latest := range []bool{false, true} {
		if got := verify(VerifyOptions{Latest: latest}); len(got.Faults) != 1 || !strings.Contains(got.Faults[0].Problem, all[0].Sum) {
			t.Errorf("%+v", got)
		}
	}
	if err := v.putMark(t.Context(), "group/ip1", &mark{Format: Format, Time: time.Now().UTC().Truncate(time.Millisecond), Removed: []removed{{all[0].Sum, all[0].Time}}}); err != nil {
		t.Fatal(err)
	}
	if got := verify(VerifyOptions{Expect: all[1].Sum}); !got.OK() || got.Unreferenced == 0 {
		t.Errorf("%+v", got)
	}
	if got := verify(VerifyOptions{Expect: strings.Repeat("0", 32)}); got.OK() {
		t.Errorf("%+v", got)
	}
	m.blobs[all[0].Key()] = first
	if got := verify(VerifyOptions{Latest: true}); !got.OK() || got.Snapshots != 1 || got.Unreferenced != 0 {
		t.Errorf("%+v", got)
	}
	for key := range m.blobs {
		if strings.HasPrefix(key, "snapshots/") {
			delete(m.blobs, key)
		}
	}
	if got := verify(VerifyOptions{Expect: all[1].Sum}); got.OK() {
		t.Errorf("%+v", got)
	}
}

// A drill of a snapshot that lacks history fails, and says so in the vault.
func TestDrillFails(t *testing.T) {
	v, m, _, all := twoSnapshots(t, false)
	man, err := v.Load(t.Context(), all[1])
	if err != nil {
		t.Fatal(err)
	}
	man.Packs = man.Packs[len(man.Packs)-1:]
	man.Time = man.Time.Add(time.Minute)
	name, _, err := v.publish(t.Context(), man)
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(t.Context(), "group/ip1", VerifyOptions{Drill: true})
	if err != nil || got.OK() || got.Drill.Error == "" || got.Drill.Snapshot != name.Sum {
		t.Errorf("%+v, %v", got, err)
	}
	n := 0
	for key := range m.blobs {
		if strings.HasPrefix(key, "checks/") && strings.Contains(key, "-drill-"+name.Sum) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d records", n)
	}
}
