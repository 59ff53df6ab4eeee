package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"filippo.io/age"
)

// seal gives a vault a key of its own.
func seal(t testing.TB, v *Vault) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	v.Recipients, v.Identities = []age.Recipient{id.Recipient()}, []age.Identity{id}
}

// storeContent puts content into the store as Take does, and returns how a manifest names it.
func storeContent(t testing.TB, v *Vault, key string, content []byte, compress bool) Object {
	t.Helper()
	var stored bytes.Buffer
	encoding := v.encodingFor(compress)
	want := ""
	if compress {
		want = encodingZstd
	}
	w, err := v.encode(&stored, want)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := v.Store.Put(t.Context(), key, v.blob(stored.Bytes())); err != nil {
		t.Fatal(err)
	}
	o := Object{Key: key, Size: int64(len(content)), SHA256: sumOf(content), Encoding: encoding}
	if encoding != "" {
		o.StoredSize, o.StoredSHA256 = int64(stored.Len()), sumOf(stored.Bytes())
	}
	return o
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// text is n bytes that compress a little.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = "etaoin shrdlu\n\x00\xff"[r.IntN(16)]
	}
	return b
}

func readAll(v *Vault, t testing.TB, o Object) ([]byte, error) {
	r, err := v.open(t.Context(), o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func encodings(t *testing.T, run func(t *testing.T, v *Vault, m *memory, compress bool)) {
	for _, sealed := range []bool{false, true} {
		for _, compress := range []bool{false, true} {
			t.Run(fmt.Sprintf("sealed %v compress %v", sealed, compress), func(t *testing.T) {
				v, m := testVault(t)
				if sealed {
					seal(t, v)
				}
				run(t, v, m, compress)
			})
		}
	}
}

func TestOpenRoundTrip(t *testing.T) {
	encodings(t, func(t *testing.T, v *Vault, m *memory, compress bool) {
		for _, n := range []int{0, 1, 65535, 65536, 65537, 200_000} {
			o := storeContent(t, v, fmt.Sprintf("data/r.git/file-%d", n), text(n), compress)
			if got, err := readAll(v, t, o); err != nil || !bytes.Equal(got, text(n)) {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
	})
}

// Every byte that is changed, cut off or added is noticed, also where the manifest's sum of the
// stored bytes was not looked at (as for the manifest's own decoding).
func TestOpenDamaged(t *testing.T) {
	encodings(t, func(t *testing.T, v *Vault, m *memory, compress bool) {
		content := text(100)
		o := storeContent(t, v, "data/r.git/x", content, compress)
		good := m.blobs[o.Key]
		try := func(what string, bad []byte) {
			t.Helper()
			m.blobs[o.Key] = bad
			if got, err := readAll(v, t, o); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v, %d bytes", what, err, len(got))
			}
			if o.Encoding == "" {
				return
			}
			d, err := v.decode(bytes.NewReader(bad), o.Encoding)
			if err == nil {
				var got []byte
				got, err = io.ReadAll(d)
				if err == nil && bytes.Equal(got, content) && what != "changed" { // a bit that zstd does not use
					t.Errorf("%s: decoding did not notice", what)
				}
			}
			if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrKey) {
				t.Errorf("%s: decoding failed with %v", what, err)
			}
		}
		for i := 0; i < len(good); i += 1 + len(v.Recipients) { // reading what is sealed takes its time
			bad := bytes.Clone(good)
			bad[i] ^= 1 << (i % 8)
			try("changed", bad)
			try("cut off", good[:i])
		}
		try("added", append(bytes.Clone(good), 0))
		try("doubled", append(bytes.Clone(good), good...))
	})
}

// What the store fails with is no damage, at whatever byte.
func TestOpenStoreFails(t *testing.T) {
	encodings(t, func(t *testing.T, v *Vault, m *memory, compress bool) {
		lost := errors.New("connection lost")
		o := storeContent(t, v, "data/r.git/x", text(200), compress)
		good := m.blobs[o.Key]
		for i := range good {
			r, err := v.decode(io.MultiReader(bytes.NewReader(good[:i]), iotest.ErrReader(lost)), o.Encoding)
			if err == nil {
				_, err = io.ReadAll(r)
			}
			if !errors.Is(err, lost) || errors.Is(err, ErrDamaged) {
				t.Fatalf("after %d bytes: %v", i, err)
			}
		}
		m.before = func(string, string) error { return lost }
		if _, err := readAll(v, t, o); !errors.Is(err, lost) || errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}

func TestOpenWithoutKey(t *testing.T) {
	v, _ := testVault(t)
	seal(t, v)
	o := storeContent(t, v, "data/r.git/x", text(10), true)
	seal(t, v)
	if _, err := readAll(v, t, o); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
	v.Identities = nil
	if _, err := readAll(v, t, o); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
}

func BenchmarkOpen(b *testing.B) {
	content := text(64 << 20)
	for _, sealed := range []bool{false, true} {
		for _, compress := range []bool{false, true} {
			b.Run(fmt.Sprintf("sealed=%v/compress=%v", sealed, compress), func(b *testing.B) {
				v, _ := testVault(b)
				if sealed {
					seal(b, v)
				}
				o := storeContent(b, v, "data/r.git/x", content, compress)
				b.SetBytes(o.Size)
				for b.Loop() {
					r, err := v.open(b.Context(), o)
					if err != nil {
						b.Fatal(err)
					}
					if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 256<<10)); err != nil || n != o.Size {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}
