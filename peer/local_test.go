package peer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/peer/peertest"
	"mirror-shell/shell"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// local is a transport to a server in this process, which answers the commands
// that a sync sends: a mirror-shell server, or one that only knows git.
type local struct {
	copy    *peertest.Repo
	foreign bool
	quick   bool          // has the verb mirror-push
	wild    *fakeGitolite // set: a gitolite
	// wrap, when set, may put a fault around the stream of a command.
	wrap func(ctx context.Context, verb string, s *stream)

	mu     sync.Mutex
	opened []string // verbs, in order
}

func (l *local) Open(ctx context.Context, host, command string, stderr io.Writer) (peer.Stream, error) {
	verb, _, _ := strings.Cut(command, " ")
	l.mu.Lock()
	l.opened = append(l.opened, verb)
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	var s *stream
	switch {
	case l.wild != nil && (verb != "git-receive-pack" || l.wild.missing):
		s = answer(ctx, cancel, func(in io.Reader, out io.Writer) error { return l.wild.run(command, in, out, stderr) })
	case verb == "git-receive-pack":
		s = l.receivePack(ctx, cancel, stderr)
	case verb == "mirror-meta" && !l.foreign:
		s = answer(ctx, cancel, func(in io.Reader, out io.Writer) error {
			var meta struct{ Head string }
			if err := json.NewDecoder(in).Decode(&meta); err != nil {
				return err
			}
			l.copy.Git("symbolic-ref", "HEAD", meta.Head)
			return nil
		})
	case verb == "mirror-push" && l.quick:
		s = answer(ctx, cancel, func(in io.Reader, out io.Writer) error {
			return l.taker(stderr).Serve(ctx, in, out)
		})
	case verb == "info" && !l.foreign:
		s = answer(ctx, cancel, func(in io.Reader, out io.Writer) error {
			_, err := io.WriteString(out, `{"hostname":"`+host+`","verbs":["mirror-meta"]}`)
			return err
		})
	default:
		s = answer(ctx, cancel, func(io.Reader, io.Writer) error {
			fmt.Fprintf(stderr, "fatal: unrecognized command '%s'\n", command)
			return fmt.Errorf("exit status 128")
		})
	}
	if l.wrap != nil {
		l.wrap(ctx, verb, s)
	}
	return s, nil
}

// taker is the slave's side of a quick push.
func (l *local) taker(stderr io.Writer) *shell.PushTaker {
	cfg, err := mirrorcfg.ParseRepo(peertest.Repository, nil)
	if err != nil {
		panic(err)
	}
	return &shell.PushTaker{Config: cfg, Repo: l.copy.Mirror(), Host: peerName, Stderr: stderr, Env: peertest.Environ()}
}

// verbs returns and forgets which commands were sent.
func (l *local) verbs() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := strings.Join(l.opened, " ")
	l.opened = nil
	return v
}

func (l *local) receivePack(ctx context.Context, cancel func(), stderr io.Writer) *stream {
	// The settings are those with which mirror-shell runs it (refs/mirror/ is hidden).
	cmd := exec.CommandContext(ctx, "git", "-c", "transfer.hideRefs=refs/mirror", "-c", "receive.denyNonFastForwards=false", "receive-pack", l.copy.Dir)
	if l.foreign {
		cmd = exec.CommandContext(ctx, "git", "receive-pack", l.copy.Dir)
	}
	cmd.Env = peertest.Environ()
	cmd.Stderr = stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		panic(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	return &stream{Reader: stdout, Writer: stdin, closeRead: stdout.Close, closeWrite: stdin.Close, wait: func() error {
		defer cancel()
		return cmd.Wait()
	}}
}

// answer runs a command that is a function.
func answer(ctx context.Context, cancel func(), command func(in io.Reader, out io.Writer) error) *stream {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan error, 1)
	unhook := context.AfterFunc(ctx, func() {
		inR.CloseWithError(context.Canceled)
		outW.CloseWithError(context.Canceled)
	})
	go func() {
		err := command(inR, outW)
		inR.CloseWithError(io.ErrClosedPipe)
		outW.Close()
		done <- err
	}()
	return &stream{Reader: outR, Writer: inW, closeRead: outR.Close, closeWrite: inW.Close, wait: func() error {
		defer unhook()
		defer cancel()
		return <-done
	}}
}

// stream is a peer.Stream of parts.
type stream struct {
	io.Reader
	io.Writer
	closeRead, closeWrite func() error
	wait                  func() error
}

func (s *stream) CloseWrite() error { return s.closeWrite() }
func (s *stream) Wait() error       { return s.wait() }

const peerName = "sam"

// newLocal makes an empty copy and the peer that has it.
func newLocal(t testing.TB, format string, stall time.Duration) (peertest.Copy, *local) {
	t.Helper()
	repo := peertest.NewRepo(t, format)
	transport := &local{copy: repo}
	return peertest.Copy{
		Peer:   peer.NewSSH(peerName, "frodo", stall, transport),
		Refs:   repo.Refs,
		Head:   repo.Head,
		Repo:   repo,
		Record: func(source string) string { return refset.Path(source, peerName) },
	}, transport
}

func newFixture(t testing.TB, stall time.Duration) (*peertest.Fixture, *local) {
	t.Helper()
	var transport *local
	f := peertest.NewFixture(t, "sha1", func(t testing.TB, format string) (c peertest.Copy) {
		c, transport = newLocal(t, format, stall)
		return c
	})
	return f, transport
}

// The same with the verb mirror-push. What it cannot do is left to git-receive-pack,
// so nobody can tell the difference.
func TestConformanceQuick(t *testing.T) {
	peertest.Run(t, func(t testing.TB, format string) peertest.Copy {
		c, transport := newLocal(t, format, time.Minute)
		transport.quick = true
		return c
	})
}

func TestConformance(t *testing.T) {
	peertest.Run(t, func(t testing.TB, format string) peertest.Copy {
		c, _ := newLocal(t, format, time.Minute)
		return c
	})
}
