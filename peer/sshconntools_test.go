package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// keep returns Connections that are closed, and have left nothing behind, at
// the test's end.
func keep(t testing.TB, s *sshd, opt Options) *Connections {
	t.Helper()
	if opt.ConfigFile == "" {
		opt.ConfigFile = s.dir + "/ssh_config"
	}
	running := goleak.IgnoreCurrent()
	c := NewConnections(opt)
	t.Cleanup(func() {
		c.Close()
		if _, ok := t.(*testing.B); ok { // which keeps several
			return
		}
		if err := goleak.Find(running); err != nil {
			t.Error(err)
		}
	})
	return c
}

// serveConns hands each connection that l accepts to serve, and closes it afterwards. At the test's end l is closed, and all
// that were served have ended.
func serveConns(t testing.TB, l net.Listener, serve func(net.Conn)) {
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { l.Close() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
}

// forwarder passes TCP connections on until it is told to cut or to hang them.
type forwarder struct {
	net.Listener
	target   string
	accepted atomic.Int32
	hold     atomic.Bool // new connections get no further

	mu    sync.Mutex
	pairs []*pair
}

type pair struct {
	in, out net.Conn
	hang    atomic.Bool
}

func newForwarder(t testing.TB, target string) *forwarder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{Listener: l, target: target}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			f.accepted.Add(1)
			out, err := net.Dial("tcp", f.target)
			if err != nil {
				in.Close()
				continue
			}
			p := &pair{in: in, out: out}
			p.hang.Store(f.hold.Load())
			f.mu.Lock()
			f.pairs = append(f.pairs, p)
			f.mu.Unlock()
			all.Go(func() { p.pass(in, out) })
			all.Go(func() { p.pass(out, in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.cut()
		all.Wait()
	})
	return f
}

func (p *pair) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if p.hang.Load() {
			if err != nil {
				return
			}
			continue // swallow it
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (f *forwarder) port() int { return f.Addr().(*net.TCPAddr).Port }

// cut closes all connections.
func (f *forwarder) cut() { f.each(func(p *pair) { p.in.Close(); p.out.Close() }) }

// hang lets all connections stand and passes nothing on.
func (f *forwarder) hang() { f.each(func(p *pair) { p.hang.Store(true) }) }

func (f *forwarder) each(do func(*pair)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pairs {
		do(p)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 30 s: %s", what)
		}
	}
}

// run runs a command on frodo with input, and returns its output, what it wrote
// to its standard error, and how it ended.
func run(ctx context.Context, c Transport, command, input string) (string, string, error) {
	var stderr bytes.Buffer
	s, err := c.Open(ctx, "frodo", command, &stderr)
	if err != nil {
		return "", "", err
	}
	var wrote sync.WaitGroup
	wrote.Go(func() {
		_, _ = io.WriteString(s, input)
		_ = s.CloseWrite()
	})
	out, readErr := io.ReadAll(s)
	err = s.Wait()
	wrote.Wait()
	return string(out), stderr.String(), errors.Join(err, readErr)
}

// say runs a command that must go well.
func say(t testing.TB, c Transport, command string) string {
	t.Helper()
	out, _, err := run(t.Context(), c, command, "")
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimSpace(out)
}

// mustFail runs a command that must find frodo unreachable, and wants each of
// the texts in the error, which is one line.
func mustFail(t testing.TB, c Transport, texts ...string) {
	t.Helper()
	_, _, err := run(t.Context(), c, "true", "")
	if !errors.Is(err, ErrUnreachable) {
		t.Fatalf("not unreachable: %v", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in: %v", text, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("several lines: %v", err)
	}
	t.Log(err)
}

// status is what proc.ExitCode is to find.
func status(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}
