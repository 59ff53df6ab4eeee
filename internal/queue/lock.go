package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/internal/inbox"
)

// ErrBusy is wrapped by the error of a worker that finds another one at work.
var ErrBusy = errors.New("another worker is running")

// Kinds of worker, as the lock file names them.
const (
	KindServe = "serve"
	KindDrain = "drain"
)

// Holder is the worker that holds a state directory's lock.
type Holder struct {
	PID  int    // 0: unknown, for example because the disk was full
	Kind string // KindServe, KindDrain, or "" for unknown
}

func (h Holder) String() string {
	if h.PID == 0 {
		return "a process that could not write its name"
	}
	return fmt.Sprintf("%s, process %d", h.Kind, h.PID)
}

func lockPath(stateDir string) string { return filepath.Join(stateDir, "worker.lock") }

// WorkerHolder tells who works for a state directory; running is false when nobody does.
func WorkerHolder(stateDir string) (h Holder, running bool, err error) {
	lock := flock.New(lockPath(stateDir), flock.SetFlag(os.O_RDONLY))
	free, err := lock.TryRLock() // shared and short: a worker that starts right now tries for longer
	if errors.Is(err, fs.ErrNotExist) {
		return Holder{}, false, nil
	}
	if err != nil {
		return Holder{}, false, fmt.Errorf("ask for the worker: %w", err)
	}
	if free {
		return Holder{}, false, lock.Unlock()
	}
	return readHolder(stateDir), true, nil
}

// WorkerSince is when the worker that holds the lock took it, to the clock of the file system; zero
// when that is not known.
func WorkerSince(stateDir string) time.Time {
	info, err := os.Stat(lockPath(stateDir))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func readHolder(stateDir string) Holder {
	data, err := os.ReadFile(lockPath(stateDir))
	if err != nil {
		return Holder{}
	}
	pid, kind, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	n, err := strconv.Atoi(pid)
	if err != nil || kind != KindServe && kind != KindDrain {
		return Holder{}
	}
	return Holder{PID: n, Kind: kind}
}

// acquire takes the worker lock, or returns an error that wraps ErrBusy and says who has it. The
// kernel lets go of it when the process dies.
func acquire(ctx context.Context, stateDir, kind string) (*flock.Flock, error) {
	lock := flock.New(lockPath(stateDir), flock.SetFlag(os.O_RDWR|os.O_CREATE), flock.SetPermissions(0o600))
	// A look by WorkerHolder takes the lock for microseconds and must not pass for a worker.
	try, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	locked, err := lock.TryLockContext(try, 20*time.Millisecond)
	switch {
	case locked:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil, errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("%w: %s", ErrBusy, readHolder(stateDir))
	default:
		return nil, fmt.Errorf("take the worker lock: %w", err)
	}
	// Only information for people: a full disk does not stop the worker.
	_ = os.WriteFile(lockPath(stateDir), fmt.Appendf(nil, "%d %s\n", os.Getpid(), kind), 0o600)
	return lock, nil
}

// A look is one try of acquire, 200 ms long. The name in the file is written after the lock was taken,
// so it may be that of a worker which has gone: a server is believed at the second look. A
// holder without a name is believed to be a drain for so long.
const (
	serveLooks   = 2
	unknownLooks = 50
	deafLooks    = 5 // so long a drain may take to begin listening

	storagePause = time.Second
)

// takeOver is acquire for a server. A drain that has the lock is asked to leave, and waited for:
// what it does is done as well by the server, and a daemon that was started must get to work. Another
// server is an error that wraps ErrBusy.
func takeOver(ctx context.Context, stateDir string, log *slog.Logger) (*flock.Flock, error) {
	var told, last Holder
	waiting := false // for the disk
	for looks := 1; ; looks++ {
		lock, busy := acquire(ctx, stateDir, KindServe)
		if busy != nil && isStorage(busy) && ctx.Err() == nil {
			if !waiting {
				log.Error("the state directory cannot be written; waiting until it can", "error", busy)
			}
			waiting = true
			_ = sleep(ctx, storagePause)
			_ = os.MkdirAll(stateDir, 0o700)
			continue
		}
		if !errors.Is(busy, ErrBusy) {
			return lock, busy
		}
		h := readHolder(stateDir)
		if h != last {
			last, looks = h, 1
		}
		if h.Kind == KindServe && looks >= serveLooks || h.Kind == "" && looks >= unknownLooks {
			return nil, busy
		}
		if h.Kind == KindServe {
			continue
		}
		err := inbox.AskToLeave(stateDir)
		switch {
		case err == nil && told != h:
			told = h
			log.Info("another worker is at work; it was asked to leave", "worker", h.String())
		case err != nil && looks == deafLooks:
			log.Warn("another worker is at work and cannot be asked to leave; waiting until it has finished",
				"worker", h.String(), "error", err)
		}
	}
}
