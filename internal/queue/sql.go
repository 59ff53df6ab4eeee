package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// All SQL text of the package but that of schema.go. It keeps to what SQLite and PostgreSQL share: $N
// placeholders (SQLite's driver binds them by number), BIGINT and TEXT, ON CONFLICT, partial indexes.
// Rows are read, changed in Go, and written where their version still matches; many at a time, because
// a statement for each row is five times slower in SQLite, and more over a network.
const (
	sqlRenew = `UPDATE jobs SET lease = $5, version = version + 1
		WHERE server = $1 AND repository = $2 AND peer = $3 AND owner = $4`
	sqlDropJobs = `DELETE FROM jobs WHERE server = $1 AND repository = $2`
	sqlDropJob  = sqlDropJobs + ` AND peer = $3`

	sqlAddPeer   = `INSERT INTO peers (server, peer) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	sqlAddPaused = `INSERT INTO peers (server, peer, paused) VALUES ($1, $2, 1) ON CONFLICT DO NOTHING`
	sqlPutPeer   = `UPDATE peers SET paused = $4, down_since = $5, last_down = $6, attempt = $7, retry_at = $8,
		error = $9, runs = $10, down_run = $11, version = version + 1
		WHERE server = $1 AND peer = $2 AND version = $3`

	sqlRunning = `SELECT repository, peer, lease, probe, owner FROM jobs WHERE server = $1 AND owner <> ''`
	sqlPending = `SELECT COUNT(*) FROM jobs j JOIN peers p ON p.server = j.server AND p.peer = j.peer
		WHERE j.server = $1 AND j.want > j.done AND j.state <> 'held' AND p.paused = 0`
	sqlChanges = `SELECT CAST(COALESCE(SUM(want), 0) AS BIGINT) FROM jobs WHERE server = $1`

	// Times that this clock cannot have written: see mend. $2 is now, $3 the limit.
	sqlClampRunAt = `UPDATE jobs SET run_at = CAST($2 AS BIGINT), version = version + 1
		WHERE server = $1 AND want > done AND run_at > CAST($2 AS BIGINT)
		AND (run_at > CAST($2 AS BIGINT) + CAST($3 AS BIGINT) OR (attempt = 0 AND state <> 'held'))`
	sqlClampLease = `UPDATE jobs SET lease = CAST($2 AS BIGINT) + CAST($3 AS BIGINT), version = version + 1
		WHERE server = $1 AND owner <> '' AND lease > CAST($2 AS BIGINT) + 2 * CAST($3 AS BIGINT)`
	sqlClampRetry = `UPDATE peers SET retry_at = CAST($2 AS BIGINT), version = version + 1
		WHERE server = $1 AND retry_at > CAST($2 AS BIGINT) + CAST($3 AS BIGINT)`
	// Times since when something lasts, and which are in the future.
	sqlClampOldest = `UPDATE jobs SET version = version + 1,
		oldest = CASE WHEN oldest > CAST($2 AS BIGINT) THEN CAST($2 AS BIGINT) ELSE oldest END,
		later = CASE WHEN later > CAST($2 AS BIGINT) THEN CAST($2 AS BIGINT) ELSE later END
		WHERE server = $1 AND want > done AND (oldest > CAST($2 AS BIGINT) OR later > CAST($2 AS BIGINT))`
	sqlClampDown = `UPDATE peers SET version = version + 1,
		down_since = CASE WHEN down_since > CAST($2 AS BIGINT) THEN CAST($2 AS BIGINT) ELSE down_since END,
		last_down = CASE WHEN last_down > CAST($2 AS BIGINT) THEN CAST($2 AS BIGINT) ELSE last_down END
		WHERE server = $1 AND (down_since > CAST($2 AS BIGINT) OR last_down > CAST($2 AS BIGINT))`
)

// texts are the statements that differ between the databases.
type texts struct {
	jobs        string         // followed by a condition
	jobsOf      string         // of a list of keys
	jobsOfLock  string         // for writing
	putJobs     map[int]string // by the number of rows, all powers of two up to putRows
	confirm     string
	peers       string
	peersLock   string
	peer        string
	peerLock    string
	firstInLine string // the first in a peer's line that nobody runs
	claimable   string // the same, to be claimed
	lock        string
}

// jobColumns are those of job.fields, in its order.
const jobColumns = `repository peer want seen done origin oldest newest later later_origin run_at lease owner
	probe run settled attempt state error note digest last_success last_attempt changed created version`

const peerColumns = `peer, paused, down_since, last_down, attempt, retry_at, error, runs, down_run, version`

func newTexts(d *dialect) *texts {
	columns := strings.Fields(jobColumns)
	jobs := "SELECT j." + strings.Join(columns, ", j.") + " FROM "
	jobsOf := func(lock string) string { return jobs + d.listed(lock) + " ORDER BY j.repository, j.peer" }
	peers := "SELECT " + peerColumns + " FROM peers WHERE server = $1"
	first := jobs + `jobs j
		WHERE j.server = $1 AND j.peer = $2 AND j.want > j.done AND (j.owner = '' OR j.lease <= $3) ORDER BY j.run_at LIMIT 1`
	t := &texts{
		jobs:       jobs + "jobs j WHERE j.server = $1",
		jobsOf:     jobsOf(""),
		jobsOfLock: jobsOf(d.lock),
		putJobs:    map[int]string{},
		confirm:    "UPDATE jobs SET last_success = $4, version = version + 1 WHERE server = $1 AND " + d.among,
		peers:      peers + " ORDER BY peer",
		peersLock:  peers + " ORDER BY peer" + d.lock,
		peer:       peers + " AND peer = $2",
		peerLock:   peers + " AND peer = $2" + d.lock,

		firstInLine: first,
		claimable:   first + d.skip,
		lock:        d.lock,
	}
	for n := 1; n <= putRows; n *= 2 {
		t.putJobs[n] = d.putJobs(n)
	}
	return t
}

// putJobs makes the statement that stores n rows: new ones with version 1, and others only over the version
// that was loaded. (UPDATE FROM would say it better, but SQLite then reads the table once per row.)
func (d *dialect) putJobs(n int) string {
	var set []string
	for _, c := range strings.Fields(jobColumns)[2:] {
		set = append(set, c+" = excluded."+c)
	}
	rows, parameter := make([]string, n), 0
	for i := range rows {
		marks := make([]string, 1+len(strings.Fields(jobColumns)))
		for m := range marks {
			parameter++
			marks[m] = d.mark(parameter)
		}
		rows[i] = "(" + strings.Join(marks, ",") + ")"
	}
	return "INSERT INTO jobs (server, " + strings.Join(strings.Fields(jobColumns), ", ") + ")" +
		" VALUES " + strings.Join(rows, ",") + " ON CONFLICT (server, repository, peer) DO UPDATE SET " + strings.Join(set, ", ") +
		" WHERE jobs.version = excluded.version - 1"
}

func (j *job) fields() []any {
	return []any{&j.Repository, &j.Peer, &j.want, &j.seen, &j.done, &j.origin, &j.oldest, &j.newest, &j.later,
		&j.laterOrigin, &j.runAt, &j.lease, &j.owner, &j.probe, &j.run, &j.settled, &j.attempt, &j.state, &j.err,
		&j.note, &j.digest, &j.lastSuccess, &j.lastAttempt, &j.changed, &j.created, &j.version}
}

// values are what a row is stored with, in the order of jobColumns.
func (j *job) values() []any {
	return []any{j.Repository, j.Peer, j.want, j.seen, j.done, string(j.origin), j.oldest, j.newest, j.later,
		string(j.laterOrigin), j.runAt, j.lease, j.owner, number(j.probe), j.run, j.settled, j.attempt, string(j.state), j.err,
		j.note, j.digest, j.lastSuccess, j.lastAttempt, j.changed, j.created, j.version + 1}
}

func (p *peer) fields() []any {
	return []any{&p.name, &p.paused, &p.downSince, &p.lastDown, &p.attempt, &p.retryAt, &p.err, &p.runs, &p.downRun, &p.version}
}

// chunk is how many rows one statement loads (less in tests), putRows how many one stores.
var chunk = 500

const putRows = 64

// loadJobs loads rows, to be stored in this transaction, or only to be looked at. Missing ones are missing.
func (tx *tx) loadJobs(ctx context.Context, keys []Key, forStore bool) (map[Key]*job, error) {
	text := tx.jobsOf
	if forStore {
		text = tx.jobsOfLock
	}
	jobs := make(map[Key]*job, len(keys))
	for _, k := range keys {
		jobs[k] = nil
	}
	sorted := slices.SortedFunc(maps.Keys(jobs), compareKeys) // everybody locks in the same order
	for part := range slices.Chunk(sorted, chunk) {
		repositories, peers := tx.q.lists(part)
		err := tx.eachRow(ctx, func(j job) {
			if _, asked := jobs[j.Key]; asked {
				jobs[j.Key] = &j
			}
		}, text, tx.q.server, repositories, peers)
		if err != nil {
			return nil, err
		}
	}
	maps.DeleteFunc(jobs, func(_ Key, j *job) bool { return j == nil })
	return jobs, nil
}

func compareKeys(a, b Key) int {
	if c := strings.Compare(a.Repository, b.Repository); c != 0 {
		return c
	}
	return strings.Compare(a.Peer, b.Peer)
}

// storeJobs stores rows that were loaded for it, or are new; errConflict when one changed, or came to be, meanwhile.
func (tx *tx) storeJobs(ctx context.Context, jobs ...job) error {
	slices.SortFunc(jobs, func(a, b job) int { return compareKeys(a.Key, b.Key) })
	for n := putRows; len(jobs) > 0; n /= 2 {
		for ; len(jobs) >= n; jobs = jobs[n:] {
			var args []any
			for i := range jobs[:n] {
				args = append(append(args, tx.q.server), jobs[i].values()...)
			}
			res, err := tx.ExecContext(ctx, tx.putJobs[n], args...)
			if err := exactly(n, res, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// confirm stores nothing but the time of the latest success, of locked rows of one peer.
func (tx *tx) confirm(ctx context.Context, keys []Key) error {
	if len(keys) == 0 {
		return nil
	}
	repositories, peers := tx.q.lists(keys)
	res, err := tx.ExecContext(ctx, tx.texts.confirm, tx.q.server, repositories, peers, tx.now)
	return exactly(len(keys), res, err)
}

// job loads a row to be stored; without one the error is sql.ErrNoRows.
func (tx *tx) job(ctx context.Context, k Key) (j job, err error) {
	text := tx.jobs + " AND j.repository = $2 AND j.peer = $3" + tx.lock
	return tx.oneRow(ctx, text, tx.q.server, k.Repository, k.Peer)
}

// eachRow calls f for the jobs that a statement finds. Wherever a job is loaded, one whose owner has died is not running.
func (tx *tx) eachRow(ctx context.Context, f func(job), text string, args ...any) error {
	return tx.each(ctx, func(row scanner) error {
		var j job
		if err := row.Scan(j.fields()...); err != nil {
			return err
		}
		if !(0 <= j.done && j.done <= j.seen && j.seen <= j.want) {
			return fmt.Errorf("%s has generations %d, %d, %d", j.Key, j.want, j.seen, j.done)
		}
		if j.owner != "" && tx.q.dead(j.owner) {
			j = j.orphaned()
		}
		f(j)
		return nil
	}, text, args...)
}

// oneRow is for a statement that finds one job; when there is none, the error is sql.ErrNoRows.
func (tx *tx) oneRow(ctx context.Context, text string, args ...any) (found job, err error) {
	err = sql.ErrNoRows
	if eerr := tx.eachRow(ctx, func(j job) { found, err = j, nil }, text, args...); eerr != nil {
		err = eerr
	}
	return found, err
}

// eachJob calls f for the rows that match, by repository and then peer.
func (tx *tx) eachJob(ctx context.Context, filter Filter, f func(job)) error {
	text, args := tx.jobs, []any{tx.q.server}
	for _, c := range []struct{ column, value string }{{"repository", filter.Repository}, {"peer", filter.Peer}} {
		if c.value != "" {
			args = append(args, c.value)
			text += fmt.Sprintf(" AND j.%s = $%d", c.column, len(args))
		}
	}
	if filter.Pending {
		text += " AND j.want > j.done"
	}
	return tx.eachRow(ctx, f, text+" ORDER BY j.repository, j.peer", args...)
}

// lockRepository keeps the rows of a repository from being claimed until the transaction ends, and returns them.
func (tx *tx) lockRepository(ctx context.Context, repository string) (jobs []job, err error) {
	err = tx.eachRow(ctx, func(j job) { jobs = append(jobs, j) },
		tx.jobs+" AND j.repository = $2 ORDER BY j.peer"+tx.lock, tx.q.server, repository)
	return jobs, err
}

func (tx *tx) deleteJobs(ctx context.Context, repository string) (int, error) {
	return affected(tx.ExecContext(ctx, sqlDropJobs, tx.q.server, repository))
}

func (tx *tx) deleteJob(ctx context.Context, k Key) error {
	_, err := tx.ExecContext(ctx, sqlDropJob, tx.q.server, k.Repository, k.Peer)
	return err
}

// renew extends a run's lease and reports whether it was still its owner's.
func (tx *tx) renew(ctx context.Context, k Key, owner string, lease int64) (bool, error) {
	n, err := affected(tx.ExecContext(ctx, sqlRenew, tx.q.server, k.Repository, k.Peer, owner, lease))
	return n == 1, err
}

// ensurePeer loads a row, to be stored or not, and makes it if it is missing.
func (tx *tx) ensurePeer(ctx context.Context, name string, forStore bool) (p peer, err error) {
	text := tx.texts.peer
	if forStore {
		text = tx.peerLock
	}
	get := func() error { return tx.one(ctx, p.fields(), text, tx.q.server, name) }
	if err = get(); !errors.Is(err, sql.ErrNoRows) {
		return p, err
	}
	if _, err := tx.ExecContext(ctx, sqlAddPeer, tx.q.server, name); err != nil {
		return peer{}, err
	}
	return p, get()
}

func (tx *tx) storePeer(ctx context.Context, p peer) error {
	res, err := tx.ExecContext(ctx, sqlPutPeer, tx.q.server, p.name, p.version, number(p.paused),
		p.downSince, p.lastDown, p.attempt, p.retryAt, p.err, p.runs, p.downRun)
	return exactly(1, res, err)
}

// listPeers lists all peers by name. While they are locked, nobody else claims a job.
func (tx *tx) listPeers(ctx context.Context, lock bool) (list []peer, err error) {
	text := tx.peers
	if lock {
		text = tx.peersLock
	}
	err = tx.each(ctx, func(row scanner) error {
		var p peer
		err := row.Scan(p.fields()...)
		list = append(list, p)
		return err
	}, text, tx.q.server)
	return list, err
}

func (tx *tx) peersByName(ctx context.Context) (map[string]peer, error) {
	list, err := tx.listPeers(ctx, false)
	byName := make(map[string]peer, len(list))
	for _, p := range list {
		byName[p.name] = p
	}
	return byName, err
}

// run is a row of sqlRunning: a job with an owner, whose lease may have ended.
type run struct {
	Key
	lease int64
	probe bool
	owner string
	dead  bool // the owner
}

func (tx *tx) running(ctx context.Context) (list []run, err error) {
	err = tx.each(ctx, func(row scanner) error {
		var r run
		err := row.Scan(&r.Repository, &r.Peer, &r.lease, &r.probe, &r.owner)
		r.dead = tx.q.dead(r.owner)
		list = append(list, r)
		return err
	}, sqlRunning, tx.q.server)
	return list, err
}

// first is a peer's pending job that nobody runs with the smallest run_at, which may be in the future. One
// that is to be claimed is locked, and one that somebody is changing is passed over.
func (tx *tx) first(ctx context.Context, peer string, claim bool) (j job, ok bool, err error) {
	text := tx.firstInLine
	if claim {
		text = tx.claimable
	}
	j, err = tx.oneRow(ctx, text, tx.q.server, peer, tx.now)
	if errors.Is(err, sql.ErrNoRows) {
		return job{}, false, nil
	}
	return j, err == nil, err
}

// pending counts the jobs that a drain waits for, and the changes recorded ever.
func (q *Queue) pending(ctx context.Context) (jobs int, changes int64, err error) {
	err = q.read(ctx, func(tx *tx) error {
		if err := tx.one(ctx, []any{&jobs}, sqlPending, q.server); err != nil {
			return err
		}
		return tx.one(ctx, []any{&changes}, sqlChanges, q.server)
	})
	return jobs, changes, err
}

// clampTimes changes jobs before peers, which is the order in which all transactions lock. The times since when
// something lasts are looked at only where the clock may have been set back.
func (tx *tx) clampTimes(ctx context.Context, cap, lease int64, setBack bool) error {
	for _, c := range []struct {
		text string
		due  bool
		args []any
	}{
		{sqlClampRunAt, true, []any{cap}}, {sqlClampLease, true, []any{lease}}, {sqlClampOldest, setBack, nil},
		{sqlClampRetry, true, []any{cap}}, {sqlClampDown, setBack, nil},
	} {
		if !c.due {
			continue
		}
		if _, err := tx.ExecContext(ctx, c.text, append([]any{tx.q.server, tx.now}, c.args...)...); err != nil {
			return err
		}
	}
	return nil
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
