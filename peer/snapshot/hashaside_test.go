package snapshot

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"
)

func TestAsideHash(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	random := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for _, piece := range []int{1 << 20, asideSize, asideSize + 1, 32<<10 - 7} {
		h := aside(sha256.New(), hashAside)
		part := make([]byte, piece) // used again at once, as a caller of Read does
		for rest := data; len(rest) > 0; {
			n := copy(part, rest)
			if m, err := h.Write(part[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
			clear(part)
		}
		want := sha256.Sum256(data)
		for range 2 {
			if got := h.Sum(nil); !bytes.Equal(got, want[:]) {
				t.Errorf("in pieces of %d: %x, want %x", piece, got, want)
			}
		}
		h.Write([]byte("x")) // a reading that is given up
		if err := closeHash(h); err != nil {
			t.Error(err)
		}
	}
	if err := closeHash(aside(sha256.New(), hashAside)); err != nil { // nothing was written to it
		t.Error(err)
	}
	if _, ok := aside(sha256.New(), 1).(*asideHash); ok {
		t.Error("one byte has a goroutine")
	}
}
