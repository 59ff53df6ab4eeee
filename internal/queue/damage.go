package queue

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// databaseFile is SQLite's file, which can be damaged or vanish under us. There is one connection at a time.
type databaseFile struct {
	path  string
	inner driver.Connector

	mu       sync.Mutex
	opened   os.FileInfo // of the latest connection
	ours     os.FileInfo // in which our tables were seen; nil: not yet
	replaced time.Time   // when this process moved one aside
}

func newDatabaseFile(path string) (*databaseFile, error) {
	inner, err := sqlite.NewConnector(dataSource(path))
	return &databaseFile{path: path, inner: inner}, err
}

// lostFile is an error that tells of a file which is damaged, or may be, or which is not at its place any more.
type lostFile struct {
	file os.FileInfo
	kind lossKind
	err  error
}

type lossKind int

const (
	suspect lossKind = iota // nothing that happens to a sound file; a check will tell
	damaged
	moved
)

func (l *lostFile) Error() string { return l.err.Error() }
func (l *lostFile) Unwrap() error { return l.err }

var (
	errMoved = errors.New("the database file was deleted or replaced")
	errEmpty = errors.New("the file is empty")
)

// lossOf tells what an error says about the file; ok is false for a file that nothing is wrong with.
func lossOf(err error) (kind lossKind, ok bool) {
	var lost *lostFile
	var e *sqlite.Error
	switch {
	case errors.As(err, &lost):
		return lost.kind, true
	case errors.Is(err, errMoved):
		return moved, true
	case errors.Is(err, errImpossible):
		return damaged, true
	case errors.Is(err, errConflict): // nobody else writes during a transaction
		return suspect, true
	case !errors.As(err, &e):
		return 0, false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return damaged, true
	case sqlite3.SQLITE_ERROR:
		if strings.Contains(e.Error(), "no such ") { // a table or column of ours
			return damaged, true
		}
		return suspect, true
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH:
		return suspect, true
	}
	return 0, false
}

// Driver is part of driver.Connector.
func (f *databaseFile) Driver() driver.Driver { return f.inner.Driver() }

// Connect opens the file, and makes it if it is missing. Several processes may do so at once: the
// switch to WAL can report "busy" without having waited, so that is tried again.
func (f *databaseFile) Connect(ctx context.Context) (driver.Conn, error) {
	for began := time.Now(); ; {
		conn, err := f.connectOnce(ctx)
		if err == nil {
			return conn, nil
		}
		if isBusy(err) && time.Since(began) > emptyFor {
			if file, serr := os.Stat(f.path); serr == nil && file.Size() == 0 { // others live on what they remember
				err = &lostFile{file, damaged, errEmpty}
			}
		}
		if !isBusy(err) && !errors.Is(err, errMoved) || ctx.Err() != nil || time.Since(began) > busyTimeout {
			return nil, fmt.Errorf("%s: %w", f.path, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// emptyFor is much longer than a new file is empty.
const emptyFor = time.Second

// connectOnce keeps the file from being moved aside meanwhile: a connection made halfway would use
// companions (-wal, -shm) that belong to another file of the same name.
func (f *databaseFile) connectOnce(ctx context.Context) (driver.Conn, error) {
	defer f.holdStill(ctx)()
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return nil, err
	}
	if err := createPrivate(f.path); err != nil {
		return nil, err
	}
	file, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	conn, err := f.inner.Connect(ctx)
	if err == nil && !f.holds(file) {
		err = errors.Join(errMoved, conn.Close())
	}
	if err != nil {
		if kind, ok := lossOf(err); ok && kind != moved {
			err = &lostFile{file, kind, err}
		}
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened = file
	return conn, nil
}

// holdStill is the shared side of locked. Without the lock, as on a full disk, it goes on all the same.
func (f *databaseFile) holdStill(ctx context.Context) (release func()) {
	lock := flock.New(filepath.Join(filepath.Dir(f.path), "queue.lock"),
		flock.SetFlag(os.O_RDONLY|os.O_CREATE), flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	_, _ = lock.TryRLockContext(ctx, 5*time.Millisecond)
	return func() { _ = lock.Close() }
}

// locked runs do while no other process moves the file, or writes the mark of a loss.
func locked(ctx context.Context, stateDir string, do func() error) error {
	lock := flock.New(filepath.Join(stateDir, "queue.lock"), flock.SetFlag(os.O_RDONLY|os.O_CREATE), flock.SetPermissions(0o600))
	limited, cancel := context.WithTimeout(ctx, busyTimeout)
	defer cancel()
	if _, err := lock.TryLockContext(limited, 5*time.Millisecond); err != nil {
		return fmt.Errorf("lock the database file: %w", err)
	}
	defer lock.Close()
	return do()
}

// holds reports whether the file is at its place.
func (f *databaseFile) holds(file os.FileInfo) bool {
	now, err := os.Stat(f.path)
	return err == nil && os.SameFile(now, file)
}

// connected runs do with the connection. The file is looked for before and after: what was written to one that was
// deleted meanwhile is lost, and must not pass for recorded.
func (f *databaseFile) connected(ctx context.Context, q *Queue, do func(database) error) error {
	conn, err := q.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	f.mu.Lock()
	file, ours := f.opened, f.ours
	f.mu.Unlock()
	if !f.holds(file) || ours != nil && !os.SameFile(ours, file) {
		err = errMoved
	}
	if err == nil {
		err = q.schema.ready(ctx, q, conn)
	}
	if err == nil {
		f.mu.Lock()
		f.ours = file
		f.mu.Unlock()
		if err = do(conn); err == nil && !f.holds(file) {
			err = errMoved
		}
	}
	kind, lost := lossOf(err)
	if !lost {
		return err
	}
	_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // has it closed; also what it believes may be wrong
	return &lostFile{file, kind, err}
}

// healing runs do, again after a lost file was replaced by a new one.
func (q *Queue) healing(ctx context.Context, do func() error) error {
	for try := 0; ; try++ {
		err := do()
		var lost *lostFile
		if try == 3 || q.file == nil || ctx.Err() != nil || !errors.As(err, &lost) {
			return err
		}
		again, herr := q.heal(ctx, lost, try > 0)
		if herr != nil {
			return fmt.Errorf("%w (and it cannot be put right: %w)", err, herr)
		}
		if !again {
			return err
		}
	}
}

// heal sees to it that there is a sound file, and reports whether it makes sense to try again. A new connection
// may be all that is needed: a file that passes the check is replaced only when that did not help.
func (q *Queue) heal(ctx context.Context, lost *lostFile, before bool) (again bool, err error) {
	switch {
	case lost.kind == moved:
		return true, q.noteMoved(ctx)
	case errors.Is(lost, errEmpty):
		return q.replace(ctx, lost.file, lost.Error())
	}
	found, err := q.check(ctx)
	switch {
	case err != nil:
		return false, err
	case found != "":
		return q.replace(ctx, lost.file, found)
	case !before:
		return true, nil
	case lost.kind == damaged:
		return q.replace(ctx, lost.file, lost.Error())
	}
	return false, nil
}

const sqlCheck = `PRAGMA integrity_check(1)`

// check runs SQLite's own check, and returns what is wrong.
func (q *Queue) check(ctx context.Context) (found string, err error) {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	conn, err := q.db.Conn(ctx)
	if err == nil {
		defer conn.Close()
		err = conn.QueryRowContext(ctx, sqlCheck).Scan(&found)
	}
	if kind, ok := lossOf(err); ok && kind == damaged {
		return err.Error(), nil
	}
	if found == "ok" {
		found = ""
	}
	return found, err
}

// inspect is for the start of a daemon: damage is found before anything relies on the file. With thirty thousand
// rows it takes 65 ms.
func (q *Queue) inspect(ctx context.Context) error {
	if q.file == nil {
		return nil
	}
	return q.healing(ctx, func() error {
		return q.file.connected(ctx, q, func(db database) error {
			found := ""
			err := db.QueryRowContext(ctx, sqlCheck).Scan(&found)
			if err == nil && found != "ok" {
				err = fmt.Errorf("%w: %s", errImpossible, found)
			}
			return err
		})
	})
}

// noteMoved is for a file that somebody has deleted, or moved aside, while we had it open.
func (q *Queue) noteMoved(ctx context.Context) error {
	q.forget()
	return q.markLost(ctx, "the jobs database was deleted or replaced while it was in use")
}

func (q *Queue) forget() {
	q.file.mu.Lock()
	q.file.ours = nil
	q.file.mu.Unlock()
	q.schema.forget()
}

const (
	replaceEvery = 30 * time.Second // a disk that damages every file is no reason to make many
	keptAside    = 3
)

// replace moves a damaged file aside, so that the next connection makes a new one. Another process may
// have done so already.
func (q *Queue) replace(ctx context.Context, file os.FileInfo, reason string) (again bool, err error) {
	f, recent := q.file, false
	err = locked(ctx, q.stateDir, func() error {
		if !f.holds(file) {
			return nil
		}
		f.mu.Lock()
		recent = !f.replaced.IsZero() && time.Since(f.replaced) < replaceEvery
		f.mu.Unlock()
		if recent {
			return nil
		}
		aside := f.path + ".corrupt-" + time.Now().UTC().Format("20060102T150405.000Z")
		text := fmt.Sprintf("the jobs database was damaged (%s) and is kept as %s", oneLine(reason), aside)
		if err := mark(q.stateDir, text); err != nil { // before it is gone: a death here must not forget it
			return err
		}
		if err := f.moveTo(aside); err != nil {
			return err
		}
		f.mu.Lock()
		f.replaced = time.Now()
		f.mu.Unlock()
		q.alarm(text)
		return mark(q.stateDir, text) // a comparison that began before must not count
	})
	if err != nil || recent {
		return false, err
	}
	q.drop(ctx, file)
	q.forget()
	return true, nil
}

// moveTo renames the file last: without it SQLite removes companions that it finds, and with it nobody opens them,
// because the lock is held.
func (f *databaseFile) moveTo(aside string) error {
	old, _ := filepath.Glob(f.path + ".corrupt-*Z")
	slices.Sort(old)
	for _, path := range old[:max(0, len(old)-keptAside+1)] {
		for _, suffix := range companions {
			_ = os.Remove(path + suffix)
		}
	}
	for _, suffix := range companions {
		if err := os.Rename(f.path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// companions are what SQLite adds to the name of its file, and the file itself.
var companions = []string{"-wal", "-shm", ""}

// drop closes the connection to a file, if there is one.
func (q *Queue) drop(ctx context.Context, file os.FileInfo) {
	conn, err := q.db.Conn(ctx)
	if err != nil {
		return
	}
	defer conn.Close()
	q.file.mu.Lock()
	same := os.SameFile(q.file.opened, file)
	q.file.mu.Unlock()
	if same {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
}
