package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
)

// quick pushes by the verb mirror-push (see package sendpack), from what is on record of
// the peer's refs instead of from the peer's word. done says that the sync is over, well
// or not; where it is false the stock way has to be gone, which begins with what
// the peer really has. That is so whenever there is any doubt: a copy that is not
// known yet, a push that was cut off, something that we would not push.
func (r *syncRun) quick(ctx context.Context, head string) (done bool, err error) {
	if r.early == nil || !r.fromRecord(head) {
		return false, nil
	}
	local := r.pulse.pause()
	todo, have, err := r.prepare(ctx)
	local()
	if err != nil || len(todo.divergent) > 0 || todo.approved {
		return ctx.Err() != nil, ctx.Err()
	}
	go r.digest() // while the peer works
	answer, err := r.quickPush(ctx, head, todo, have)
	switch {
	case errors.Is(err, ErrUnreachable) || ctx.Err() != nil:
		return true, err
	case err != nil:
		if !r.heard.Load() { // an older server, or one that refuses: git's own protocol tells more
			r.stock.avoid(r.quickKey(), avoidFor)
		}
		return false, nil
	case answer.Stock != "":
		fmt.Fprintf(r.say, "   %s wants to be pushed to by git's own protocol: %s\n", r.name, answer.Stock)
		return false, nil
	}
	r.early.said.sayTo(r.say)
	r.says, r.heardIt = answer.Note, true
	if err := r.applied(todo, head, answer); err != nil {
		return true, err
	}
	return answer.Digest == r.digest(), nil // else something else is there, too
}

func (r *syncRun) quickKey() string { return r.name + " " + r.src.Config.Name }

// earlyConn is the connection of a quick push, opened while we still find out
// what to push: a session takes the peer longer to begin than that takes us.
type earlyConn struct {
	opened chan struct{}
	conn   *conn // after opened
	err    error
	said   heldBack // an older server says that it has no such verb, which concerns nobody
}

// openEarly opens the connection, where the quick way is likely to be gone: the
// peer has taken a HEAD before, which only our own servers do.
func (r *syncRun) openEarly(ctx context.Context) {
	if known, _ := r.log.Confirmed("HEAD"); !strings.HasPrefix(known, "ref:") || r.stock.avoided(r.quickKey()) || r.doubtful() {
		return
	}
	e := &earlyConn{opened: make(chan struct{})}
	go func() {
		defer close(e.opened)
		e.conn, e.err = r.open(ctx, sendpack.QuickVerb+" '"+r.src.Config.Name+"'", &e.said)
	}()
	r.early = e
}

// doubtful: something is the matter with the copy, and nothing may be changed there
// before the guard has seen what it really has.
func (r *syncRun) doubtful() bool {
	for _, file := range []string{heldFile(r.src.Repo.Dir, r.name), approvedFile(r.src.Repo.Dir, r.name)} {
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return restored(r.src.Repo.Dir, r.name)
}

// dropEarly ends the connection if it was not used.
func (r *syncRun) dropEarly() {
	if r.early == nil {
		return
	}
	if unused, err := r.early.take(); err == nil && unused != nil {
		_ = r.ended(unused, nil) // the peer sees that there is nothing, and ends
		unused.cancel()
	}
}

// heldBack keeps what is said until it is known whether it matters.
type heldBack struct {
	mu   sync.Mutex
	text []byte
}

// maxHeldBack bounds what is kept, in bytes.
const maxHeldBack = 64 << 10

func (h *heldBack) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, p[:min(len(p), maxHeldBack-len(h.text))]...)
	return len(p), nil
}

func (h *heldBack) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.text)
}

func (h *heldBack) sayTo(w io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.Write(h.text)
}

// take waits for the connection; it can be had once.
func (e *earlyConn) take() (*conn, error) {
	<-e.opened
	c := e.conn
	e.conn = nil
	return c, e.err
}

// maxWorking is how many times worker.stall_timeout a peer may be at work on a
// push that it has all of.
const maxWorking = 60

// avoidFor is how long a copy that could not be pushed to quickly is pushed to
// by the stock way alone.
const avoidFor = 10 * time.Minute

// stockMemory knows which copies are not to be pushed to quickly.
type stockMemory struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (m *stockMemory) avoid(key string, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until == nil {
		m.until = map[string]time.Time{}
	}
	m.until[key] = time.Now().Add(d)
}

func (m *stockMemory) avoided(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Before(m.until[key])
}

// fromRecord takes the peer's refs from the record, if there are any. Of one that a push was
// cut off at, or that was refused, that is a guess; a wrong one is refused by the peer.
func (r *syncRun) fromRecord(head string) bool {
	if head == "" || len(r.ours) == 0 {
		return false
	}
	refs, _ := r.log.Guess()
	if len(refs) == 0 {
		return false
	}
	r.format = objectFormat(r.ours)
	r.shown, r.theirs = refs, r.src.Config.MirroredRefs(refs)
	return true
}

// prepare decides what to send and puts it on record.
func (r *syncRun) prepare(ctx context.Context) (todo plan, have []string, err error) {
	if todo, err = r.plan(ctx, nil); err != nil || len(todo.divergent) > 0 || len(todo.commands) == 0 {
		return todo, nil, err
	}
	if have, err = r.haves(ctx, todo.commands, false); err != nil {
		return todo, nil, err
	}
	return todo, have, r.record(todo.commands)
}

// quickPush is the exchange.
func (r *syncRun) quickPush(ctx context.Context, head string, todo plan, have []string) (sendpack.QuickAnswer, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	conn, err := r.early.take()
	if err != nil {
		return sendpack.QuickAnswer{}, err
	}
	defer conn.cancel()
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	var answer sendpack.QuickAnswer
	answered := make(chan error, 1)
	go func() {
		var err error
		if _, err = conn.in.Peek(1); err == nil {
			r.heard.Store(true)
			answer, err = sendpack.ReadQuickAnswer(conn.in)
		}
		stopSending() // of no use any more if it is still going on
		answered <- err
	}()
	sendErr := r.sendQuick(sending, conn, sendpack.QuickRequest{Format: r.format, Head: head, Peer: r.name, Commands: todo.commands}, have)
	if sendErr != nil && ctx.Err() == nil && sending.Err() == nil {
		conn.cancel() // a pack without its end would be waited for
	}
	conn.CloseWrite()
	working := time.AfterFunc(maxWorking*r.stall, conn.cancel) // that it is at work, it may say for ever
	defer working.Stop()
	readErr := <-answered
	if readErr == nil {
		return answer, r.ended(conn, nil)
	}
	return answer, also(sendErr, r.ended(conn, readErr))
}

// sendQuick writes the request and the pack.
func (r *syncRun) sendQuick(ctx context.Context, conn *conn, q sendpack.QuickRequest, have []string) error {
	out := bufio.NewWriterSize(conn.Stream, 64<<10)
	if err := sendpack.WriteQuickRequest(out, q); err != nil {
		return err
	}
	want := wanted(q.Commands, r.zero)
	if len(want) == 0 {
		return out.Flush()
	}
	return sendpack.WholePack(out, func(w io.Writer) error {
		packed := &packOut{w: w, begun: r.pulse.pause()}
		defer packed.begun()
		return r.pack(ctx, packed, want, have, git.PackOptions{})
	})
}

// wanted are the values that commands set.
func wanted(commands []sendpack.Command, zero string) []string {
	var want []string
	for _, c := range commands {
		if c.New != zero {
			want = append(want, c.New)
		}
	}
	return want
}

// applied tells and records that the peer has done everything.
func (r *syncRun) applied(todo plan, head string, answer sendpack.QuickAnswer) error {
	told := teller{say: r.say}
	entries := make([]refset.Entry, 0, len(todo.commands)+1)
	for _, c := range todo.commands {
		told.line(describe(c, r.zero, ""))
		entries = append(entries, refset.Entry{Ref: c.Ref, OID: c.New})
	}
	told.end()
	if answer.Head == head {
		entries = append(entries, refset.Entry{Ref: "HEAD", OID: "ref:" + head})
	} else {
		return fmt.Errorf("HEAD: %s did not set it to %s", r.name, head)
	}
	return r.log.Confirm(entries)
}
