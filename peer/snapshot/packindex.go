package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"sort"
)

// packIndex looks object ids up in a pack's index, version 1 or 2, of which at most a 256th is in memory at a time.
// Nothing but the ids is looked at.
type packIndex struct {
	r      io.ReaderAt
	digits int         // of an object id, in bytes
	first  int64       // where the entries begin
	stride int64       // from one entry's id to the next
	skip   int64       // from an entry's beginning to its id
	fanout [257]uint32 // fanout[b] entries have an id whose first byte is less than b
	pack   []byte      // checksum of the pack that it is for
	sum    []byte      // of the index itself; it is not checked here
}

// openIndex reads the frame of an index of size bytes whose object ids have so many bytes.
func openIndex(r io.ReaderAt, size int64, digits int) (*packIndex, error) {
	x := &packIndex{r: r, digits: digits, first: 4 * 256, stride: int64(digits) + 4, skip: 4}
	head := make([]byte, 8+4*256)
	if size < int64(len(head)+2*digits) {
		return nil, errors.New("index is cut off")
	}
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, err
	}
	entry := int64(digits) + 4
	if bytes.Equal(head[:4], []byte("\xfftOc")) {
		if version := binary.BigEndian.Uint32(head[4:]); version != 2 {
			return nil, fmt.Errorf("index has version %d", version)
		}
		head = head[8:]
		x.first, x.stride, x.skip = 8+4*256, int64(digits), 0
		entry += 4 // besides the id a checksum and an offset
	}
	for b := range 256 {
		x.fanout[b+1] = binary.BigEndian.Uint32(head[4*b:])
		if x.fanout[b+1] < x.fanout[b] {
			return nil, errors.New("index is damaged: its table is not sorted")
		}
	}
	if need := x.first + int64(x.count())*entry + int64(2*digits); size < need {
		return nil, fmt.Errorf("index is cut off: %d bytes, and %d objects need %d", size, x.count(), need)
	}
	trailer := make([]byte, 2*digits)
	if _, err := r.ReadAt(trailer, size-int64(len(trailer))); err != nil {
		return nil, err
	}
	x.pack, x.sum = trailer[:digits], trailer[digits:]
	return x, nil
}

// count returns the number of objects.
func (x *packIndex) count() int { return int(x.fanout[256]) }

// bucket reads the entries whose ids begin with b, and returns a function for the i-th id of n.
func (x *packIndex) bucket(b byte) (n int, id func(i int) []byte, err error) {
	from, to := int64(x.fanout[b]), int64(x.fanout[int(b)+1])
	data := make([]byte, (to-from)*x.stride)
	if _, err := x.r.ReadAt(data, x.first+from*x.stride); err != nil {
		return 0, nil, fmt.Errorf("read index: %w", err)
	}
	return int(to - from), func(i int) []byte {
		at := int64(i)*x.stride + x.skip
		return data[at : at+int64(x.digits)]
	}, nil
}

// strike removes the ids that are in the pack from wanted, which is sorted by first bytes.
func (x *packIndex) strike(wanted *wantedIDs) error {
	for b := range wanted.byFirst {
		if len(wanted.byFirst[b]) == 0 || x.fanout[b] == x.fanout[b+1] {
			continue
		}
		n, id, err := x.bucket(byte(b))
		if err != nil {
			return err
		}
		left := wanted.byFirst[b][:0]
		for _, oid := range wanted.byFirst[b] {
			i := sort.Search(n, func(i int) bool { return bytes.Compare(id(i), []byte(oid)) >= 0 })
			if i == n || string(id(i)) != oid {
				left = append(left, oid)
			}
		}
		wanted.byFirst[b] = left
	}
	return nil
}

// ids yields every id in hexadecimal, sorted.
func (x *packIndex) ids() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for b := range 256 {
			n, id, err := x.bucket(byte(b))
			if err != nil {
				yield("", err)
				return
			}
			for i := range n {
				if !yield(hex.EncodeToString(id(i)), nil) {
					return
				}
			}
		}
	}
}

// wantedIDs is a set of object ids, as bytes, by their first one.
type wantedIDs struct{ byFirst [256][]string }

// newWanted makes a set of ids in hexadecimal.
func newWanted(ids iter.Seq[string]) (*wantedIDs, error) {
	w := &wantedIDs{}
	for id := range ids {
		raw, err := hex.DecodeString(id)
		if err != nil || len(raw) == 0 {
			return nil, fmt.Errorf("object id %q", id)
		}
		w.byFirst[raw[0]] = append(w.byFirst[raw[0]], string(raw))
	}
	return w, nil
}

// left returns the ids in the set, in hexadecimal.
func (w *wantedIDs) left() []string {
	var ids []string
	for _, some := range w.byFirst {
		for _, raw := range some {
			ids = append(ids, hex.EncodeToString([]byte(raw)))
		}
	}
	return ids
}
