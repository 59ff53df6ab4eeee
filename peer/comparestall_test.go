package peer_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"mirror-shell/peer"
)

// openFunc is a transport that is a function.
type openFunc func(ctx context.Context) peer.Stream

func (f openFunc) Open(ctx context.Context, _, _ string, _ io.Writer) (peer.Stream, error) {
	return f(ctx), nil
}

// A peer that goes on a byte at a time holds nobody up: not for longer than one that is silent when it has told all, and
// before that not for ever.
func TestCompareTrickle(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text  string
		stall time.Duration
		most  time.Duration
	}{
		"after the end": {strings.Repeat("0a", 32) + " - ip1\nEND 1 " + peerName + "\nNOTE ip1 ", 200 * time.Millisecond, 10 * time.Second},
		"before":        {"! ", 50 * time.Millisecond, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := peer.NewSSH(peerName, "frodo", c.stall, openFunc(func(ctx context.Context) peer.Stream {
				ctx, cancel := context.WithCancel(ctx)
				return answer(ctx, cancel, func(_ io.Reader, out io.Writer) error {
					_, err := io.WriteString(out, c.text)
					for err == nil {
						time.Sleep(c.stall / 10)
						_, err = io.WriteString(out, "x")
					}
					return err
				})
			}))
			ctx, cancel := context.WithTimeout(t.Context(), c.most)
			defer cancel()
			began := time.Now()
			_, err := p.(peer.Comparer).Compare(ctx)
			if !errors.Is(err, peer.ErrUnreachable) || ctx.Err() != nil {
				t.Errorf("after %s: %v", time.Since(began), err)
			}
		})
	}
}

// Digests come in blocks, so a connection is mostly lost in the middle of a line: that is no line that makes no sense.
func TestCompareCut(t *testing.T) {
	t.Parallel()
	p := peer.NewSSH(peerName, "frodo", time.Minute, openFunc(func(ctx context.Context) peer.Stream {
		ctx, cancel := context.WithCancel(ctx)
		return answer(ctx, cancel, func(_ io.Reader, out io.Writer) error {
			_, err := io.WriteString(out, strings.Repeat("0a", 32)+" - ip1\n0a0a")
			return errors.Join(peer.ErrUnreachable, err)
		})
	}))
	if _, err := p.(peer.Comparer).Compare(t.Context()); !errors.Is(err, peer.ErrUnreachable) {
		t.Error(err)
	}
}
