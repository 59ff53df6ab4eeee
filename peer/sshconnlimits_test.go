package peer

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestContextEndsCommand(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	c := keep(t, s, Options{})
	other, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, hang := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := c.Open(ctx, "frodo", "sleep 60", nil)
		if err != nil {
			t.Fatal(err)
		}
		if hang {
			f.hang()
		}
		var ended sync.WaitGroup
		ended.Go(func() { // fills the window, and more
			if _, err := stream.Write(make([]byte, 8<<20)); !errors.Is(err, context.Canceled) {
				t.Errorf("write: %v", err)
			}
		})
		ended.Go(func() {
			if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
				t.Errorf("read: %v", err)
			}
		})
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		cancel()
		ended.Wait()
		if err := stream.Wait(); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if hang {
			return
		}
		if _, err := io.WriteString(other, "still here"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 10)
		if _, err := io.ReadFull(other, got); err != nil || string(got) != "still here" {
			t.Errorf("%q %v", got, err)
		}
	}
}

// sshd does not close the channel of a program that does not read. The room
// comes back nevertheless.
func TestGivenUpCommandsDoNotKeepTheirRoom(t *testing.T) {
	s := newSSHD(t, "MaxSessions 2")
	s.config(t, "")
	c := keep(t, s, Options{ChannelsPerHost: 2})
	other, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		stream, err := c.Open(ctx, "frodo", "sleep 30", nil)
		if err != nil {
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				time.Sleep(closeGrace) // the last one's room
				continue
			}
			t.Fatal(err)
		}
		_, _ = stream.Write(make([]byte, 8<<20))
		_ = stream.Wait()
		cancel()
	}
	say(t, c, "true")
	if _, err := io.WriteString(other, "still here"); err != nil {
		t.Fatal(err)
	}
	_ = other.CloseWrite()
	if got, err := io.ReadAll(other); err != nil || string(got) != "still here" || other.Wait() != nil {
		t.Errorf("%q %v", got, err)
	}
}

func TestConnectionsClose(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	c := keep(t, s, Options{})
	var streams []Stream
	for range 3 {
		stream, err := c.Open(t.Context(), "frodo", "cat /dev/zero", nil) // which nobody reads
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	c.Close()
	for _, stream := range streams {
		_, _ = io.Copy(io.Discard, stream) // ends
		if err := stream.Wait(); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%v", err)
		}
	}
	mustFail(t, c, "closed")
	c.Close()
}

func TestCloseDuringDial(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	f.hold.Store(true)
	c := keep(t, s, Options{})
	failed := make(chan error)
	go func() {
		_, _, err := run(t.Context(), c, "true", "")
		failed <- err
	}()
	eventually(t, "somebody dials", func() bool { return f.accepted.Load() == 1 })
	c.Close()
	if err := <-failed; !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	c := keep(t, s, Options{IdleTimeout: 300 * time.Millisecond})
	stream, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond) // in use, however quiet
	_ = stream.CloseWrite()
	_, _ = io.Copy(io.Discard, stream)
	if err := stream.Wait(); err != nil {
		t.Fatal(err)
	}
	say(t, c, "true")
	if n := f.accepted.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	eventually(t, "the connection is closed", func() bool {
		h, _ := c.host("frodo")
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.lanes) == 0
	})
	say(t, c, "true")
	if n := f.accepted.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestConfigurationChanges(t *testing.T) {
	s, other := newSSHD(t, ""), newSSHD(t, "")
	s.config(t, "")
	c := keep(t, s, Options{})
	say(t, c, "true")
	running, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(checkEvery)
	write(t, s.dir+"/ssh_config", read(t, other.config(t, "")))
	say(t, c, "true")
	if n := other.logins(); n != 1 {
		t.Errorf("%d connections to the new place", n)
	}
	_, _ = io.WriteString(running, "goes on")
	_ = running.CloseWrite()
	if got, err := io.ReadAll(running); string(got) != "goes on" || err != nil || running.Wait() != nil {
		t.Errorf("%q %v", got, err)
	}
}

func TestSocketsDirectoryIsShort(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 20))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	c := NewConnections(Options{ControlDir: long})
	defer c.Close()
	path, err := c.newSocket()
	if err != nil || len(path)+17 > 107 || strings.HasPrefix(path, long) {
		t.Errorf("%s, %v", path, err)
	}
	if left, _ := os.ReadDir(long); len(left) != 0 {
		t.Errorf("%v", left)
	}
}

// While pushes have taken all that they may, questions are still answered: each
// push may need one before it can end.
func TestPushesLeaveRoom(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	repo := t.TempDir() + "/r.git"
	if out, err := exec.Command("git", "init", "-q", "--bare", repo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := keep(t, s, Options{ChannelsPerHost: 3, PushesPerHost: 2})
	push := func(ctx context.Context) (Stream, error) {
		return c.Open(ctx, "frodo", "git-receive-pack '"+repo+"'", io.Discard)
	}
	end := func(p Stream) {
		t.Helper()
		io.WriteString(p, "0000")
		p.CloseWrite()
		io.Copy(io.Discard, p)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
	one, err := push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two, err := push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := push(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third push: %v", err)
	}
	if got := say(t, c, "echo answer"); got != "answer" {
		t.Errorf("a question: %q", got)
	}
	end(one)
	three, err := push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end(two)
	end(three)
}
