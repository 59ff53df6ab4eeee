package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"mirror-shell/internal/proc"
)

// keptStream is a command on a keptConn.
//
// The library's channel has no way to end a Read or a Write before the peer
// agrees, which one that hangs never does. Each direction therefore has a
// goroutine and a pipe between the channel and the caller.
type keptStream struct {
	conn   *keptConn
	ctx    context.Context // of the command, as in exec.Cmd
	slot   *slot
	ch     ssh.Channel
	stdout *io.PipeReader
	stdin  *io.PipeWriter
	stderr *outlet
	output *io.PipeWriter // the other end of stdout
	input  *io.PipeReader // the other end of stdin
	ended  chan struct{}  // closed when the command has ended and all output was passed on
	given  chan struct{}  // closed when the command was given up
	once   sync.Once      // of given
	why    error          // of given; to be read when that is closed
	unhook func()         // ends what waits for ctx

	// Of the command's end; to be read when ended is closed.
	status *uint32
	signal string
	cut    bool // the connection broke before the command's end: output may be missing
}

// exitError is a command's exit status that is not 0. It has what proc.ExitCode
// asks for.
type exitError struct{ status int }

func (e *exitError) Error() string { return "exit status " + strconv.Itoa(e.status) }

// ExitCode returns the exit status.
func (e *exitError) ExitCode() int { return e.status }

// start implements carrier.
func (k *keptConn) start(ctx context.Context, command string, stderr io.Writer, slot *slot) (Stream, error) {
	type result struct {
		stream *keptStream
		err    error
	}
	results := make(chan result) // nobody takes it when ctx has ended
	opened := k.all.spawn(func() {
		stream, err := k.exec(ctx, command, stderr, slot)
		select {
		case results <- result{stream, err}:
		case <-ctx.Done():
		}
	})
	if !opened {
		slot.free()
		return nil, errClosed
	}
	select {
	case r := <-results:
		if r.err != nil {
			return nil, r.err
		}
		return r.stream, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// exec opens a channel and runs the command there. It blocks for as long as
// the peer does.
func (k *keptConn) exec(ctx context.Context, command string, stderr io.Writer, slot *slot) (*keptStream, error) {
	ch, requests, err := k.openChannel()
	if err != nil {
		return nil, k.refused(err, slot)
	}
	slot.granted()
	s := &keptStream{conn: k, ctx: ctx, slot: slot, ch: ch, stderr: &outlet{w: stderr}, ended: make(chan struct{}), given: make(chan struct{})}
	s.stdout, s.output = io.Pipe()
	s.input, s.stdin = io.Pipe()
	// Nobody who reads or writes is kept waiting when one of these ends.
	ours := context.AfterFunc(ctx, func() { s.abandon(ctx.Err()) })
	all := context.AfterFunc(k.all.ctx, func() { s.abandon(unreachable(errClosed)) })
	s.unhook = func() { ours(); all() }
	if !k.all.spawn(func() { s.run(requests) }) {
		s.unhook()
		slot.free()
		return nil, errClosed
	}
	for _, variable := range k.env {
		_, _ = ch.SendRequest("env", false, ssh.Marshal(&struct{ Name, Value string }{variable[0], variable[1]})) // exec fails if this does
	}
	taken, err := ch.SendRequest("exec", true, ssh.Marshal(&struct{ Command string }{command}))
	if err == nil && taken {
		return s, nil
	}
	s.abandon(io.ErrClosedPipe)
	if err == nil {
		// sshd's answer when it could not start a process, for one.
		return nil, fmt.Errorf("%w: %s takes no command: look at the log there", ErrUnreachable, k.host)
	}
	k.shut(k.lost(err))
	return nil, k.lost(err)
}

// openChannel opens a channel.
//
// The library (v0.58) does not report the first write that fails. A channel that
// it opens on a connection that has just ended therefore waits for its answer
// for ever. Hence the look at the wire, which knows first; should the connection
// end in the microsecond after that, the library's goroutine is given up.
func (k *keptConn) openChannel() (ssh.Channel, <-chan *ssh.Request, error) {
	if !k.alive() {
		return nil, nil, io.EOF
	}
	opened := make(chan struct{})
	var c ssh.Channel
	var r <-chan *ssh.Request
	var failed error
	go func() {
		defer close(opened)
		c, r, failed = k.client.OpenChannel("session", nil)
	}()
	select {
	case <-opened:
		return c, r, failed
	case <-k.gone:
		return nil, nil, io.EOF
	}
}

// refused gives back the slot of a channel that was not opened.
func (k *keptConn) refused(err error, slot *slot) error {
	var failure *ssh.OpenChannelError
	if errors.As(err, &failure) {
		slot.refuse()
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	k.shut(k.lost(err))
	slot.free()
	return k.lost(err)
}

// lost says why the connection has ended, which err only shows.
func (k *keptConn) lost(err error) error {
	if why := k.ended(); why != nil {
		return why
	}
	return fmt.Errorf("the connection to %s was lost: %w", k.host, err)
}

// run moves the command's bytes until it has ended.
func (s *keptStream) run(requests <-chan *ssh.Request) {
	var output, all sync.WaitGroup
	output.Go(func() {
		_, _ = io.Copy(s.output, s.ch)
		_, _ = io.Copy(io.Discard, s.ch) // nobody reads any more
		s.output.Close()
	})
	output.Go(func() { _, _ = io.Copy(s.stderr, s.ch.Stderr()) })
	all.Go(func() {
		if _, err := io.Copy(s.ch, s.input); err != nil {
			s.input.CloseWithError(io.ErrClosedPipe)
			return
		}
		_ = s.ch.CloseWrite() // fails when the command has ended
	})
	for r := range requests {
		s.told(r)
	}
	// A peer that closes the connection in good order after its last word has
	// not cut anything off.
	broken := s.conn.wire.broken.Load()
	s.cut = broken != nil && !errors.Is(*broken, io.EOF)
	s.slot.free()
	s.input.CloseWithError(io.ErrClosedPipe)
	output.Wait()
	s.unhook()
	close(s.ended)
	all.Wait()
}

// told takes in what the peer says about the command.
func (s *keptStream) told(r *ssh.Request) {
	switch r.Type {
	case "exit-status":
		var end struct{ Status uint32 }
		if ssh.Unmarshal(r.Payload, &end) == nil {
			s.status = &end.Status
		}
	case "exit-signal":
		var end struct {
			Name          string
			Dumped        bool
			Message, Lang string
		}
		if ssh.Unmarshal(r.Payload, &end) == nil {
			s.signal = end.Name
		}
	}
	if r.WantReply {
		_ = r.Reply(false, nil) // fails when the connection has ended
	}
}

// closeGrace is how long the peer may take to close a channel.
const closeGrace = 2 * time.Second

// abandon ends the command, whatever the peer does.
func (s *keptStream) abandon(why error) {
	s.once.Do(func() {
		s.why = why
		s.stderr.shut()
		s.output.CloseWithError(why)
		s.input.CloseWithError(why)
		close(s.given)
		s.conn.all.spawn(s.close)
	})
}

// close closes the channel, and gives the connection up for new commands when
// the peer does not do the same soon.
func (s *keptStream) close() {
	var closing sync.WaitGroup
	defer closing.Wait()
	closing.Go(func() { _ = s.ch.Close() }) // blocks while the connection is full
	timer := time.NewTimer(closeGrace)
	defer timer.Stop()
	select {
	case <-s.ended:
	case <-timer.C:
		s.slot.stick()
	}
}

// Read implements Stream.
func (s *keptStream) Read(p []byte) (int, error) { return s.stdout.Read(p) }

// Write implements Stream.
func (s *keptStream) Write(p []byte) (int, error) { return s.stdin.Write(p) }

// CloseWrite implements Stream.
func (s *keptStream) CloseWrite() error { return s.stdin.Close() }

// Wait implements Stream.
func (s *keptStream) Wait() error {
	s.stdout.Close()
	select {
	case <-s.ended:
	case <-s.given:
	}
	select {
	case <-s.given: // first, as it makes the command end
		return s.failed(s.why)
	default:
	}
	switch why := s.conn.ended(); {
	case s.status != nil && s.cut:
		return unreachable(s.failed(s.conn.lost(errors.New("in the middle of a command"))))
	case s.status != nil && *s.status != 0:
		return s.failed(&exitError{int(*s.status)})
	case s.status != nil:
		return nil
	case s.signal != "":
		return s.failed(fmt.Errorf("signal %s ended the command on %s", proc.OneLine(s.signal, 20), s.conn.host)) // the server itself is well
	case why != nil:
		return unreachable(s.failed(why))
	}
	return unreachable(s.failed(fmt.Errorf("%s ended the session without an exit status", s.conn.host)))
}

func (s *keptStream) failed(err error) error {
	return &proc.Error{Program: "ssh", Stderr: s.stderr.String(), Err: err}
}

// outlet passes a command's standard error on until it is shut, and keeps its
// end.
type outlet struct {
	mu   sync.Mutex
	w    io.Writer // nil when shut
	tail proc.Tail
}

func (o *outlet) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.w != nil {
		_, _ = o.tail.Write(p)
		_, _ = o.w.Write(p) // that nobody listens is no reason to stop
	}
	return len(p), nil
}

func (o *outlet) shut() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.w = nil
}

// String returns what was kept.
func (o *outlet) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tail.String()
}
