package sendpack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// packError is our own failure to make the pack, not one of the connection.
type packError struct{ err error }

func (e *packError) Error() string { return "make the pack: " + e.err.Error() }
func (e *packError) Unwrap() error { return e.err }

// send writes commands and pack. It is the only one that writes to the peer.
func (s *session) send(pack func(io.Writer) error) error {
	buf := bufio.NewWriterSize(s.out, 64<<10)
	if err := s.plan.writeCommands(buf); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil || !s.plan.needPack {
		return err
	}
	err := WholePack(buf, pack)
	if cause := s.out.failure(); err != nil && cause != nil {
		return cause // pack only passes on that its writes fail
	}
	return err
}

// WholePack has pack write one pack to w, of which the last bytes are kept back
// until pack has returned without error.
func WholePack(w *bufio.Writer, pack func(io.Writer) error) error {
	gate := &packGate{w: w}
	if err := pack(gate); err != nil {
		return &packError{err}
	}
	return gate.finish()
}

// outlet is the stream to the peer with a valve that another goroutine can shut.
type outlet struct {
	w      io.Writer
	failed atomic.Pointer[error]
}

func (o *outlet) Write(p []byte) (int, error) {
	if err := o.failure(); err != nil {
		return 0, err
	}
	n, err := o.w.Write(p)
	if err != nil {
		o.fail(err)
		return n, o.failure()
	}
	return n, nil
}

// fail makes every later write fail; the first reason stays.
func (o *outlet) fail(err error) { o.failed.CompareAndSwap(nil, &err) }

// failure is why writes fail, or nil.
func (o *outlet) failure() error {
	if p := o.failed.Load(); p != nil {
		return *p
	}
	return nil
}

type closeWriter interface{ CloseWrite() error }

// The three ways of closing ignore errors: each is a hint to a peer whose answer, or
// silence, is what counts.

// closeWrite tells the peer that nothing more comes, if that leaves reading alone.
func (o *outlet) closeWrite() {
	if c, ok := o.w.(closeWriter); ok {
		_ = c.CloseWrite()
	}
}

// halfClose ends our side, if possible so that the peer can still answer.
func (o *outlet) halfClose() {
	switch c := o.w.(type) {
	case closeWriter:
		_ = c.CloseWrite()
	case io.Closer:
		_ = c.Close()
	}
}

// abort frees a write that blocks; nothing is expected from the peer any more.
func (o *outlet) abort() {
	switch c := o.w.(type) {
	case io.Closer:
		_ = c.Close()
	case closeWriter:
		_ = c.CloseWrite()
	}
}

const (
	packMagic = "PACK"
	heldBack  = 32 // bytes: no pack is shorter, and no checksum longer
)

// packGate passes a pack on except its last bytes, which finish sends. A pack-objects
// that fails after writing everything (a failed fsck, a kill at the end) would
// otherwise have given the peer a pack that is complete.
type packGate struct {
	w    *bufio.Writer
	size int64 // bytes taken, passed on or not
	tail []byte
}

func (g *packGate) Write(p []byte) (int, error) {
	for i := 0; i < len(p) && g.size+int64(i) < int64(len(packMagic)); i++ {
		if p[i] != packMagic[g.size+int64(i)] {
			return 0, errNoPack
		}
	}
	g.size += int64(len(p))
	// A long p is split in place; copying is for the tail only.
	if len(p) >= heldBack {
		if err := g.pass(g.tail); err != nil {
			return 0, err
		}
		cut := len(p) - heldBack
		g.tail = append(g.tail[:0], p[cut:]...)
		if err := g.pass(p[:cut]); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	g.tail = append(g.tail, p...)
	if over := len(g.tail) - heldBack; over > 0 {
		if err := g.pass(g.tail[:over]); err != nil {
			return 0, err
		}
		g.tail = append(g.tail[:0], g.tail[over:]...)
	}
	return len(p), nil
}

func (g *packGate) pass(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := g.w.Write(p)
	return err
}

// finish lets the end of the pack go.
func (g *packGate) finish() error {
	if g.size < heldBack {
		return &packError{fmt.Errorf("%d bytes: %w", g.size, errNoPack)}
	}
	if err := g.pass(g.tail); err != nil {
		return err
	}
	return g.w.Flush()
}

var errNoPack = errors.New("not a pack")
