package snapshot

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// localPack is a pack of this machine that is held open: it can be read to the end although a gc deletes it.
type localPack struct {
	name      string // "pack-" and its checksum, which is how git names packs
	file      string // the name of its files without ".pack"
	pack, idx *os.File
	size      int64 // of the pack, in bytes
	idxSize   int64
	time      time.Time
	index     *packIndex
}

func (p *localPack) close() { _ = errors.Join(p.pack.Close(), p.idx.Close()) } // nothing was written

// openPack opens the pack whose files begin with path, and compares what pack and index say of each
// other. Files that are gone are fs.ErrNotExist.
func openPack(path string, digits int) (_ *localPack, err error) {
	p := &localPack{file: filepath.Base(path)}
	if p.idx, err = os.Open(path + ".idx"); err != nil {
		return nil, err
	}
	if p.pack, err = os.Open(path + ".pack"); err != nil {
		p.idx.Close()
		return nil, err
	}
	if err := p.inspect(digits); err != nil {
		p.close()
		return nil, fmt.Errorf("%s: %w: see git fsck and git verify-pack", p.file, err)
	}
	return p, nil
}

func (p *localPack) inspect(digits int) error {
	info, err := p.pack.Stat()
	if err != nil {
		return err
	}
	idxInfo, err := p.idx.Stat()
	if err != nil {
		return err
	}
	p.size, p.time, p.idxSize = info.Size(), info.ModTime(), idxInfo.Size()
	if p.index, err = openIndex(p.idx, p.idxSize, digits); err != nil {
		return err
	}
	sum := make([]byte, digits)
	if p.size < int64(12+digits) {
		return errors.New("pack is cut off")
	}
	if _, err := p.pack.ReadAt(sum, p.size-int64(digits)); err != nil {
		return err
	}
	if !bytes.Equal(sum, p.index.pack) {
		return fmt.Errorf("pack is damaged or cut off: it ends with %x, and its index is that of %x", sum, p.index.pack)
	}
	p.name = "pack-" + hex.EncodeToString(sum)
	return nil
}

// contents are the pack and its index as they are put.
func (p *localPack) contents(repository string) [2]content {
	digits := p.index.digits
	read := func(f *os.File, size int64, what string) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) {
			return &summed{r: io.NewSectionReader(f, 0, size), hash: aside(newHash(digits), size), digits: digits, what: p.file + what}, nil
		}
	}
	key := dataOf(repository) + p.name
	return [2]content{
		{key: key + ".pack", size: p.size, open: read(p.pack, p.size, ".pack"), damage: errShrunk},
		{key: key + ".idx", size: p.idxSize, open: read(p.idx, p.idxSize, ".idx"), damage: errShrunk},
	}
}

// errShrunk: git never changes a pack.
var errShrunk = errors.New("the file was changed while it was read")

// newHash is the hash of git's files in a repository whose object ids have so many bytes.
func newHash(digits int) hash.Hash {
	if digits == sha256.Size {
		return sha256.New()
	}
	return sha1.New()
}

// summed reads a file whose last bytes are the checksum of all before, and fails at its end
// when they are not: bits of a disk rot, and a backup reads what nobody reads for years.
type summed struct {
	r      io.Reader
	hash   hash.Hash
	digits int
	tail   []byte // the last bytes that were read, not yet hashed
	what   string
}

func (s *summed) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.add(b[:n])
	if err == io.EOF && !bytes.Equal(s.hash.Sum(nil), s.tail) {
		return n, fmt.Errorf("%s is damaged: its checksum is %x, and its content has %x: see git fsck, and take the pack from a copy or a backup", s.what, s.tail, s.hash.Sum(nil))
	}
	return n, err
}

func (s *summed) Close() error { return closeHash(s.hash) }

func (s *summed) add(b []byte) {
	if len(b) >= s.digits {
		s.hash.Write(s.tail)
		s.hash.Write(b[:len(b)-s.digits])
		s.tail = append(s.tail[:0], b[len(b)-s.digits:]...)
		return
	}
	s.tail = append(s.tail, b...)
	if over := len(s.tail) - s.digits; over > 0 {
		s.hash.Write(s.tail[:over])
		s.tail = append(s.tail[:0], s.tail[over:]...)
	}
}

// objectStore is what a repository's object directory has of its own, at one moment.
type objectStore struct {
	packs []*localPack    // oldest first
	loose map[string]bool // object ids
}

func (s *objectStore) close() {
	for _, p := range s.packs {
		p.close()
	}
	s.packs = nil
}

const (
	// maxListings bounds how often an object directory is listed until it stands still.
	maxListings = 6
	// maxPacks is how many packs a manifest names before small ones are put together.
	maxPacks = 50
)

// readObjects lists loose objects and then packs, so that an object that a gc moves from one to the other
// is seen, and until the packs are the same twice and all of the tips are among the objects. The packs are open then.
func readObjects(ctx context.Context, dir string, digits int, tips []string) (*objectStore, error) {
	var last error
	for try := range maxListings {
		if err := sleep(ctx, time.Duration(try)*10*time.Millisecond); err != nil {
			return nil, err
		}
		s, err := readObjectsOnce(dir, digits)
		if err == nil {
			if err = s.contain(tips); err == nil {
				return s, nil
			}
			s.close()
		}
		if missing := (*missingTips)(nil); !errors.Is(err, errMoved) && !errors.As(err, &missing) {
			return nil, err
		}
		last = err
	}
	return nil, last
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func readObjectsOnce(dir string, digits int) (_ *objectStore, err error) {
	s := &objectStore{}
	if s.loose, err = looseObjects(dir, digits); err != nil {
		return nil, err
	}
	names, err := packFiles(dir)
	if err != nil {
		return nil, err
	}
	if len(names) > maxOpen {
		return nil, errTooMany
	}
	for _, name := range names {
		p, err := openPack(filepath.Join(dir, "objects", "pack", name), digits)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %s is gone", errMoved, name)
		}
		if err != nil {
			s.close()
			return nil, err
		}
		s.packs = append(s.packs, p)
	}
	again, err := packFiles(dir)
	if err == nil && !slices.Equal(names, again) {
		err = fmt.Errorf("%w: other packs than a moment ago", errMoved)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	slices.SortFunc(s.packs, func(a, b *localPack) int {
		return cmpOr(a.time.Compare(b.time), strings.Compare(a.name, b.name))
	})
	s.packs = dropTwins(s.packs)
	return s, nil
}

// maxOpen bounds how many packs are held open, two descriptors each.
const maxOpen = 200

// errTooMany: a repository with more packs than that is packed anew.
var errTooMany = fmt.Errorf("more than %d packs", maxOpen)

func cmpOr(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

// dropTwins leaves one of packs with the same content out.
func dropTwins(packs []*localPack) []*localPack {
	seen := map[string]bool{}
	return slices.DeleteFunc(packs, func(p *localPack) bool {
		again := seen[p.name]
		seen[p.name] = true
		if again {
			p.close()
		}
		return again
	})
}

// packFiles returns the packs that have an index, by the names of their files without ".pack", sorted.
// What git has not finished (tmp_pack_…, a pack whose index is not there yet) is none of them.
func packFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "objects", "pack"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	files := make(map[string]bool, len(entries))
	for _, e := range entries {
		files[e.Name()] = true
	}
	var names []string
	for _, e := range entries { // sorted
		name, isIndex := strings.CutSuffix(e.Name(), ".idx")
		if isIndex && strings.HasPrefix(name, "pack-") && files[name+".pack"] {
			names = append(names, name)
		}
		if strings.HasSuffix(e.Name(), ".promisor") {
			return nil, errPartial
		}
	}
	return names, nil
}

// looseObjects returns the ids of the loose objects, by their names alone.
func looseObjects(dir string, digits int) (map[string]bool, error) {
	top, err := os.ReadDir(filepath.Join(dir, "objects"))
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, d := range top {
		if !d.IsDir() || !isHex(d.Name(), 2) {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(dir, "objects", d.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a gc removes empty ones
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if isHex(e.Name(), 2*digits-2) {
				ids[d.Name()+e.Name()] = true
			}
		}
	}
	return ids, nil
}

// missingTips are values of refs that are not in the repository. When refs moved and a gc went through, they
// are after another look.
type missingTips struct{ ids []string }

func (e *missingTips) Error() string {
	return fmt.Sprintf("%d objects that refs have as their values are missing: %s", len(e.ids), strings.Join(e.ids[:min(len(e.ids), 20)], " "))
}

// contain fails unless all of the tips are there, and forgets the loose objects that are in a pack too.
func (s *objectStore) contain(tips []string) error {
	wanted, err := newWanted(slices.Values(tips))
	if err != nil {
		return err
	}
	alone, err := newWanted(maps.Keys(s.loose))
	if err != nil {
		return err
	}
	for _, p := range s.packs {
		if err := errors.Join(p.index.strike(wanted), p.index.strike(alone)); err != nil {
			return fmt.Errorf("%s.idx: %w", p.file, err)
		}
	}
	missing := slices.DeleteFunc(wanted.left(), func(id string) bool { return s.loose[id] })
	if len(missing) > 0 {
		return &missingTips{missing}
	}
	s.loose = map[string]bool{}
	for _, id := range alone.left() {
		s.loose[id] = true
	}
	return nil
}
