// Package queue remembers which peers must be made equal to which repositories, and sees
// to it that they are.
//
// # Concepts
//
// A job is "make peer P equal for repository R"; there is one row per (server,
// repository, peer), and it stays until the repository is forgotten. A job never says what changed. It counts
// generations instead:
//
//	want   rises by one with every change (Enqueue)
//	seen   what want was when the present or latest run began (claim)
//	done   the seen of the latest run that succeeded
//
// The peer lacks something exactly while want > done. A push that arrives during a run
// makes want > seen, so the job is due again as soon as the run ends: nothing is lost, and
// a hundred pushes during one run need one more run.
//
// A run begins with a claim, which takes a lease under an owner token of its own. A heartbeat
// renews the lease; a worker that dies stops renewing, and its jobs are claimed again when their
// leases end. What a former owner then reports changes nothing.
//
// A run ends with a settlement, chosen by the error that the run function returned
// (see [Func]). Failures are retried for ever, each job with its own capped exponential backoff,
// kept in run_at. A peer that cannot be reached ([ErrPeerDown]) is the peer's trouble and
// not the job's: its row in the peers table holds the backoff, its jobs keep their place, and
// one of them at a time probes it. The first success opens the gate for all.
//
// The package knows nothing of git, of configuration, or of what a peer is.
//
// # Storage
//
// SQLite at state_dir/queue.db (mode 0600, WAL, synchronous FULL: what was acknowledged
// survives a power cut), or PostgreSQL 9.5 or later at [queue] url, in the first schema of its search_path.
// Tables are in schema.go, all other SQL text is in sql.go. What happens to a row
// is decided by the pure functions of row.go; the rest of the package loads rows, calls them and
// stores the result if the row's version is still the one that was loaded.
//
// In PostgreSQL several nodes, which have the same hostname in their configuration and state
// directories of their own, work on the same rows. A row that is to be stored is locked when it is loaded: jobs
// in the order of their names, then peers, so that nobody waits in a circle. Only a claim locks the peers first, so that
// claims come one after the other, each counting what the others have begun; and it passes over jobs that are
// locked (FOR UPDATE SKIP LOCKED), so that it never waits behind ten thousand changes that are being recorded.
// What the versions of rows still guard there is two transactions that make the same new row.
//
// Times are unix milliseconds, 0 for none: of this server's clock in SQLite, of the database's clock in
// PostgreSQL, because the clocks of nodes differ. Only when a change was made is told by the clock
// of the node where it was.
//
// state_dir/worker.lock is held (flock) by the one worker of a state directory and says who
// it is: "PID serve" or "PID drain". A server that is started has a drain leave.
package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"mirror-shell/internal/inbox"
)

// Sentinels that a run function wraps to say how a job ended; see Func.
var (
	ErrPeerDown = errors.New("peer cannot be reached")
	ErrHeld     = errors.New("held until a person looks at it")
	ErrDropped  = errors.New("no longer wanted")
)

var (
	// ErrUnsupported: [queue] url names a database that this version cannot use.
	ErrUnsupported = errors.New("not supported in this version")
	// ErrUnavailable: the database server cannot be reached. What hooks recorded waits in the inbox.
	ErrUnavailable = errors.New("the database server cannot be reached")
	// ErrNewerSchema: the database was written by a newer version of the program.
	ErrNewerSchema = errors.New("database was made by a newer version")
	// ErrRunning is wrapped by Forget's error while a job of the repository runs.
	ErrRunning = errors.New("a job is running")
	// ErrLeaseLost is the cause of a run's cancelled context when its lease could not be kept.
	ErrLeaseLost = errors.New("lease lost")
)

// Options say where a queue is and how it behaves. StateDir and Server are required.
type Options struct {
	StateDir string
	URL      string // [queue] url: postgres://…, or "" for SQLite in StateDir
	Server   string // this server's hostname: the owner of the rows
	// Patient: a database server that cannot be reached is no error of Open. Each call tries it again. For
	// workers, which outlive its absence.
	Patient bool

	Lease       time.Duration // 0: 30 s. The same in all processes that share a table
	RetryMax    time.Duration // 0: 15 min. Cap of every backoff, and the pause before a held job is looked at again
	BackoffBase time.Duration // 0: 1 s. The first backoff; it doubles with each failure

	Now func() time.Time // nil: time.Now, or the database server's clock
}

// Queue is an open jobs table. Its methods may be called by any number of goroutines and
// processes at once.
type Queue struct {
	*dialect
	*texts
	db       *sql.DB
	schema   schema
	stateDir string
	server   string
	node     string // tells this state directory's runs from those of other nodes
	lease    time.Duration
	policy   policy
	clock    func() time.Time // of this machine, or of a test
	askClock bool             // the database's counts in its rows
	random   func() float64   // of [0,1): jitter
	mends    mendGuard
	found    atomic.Bool // the latest claim found something
}

// Key names a job of this server.
type Key struct {
	Repository string
	Peer       string
}

func (k Key) String() string { return k.Repository + " to " + k.Peer }

// Change says that a peer lacks something since a moment. A zero Time, or one in the future, means now.
type Change struct {
	Key
	Origin inbox.Origin
	Time   time.Time
}

// Ticket remembers the place of one change, for Await.
type Ticket struct {
	Key
	want    int64 // done at or beyond this: the change has arrived
	run     int64 // runs of the job that had begun when the change was made
	peerRun int64 // likewise, of any job of the peer
}

// Open opens the queue, and creates database file, directory and tables when they are missing. Its errors may
// wrap ErrUnsupported, ErrUnavailable or ErrNewerSchema, and never show a password. Close must be called in the end.
func Open(ctx context.Context, o Options) (*Queue, error) {
	if o.StateDir == "" || o.Server == "" {
		return nil, errors.New("open queue: state_dir and hostname are required")
	}
	q := &Queue{
		stateDir: o.StateDir,
		server:   o.Server,
		node:     nodeOf(o.StateDir),
		lease:    orDefault(o.Lease, 30*time.Second),
		policy:   policy{base: orDefault(o.BackoffBase, time.Second), cap: orDefault(o.RetryMax, 15*time.Minute)},
		clock:    o.Now,
		random:   rand.Float64,
	}
	if q.clock == nil {
		q.clock = time.Now
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	if err := q.connect(ctx, o); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	q.texts = newTexts(q.dialect)
	q.askClock = q.dialect.clock != "" && o.Now == nil
	return q, nil
}

func (q *Queue) connect(ctx context.Context, o Options) (err error) {
	if o.URL == "" {
		q.dialect, q.schema.seen = sqliteDialect, true
		if q.db, err = openSQLite(ctx, databasePath(o.StateDir)); err != nil {
			err = fmt.Errorf("%s: %w", databasePath(o.StateDir), err)
		}
		return err
	}
	if q.db, q.dialect, err = openPostgres(o.URL); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	if err = q.tidied(ctx, q.schema.ready(limited, q)); err == nil || o.Patient && errors.Is(err, ErrUnavailable) {
		return nil
	}
	q.db.Close()
	return err
}

// nodeOf names a state directory. Host and path together are unique among the nodes that share a table.
func nodeOf(stateDir string) string {
	host, _ := os.Hostname()
	path, err := filepath.Abs(stateDir)
	if err != nil {
		path = stateDir
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%s\x00%s", host, path)
	return fmt.Sprintf("%08x", h.Sum32())
}

// orDefault returns d, or def where d is not positive.
func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Close closes the database. Runs must have ended.
func (q *Queue) Close() error { return q.db.Close() }

// Enqueue records changes, all of them or none; when it returns nil they survive a power
// cut. tickets[i] belongs to changes[i].
func (q *Queue) Enqueue(ctx context.Context, changes []Change) (tickets []Ticket, err error) {
	if err := checkChanges(changes); err != nil {
		return nil, fmt.Errorf("enqueue: %w", err)
	}
	err = q.update(ctx, func(tx *tx) error {
		tickets, err = tx.enqueue(ctx, changes)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("enqueue %d changes: %w", len(changes), err)
	}
	return tickets, nil
}

func checkChanges(changes []Change) error {
	for _, c := range changes {
		if err := c.Key.check(); err != nil {
			return err
		}
		if c.Origin != inbox.OriginList && c.Origin != inbox.OriginExplicit {
			return fmt.Errorf("change of %s: origin %q is unknown", c.Key, c.Origin)
		}
	}
	return nil
}

// check refuses what a database cannot keep as a name.
func (k Key) check() error {
	for _, name := range []string{k.Repository, k.Peer} {
		if name == "" || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
			return fmt.Errorf("job of %q for %q: a name is missing, or is not text", k.Repository, k.Peer)
		}
	}
	return nil
}

// enqueue loads and stores each row once, however many changes it gets.
func (tx *tx) enqueue(ctx context.Context, changes []Change) ([]Ticket, error) {
	peers := map[string]peer{}
	keys := make([]Key, len(changes))
	for i, c := range changes {
		keys[i] = c.Key
		if _, ok := peers[c.Peer]; ok {
			continue
		}
		p, err := tx.ensurePeer(ctx, c.Peer, false)
		if err != nil {
			return nil, err
		}
		peers[c.Peer] = p
	}
	jobs, err := tx.loadJobs(ctx, keys, true)
	if err != nil {
		return nil, err
	}
	tickets := make([]Ticket, len(changes))
	for i, c := range changes {
		j := jobs[c.Key]
		if j == nil {
			j = &job{Key: c.Key}
			jobs[c.Key] = j
		}
		*j = j.enqueued(c.Origin, millis(c.Time), tx.now)
		tickets[i] = Ticket{Key: c.Key, want: j.want, run: j.run, peerRun: peers[c.Peer].runs}
	}
	return tickets, tx.storeJobs(ctx, values(jobs)...)
}

// values lists jobs in no order.
func values(jobs map[Key]*job) []job {
	list := make([]job, 0, len(jobs))
	for _, j := range jobs {
		list = append(list, *j)
	}
	return list
}

// Pause keeps the worker from starting runs to a peer; those that run go on. RunNow
// ignores it. The peer need not be known yet.
func (q *Queue) Pause(ctx context.Context, peer string) error {
	return q.changePeer(ctx, "pause", peer, func(p *peerRow) { p.paused = true })
}

// Resume ends a Pause, and has a peer that is down probed at once.
func (q *Queue) Resume(ctx context.Context, peer string) error {
	return q.changePeer(ctx, "resume", peer, func(p *peerRow) { p.paused, p.retryAt = false, 0 })
}

// ProbeNow has a peer that is down tried again at once rather than after its backoff: a
// person, or cron, asks. A peer that is not down is left alone.
func (q *Queue) ProbeNow(ctx context.Context, peer string) error {
	return q.changePeer(ctx, "probe", peer, func(p *peerRow) { p.retryAt = 0 })
}

type peerRow = peer // lets the methods above call their parameter peer

func (q *Queue) changePeer(ctx context.Context, what, name string, change func(*peerRow)) error {
	if name == "" {
		return fmt.Errorf("%s: a peer is required", what)
	}
	err := q.update(ctx, func(tx *tx) error {
		p, err := tx.ensurePeer(ctx, name, true)
		if err != nil {
			return err
		}
		change(&p)
		return tx.storePeer(ctx, p)
	})
	if err != nil {
		return fmt.Errorf("%s peer %s: %w", what, name, err)
	}
	return nil
}

// Forget removes the rows of a repository and says how many there were. While one of its
// jobs runs it removes nothing and its error wraps ErrRunning.
func (q *Queue) Forget(ctx context.Context, repository string) (n int, err error) {
	err = q.update(ctx, func(tx *tx) error {
		jobs, err := tx.lockRepository(ctx, repository)
		if err != nil {
			return err
		}
		for _, j := range jobs {
			if j.running(tx.now) {
				return fmt.Errorf("%w (to %s): wait until it ends, or pause the peer, then try again", ErrRunning, j.Peer)
			}
		}
		n, err = tx.deleteJobs(ctx, repository)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("forget %s: %w", repository, err)
	}
	return n, nil
}

// mendEvery is how often impossible times are looked for while the clock runs forwards.
const mendEvery = 5 * time.Second

// mendGuard decides when to look for times that only a clock which jumped backwards can explain.
type mendGuard struct {
	mu    sync.Mutex
	last  time.Time // monotonic
	clock int64     // latest time of the queue's clock
}

// due says whether it is time to look, and begins to wait again where the look is taken.
func (g *mendGuard) due(now int64, taken bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now >= g.clock && !g.last.IsZero() && time.Since(g.last) < mendEvery {
		g.clock = now
		return false
	}
	if taken {
		g.last, g.clock = time.Now(), now
	}
	return true
}

// mend keeps a clock that jumped backwards from wedging jobs: run_at, retry_at and leases that
// this clock cannot have written are brought near. A lease is shortened and not ended,
// because its owner may be alive and will renew it.
func (tx *tx) mend(ctx context.Context) error {
	if !tx.q.mends.due(tx.now, true) {
		return nil
	}
	return tx.clampTimes(ctx, tx.q.policy.cap.Milliseconds(), tx.q.lease.Milliseconds())
}
