package queue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
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
