package snapshot

import (
	"encoding/binary"
	"encoding/hex"
	"iter"
	"path/filepath"
	"runtime"
	"slices"
)

// A git process unpacks objects one after the other, and takes longer for that than we take for hashing them.
// So that all processors have something to do, a large pack is read in parts, by a process each. Parts are
// ranges of the pack and not of ids: deltas stand near what they are made from, and what was unpacked last
// is what is needed next.
//
// splitTo is how many objects such a pack has at most: for more, sorting them would take memory that grows with the
// repository.
const splitTo = 2 << 20

// splitFrom is how many objects a pack has that is split: a smaller one is read sooner. Tests set it.
var splitFrom = 20_000

// part is some objects of a pack.
type part struct {
	pack  Pack
	count int
	order []uint64     // places of the objects in the index, sorted by their place in the pack; nil: all objects
	index *mappedIndex // where the ids are
}

// parts divides the packs, whose indexes are those of ids, in their order.
func (b *build) parts(ids *idSet) ([]part, error) {
	var all []part
	for i, p := range b.m.Packs {
		count, err := packCount(filepath.Join(b.dir, "objects", "pack", p.Name+".pack"), ids.width)
		if err != nil {
			return nil, err
		}
		whole := part{pack: p, count: count, index: ids.indexes[i]}
		var order []uint64
		if count >= splitFrom && count <= splitTo && runtime.NumCPU() > 1 {
			order = whole.index.packOrder()
		}
		if order == nil {
			all = append(all, whole)
			continue
		}
		for chunk := range slices.Chunk(order, (len(order)+runtime.NumCPU()-1)/runtime.NumCPU()) {
			all = append(all, part{pack: p, count: len(chunk), order: chunk, index: whole.index})
		}
	}
	return all, nil
}

// placeBits are for an object's place in the index, below its place in the pack.
const placeBits = 21

// packOrder returns the places of all objects in the index, in the lower placeBits of each number, in the order of the
// pack. It is nil for an index of version 1, or one whose numbers are impossible: git will say so.
func (m *mappedIndex) packOrder() []uint64 {
	width := m.stride
	if len(m.data) < 8 || string(m.data[:8]) != string(indexHeader) {
		return nil
	}
	n := len(m.names) / width
	small := m.data[8+1024+n*(width+4):]
	if n > 1<<placeBits || len(small) < 4*n {
		return nil
	}
	large := small[4*n:]
	order := make([]uint64, n)
	for i := range order {
		at := uint64(binary.BigEndian.Uint32(small[4*i:]))
		if at>>31 != 0 { // it is in the table for large packs
			at &= 1<<31 - 1
			if 8*at+8 > uint64(len(large)) {
				return nil
			}
			at = binary.BigEndian.Uint64(large[8*at:])
		}
		if at >= 1<<(64-placeBits) {
			return nil
		}
		order[i] = at<<placeBits | uint64(i)
	}
	slices.Sort(order)
	return order
}

// ids yields the ids of the part.
func (p part) ids() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, o := range p.order {
			at := int(o&(1<<placeBits-1)) * p.index.stride
			if !yield(hex.EncodeToString(p.index.names[at:at+p.index.stride]), nil) {
				return
			}
		}
	}
}
