package queue

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/durable"
)

// Who lives is told by state_dir/node: see "Deaths" in the package comment.

func nodePath(stateDir string) string { return filepath.Join(stateDir, "node") }

// usedBefore reports whether the tables of this state directory have been there once.
func usedBefore(stateDir string) (bool, error) {
	_, err := os.Lstat(nodePath(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// identify makes the node's file if it is missing, and returns the node's name. Host and path tell
// directories apart that were copied, the random part those of containers that think they have the same host and path.
func identify(ctx context.Context, stateDir string) (string, error) {
	id, err := os.ReadFile(nodePath(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		err = locked(ctx, stateDir, func() error {
			if id, err = os.ReadFile(nodePath(stateDir)); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			id = fmt.Appendf(nil, "%016x\n", rand.Uint64())
			return durable.Replace(nodePath(stateDir), id)
		})
	}
	if err != nil {
		return "", fmt.Errorf("name this node: %w", err)
	}
	host, _ := os.Hostname()
	path, err := filepath.Abs(stateDir)
	if err != nil {
		path = stateDir
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%s\x00%s\x00%s", host, path, id)
	return fmt.Sprintf("%08x", h.Sum32()), nil
}

// beacon tells other processes that this one lives, and whether others do.
type beacon struct {
	path string

	mu     sync.Mutex
	file   *os.File
	number int64 // 0: not lit
}

// maxNumber keeps a byte's offset, and its end, within what the kernel takes.
const maxNumber = 1 << 62

// lit returns this process's number, under which it holds its lock from now on.
func (b *beacon) lit() (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.number != 0 {
		return b.number, nil
	}
	if err := b.open(); err != nil {
		return 0, err
	}
	number := 1 + rand.Int64N(maxNumber-1)
	lock := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: number, Len: 1}
	if err := unix.FcntlFlock(b.file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return 0, fmt.Errorf("lock %s: %w", b.path, err)
	}
	b.number = number
	return number, nil
}

// open opens the file for looking and for locking. The descriptor is not inherited: a child that outlives us
// would keep the lock.
func (b *beacon) open() (err error) {
	if b.file == nil {
		b.file, err = os.Open(b.path)
	}
	return err
}

// dead reports whether the process of that number has ended. What cannot be told is no: then the
// lease decides.
func (b *beacon) dead(number int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if number == b.number || b.open() != nil {
		return false
	}
	ours, err := b.file.Stat()
	theirs, terr := os.Stat(b.path)
	if err != nil || terr != nil || !os.SameFile(ours, theirs) { // somebody removed it: locks are on two files now
		return false
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: number, Len: 1}
	err = unix.FcntlFlock(b.file.Fd(), unix.F_OFD_GETLK, &lock)
	return err == nil && lock.Type == unix.F_UNLCK
}

func (b *beacon) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return nil
	}
	err := b.file.Close()
	b.file, b.number = nil, 0
	return err
}

// newOwner is unique for each claim: HOST:PID:NODE:NUMBER.COUNT. Host and process are for people who
// read the table.
func (q *Queue) newOwner() (string, error) {
	number, err := q.beacon.lit()
	if err != nil {
		return "", fmt.Errorf("tell that this process lives: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s:%d:%s:%016x.%d", host, os.Getpid(), q.node, number, q.claims.Add(1)), nil
}

// owns reports whether an owner is of our state directory.
func (q *Queue) owns(owner string) bool { return strings.Contains(owner, ":"+q.node+":") }

// dead reports whether an owner is a process of our state directory that has ended.
func (q *Queue) dead(owner string) bool {
	_, claim, ours := strings.Cut(owner, ":"+q.node+":")
	text, _, numbered := strings.Cut(claim, ".")
	number, err := strconv.ParseInt(text, 16, 64)
	return ours && numbered && err == nil && q.beacon.dead(number)
}

// wait is the pause after the n-th failure in a row.
func (q *Queue) wait(n int) time.Duration { return q.policy.backoff(n, q.random()) }

// bury ends the runs of processes that have ended.
func (tx *tx) bury(ctx context.Context) error {
	running, err := tx.running(ctx)
	if err != nil {
		return err
	}
	var keys []Key
	for _, r := range running {
		if r.dead {
			keys = append(keys, r.Key)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	jobs, err := tx.loadJobs(ctx, keys, true)
	if err != nil {
		return err
	}
	var buried []job
	for _, j := range jobs {
		if j.orphan {
			buried = append(buried, j.buried(tx.q.wait, tx.now))
		}
	}
	return tx.storeJobs(ctx, buried...)
}
