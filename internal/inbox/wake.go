package inbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/durable"
)

// ErrNoWorker is wrapped by Wake's error when nobody listens.
var ErrNoWorker = errors.New("no worker is running")

const (
	socketName = "worker.sock"
	// What a datagram says. Whatever else one says, or an empty one, counts as a ring.
	sayWake  = "wake"
	sayLeave = "leave"
	// maxSunPath is the longest path a unix socket address takes, without its final NUL.
	maxSunPath = 107
)

// Wake rings the worker's bell: it sends one datagram to state_dir/worker.sock and never
// waits. A full socket buffer is success, since a ring is already waiting to be heard. Its
// error wraps ErrNoWorker when the socket is missing or nobody listens on it.
//
// Package net is not used here on purpose: it would add to the start-up of each hook.
func Wake(stateDir string) error {
	err := tell(stateDir, sayWake)
	switch {
	case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("wake worker: %w", ErrNoWorker)
	}
	return fmt.Errorf("wake worker at %s: %w", filepath.Join(stateDir, socketName), err)
}

// AskToLeave asks the worker to make room, in the same way as Wake rings. Only a drain
// does so. Whether it was heard shows when its lock is free: ask again until then. The error wraps ErrNoWorker
// as Wake's does, and a full socket buffer is an error too.
func AskToLeave(stateDir string) error {
	err := tell(stateDir, sayLeave)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		err = ErrNoWorker
	}
	if err != nil {
		return fmt.Errorf("ask the worker to leave: %w", err)
	}
	return nil
}

// tell sends one datagram, without waiting.
func tell(stateDir, what string) error {
	return atSocketPath(stateDir, socketName, func(path string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, []byte(what), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: path})
	})
}

// Waker is the worker's end of the bell.
type Waker struct {
	// C receives after one or more rings; rings that are not collected in time merge.
	C <-chan struct{}
	// Leave receives after AskToLeave, in the same way.
	Leave <-chan struct{}

	file *os.File
	path string
	mine os.FileInfo // the socket we bound: another worker's must not be removed by Close
	done chan struct{}
}

// Listen creates state_dir/worker.sock with mode 0600, in place of any that is there. Only the
// holder of the worker lock may call it. Close must be called in the end.
func Listen(stateDir string) (*Waker, error) {
	if err := durable.MakeDirs(stateDir); err != nil {
		return nil, fmt.Errorf("listen for hooks: %w", err)
	}
	removeAbandonedSockets(stateDir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("listen for hooks: %w", err)
	}
	file := os.NewFile(uintptr(fd), socketName) // non-blocking: Close ends a Read
	path := filepath.Join(stateDir, socketName)
	if err := bind(fd, stateDir, path); err != nil {
		file.Close()
		return nil, fmt.Errorf("listen for hooks at %s: %w", path, err)
	}
	mine, err := os.Lstat(path)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("listen for hooks: %w", err)
	}
	wake, leave := make(chan struct{}, 1), make(chan struct{}, 1)
	w := &Waker{C: wake, Leave: leave, file: file, path: path, mine: mine, done: make(chan struct{})}
	go w.receive(wake, leave)
	return w, nil
}

// bind binds under another name and renames: at no moment can a stranger connect to a
// socket of a wider mode, and a stale socket needs no separate removal.
func bind(fd int, stateDir, path string) error {
	temp := fmt.Sprintf(".%s.%08x", socketName, rand.Uint32())
	err := atSocketPath(stateDir, temp, func(path string) error {
		return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	})
	if err != nil {
		return err
	}
	temp = filepath.Join(stateDir, temp)
	if err = os.Chmod(temp, 0o600); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// removeAbandonedSockets removes what a worker killed inside bind left. A failure only leaves them there.
func removeAbandonedSockets(stateDir string) {
	entries, _ := os.ReadDir(stateDir)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "."+socketName+".") {
			os.Remove(filepath.Join(stateDir, entry.Name()))
		}
	}
}

func (w *Waker) receive(wake, leave chan<- struct{}) {
	defer close(w.done)
	var buf [16]byte
	for {
		n, err := w.file.Read(buf[:])
		if err != nil && err != io.EOF { // io.EOF is how os.File reports an empty datagram
			return
		}
		c := wake
		if string(buf[:n]) == sayLeave {
			c = leave
		}
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Close removes the socket and ends the receiving goroutine. The channels are not closed.
func (w *Waker) Close() error {
	if now, err := os.Lstat(w.path); err == nil && os.SameFile(now, w.mine) {
		os.Remove(w.path)
	}
	err := w.file.Close()
	<-w.done
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}

// atSocketPath calls do with a path of dir/name that fits into a socket address. A state_dir
// deeper than 107 bytes is reached through its descriptor in /proc, since chdir would move
// the whole process.
func atSocketPath(dir, name string, do func(path string) error) error {
	path := filepath.Join(dir, name)
	if len(path) <= maxSunPath {
		return do(path)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name))
}
