package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Readers that come while a pack is made, slow ones, and one that comes later all
// get the same bytes; it is made once.
func TestSharedPack(t *testing.T) {
	var p packs
	var made atomic.Int32
	text := bytes.Repeat([]byte("0123456789"), 50_000)
	key, step := packKey{1}, make(chan struct{})
	write := func(ctx context.Context, w io.Writer) error {
		made.Add(1)
		for part := text; len(part) > 0; {
			n := min(70_000, len(part))
			if _, err := w.Write(part[:n]); err != nil {
				return err
			}
			part = part[n:]
			<-step
		}
		return nil
	}
	read := func() {
		pack, err := p.join(t.TempDir(), key, write)
		if err != nil {
			t.Error(err)
			return
		}
		defer p.leave(key, pack)
		var got bytes.Buffer
		if _, err := pack.copy(t.Context(), &got); err != nil || !bytes.Equal(got.Bytes(), text) {
			t.Errorf("%d bytes, %v", got.Len(), err)
		}
	}
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(read)
		step <- struct{}{}
	}
	close(step)
	readers.Wait()
	read() // while it lingers
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
	p.mu.Lock()
	pack := p.open[key]
	p.mu.Unlock()
	p.leaveAtLast(key, pack) // for the timer of the first
	p.leaveAtLast(key, pack)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.open) != 0 {
		t.Errorf("%d packs are open", len(p.open))
	}
}

// A reader that goes away does not stop the others; the last one stops git.
func TestSharedPackLeft(t *testing.T) {
	var p packs
	key, stopped := packKey{2}, make(chan struct{})
	write := func(ctx context.Context, w io.Writer) error {
		w.Write([]byte("PACK"))
		<-ctx.Done()
		close(stopped)
		return ctx.Err()
	}
	one, err := p.join(t.TempDir(), key, write)
	if err != nil {
		t.Fatal(err)
	}
	two, _ := p.join("", key, write)
	broken := errors.New("broken")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := one.copy(ctx, io.Discard); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if _, err := one.copy(t.Context(), failing{broken}); !errors.Is(err, broken) {
		t.Error(err)
	}
	p.leave(key, one)
	select {
	case <-stopped:
		t.Error("stopped although somebody reads")
	case <-time.After(20 * time.Millisecond):
	}
	p.leave(key, two)
	<-stopped
	if len(p.open) != 0 {
		t.Error("still open")
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// Where no file can be written, packs are made without one for a while.
func TestSharedPackWithoutRoom(t *testing.T) {
	p := packs{max: 4}
	key := packKey{3}
	sigpipe := errors.New("signal: broken pipe")
	write := func(whole int) func(context.Context, io.Writer) error {
		return func(ctx context.Context, w io.Writer) error {
			if whole > 0 {
				w.Write([]byte("PACK"))
			}
			if _, err := w.Write([]byte("PACKS")); err != nil {
				return sigpipe // all that git would know
			}
			return nil
		}
	}
	// When something has been sent, it is too late; the reason is the disk.
	pack, err := p.join(t.TempDir(), key, write(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pack.copy(t.Context(), io.Discard); !errors.Is(err, errNoRoom) || errors.Is(err, sigpipe) {
		t.Error("copied what could not be written:", err)
	}
	p.leave(key, pack)
	fresh := packs{max: 4}
	var got bytes.Buffer
	if err := fresh.share(t.Context(), &got, t.TempDir(), key, write(0)); err != nil || got.String() != "PACKS" {
		t.Errorf("%q, %v", got.String(), err)
	}
	if _, err := p.join(t.TempDir(), key, nil); !errors.Is(err, errNoRoom) {
		t.Error(err)
	}
	if _, err := (&packs{}).join("/does/not/exist", key, nil); err == nil {
		t.Error("a file in no directory")
	}
}
