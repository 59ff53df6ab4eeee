package store

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// limits are what one Store's operations share: how fast, how many at a time. It
// counts, too.
type limits struct {
	bytes    *rate.Limiter // nil: no limit
	requests *rate.Limiter // nil: no limit
	slots    chan struct{} // one per transfer

	count struct{ requests, sent, received atomic.Int64 }
}

// chunk is how much is moved at a time when the rate is limited, in bytes: little enough
// for an even flow.
const chunk = 32 << 10

func newLimits(o Options) *limits {
	l := &limits{slots: make(chan struct{}, o.Concurrency)}
	if o.BytesPerSecond > 0 {
		l.bytes = rate.NewLimiter(rate.Limit(o.BytesPerSecond), int(min(o.BytesPerSecond, chunk)))
	}
	if o.RequestsPerSecond > 0 {
		l.requests = rate.NewLimiter(rate.Limit(o.RequestsPerSecond), 1)
	}
	return l
}

// transfer waits for a place among the transfers. What it returns gives it back, once.
func (l *limits) transfer(ctx context.Context) (release func(), err error) {
	select {
	case l.slots <- struct{}{}:
		return sync.OnceFunc(func() { <-l.slots }), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// request waits until one more may be made, and counts it.
func (l *limits) request(ctx context.Context) error {
	if l.requests != nil {
		if err := l.requests.Wait(ctx); err != nil {
			return fmt.Errorf("wait for the limit of requests per second: %w", err)
		}
	}
	l.count.requests.Add(1)
	return nil
}

// part shortens a buffer to what may be moved in one go.
func (l *limits) part(p []byte) []byte {
	if l.bytes != nil && len(p) > l.bytes.Burst() {
		return p[:l.bytes.Burst()]
	}
	return p
}

// moved waits until n more bytes may be moved.
func (l *limits) moved(ctx context.Context, n int) error {
	if l.bytes == nil || n <= 0 {
		return nil
	}
	return l.bytes.WaitN(ctx, n)
}

func (l *limits) Counts() Counts {
	return Counts{Requests: l.count.requests.Load(), Sent: l.count.sent.Load(), Received: l.count.received.Load()}
}

// exact is a blob's content, which has to be as long as was said.
type exact struct {
	r          io.Reader
	size, left int64
}

func (e *exact) Read(p []byte) (int, error) {
	if e.left == 0 {
		var one [1]byte
		switch n, err := io.ReadFull(e.r, one[:]); {
		case n > 0:
			return 0, fmt.Errorf("the content is longer than the %d bytes that were announced", e.size)
		default:
			return 0, err // io.EOF is what should come
		}
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		return n, fmt.Errorf("the content ends after %d of %d bytes: %w", e.size-e.left, e.size, io.ErrUnexpectedEOF)
	}
	if err == io.EOF {
		err = nil // the next call says it
	}
	return n, err
}

// open opens a blob's content for one attempt.
func (b Blob) open() (*exact, io.Closer, error) {
	if b.Size < 0 {
		return nil, nil, fmt.Errorf("a blob of %d bytes cannot be", b.Size)
	}
	r, err := b.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("open the content: %w", err)
	}
	return &exact{r: r, size: b.Size, left: b.Size}, r, nil
}
