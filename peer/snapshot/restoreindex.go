package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
)

// sought are object ids, sorted, and which of them were found in a pack.
type sought struct {
	oids  [][]byte
	found []bool
}

func newSought(oids []string) (*sought, error) {
	w := &sought{}
	for _, text := range oids {
		oid, err := hex.DecodeString(text)
		if err != nil {
			return nil, err
		}
		w.oids = append(w.oids, oid)
	}
	slices.SortFunc(w.oids, bytes.Compare)
	w.found = make([]bool, len(w.oids))
	return w, nil
}

// missing returns the ids that no pack has.
func (w *sought) missing() map[string]bool {
	missing := map[string]bool{}
	for i, oid := range w.oids {
		if !w.found[i] {
			missing[hex.EncodeToString(oid)] = true
		}
	}
	return missing
}

// indexHeader begins an index of version 2; version 1 has no header.
var indexHeader = []byte("\xfftOc\x00\x00\x00\x02")

// matchPack checks that an index is whole and belongs to the pack beside it, and notes which of the wanted
// objects it has. The index is read once from its beginning to its end, in a small buffer: that of a large
// repository has hundreds of megabytes.
func matchPack(pack, index *os.File, newHash func() hash.Hash, w *sought) error {
	h := newHash()
	count, trailer, err := packEnds(pack, h.Size())
	if err != nil {
		return err
	}
	info, err := index.Stat()
	if err != nil {
		return err
	}
	body := info.Size() - int64(h.Size())
	in := &indexReader{in: bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(index, 0, body), h), 64<<10), width: h.Size()}
	if err := in.scan(count, w); err != nil {
		return fmt.Errorf("its index: %w", err)
	}
	ends := make([]byte, 2*h.Size())
	if _, err := index.ReadAt(ends, info.Size()-int64(len(ends))); err != nil {
		return fmt.Errorf("its index: %w", err)
	}
	switch {
	case !bytes.Equal(ends[:h.Size()], trailer):
		return errors.New("its index is that of another pack")
	case !bytes.Equal(ends[h.Size():], h.Sum(nil)):
		return errors.New("its index has a wrong checksum of its own")
	}
	return nil
}

// packEnds reads how many objects a pack has, and the checksum at its end.
func packEnds(pack *os.File, width int) (count uint32, trailer []byte, err error) {
	info, err := pack.Stat()
	if err != nil {
		return 0, nil, err
	}
	head := make([]byte, 12)
	trailer = make([]byte, width)
	if info.Size() < int64(len(head)+width) {
		return 0, nil, fmt.Errorf("a pack of %d bytes", info.Size())
	}
	if _, err := pack.ReadAt(head, 0); err != nil {
		return 0, nil, err
	}
	if _, err := pack.ReadAt(trailer, info.Size()-int64(width)); err != nil {
		return 0, nil, err
	}
	version := binary.BigEndian.Uint32(head[4:])
	if string(head[:4]) != "PACK" || version != 2 && version != 3 {
		return 0, nil, errors.New("it does not begin as a pack does")
	}
	return binary.BigEndian.Uint32(head[8:]), trailer, nil
}

// indexReader reads an index: a header (version 2), 256 counts, and the sorted object ids, each after its
// four bytes of offset in version 1.
type indexReader struct {
	in    *bufio.Reader
	width int // bytes of an object id
}

// scan reads the index of a pack of that many objects to its end.
func (r *indexReader) scan(count uint32, w *sought) error {
	before := 4 // version 1
	if head, err := r.in.Peek(len(indexHeader)); err == nil && bytes.Equal(head, indexHeader) {
		before = 0
		r.in.Discard(len(indexHeader))
	}
	fanout := make([]byte, 1024)
	if _, err := io.ReadFull(r.in, fanout); err != nil {
		return err
	}
	if n := binary.BigEndian.Uint32(fanout[1020:]); n != count {
		return fmt.Errorf("it has %d objects, and the pack %d", n, count)
	}
	for i := 4; i < len(fanout); i += 4 {
		if binary.BigEndian.Uint32(fanout[i:]) < binary.BigEndian.Uint32(fanout[i-4:]) {
			return errors.New("its counts get smaller")
		}
	}
	if err := r.names(count, before, fanout, w); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r.in) // into the hash
	return err
}

func (r *indexReader) names(count uint32, before int, fanout []byte, w *sought) error {
	entry, last := make([]byte, before+r.width), make([]byte, r.width)
	next := 0 // of the wanted
	for i := range count {
		if _, err := io.ReadFull(r.in, entry); err != nil {
			return err
		}
		oid := entry[before:]
		if i > 0 && bytes.Compare(last, oid) >= 0 {
			return fmt.Errorf("object %x is not in order", oid)
		}
		if i >= binary.BigEndian.Uint32(fanout[4*int(oid[0]):]) || oid[0] > 0 && i < binary.BigEndian.Uint32(fanout[4*int(oid[0])-4:]) {
			return fmt.Errorf("object %x is not where its first byte says", oid)
		}
		for next < len(w.oids) && bytes.Compare(w.oids[next], oid) < 0 {
			next++
		}
		if next < len(w.oids) && bytes.Equal(w.oids[next], oid) {
			w.found[next] = true
		}
		copy(last, oid)
	}
	return nil
}

// hashOf is the hash of an object format.
func hashOf(format string) func() hash.Hash {
	if format == "sha256" {
		return sha256.New
	}
	return sha1.New
}
