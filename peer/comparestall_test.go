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

// A peer that has told all, and goes on a byte at a time, holds nobody up for longer than one that is silent.
func TestTrickleAfterEnd(t *testing.T) {
	t.Parallel()
	const stall = 200 * time.Millisecond
	p := peer.NewSSH(peerName, "frodo", stall, openFunc(func(ctx context.Context) peer.Stream {
		ctx, cancel := context.WithCancel(ctx)
		return answer(ctx, cancel, func(_ io.Reader, out io.Writer) error {
			_, err := io.WriteString(out, strings.Repeat("0a", 32)+" - ip1\nEND 1 "+peerName+"\nNOTE ip1 ")
			for err == nil {
				time.Sleep(stall / 10)
				_, err = io.WriteString(out, "x")
			}
			return err
		})
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 50*stall)
	defer cancel()
	began := time.Now()
	_, err := p.(peer.Comparer).Compare(ctx)
	if !errors.Is(err, peer.ErrUnreachable) || ctx.Err() != nil {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}
