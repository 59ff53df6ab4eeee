package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"mirror-shell/internal/proc"
)

// master is a connection that the ssh program keeps (ControlMaster), for hosts
// that only it can reach.
type master struct {
	all    *Connections
	host   string
	socket string
	reason string // why not in this process

	once sync.Once
	over chan struct{} // closed by shut
}

// maxSockets is how long the path of the sockets' directory may be: a socket's
// path has 108 bytes, of which ssh needs 17 while it makes the socket, and we
// the rest for a number.
const maxSockets = 108 - 1 - 17 - len("/4294967295")

// newSocket returns the path of a control socket. The directory is private to
// this process: masters that two processes share would end with the first. The
// path is a new one each time, as the last master may still live; with %C, it
// would be the same.
func (c *Connections) newSocket() (string, error) {
	dir, err := c.socketsDir()
	return filepath.Join(dir, strconv.Itoa(int(c.masters.Add(1)))), err
}

func (c *Connections) socketsDir() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sockets != "" {
		return c.sockets, nil
	}
	errs := []error{errors.New("no directory for control sockets")}
	for _, parent := range []string{c.opt.ControlDir, os.TempDir(), "/tmp"} {
		if parent == "" {
			continue
		}
		dir, err := os.MkdirTemp(parent, "ssh-") // mode 0700
		if err == nil && len(dir) > maxSockets {
			os.Remove(dir)
			err = fmt.Errorf("%s is too long", dir)
		}
		if err == nil {
			c.sockets = dir
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// startMaster has the ssh program make a connection and keep it in the
// background. ControlPersist ends it when this process cannot.
func (h *keptHost) startMaster(ctx context.Context, settings sshSettings, reason string) (*master, error) {
	socket, err := h.newSocket()
	if err != nil {
		return nil, err
	}
	seconds := func(d time.Duration) string { return strconv.Itoa(max(1, int(d/time.Second))) }
	options := []string{"-N", "-f", "-oControlMaster=yes", "-oControlPath=" + socket, "-oControlPersist=" + seconds(h.opt.IdleTimeout),
		"-oServerAliveInterval=" + seconds(h.opt.KeepAlive), "-oServerAliveCountMax=3"}
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C"), h.ssh(h.name, "", options...)...)
	cmd.Args = cmd.Args[:len(cmd.Args)-1] // no command
	if _, err := proc.Run(cmd); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, fmt.Errorf("%w (the ssh program is used for %s: %s)", err, h.name, reason)
	}
	m := &master{all: h.Connections, host: h.name, socket: socket, reason: reason, over: make(chan struct{})}
	if !h.spawn(m.mind) {
		m.exit()
		return nil, errClosed
	}
	return m, nil
}

// mind ends the master when it is not needed any more.
func (m *master) mind() {
	select {
	case <-m.over:
	case <-m.all.ctx.Done():
	}
	m.exit()
}

// exitTimeout bounds how long a master may take to end.
const exitTimeout = 5 * time.Second

func (m *master) exit() {
	ctx, cancel := context.WithTimeout(context.Background(), exitTimeout)
	defer cancel()
	argv := m.all.ssh(m.host, "", "-O", "exit", "-oControlPath="+m.socket)
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C"), argv[:len(argv)-1]...)
	_, _ = proc.Run(cmd) // fails when it has ended already
}

// alive implements carrier.
func (m *master) alive() bool {
	select {
	case <-m.over:
		return false
	default:
	}
	_, err := os.Stat(m.socket)
	return err == nil
}

// answers reports whether somebody listens on the socket; a master that was
// killed leaves it behind.
func (m *master) answers() bool {
	conn, err := net.DialTimeout("unix", m.socket, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// shut implements carrier.
func (m *master) shut(error) { m.once.Do(func() { close(m.over) }) }

// start implements carrier. When the master is gone or has no room, ssh makes a
// connection of its own.
func (m *master) start(ctx context.Context, command string, stderr io.Writer, slot *slot) (Stream, error) {
	if !m.answers() {
		m.shut(nil)
		slot.free()
		return nil, errors.New("the shared connection has ended")
	}
	s := &masterStream{ctx: ctx, all: m.all, stderr: &outlet{w: stderr}, ended: make(chan struct{}), given: make(chan struct{})}
	s.cmd = proc.Command(ctx, proc.Env("LC_ALL=C"), m.all.ssh(m.host, command, "-oControlMaster=no", "-oControlPath="+m.socket)...)
	if err := s.begin(slot); err != nil {
		slot.free()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: start ssh: %w", ErrUnreachable, err)
	}
	slot.granted()
	return s, nil
}

// masterStream is a command that ssh runs over a master.
type masterStream struct {
	ctx    context.Context // of the command, as in exec.Cmd
	all    *Connections
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *os.File
	stderr *outlet
	unhook func()

	ended chan struct{}
	err   error // of the command; to be read when ended is closed
	once  sync.Once
	given chan struct{} // closed when the command was given up
	why   error         // of given
}

func (s *masterStream) begin(slot *slot) (err error) {
	s.cmd.Stderr = s.stderr
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return err
	}
	// Not StdoutPipe, which Wait closes before everything was read.
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close()
	s.stdout, s.cmd.Stdout = read, write
	if err := s.cmd.Start(); err != nil {
		read.Close()
		return err
	}
	ours := context.AfterFunc(s.ctx, func() { s.abandon(s.ctx.Err()) })
	all := context.AfterFunc(s.all.ctx, func() { s.abandon(unreachable(errClosed)) })
	s.unhook = func() { ours(); all() }
	wait := func() {
		s.err = s.cmd.Wait()
		s.unhook()
		slot.free()
		close(s.ended)
	}
	if !s.all.spawn(wait) {
		s.abandon(unreachable(errClosed))
		wait()
	}
	return nil
}

// abandon ends the command. Nobody who reads or writes is kept waiting.
func (s *masterStream) abandon(why error) {
	s.once.Do(func() {
		s.why = why
		s.stderr.shut()
		s.stdout.Close()
		s.stdin.Close()
		close(s.given)
		_ = s.cmd.Cancel() // fails when it has ended
	})
}

// Read implements Stream.
func (s *masterStream) Read(p []byte) (int, error) { return s.stdout.Read(p) }

// Write implements Stream.
func (s *masterStream) Write(p []byte) (int, error) { return s.stdin.Write(p) }

// CloseWrite implements Stream.
func (s *masterStream) CloseWrite() error { return s.stdin.Close() }

// Wait implements Stream.
func (s *masterStream) Wait() error {
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
	switch {
	case s.err != nil && s.ctx.Err() != nil: // exec.Cmd may be sooner than we
		return s.failed(s.ctx.Err())
	case s.err == nil || errors.Is(s.err, exec.ErrWaitDelay): // the latter: see OpenSSH
		return nil
	case proc.ExitCode(s.err) == sshFailed:
		return unreachable(s.failed(s.err))
	}
	return s.failed(s.err)
}

func (s *masterStream) failed(err error) error {
	return &proc.Error{Program: "ssh", Stderr: s.stderr.String(), Err: err}
}
