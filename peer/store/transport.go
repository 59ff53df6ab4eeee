package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// transport sends one request of the S3 client: it counts it, keeps to the limits and gives
// up one that stalls. A time limit for the whole would fail large blobs on slow
// lines; what counts is that bytes move.
type transport struct {
	base   http.RoundTripper
	limits *limits
	stall  time.Duration
}

// errStalled is a request that moved no byte for Options.Stall.
var errStalled = errors.New("nothing has moved for too long")

func newHTTPClient(o Options, l *limits) *http.Client {
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: min(o.Stall, 30*time.Second)}).DialContext,
		TLSHandshakeTimeout:   min(o.Stall, 30*time.Second),
		ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost:   o.Concurrency + 2, // transfers, and what goes beside them
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
	}
	return &http.Client{
		Transport: &transport{base: base, limits: l, stall: o.Stall},
		// A signature is for one address. Whoever redirects us is the wrong endpoint or
		// region, and the error says so.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := t.limits.request(req.Context()); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{after: t.stall, fire: func() { cancel(fmt.Errorf("%w (%v)", errStalled, t.stall)) }}
	out, blob := req.WithContext(ctx), movesBlob(req)
	out.GetBody = nil // an attempt that we do not see is not counted
	var body *sending
	if req.Body != nil && req.Body != http.NoBody {
		body = &sending{ReadCloser: req.Body, t: t, ctx: ctx, watch: w, blob: blob, closed: make(chan struct{})}
		out.Body = body
	}
	w.start()
	resp, err := t.base.RoundTrip(out)
	w.answered()
	if err != nil {
		err = stallOf(ctx, err)
		cancel(nil)
		body.wait()
		return nil, err
	}
	blob = blob && req.Method == http.MethodGet && resp.StatusCode < 300
	resp.Body = &receiving{ReadCloser: resp.Body, t: t, ctx: ctx, cancel: cancel, watch: w, blob: blob, body: body}
	return resp, nil
}

// movesBlob reports whether a request's or answer's body is content, and no XML.
func movesBlob(req *http.Request) bool {
	if req.Method != http.MethodPut && req.Method != http.MethodGet {
		return false
	}
	q, err := url.ParseQuery(req.URL.RawQuery)
	return err == nil && !q.Has("retention") && !q.Has("list-type") && !q.Has("versions")
}

// stallOf returns why a request's own context ended, when that was the watch.
func stallOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// sending is a request's body on its way. The clock runs while the connection is to
// take bytes, and not while we wait for more of them or for the rate limit.
type sending struct {
	io.ReadCloser
	t     *transport
	ctx   context.Context
	watch *watch
	blob  bool

	once   sync.Once
	closed chan struct{}
}

// wait returns when the connection has let go of the body. An answer, or an error, may come
// before that, and what is in the body may be overwritten after it.
func (b *sending) wait() {
	if b != nil {
		<-b.closed
	}
}

func (b *sending) Close() error {
	defer b.once.Do(func() { close(b.closed) })
	return b.ReadCloser.Close()
}

func (b *sending) Read(p []byte) (int, error) {
	b.watch.stop()
	defer b.watch.startSending()
	n, err := b.ReadCloser.Read(b.t.limits.part(p))
	if b.blob {
		b.t.limits.count.sent.Add(int64(n))
	}
	if lerr := b.t.limits.moved(b.ctx, n); err == nil {
		err = lerr
	}
	return n, err
}

// receiving is an answer's body. The clock runs only while somebody wants bytes: a slow
// reader is no stall.
type receiving struct {
	io.ReadCloser
	t      *transport
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *watch
	blob   bool
	body   *sending // of the request; may be nil
}

func (b *receiving) Read(p []byte) (int, error) {
	b.watch.start()
	n, err := b.ReadCloser.Read(b.t.limits.part(p))
	b.watch.stop()
	if b.blob {
		b.t.limits.count.received.Add(int64(n))
	}
	if err != nil && err != io.EOF {
		return n, stallOf(b.ctx, err)
	}
	if lerr := b.t.limits.moved(b.ctx, n); err == nil {
		err = lerr
	}
	return n, err
}

func (b *receiving) Close() error {
	err := b.ReadCloser.Close()
	b.watch.stop()
	b.cancel(nil)
	b.body.wait()
	return err
}

// watch calls fire when it has been running for a while without being started again.
type watch struct {
	after time.Duration
	fire  func()

	mu    sync.Mutex
	timer *time.Timer
	sent  bool // the answer is there: what is still sent does not count any more
}

func (w *watch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		w.timer = time.AfterFunc(w.after, w.fire)
		return
	}
	w.timer.Reset(w.after)
}

func (w *watch) startSending() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.sent {
		w.timer.Reset(w.after)
	}
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *watch) answered() {
	w.stop()
	w.mu.Lock()
	w.sent = true
	w.mu.Unlock()
	w.stop() // a Read may have started it between the two
}
