package peer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/peer"
	"mirror-shell/peer/peertest"
)

// cutAfter loses the connection of a stream after so many bytes in a direction
// (negative: never). The peer's process notices as it does behind sshd: its pipes
// are closed. It returns what counts the bytes.
func cutAfter(s *stream, read, written int64) (counted *counts) {
	c := &counts{}
	closeRead, closeWrite, wait, r, w := s.closeRead, s.closeWrite, s.wait, s.Reader, s.Writer
	lose := sync.OnceFunc(func() {
		c.lost.Store(true)
		closeRead()
		closeWrite()
	})
	s.Reader = reader(func(p []byte) (int, error) {
		if left := read - c.read.Load(); read >= 0 && int64(len(p)) > left {
			p = p[:left]
		}
		if len(p) == 0 {
			lose()
			return 0, errLost
		}
		n, err := r.Read(p)
		c.read.Add(int64(n))
		return n, err
	})
	s.Writer = writer(func(p []byte) (int, error) {
		whole := len(p)
		if left := written - c.written.Load(); written >= 0 && int64(whole) > left {
			p = p[:left]
		}
		n, err := w.Write(p)
		c.written.Add(int64(n))
		if n < whole && err == nil {
			lose()
			err = errLost
		}
		return n, err
	})
	s.wait = func() error {
		err := wait()
		if c.lost.Load() {
			return fmt.Errorf("%w: %w", peer.ErrUnreachable, errLost)
		}
		return err
	}
	return c
}

type counts struct {
	read, written atomic.Int64
	lost          atomic.Bool
}

var errLost = errors.New("connection lost")

type reader func([]byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// onReceivePack makes a fault of the streams of git-receive-pack only, once.
func (l *local) onReceivePack(fault func(ctx context.Context, s *stream)) {
	done := false
	l.wrap = func(ctx context.Context, verb string, s *stream) {
		if verb == "git-receive-pack" && !done {
			done = true
			fault(ctx, s)
		}
	}
}

// The connection is cut at many places, each time after the source was rewritten,
// and the source is rewritten again before the next sync: what the peer has then
// is contained nowhere, and only the record says that it is ours.
func TestCutConnection(t *testing.T) {
	for _, direction := range []string{"read", "written"} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			f, transport := newFixture(t, time.Minute)
			base := f.Commit("refs/heads/main")
			rewrite := func(i int) {
				oid := f.NewCommit(base)
				f.SetAll(map[string]string{"refs/heads/main": oid, "refs/heads/topic": oid, fmt.Sprintf("refs/heads/n%d/x", i): oid})
				if i > 0 {
					f.Delete(fmt.Sprintf("refs/heads/n%d/x", i-1))
				}
			}
			rewrite(0)
			f.MustSync()

			var total *counts
			transport.onReceivePack(func(_ context.Context, s *stream) { total = cutAfter(s, -1, -1) })
			rewrite(1)
			f.MustSync()
			end := total.read.Load()
			if direction == "written" {
				end = total.written.Load()
			}
			step := max(1, end/30)
			if testing.Short() {
				step = max(1, end/8)
			}
			i := 2
			for n := int64(0); n <= end; n += step {
				cutOnce(f, transport, direction, n, func() { i++; rewrite(i - 1) })
			}
			f.Copy.Repo.Fsck()
		})
	}
}

func cutOnce(f *peertest.Fixture, transport *local, direction string, n int64, rewrite func()) {
	f.Helper()
	old := f.Copy.Refs()
	rewrite()
	want := f.Refs()
	transport.onReceivePack(func(_ context.Context, s *stream) {
		if direction == "read" {
			cutAfter(s, n, -1)
		} else {
			cutAfter(s, -1, n)
		}
	})
	_, _, err := f.Sync()
	now := f.Copy.Refs()
	for ref, oid := range now {
		if oid != old[ref] && oid != want[ref] {
			f.Fatalf("cut after %d bytes %s: %s is %s, neither the old value nor the new one", n, direction, ref, oid)
		}
	}
	if err == nil && !maps.Equal(now, want) {
		f.Fatalf("cut after %d bytes %s: success, but the copy has %v, want %v", n, direction, now, want)
	}
	if errors.Is(err, peer.ErrHeld) {
		f.Fatalf("cut after %d bytes %s: %v", n, direction, err)
	}
	rewrite()
	if _, said, err := f.Sync(); err != nil {
		f.Fatalf("after a cut after %d bytes %s: %v\n%s", n, direction, err, said)
	}
	f.CheckRefs(f.Refs())
}

// A peer that is slow to notice that its connection is gone applies the push
// later, after another sync has looked.
func TestAppliedLater(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	base := f.Commit("refs/heads/main")
	f.MustSync()
	late := f.Set("refs/heads/main", f.NewCommit(base))
	transport.onReceivePack(func(_ context.Context, s *stream) { cutAfter(s, -1, 300) })
	f.SyncFails("connection lost")
	f.Set("refs/heads/main", base)
	f.MustSync() // equal, without our having done anything
	f.Copy.Repo.Git("fetch", "-q", f.Dir, "+"+late+":refs/heads/main")
	f.Set("refs/heads/main", f.NewCommit(base))
	f.MustSync() // late is ours
}

// toReport, as a number of bytes read, is all up to the report.
const toReport = -2

// hang blocks a stream for good after so many bytes (negative: never); only its
// context frees it.
func hang(ctx context.Context, s *stream, read, written int64) {
	r, w := s.Reader, s.Writer
	s.Reader = reader(func(p []byte) (int, error) {
		if read == toReport {
			n, err := r.Read(p)
			if bytes.HasSuffix(p[:n], []byte("0000")) {
				read = 0
			}
			return n, err
		}
		if read == 0 {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		if read > 0 {
			p = p[:min(int64(len(p)), read)]
		}
		n, err := r.Read(p)
		if read > 0 {
			read -= int64(n)
		}
		return n, err
	})
	s.Writer = writer(func(p []byte) (int, error) {
		if written >= 0 && int64(len(p)) > written {
			n, _ := w.Write(p[:written])
			<-ctx.Done()
			return n, ctx.Err()
		}
		if written > 0 {
			written -= int64(len(p))
		}
		return w.Write(p)
	})
}

func TestHang(t *testing.T) {
	for name, limits := range map[string][2]int64{
		"before the advertisement": {0, -1}, "in the advertisement": {100, -1},
		"before the report": {toReport, -1}, "in the commands": {-1, 60}, "in the pack": {-1, 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, transport := newFixture(t, time.Second)
			f.Commit("refs/heads/main")
			f.MustSync()
			f.Commit("refs/heads/main")
			f.Commit("refs/heads/topic")
			transport.onReceivePack(func(ctx context.Context, s *stream) { hang(ctx, s, limits[0], limits[1]) })
			start := time.Now()
			want := "nothing moved for 1s (worker.stall_timeout)"
			if name == "before the report" {
				want = "nothing moved for 3s (worker.stall_timeout, and more for 2 refs)"
			}
			err := f.SyncFails(want)
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("it took %s", took)
			}
			if early := strings.HasSuffix(name, "the advertisement"); errors.Is(err, peer.ErrUnreachable) != early {
				t.Errorf("ErrUnreachable: %t for a peer that hangs %s: %v", !early, name, err)
			}
			f.MustSync()
		})
	}
}

// What comes slowly, but comes, is not stalled.
func TestTrickle(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Second)
	f.Commit("refs/heads/main")
	f.MustSync()
	f.Commit("refs/heads/main")
	transport.onReceivePack(func(_ context.Context, s *stream) {
		r := s.Reader
		s.Reader = reader(func(p []byte) (int, error) {
			time.Sleep(300 * time.Millisecond)
			return r.Read(p[:min(len(p), 30)])
		})
	})
	start := time.Now()
	f.MustSync()
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("it took only %s", took)
	}
}

// Hooks that the peer runs ref by ref say nothing, and may together take longer than
// the limit.
func TestHooksOfManyRefs(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Second)
	transport.copy.Hook("update", "sleep 0.1")
	for i := range 25 {
		f.Commit(fmt.Sprintf("refs/heads/b%d", i))
	}
	start := time.Now()
	f.MustSync()
	if took := time.Since(start); took < 2*time.Second {
		t.Errorf("it took only %s", took)
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	f.Commit("refs/heads/main")
	ctx, cancel := context.WithCancel(context.Background())
	transport.onReceivePack(func(inner context.Context, s *stream) {
		hang(inner, s, 200, -1)
		time.AfterFunc(200*time.Millisecond, cancel)
	})
	start := time.Now()
	_, _, err := f.SyncContext(ctx)
	if !errors.Is(err, context.Canceled) || errors.Is(err, peer.ErrUnreachable) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	f.MustSync()
}

// A push counts by its report and by how the far side ended.
func TestExitStatusAfterGoodReport(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	f.Commit("refs/heads/main")
	transport.onReceivePack(func(_ context.Context, s *stream) {
		wait := s.wait
		s.wait = func() error { return errors.Join(wait(), errors.New("exit status 1")) }
	})
	f.SyncFails("sam: exit status 1")
	f.MustSync()
}

func TestRefusedByMessage(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	f.Commit("refs/heads/main")
	f.MustSync()
	for _, c := range []struct{ said, want string }{
		{"", "without a word"},
		{"Welcome to sam!\nLast login: yesterday\n", `it said "Welcome to sam! Last login: yesterday"`},
		{"0033ERR sam <==//== frodo: not the master of this\n", "not the master of this"},
		{strings.Repeat("Welcome! ", 8<<20), "does not speak the git protocol"},
	} {
		transport.wrap = func(ctx context.Context, _ string, s *stream) {
			wait := s.wait
			s.Reader, s.wait = strings.NewReader(c.said), func() error {
				s.closeRead()
				s.closeWrite()
				_ = wait() // broken pipe
				return nil
			}
		}
		f.SyncFails("sam: ", c.want)
	}
	// It never ends.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	transport.wrap = func(ctx context.Context, _ string, s *stream) {
		s.Reader = reader(func(p []byte) (int, error) {
			if ctx.Err() != nil {
				return 0, io.EOF
			}
			return copy(p, bytes.Repeat([]byte("x"), len(p))), nil
		})
	}
	if _, _, err := f.SyncContext(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an endless banner: %v", err)
	}
}

// The peer applies everything, and its report is lost.
func TestReportLost(t *testing.T) {
	t.Parallel()
	f, transport := newFixture(t, time.Minute)
	base := f.Commit("refs/heads/main")
	f.MustSync()
	f.Set("refs/heads/main", f.NewCommit(base))
	f.Commit("refs/heads/topic")
	transport.onReceivePack(func(_ context.Context, s *stream) {
		r := s.Reader
		advertised := false
		s.Reader = reader(func(p []byte) (int, error) {
			n, err := r.Read(p)
			for advertised && err == nil { // swallow the rest
				n, err = r.Read(p)
			}
			if advertised {
				return 0, err
			}
			advertised = bytes.HasSuffix(p[:n], []byte("0000"))
			return n, err
		})
	})
	f.SyncFails("before its report")
	f.CheckRefs(f.Refs())
	f.Set("refs/heads/main", f.NewCommit(base))
	f.Set("refs/heads/topic", f.NewCommit(base))
	f.MustSync()
}

// Somebody pushes to the peer between its advertisement and our push: that value
// is not overwritten, whatever we wanted to do with the ref.
func TestCompareAndSwap(t *testing.T) {
	for _, what := range []string{"update", "delete", "create"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f, transport := newFixture(t, time.Minute)
			base := f.Commit("refs/heads/main")
			f.Commit("refs/heads/other")
			if what != "create" {
				f.Set("refs/heads/topic", base)
			}
			f.MustSync()
			f.Commit("refs/heads/other")
			if what == "delete" {
				f.Delete("refs/heads/topic")
			} else {
				f.Commit("refs/heads/topic")
			}
			theirs := f.Copy.Repo.NewCommit(base)
			transport.onReceivePack(func(_ context.Context, s *stream) {
				w := s.Writer
				change := sync.OnceFunc(func() { f.Copy.Repo.Set("refs/heads/topic", theirs) })
				s.Writer = writer(func(p []byte) (int, error) {
					change()
					return w.Write(p)
				})
			})
			f.SyncFails("sam refused 1 of 2 refs: refs/heads/topic (")
			want := f.Refs()
			want["refs/heads/topic"] = theirs
			f.CheckRefs(want)
			f.SyncHeld("refs/heads/topic")
			f.CheckRefs(want)
		})
	}
}
