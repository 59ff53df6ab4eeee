package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite" // the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteDialect needs no row locks: a transaction begins by taking the lock of the whole database.
var sqliteDialect = &dialect{
	nameType: "TEXT",
	mark:     func(int) string { return "?" }, // it finds a $N by reading all names before it
	listed:   func(string) string { return "jobs j WHERE j.server = $1 AND " + sqliteAmong },
	among:    sqliteAmong,
	lists: func(keys []Key) (any, any) {
		return jsonList(keys, func(k Key) string { return k.Repository }), jsonList(keys, func(k Key) string { return k.Peer })
	},
	passing: func(error) bool { return false },
	tidy:    func(err error) error { return err },
}

const sqliteAmong = "repository IN (SELECT value FROM json_each($2)) AND peer IN (SELECT value FROM json_each($3))"

// jsonList lists the different names.
func jsonList(keys []Key, of func(Key) string) string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = of(k)
	}
	slices.Sort(names)
	data, err := json.Marshal(slices.Compact(names))
	if err != nil {
		panic(err) // of strings there is none
	}
	return string(data)
}

func databasePath(stateDir string) string { return filepath.Join(stateDir, "queue.db") }

// busyTimeout is how long SQLite waits for another process's transaction.
const busyTimeout = 10 * time.Second

// createPrivate makes the file 0600 before SQLite would create it 0644; SQLite gives its
// companions (-wal, -shm) the same mode. An existing file is never opened here: closing it again
// would drop this process's POSIX locks on it.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = os.Chmod(path, 0o600)
	}
	return err
}

// dataSource puts busy_timeout first: the pragmas behind it may already have to wait.
func dataSource(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	u := url.URL{Scheme: "file", Path: abs, RawQuery: "_pragma=busy_timeout(" +
		strconv.FormatInt(busyTimeout.Milliseconds(), 10) +
		")&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate"}
	return u.String()
}

func isBusy(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	primary := e.Code() & 0xff
	return primary == sqlite3.SQLITE_BUSY || primary == sqlite3.SQLITE_LOCKED
}

// isStorage reports that the disk has no room, cannot be written, or fails: what may pass, and has nothing to do with
// what is on it.
func isStorage(err error) bool {
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM:
			return true
		}
	}
	for _, code := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EACCES, unix.EPERM, unix.EIO, unix.ENOENT} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// littleRoom is how much has to be free, in bytes, for the disk not to be what is wrong: SQLite needs files beside its own.
const littleRoom = 128 << 10

// noRoom says of an error of the disk that there is no room on it, which SQLite may call an input/output error.
func noRoom(stateDir string, err error) error {
	if !isStorage(err) {
		return err
	}
	var disk unix.Statfs_t
	if unix.Statfs(stateDir, &disk) != nil {
		return err
	}
	free := disk.Bavail * uint64(disk.Bsize)
	noFiles := disk.Files > 0 && disk.Ffree == 0 // some file systems count none
	if free > littleRoom && !noFiles {
		return err
	}
	return fmt.Errorf("%w in %s (%d kB and %d files are free): make room there: %w", ErrNoRoom, stateDir, free/1000, disk.Ffree, err)
}
