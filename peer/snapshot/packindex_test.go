package snapshot

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// gitIndex makes a pack of some commits and returns the index that git wrote, in a version, and the ids in it.
func gitIndex(t testing.TB, format, version string) (data []byte, ids []string) {
	t.Helper()
	r := newSource(t, "--object-format="+format)
	for i := range 5 {
		commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d", i))
	}
	run(t, r.Dir, "-c", "pack.indexVersion="+version, "repack", "-adq")
	entries, err := os.ReadDir(filepath.Join(r.Dir, "objects/pack"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".idx") {
			if data, err = os.ReadFile(filepath.Join(r.Dir, "objects/pack", e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	for line := range strings.Lines(run(t, r.Dir, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")) {
		ids = append(ids, strings.TrimSpace(line))
	}
	return data, ids
}

func TestPackIndex(t *testing.T) {
	for _, c := range []struct {
		format, version string
		digits          int
	}{{"sha1", "1", 20}, {"sha1", "2", 20}, {"sha256", "2", 32}} {
		data, ids := gitIndex(t, c.format, c.version)
		x, err := openIndex(bytes.NewReader(data), int64(len(data)), c.digits)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for id, err := range x.ids() {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, id)
		}
		if !slices.Equal(got, ids) || x.count() != len(ids) {
			t.Errorf("%+v: %v, want %v", c, got, ids)
		}
		// Each id is found, and none beside it.
		others := map[string]bool{}
		for _, id := range ids {
			last := id[len(id)-1]
			others[id[:len(id)-1]+string("1032547698badcfe"[strings.IndexByte("0123456789abcdef", last)])] = true
		}
		wanted, err := newWanted(slices.Values(append(slices.Collect(maps.Keys(others)), ids...)))
		if err != nil {
			t.Fatal(err)
		}
		if err := x.strike(wanted); err != nil {
			t.Fatal(err)
		}
		if left := set(wanted.left()); !maps.Equal(left, others) {
			t.Errorf("%+v: left %v, want %v", c, left, others)
		}
		for size := range int64(len(data)) {
			if x, err := openIndex(bytes.NewReader(data[:size]), size, c.digits); err == nil && x.count() == len(ids) && c.version == "2" {
				t.Fatalf("%+v: cut to %d bytes, and nobody noticed", c, size)
			}
		}
	}
}

func FuzzPackIndex(f *testing.F) {
	for _, version := range []string{"1", "2"} {
		data, _ := gitIndex(f, "sha1", version)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := openIndex(bytes.NewReader(data), int64(len(data)), sha1.Size)
		if err != nil {
			return
		}
		n := 0
		for id, err := range x.ids() {
			if err != nil || len(id) != 40 {
				t.Fatalf("%q, %v", id, err)
			}
			n++
		}
		if n != x.count() || n > len(data)/20 {
			t.Fatalf("%d ids in %d bytes, and %d were promised", n, len(data), x.count())
		}
		wanted, _ := newWanted(slices.Values([]string{strings.Repeat("a", 40), strings.Repeat("00", 20)}))
		if err := x.strike(wanted); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSummedFindsEveryBit(t *testing.T) {
	data := binary.BigEndian.AppendUint64([]byte("PACK and so on"), 7)
	sum := sha1.Sum(data)
	data = append(data, sum[:]...)
	read := func(step int) error {
		r := &summed{r: bytes.NewReader(data), hash: sha1.New(), digits: sha1.Size, what: "x"}
		b := make([]byte, step)
		for {
			if _, err := r.Read(b); err != nil {
				return err
			}
		}
	}
	for _, step := range []int{1, 7, 20, 21, 100} {
		if err := read(step); err.Error() != "EOF" {
			t.Errorf("%d bytes at once: %v", step, err)
		}
		for i := range data {
			data[i] ^= 4
			if err := read(step); err.Error() == "EOF" {
				t.Errorf("byte %d, %d at once: nobody noticed", i, step)
			}
			data[i] ^= 4
		}
	}
}
