package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"modernc.org/sqlite" // the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// schemaVersion is kept in meta under "schema". A change of tables raises it and adds a step to migrate.
const schemaVersion = 1

// All SQL text of the package. It keeps to what SQLite and PostgreSQL share: $N
// placeholders (SQLite's driver binds them by number), BIGINT and TEXT, ON CONFLICT DO NOTHING,
// partial indexes. Rows are read, changed in Go, and written where their version still matches.
const (
	sqlCreateMeta = `CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)`
	sqlGetSchema  = `SELECT value FROM meta WHERE name = 'schema'`
	sqlPutSchema  = `INSERT INTO meta (name, value) VALUES ('schema', $1)`

	sqlCreateJobs = `CREATE TABLE jobs (
		server TEXT NOT NULL, repository TEXT NOT NULL, peer TEXT NOT NULL,
		want BIGINT NOT NULL DEFAULT 0, seen BIGINT NOT NULL DEFAULT 0, done BIGINT NOT NULL DEFAULT 0,
		origin TEXT NOT NULL DEFAULT '', oldest BIGINT NOT NULL DEFAULT 0, newest BIGINT NOT NULL DEFAULT 0,
		later BIGINT NOT NULL DEFAULT 0, later_origin TEXT NOT NULL DEFAULT '',
		run_at BIGINT NOT NULL DEFAULT 0, lease BIGINT NOT NULL DEFAULT 0, owner TEXT NOT NULL DEFAULT '',
		probe BIGINT NOT NULL DEFAULT 0, run BIGINT NOT NULL DEFAULT 0, settled BIGINT NOT NULL DEFAULT 0,
		attempt BIGINT NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT '', error TEXT NOT NULL DEFAULT '',
		note TEXT NOT NULL DEFAULT '', digest TEXT NOT NULL DEFAULT '',
		last_success BIGINT NOT NULL DEFAULT 0, last_attempt BIGINT NOT NULL DEFAULT 0,
		created BIGINT NOT NULL DEFAULT 0, version BIGINT NOT NULL DEFAULT 0,
		PRIMARY KEY (server, repository, peer))`
	sqlCreateDue     = `CREATE INDEX jobs_due ON jobs (server, peer, run_at) WHERE want > done`
	sqlCreateRunning = `CREATE INDEX jobs_running ON jobs (server, peer) WHERE owner <> ''`
	sqlCreatePeers   = `CREATE TABLE peers (
		server TEXT NOT NULL, peer TEXT NOT NULL,
		paused BIGINT NOT NULL DEFAULT 0, down_since BIGINT NOT NULL DEFAULT 0, last_down BIGINT NOT NULL DEFAULT 0,
		attempt BIGINT NOT NULL DEFAULT 0, retry_at BIGINT NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
		runs BIGINT NOT NULL DEFAULT 0, down_run BIGINT NOT NULL DEFAULT 0, version BIGINT NOT NULL DEFAULT 0,
		PRIMARY KEY (server, peer))`

	jobColumns = `j.repository, j.peer, j.want, j.seen, j.done, j.origin, j.oldest, j.newest, j.later, j.later_origin,
		j.run_at, j.lease, j.owner, j.probe, j.run, j.settled, j.attempt, j.state, j.error, j.note, j.digest,
		j.last_success, j.last_attempt, j.created, j.version`
	peerColumns = `p.peer, p.paused, p.down_since, p.last_down, p.attempt, p.retry_at, p.error, p.runs, p.down_run, p.version`

	sqlAddJob = `INSERT INTO jobs (server, repository, peer) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	sqlGetJob = `SELECT ` + jobColumns + ` FROM jobs j WHERE j.server = $1 AND j.repository = $2 AND j.peer = $3`
	sqlPutJob = `UPDATE jobs SET want = $5, seen = $6, done = $7, origin = $8, oldest = $9, newest = $10, later = $11,
		later_origin = $12, run_at = $13, lease = $14, owner = $15, probe = $16, run = $17, settled = $18,
		attempt = $19, state = $20, error = $21, note = $22, digest = $23, last_success = $24, last_attempt = $25,
		created = $26, version = version + 1
		WHERE server = $1 AND repository = $2 AND peer = $3 AND version = $4`
	sqlDropJobs = `DELETE FROM jobs WHERE server = $1 AND repository = $2`
	sqlRenew    = `UPDATE jobs SET lease = $5, version = version + 1
		WHERE server = $1 AND repository = $2 AND peer = $3 AND owner = $4`

	sqlAddPeer   = `INSERT INTO peers (server, peer) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	sqlGetPeer   = `SELECT ` + peerColumns + ` FROM peers p WHERE p.server = $1 AND p.peer = $2`
	sqlListPeers = `SELECT ` + peerColumns + ` FROM peers p WHERE p.server = $1 ORDER BY p.peer`
	sqlPutPeer   = `UPDATE peers SET paused = $4, down_since = $5, last_down = $6, attempt = $7, retry_at = $8,
		error = $9, runs = $10, down_run = $11, version = version + 1
		WHERE server = $1 AND peer = $2 AND version = $3`

	sqlRunning = `SELECT repository, peer, lease, probe FROM jobs WHERE server = $1 AND owner <> ''`
	// The claim statement: the first in a peer's line that nobody runs. PostgreSQL adds FOR UPDATE SKIP LOCKED.
	sqlFirstInLine = `SELECT repository, run_at FROM jobs
		WHERE server = $1 AND peer = $2 AND want > done AND (owner = '' OR lease <= $3)
		ORDER BY run_at LIMIT 1`
	sqlPending = `SELECT COUNT(*) FROM jobs j JOIN peers p ON p.server = j.server AND p.peer = j.peer
		WHERE j.server = $1 AND j.want > j.done AND j.state <> 'held' AND p.paused = 0`
	sqlChanges = `SELECT CAST(COALESCE(SUM(want), 0) AS BIGINT) FROM jobs WHERE server = $1`
	sqlRows    = `SELECT ` + jobColumns + `, ` + peerColumns + `
		FROM jobs j JOIN peers p ON p.server = j.server AND p.peer = j.peer
		WHERE j.server = $1 AND ($2 = '' OR j.repository = $2) AND ($3 = '' OR j.peer = $3)
		ORDER BY j.repository, j.peer`

	// Times that this clock cannot have written: see mend. $2 is now, $3 the cap of backoffs.
	sqlClampRunAt = `UPDATE jobs SET run_at = $2, version = version + 1
		WHERE server = $1 AND want > done AND run_at > $2 AND (run_at > $2 + $3 OR (attempt = 0 AND state <> 'held'))`
	sqlClampRetry = `UPDATE peers SET retry_at = $2, version = version + 1 WHERE server = $1 AND retry_at > $2 + $3`
	sqlClampLease = `UPDATE jobs SET lease = $2 + $3, version = version + 1
		WHERE server = $1 AND owner <> '' AND lease > $2 + 2 * $3`
)

// errConflict: a row changed between its load and its store; the transaction is to be run again.
var errConflict = errors.New("row changed meanwhile")

func databasePath(stateDir string) string { return filepath.Join(stateDir, "queue.db") }

// busyTimeout is how long SQLite waits for another process's transaction.
const busyTimeout = 10 * time.Second

// openDatabase opens, creates or migrates the database file. Several processes may do so at once:
// the switch to WAL can report "busy" without having waited, so that is tried again.
func openDatabase(ctx context.Context, path string) (*sql.DB, error) {
	if err := createPrivate(path); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dataSource(path))
	if err != nil {
		return nil, err
	}
	// One connection: SQLite has one writer at a time anyway, and database/sql queues fairly where SQLite polls.
	db.SetMaxOpenConns(1)
	for deadline := time.Now().Add(busyTimeout); ; {
		err = migrate(ctx, db)
		if err == nil {
			return db, nil
		}
		if !isBusy(err) || ctx.Err() != nil || time.Now().After(deadline) {
			db.Close()
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

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

// migrate brings the tables to schemaVersion. A look without a transaction comes first, because
// every start of every program passes here.
func migrate(ctx context.Context, db *sql.DB) error {
	if version, err := readSchema(ctx, db); err == nil && version == schemaVersion {
		return nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, sqlCreateMeta); err != nil {
		return err
	}
	version, err := readSchema(ctx, tx)
	switch {
	case err != nil:
		return err
	case version > schemaVersion:
		return fmt.Errorf("%w: its schema is %d, this program knows %d: upgrade mirror-shell", ErrNewerSchema, version, schemaVersion)
	case version == schemaVersion:
		return nil
	}
	for _, text := range []string{sqlCreateJobs, sqlCreateDue, sqlCreateRunning, sqlCreatePeers} {
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, sqlPutSchema, strconv.Itoa(schemaVersion)); err != nil {
		return err
	}
	return tx.Commit()
}

// querier is what *sql.DB and *sql.Tx share.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// readSchema returns the version of the tables, 0 for a database without any.
func readSchema(ctx context.Context, db querier) (int, error) {
	var text string
	err := db.QueryRowContext(ctx, sqlGetSchema).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	version, err := strconv.Atoi(text)
	if err != nil || version < 1 {
		return 0, fmt.Errorf("schema version %q in table meta is not a number", text)
	}
	return version, nil
}

// tx is a transaction, or plain reading, as of one moment of the queue's clock.
type tx struct {
	querier
	q   *Queue
	now int64
}

// reading reads outside a transaction.
func (q *Queue) reading() *tx { return &tx{querier: q.db, q: q, now: q.now()} }

// update runs do in a transaction, again when a row changed under it (never on SQLite, whose
// transactions begin by taking the write lock).
func (q *Queue) update(ctx context.Context, do func(*tx) error) error {
	for try := 0; ; try++ {
		err := q.updateOnce(ctx, do)
		if !errors.Is(err, errConflict) || try == 20 {
			return err
		}
	}
}

func (q *Queue) updateOnce(ctx context.Context, do func(*tx) error) error {
	t, err := q.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer t.Rollback()
	if err := do(&tx{querier: t, q: q, now: q.now()}); err != nil {
		return err
	}
	return t.Commit()
}

// scanner is what *sql.Row and *sql.Rows share.
type scanner interface{ Scan(...any) error }

func (j *job) fields() []any {
	return []any{&j.Repository, &j.Peer, &j.want, &j.seen, &j.done, &j.origin, &j.oldest, &j.newest, &j.later,
		&j.laterOrigin, &j.runAt, &j.lease, &j.owner, &j.probe, &j.run, &j.settled, &j.attempt, &j.state, &j.err,
		&j.note, &j.digest, &j.lastSuccess, &j.lastAttempt, &j.created, &j.version}
}

func (p *peer) fields() []any {
	return []any{&p.name, &p.paused, &p.downSince, &p.lastDown, &p.attempt, &p.retryAt, &p.err, &p.runs, &p.downRun, &p.version}
}

// job loads a row; without one the error is sql.ErrNoRows.
func (tx *tx) job(ctx context.Context, k Key) (j job, err error) {
	err = tx.QueryRowContext(ctx, sqlGetJob, tx.q.server, k.Repository, k.Peer).Scan(j.fields()...)
	return j, err
}

func (tx *tx) ensureJob(ctx context.Context, k Key) (job, error) {
	j, err := tx.job(ctx, k)
	if !errors.Is(err, sql.ErrNoRows) {
		return j, err
	}
	if _, err := tx.ExecContext(ctx, sqlAddJob, tx.q.server, k.Repository, k.Peer); err != nil {
		return job{}, err
	}
	return tx.job(ctx, k)
}

func (tx *tx) storeJob(ctx context.Context, j job) error {
	return tx.exactlyOne(tx.ExecContext(ctx, sqlPutJob, tx.q.server, j.Repository, j.Peer, j.version,
		j.want, j.seen, j.done, string(j.origin), j.oldest, j.newest, j.later, string(j.laterOrigin), j.runAt, j.lease,
		j.owner, number(j.probe), j.run, j.settled, j.attempt, string(j.state), j.err, j.note, j.digest,
		j.lastSuccess, j.lastAttempt, j.created))
}

func (tx *tx) deleteJobs(ctx context.Context, repository string) (int, error) {
	return affected(tx.ExecContext(ctx, sqlDropJobs, tx.q.server, repository))
}

// renew extends a run's lease and reports whether it was still its owner's.
func (tx *tx) renew(ctx context.Context, k Key, owner string, lease int64) (bool, error) {
	n, err := affected(tx.ExecContext(ctx, sqlRenew, tx.q.server, k.Repository, k.Peer, owner, lease))
	return n == 1, err
}

func (tx *tx) ensurePeer(ctx context.Context, name string) (p peer, err error) {
	get := func() error { return tx.QueryRowContext(ctx, sqlGetPeer, tx.q.server, name).Scan(p.fields()...) }
	if err = get(); !errors.Is(err, sql.ErrNoRows) {
		return p, err
	}
	if _, err := tx.ExecContext(ctx, sqlAddPeer, tx.q.server, name); err != nil {
		return peer{}, err
	}
	return p, get()
}

func (tx *tx) storePeer(ctx context.Context, p peer) error {
	return tx.exactlyOne(tx.ExecContext(ctx, sqlPutPeer, tx.q.server, p.name, p.version, number(p.paused),
		p.downSince, p.lastDown, p.attempt, p.retryAt, p.err, p.runs, p.downRun))
}

func (tx *tx) peers(ctx context.Context) (list []peer, err error) {
	err = tx.each(ctx, func(row scanner) error {
		var p peer
		err := row.Scan(p.fields()...)
		list = append(list, p)
		return err
	}, sqlListPeers, tx.q.server)
	return list, err
}

// run is a row of sqlRunning: a job with an owner, whose lease may have ended.
type run struct {
	Key
	lease int64
	probe bool
}

func (tx *tx) running(ctx context.Context) (list []run, err error) {
	err = tx.each(ctx, func(row scanner) error {
		var r run
		err := row.Scan(&r.Repository, &r.Peer, &r.lease, &r.probe)
		list = append(list, r)
		return err
	}, sqlRunning, tx.q.server)
	return list, err
}

// firstInLine is a peer's pending job that nobody runs with the smallest run_at, which may be in the future.
func (tx *tx) firstInLine(ctx context.Context, peer string) (repository string, runAt int64, ok bool, err error) {
	err = tx.QueryRowContext(ctx, sqlFirstInLine, tx.q.server, peer, tx.now).Scan(&repository, &runAt)
	if errors.Is(err, sql.ErrNoRows) {
		return "", 0, false, nil
	}
	return repository, runAt, err == nil, err
}

// pending counts the jobs that a drain waits for, and the changes recorded ever.
func (tx *tx) pending(ctx context.Context) (jobs int, changes int64, err error) {
	if err = tx.QueryRowContext(ctx, sqlPending, tx.q.server).Scan(&jobs); err == nil {
		err = tx.QueryRowContext(ctx, sqlChanges, tx.q.server).Scan(&changes)
	}
	return jobs, changes, err
}

// jobsWithPeers calls f for the rows of a repository and a peer, empty for all.
func (tx *tx) jobsWithPeers(ctx context.Context, repository, peerName string, f func(job, peer)) error {
	return tx.each(ctx, func(row scanner) error {
		var j job
		var p peer
		if err := row.Scan(append(j.fields(), p.fields()...)...); err != nil {
			return err
		}
		f(j, p)
		return nil
	}, sqlRows, tx.q.server, repository, peerName)
}

func (tx *tx) clampTimes(ctx context.Context, cap, lease int64) error {
	for text, limit := range map[string]int64{sqlClampRunAt: cap, sqlClampRetry: cap, sqlClampLease: lease} {
		if _, err := tx.ExecContext(ctx, text, tx.q.server, tx.now, limit); err != nil {
			return err
		}
	}
	return nil
}

func (tx *tx) each(ctx context.Context, scan func(scanner) error, query string, args ...any) error {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (tx *tx) exactlyOne(res sql.Result, err error) error {
	n, err := affected(res, err)
	if err == nil && n != 1 {
		return errConflict
	}
	return err
}

func affected(res sql.Result, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	return int(n), err
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
