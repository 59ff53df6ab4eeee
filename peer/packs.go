package peer

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"mirror-shell/internal/git"
)

// packs lets pushes to several peers share one pack. Slaves usually stand at the
// same refs, and their pushes begin at the same moment: git then counts and
// compresses once, into a file without a name, and every push reads it from there at its own
// pace while it grows.
type packs struct {
	mu      sync.Mutex
	open    map[packKey]*sharedPack
	max     int64     // of a file, in bytes; 0: maxPack
	without time.Time // until then packs are made without a file, as one could not be written
}

// packKey is what makes two packs the same.
type packKey [sha256.Size]byte

func keyOf(repo git.Repo, want, have []string, o git.PackOptions) packKey {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\x00%t %t\n", repo.Dir, o.Thick, o.NoOffsets)
	for _, list := range [][]string{want, have} {
		for _, oid := range slices.Sorted(slices.Values(list)) {
			io.WriteString(sum, oid)
		}
		io.WriteString(sum, "\n")
	}
	return packKey(sum.Sum(nil))
}

const (
	// packLinger is how long a pack is kept for a push that begins later.
	packLinger = 5 * time.Second
	// maxLinger is the size, in bytes, up to which that is worth the disk.
	maxLinger = 64 << 20
	// packsWithout is how long no file is tried after the disk was full.
	packsWithout = time.Minute
	// maxPack is how large a file may grow, in bytes: it stands on the file system of
	// the inbox, which must not be filled.
	maxPack = 1 << 30
)

var errNoRoom = errors.New("no room for a file")

// write writes the pack to w, by way of a file in dir. Errors are those of git, of w,
// or of the file.
func (p *packs) write(ctx context.Context, w io.Writer, dir string, repo git.Repo, want, have []string, o git.PackOptions) error {
	return p.share(ctx, w, dir, keyOf(repo, want, have, o), func(ctx context.Context, w io.Writer) error {
		return repo.Pack(ctx, w, want, have, o)
	})
}

// share is write with what makes the pack. Without room for a file it goes without.
func (p *packs) share(ctx context.Context, w io.Writer, dir string, key packKey, write func(context.Context, io.Writer) error) error {
	pack, err := p.join(dir, key, write)
	if err != nil {
		return write(ctx, w)
	}
	defer p.leave(key, pack)
	n, err := pack.copy(ctx, w)
	if n == 0 && pack.noRoom() != nil {
		return write(ctx, w) // nothing has been said yet
	}
	return err
}

// join returns the pack of that key with one reader more; the first has it made.
func (p *packs) join(dir string, key packKey, write func(context.Context, io.Writer) error) (*sharedPack, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pack, ok := p.open[key]; ok && pack.sound() {
		pack.readers++
		return pack, nil
	}
	if time.Now().Before(p.without) {
		return nil, errNoRoom
	}
	file, err := os.CreateTemp(dir, "pack-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	ctx, cancel := context.WithCancel(context.Background()) // no reader's: it ends when the last has left
	pack := &sharedPack{file: file, max: cmp.Or(p.max, maxPack), cancel: cancel, readers: 1, grown: make(chan struct{})}
	if p.open == nil {
		p.open = map[packKey]*sharedPack{}
	}
	p.open[key] = pack
	go func() { pack.end(write(ctx, pack)) }()
	return pack, nil
}

// leave gives up a reader's share. The last one's closes the pack: at once if it
// failed, is not finished, or is large.
func (p *packs) leave(key packKey, pack *sharedPack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pack.noRoom() != nil {
		p.without = time.Now().Add(packsWithout)
	}
	if pack.readers--; pack.readers > 0 {
		return
	}
	if pack.keep() {
		pack.readers++ // until the timer leaves
		time.AfterFunc(packLinger, func() { p.leaveAtLast(key, pack) })
		return
	}
	p.remove(key, pack)
}

func (p *packs) leaveAtLast(key packKey, pack *sharedPack) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pack.readers--; pack.readers == 0 {
		p.remove(key, pack)
	}
}

// remove is called with the lock held.
func (p *packs) remove(key packKey, pack *sharedPack) {
	if p.open[key] == pack { // and not another one in its place
		delete(p.open, key)
	}
	pack.cancel()
	go pack.close()
}

// sharedPack is a pack that is being made, or was.
type sharedPack struct {
	file    *os.File
	max     int64
	cancel  context.CancelFunc
	readers int // guarded by packs.mu

	mu    sync.Mutex
	size  int64
	full  error // why the file could not be written
	ended bool
	err   error         // valid when ended
	grown chan struct{} // closed, and replaced unless ended, when there is more
}

// Write implements io.Writer for git.
func (s *sharedPack) Write(b []byte) (int, error) {
	n, err := 0, error(errNoRoom)
	if s.size+int64(len(b)) <= s.max { // nobody else changes size
		n, err = s.file.Write(b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.size += int64(n)
	} else if s.full == nil {
		s.full = fmt.Errorf("a file for the pack: %w", err)
	}
	close(s.grown)
	s.grown = make(chan struct{})
	return n, err
}

// end notes how making the pack ended. Of a file that could not be written git knows only that
// nobody reads what it says.
func (s *sharedPack) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended, s.err = true, err
	if s.full != nil {
		s.err = s.full
	}
	close(s.grown)
}

func (s *sharedPack) state() (size int64, ended bool, grown <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size, s.ended, s.grown, s.err
}

func (s *sharedPack) noRoom() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full
}

// sound reports whether nothing has gone wrong with the pack.
func (s *sharedPack) sound() bool {
	_, ended, _, err := s.state()
	return s.noRoom() == nil && (!ended || err == nil)
}

// keep reports whether the pack is whole and small enough to be kept for later.
func (s *sharedPack) keep() bool {
	size, ended, _, err := s.state()
	return ended && err == nil && size <= maxLinger
}

// copy writes all of the pack to w, as it comes, and returns how much that was.
func (s *sharedPack) copy(ctx context.Context, w io.Writer) (done int64, err error) {
	for {
		size, ended, grown, err := s.state()
		if size > done {
			n, err := io.Copy(w, io.NewSectionReader(s.file, done, size-done))
			done += n
			if err != nil {
				return done, err
			}
			continue
		}
		if ended {
			return done, err
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return done, ctx.Err()
		}
	}
}

// close waits for git to end and closes the file.
func (s *sharedPack) close() {
	for {
		_, ended, grown, _ := s.state()
		if ended {
			s.file.Close()
			return
		}
		<-grown
	}
}
