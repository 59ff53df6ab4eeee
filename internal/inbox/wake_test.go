package inbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWake(t *testing.T) {
	short := t.TempDir()
	for name, state := range map[string]string{
		"short path": short,
		"long path":  filepath.Join(t.TempDir(), strings.Repeat("long/", 40)+"state"),
		"borderline": filepath.Join(short, strings.Repeat("x", max(1, maxSunPath-len(short)-len("/"+socketName)-1))),
	} {
		t.Run(name, func(t *testing.T) {
			if err := Wake(state); !errors.Is(err, ErrNoWorker) {
				t.Errorf("before listen: %v", err)
			}
			w, err := Listen(state)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			info, err := os.Lstat(filepath.Join(state, socketName))
			if err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("socket: %v, %v", info.Mode(), err)
			}
			for range 3 {
				if err := Wake(state); err != nil {
					t.Fatal(err)
				}
				heard(t, w)
			}
			if err := w.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if err := Wake(state); !errors.Is(err, ErrNoWorker) {
				t.Errorf("after close: %v", err)
			}
			if left := files(t, state); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func heard(t *testing.T, w *Waker) {
	t.Helper()
	select {
	case <-w.C:
	case <-time.After(5 * time.Second):
		t.Fatal("the ring was not heard")
	}
}

func TestWakeFullBuffer(t *testing.T) {
	state := t.TempDir()
	// A worker that is alive but never reads.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := bind(fd, state, filepath.Join(state, socketName)); err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		if err := Wake(state); err != nil {
			t.Fatalf("ring %d: %v", i, err)
		}
	}
}

// A killed worker leaves its socket, and perhaps one it had not renamed yet.
func TestListenReplacesStaleSocket(t *testing.T) {
	state := t.TempDir()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := bind(fd, state, filepath.Join(state, socketName)); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if err := os.WriteFile(filepath.Join(state, "."+socketName+".00000001"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Wake(state); !errors.Is(err, ErrNoWorker) {
		t.Errorf("a stale socket: %v", err)
	}
	first, err := Listen(state)
	if err != nil {
		t.Fatal(err)
	}
	// A second listener takes over; closing the first must not remove the second's socket.
	second, err := Listen(state)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Wake(state); err != nil {
		t.Fatal(err)
	}
	heard(t, second)
	if left := files(t, state); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestAskToLeave(t *testing.T) {
	state := t.TempDir()
	if err := AskToLeave(state); !errors.Is(err, ErrNoWorker) {
		t.Errorf("nobody there: %v", err)
	}
	w, err := Listen(state)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 3 {
		if err := AskToLeave(state); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.Leave:
		case <-time.After(5 * time.Second):
			t.Fatal("not heard")
		}
	}
	for range 10 { // an old drain hears no word for it, and a new one is asked again and again
		if err := AskToLeave(state); err != nil {
			t.Fatal(err)
		}
	}
	if err := Wake(state); err != nil {
		t.Fatal(err)
	}
	heard(t, w)
	select {
	case <-w.Leave:
	default:
		t.Error("forgotten")
	}
	select {
	case <-w.C:
		t.Error("a wish to leave rang")
	default:
	}
}

// Whatever else is said, for example by a hook of another version, is a ring.
func TestAnyDatagramIsARing(t *testing.T) {
	state := t.TempDir()
	w, err := Listen(state)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, word := range []string{"", "!", "", "leave!", "leav", strings.Repeat("leave", 100)} {
		if err := unix.Sendto(fd, []byte(word), 0, &unix.SockaddrUnix{Name: filepath.Join(state, socketName)}); err != nil {
			t.Fatal(err)
		}
		heard(t, w)
	}
}
