package snapshot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// idSet finds object ids in the indexes of packs that matchPack has checked. The indexes
// are mapped, not read: what the ids of a large repository take would not fit in little memory.
type idSet struct {
	indexes []*mappedIndex // the one that had the last id first
	width   int
	recent  [1 << 15][32]byte // ids that were found, by their digits: most trees name what their neighbours name
}

type mappedIndex struct {
	data   []byte // the whole file
	fanout []byte
	names  []byte // entries of stride bytes, an id at their end
	stride int
}

func newIDSet(width int) *idSet { return &idSet{width: width} }

// another returns a set of the same mapped indexes for another goroutine. It must not be closed, nor
// used after the first was.
func (s *idSet) another() *idSet { return &idSet{width: s.width, indexes: slices.Clone(s.indexes)} }

// add maps an index. close unmaps them all.
func (s *idSet) add(index *os.File) error {
	info, err := index.Stat()
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(index.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map an index: %w", err)
	}
	m := &mappedIndex{data: data, stride: s.width}
	body := data
	if bytes.HasPrefix(data, indexHeader) {
		body = data[len(indexHeader):]
	} else {
		m.stride += 4
	}
	m.fanout = body[:1024]
	m.names = body[1024 : 1024+m.stride*int(binary.BigEndian.Uint32(m.fanout[1020:]))]
	s.indexes = append(s.indexes, m)
	return nil
}

func (s *idSet) close() {
	for _, m := range s.indexes {
		unix.Munmap(m.data)
	}
	s.indexes = nil
}

// has reports whether an object is in one of the packs.
func (s *idSet) has(oid []byte) bool {
	slot := &s.recent[binary.BigEndian.Uint16(oid)>>1]
	if bytes.Equal(slot[:len(oid)], oid) && !allZero(oid) {
		return true
	}
	for i, m := range s.indexes {
		if m.has(oid) {
			copy(slot[:], oid)
			copy(s.indexes[1:i+1], s.indexes[:i])
			s.indexes[0] = m
			return true
		}
	}
	return false
}

func allZero(oid []byte) bool {
	for _, b := range oid {
		if b != 0 {
			return false
		}
	}
	return true
}

func (m *mappedIndex) has(oid []byte) bool {
	low, high := 0, int(binary.BigEndian.Uint32(m.fanout[4*int(oid[0]):]))
	if oid[0] > 0 {
		low = int(binary.BigEndian.Uint32(m.fanout[4*int(oid[0])-4:]))
	}
	for low < high {
		middle := (low + high) / 2
		end := (middle + 1) * m.stride
		switch c := bytes.Compare(m.names[end-len(oid):end], oid); {
		case c == 0:
			return true
		case c < 0:
			low = middle + 1
		default:
			high = middle
		}
	}
	return false
}

// maxObject bounds the trees, commits and tags that are read into memory, in bytes.
const maxObject = 256 << 20

// links calls each with the ids that an object names: of a commit its tree and parents, of a tree its
// entries but those of submodules, of a tag what it tags. It is false for an object of another form.
func links(kind string, content []byte, width int, each func(oid []byte)) bool {
	switch kind {
	case "tree":
		return treeLinks(content, width, each)
	case "commit", "tag":
		return headerLinks(content, width, each)
	}
	return false
}

// treeLinks reads entries of the form MODE SP NAME NUL OID.
func treeLinks(content []byte, width int, each func(oid []byte)) bool {
	for len(content) > 0 {
		end := bytes.IndexByte(content, 0)
		if end < 0 || len(content) < end+1+width {
			return false
		}
		if !bytes.HasPrefix(content, []byte("160000 ")) {
			each(content[end+1 : end+1+width])
		}
		content = content[end+1+width:]
	}
	return true
}

// headerLinks reads lines of the form KEY SP OID before the first other one.
func headerLinks(content []byte, width int, each func(oid []byte)) bool {
	var oid [32]byte
	found := false
	for {
		line, rest, _ := bytes.Cut(content, []byte("\n"))
		key, value, _ := bytes.Cut(line, []byte(" "))
		if k := string(key); k != "tree" && k != "parent" && k != "object" {
			return found
		}
		if len(value) != 2*width {
			return false
		}
		if _, err := hex.Decode(oid[:], value); err != nil {
			return false
		}
		each(oid[:width])
		found, content = true, rest
	}
}
