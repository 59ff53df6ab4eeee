package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mirror-shell/internal/proc"
)

// Transport runs one command on a server and gives its streams. It is the seam
// between what is said to a peer and how the peer is reached.
type Transport interface {
	// Open starts command on host. What the far side writes to its standard
	// error goes to stderr. The stream ends when ctx does.
	Open(ctx context.Context, host, command string, stderr io.Writer) (Stream, error)
}

// Stream is a running command: Read gets its standard output, Write goes to its
// standard input.
type Stream interface {
	io.ReadWriter
	// CloseWrite ends the command's input.
	CloseWrite() error
	// Wait returns how the command ended; everything must have been read. The
	// error wraps ErrUnreachable when it was the connection that failed.
	Wait() error
}

// OpenSSH reaches peers with the ssh program, so that the account's ssh_config
// (host aliases, keys, jump hosts) and known_hosts apply.
type OpenSSH struct{}

// Open implements Transport.
func (OpenSSH) Open(ctx context.Context, host, command string, stderr io.Writer) (Stream, error) {
	tail := &proc.Tail{}
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C"), proc.SSH(host, command)...)
	cmd.Stderr = io.MultiWriter(tail, stderr)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: start ssh: %w", ErrUnreachable, err)
	}
	// ssh is asked to end, but a helper of its that keeps the pipes open is not.
	unhook := context.AfterFunc(ctx, func() {
		stdin.Close()
		stdout.Close()
	})
	return &sshStream{stdin, stdout, ctx, cmd, tail, unhook}, nil
}

type sshStream struct {
	io.WriteCloser
	io.Reader
	ctx    context.Context // of the command, as in exec.Cmd
	cmd    *exec.Cmd
	tail   *proc.Tail
	unhook func() bool
}

func (s *sshStream) CloseWrite() error { return s.WriteCloser.Close() }

// sshFailed is ssh's own exit status for a connection that could not be made or
// was lost; the far side's command keeps the others.
const sshFailed = 255

func (s *sshStream) Wait() error {
	defer s.unhook()
	err := s.cmd.Wait()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		// The latter: it ended well, but somebody (a shared connection's master) has
		// inherited its standard error.
		return nil
	}
	err = &proc.Error{Program: "ssh", Stderr: withoutBanner(s.tail.String()), Err: err}
	// Ended by us, ssh exits with the same status as when it cannot connect.
	if proc.ExitCode(err) == sshFailed && s.ctx.Err() == nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}

// withoutBanner leaves out the frame of @ in which ssh announces a changed host
// key: in one line it would hide what it announces.
func withoutBanner(stderr string) string {
	if !strings.Contains(stderr, "@@@") {
		return stderr
	}
	var kept strings.Builder
	for line := range strings.Lines(stderr) {
		if strings.Trim(line, "@ \r\n") != "" {
			kept.WriteString(strings.TrimPrefix(strings.TrimSuffix(strings.TrimSpace(line), "@"), "@") + "\n")
		}
	}
	return kept.String()
}

// pulse cancels a context when nothing has moved for a while. The measure is
// bytes, not total time: a push of many gigabytes may take hours, a dead
// connection must not take one. While we ourselves work, nothing can move: that
// time does not count.
type pulse struct {
	began  time.Time
	at     atomic.Int64 // of the last beat, nanoseconds since began: a clock that is set must not end a push
	paused atomic.Int64 // how many works of our own are under way
	own    atomic.Int64 // nanoseconds that they have taken, by themselves or together
	sent   atomic.Int64 // bytes written to the peer
	over   atomic.Bool  // no beat counts any more; see last
	refs   atomic.Int64 // how many the peer is busy with; see busy
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// errStalled is the cause of a context that a pulse cancelled.
var errStalled = errors.New("stalled")

// watch returns a context that ends, with a cause that says so, after nothing
// beat for limit; stop must be called.
func watch(ctx context.Context, limit time.Duration) (context.Context, *pulse) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &pulse{began: time.Now(), cancel: cancel, done: make(chan struct{})}
	p.beat()
	go func() {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		for {
			select {
			case <-p.done:
				return
			case <-timer.C:
			}
			if p.paused.Load() > 0 {
				p.beat()
			}
			idle, patience, why := time.Since(p.began)-time.Duration(p.at.Load()), limit, "worker.stall_timeout"
			if n := p.refs.Load(); n > 0 {
				patience += min(time.Duration(n)*perRef, max(maxWorking*limit, maxPart*perRef))
				why += fmt.Sprintf(", and more for %d refs", n)
			}
			if idle >= patience {
				cancel(fmt.Errorf("%w: nothing moved for %s (%s)", errStalled, patience, why))
				return
			}
			timer.Reset(patience - idle)
		}
	}()
	return ctx, p
}

// perRef is how long a peer may work on each ref of a push without a byte. git runs
// the update hook for one ref after the other, and gives a sign of life only when a single
// one takes long. gitolite's starts perl: a thousand refs took 161 s on a busy machine, and
// more than that it is not sent at once (parts.go).
const perRef = time.Second

// busy says that the peer has all of a push of n refs and works on it; 0 ends that.
func (p *pulse) busy(n int) {
	p.refs.Store(int64(n))
	p.beat()
}

func (p *pulse) beat() {
	if !p.over.Load() {
		p.at.Store(int64(time.Since(p.began)))
	}
}

// last is the last beat that counts: what is still to come has as long as a silence may last, since a few bytes
// now and then would else hold us up for as long as the peer likes.
func (p *pulse) last() {
	p.beat()
	p.over.Store(true)
}

// pause stops the clock until the function it returns is called, once or more often.
func (p *pulse) pause() (resume func()) {
	p.paused.Add(1)
	began := time.Now()
	return sync.OnceFunc(func() {
		p.own.Add(int64(time.Since(began)))
		p.beat() // first, or the time until now would count
		p.paused.Add(-1)
	})
}

func (p *pulse) stop() {
	close(p.done)
	p.cancel(nil)
}

// beating counts every byte that moves through it as a beat.
type beating struct {
	Stream
	pulse *pulse
}

func (b beating) Read(p []byte) (int, error) {
	n, err := b.Stream.Read(p)
	b.pulse.beat()
	return n, err
}

// Write goes in small steps: one large Write into a slow connection would look
// like a stall.
func (b beating) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var m int
		m, err = b.Stream.Write(p[:min(len(p), 32<<10)])
		b.pulse.sent.Add(int64(m))
		b.pulse.beat()
		n, p = n+m, p[m:]
	}
	return n, err
}
