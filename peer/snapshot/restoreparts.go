package snapshot

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
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
	close func()
}

// parts divides the packs.
func (b *build) parts() (all []part, err error) {
	defer func() {
		if err != nil {
			for _, p := range all {
				p.close()
			}
		}
	}()
	for _, p := range b.m.Packs {
		count, err := packCount(filepath.Join(b.dir, "objects", "pack", p.Name+".pack"), hashOf(b.m.ObjectFormat)().Size())
		if err != nil {
			return all, err
		}
		whole := part{pack: p, count: count, close: func() {}}
		if count < splitFrom || count > splitTo || runtime.NumCPU() == 1 {
			all = append(all, whole)
			continue
		}
		some, err := b.split(whole)
		if err != nil {
			return all, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// split divides one pack.
func (b *build) split(whole part) ([]part, error) {
	f, err := b.root.Open("objects/pack/" + whole.pack.Name + ".idx")
	if err != nil {
		return nil, err
	}
	set := newIDSet(hashOf(b.m.ObjectFormat)().Size())
	if err := errors.Join(set.add(f), f.Close()); err != nil {
		set.close()
		return nil, err
	}
	index := set.indexes[0]
	order := index.packOrder()
	if order == nil {
		set.close()
		return []part{whole}, nil
	}
	var parts []part
	for chunk := range slices.Chunk(order, (len(order)+runtime.NumCPU()-1)/runtime.NumCPU()) {
		parts = append(parts, part{pack: whole.pack, count: len(chunk), order: chunk, index: index, close: func() {}})
	}
	parts[0].close = set.close
	return parts, nil
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
