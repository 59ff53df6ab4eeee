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
// renews the lease; a worker that dies stops renewing. What a former owner reports after its lease changes nothing.
//
// A run ends with a settlement, chosen by the error that the run function returned
// (see [Func]). Failures are retried for ever, each job with its own capped exponential backoff,
// kept in run_at. A peer that cannot be reached ([ErrPeerDown]) is the peer's trouble and
// not the job's: its row in the peers table holds the backoff, its jobs keep their place, and
// one of them at a time probes it. The first success opens the gate for all.
//
// The package knows nothing of git, of configuration, or of what a peer is.
//
// # Deaths
//
// Every process that runs jobs, a worker or a push in the foreground, takes a number at random and holds a lock (of
// the kind F_OFD_SETLK) on the byte at that offset of state_dir/node for as long as it lives. The
// kernel lets go of it however the process ends, and neither a process id that is used again nor a file that was left
// behind deceives anybody. The number is part of the owner token, HOST:PID:NODE:NUMBER.COUNT; NODE
// stands for host, path and content of state_dir/node, 16 random hexadecimal digits. So each
// process can tell whether an owner of its own state directory is dead, and of all others nothing: their leases are waited for.
//
// A lease of the dead counts as ended wherever a row is loaded. A worker puts their jobs back into the line with its first
// claim, and looks again every few seconds. They are run at once; one whose runs keep killing the
// worker waits longer each time, as one that fails.
//
// # Losses
//
// SQLite's file can be damaged, cut off or deleted, at rest or under a worker. Damage shows in SQLite's errors, in values that
// were never stored, and in the check with which a server begins. Whoever finds it moves the file aside and makes a new one,
// and keeps the latest three. A file that is not at its place any more is noticed before and after each transaction,
// so that nothing is acknowledged that was written to it; and state_dir/node tells tables that are missing from
// tables that never were. A database that is only full, locked, unreadable or away is never taken for a lost one.
//
// What the table knew is found again by comparing every copy with its repository. Until somebody who has done so
// calls [Rebuilt], state_dir/rebuild stands, which was written before the new tables. A worker that has a Rebuild sees to it.
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
// Files of state_dir, all of mode 0600; what is locked by flock is free when its process has ended:
//
//	queue.db, -wal, -shm      the tables in SQLite
//	queue.db.corrupt-TIME     (and -wal, -shm) a damaged file, for a person
//	queue.lock                flock: shared while a file is opened, exclusive while one is moved aside or rebuild is written
//	worker.lock               flock: held by the one worker of a state directory. Says who it is: "PID serve" or
//	                          "PID drain". A server that is started has a drain leave
//	node                      see Deaths. It is made after the tables
//	rebuild                   a loss that is not made good: {"id":"16 hex digits","time":"…","reason":"one line"}
//	paused                    the names of paused peers, a JSON array, for tables that are made after a loss
package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
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
	ErrGone     = fmt.Errorf("%w: the name is not in use", ErrDropped)
)

var (
	// ErrUnsupported: [queue] url names a database that this version cannot use.
	ErrUnsupported = errors.New("not supported in this version")
	// ErrUnavailable: the database server cannot be reached. What hooks recorded waits in the inbox.
	ErrUnavailable = errors.New("the database server cannot be reached")
	// ErrNoRoom: the disk of state_dir is full. It passes when there is room.
	ErrNoRoom = errors.New("no room")
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
	// Patient: a database server that cannot be reached, or a disk that has no room, is no error of Open. Each
	// call tries again. For workers, which outlive that.
	Patient bool
	// OnLoss is told when the tables turn out to be lost: one line, what happened and what was done.
	// It may be called at any time, and must not call the queue; nil: nobody is told.
	OnLoss func(text string)

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
	file     *databaseFile // of SQLite, else nil
	schema   schema
	stateDir string
	server   string
	node     string // tells this state directory's runs from those of other nodes; known once schema is ready
	beacon   beacon
	claims   atomic.Int64 // made by this process
	onLoss   func(string)
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
// wrap ErrUnsupported, ErrUnavailable, ErrNoRoom or ErrNewerSchema, and never show a password. Close must be called in the end.
func Open(ctx context.Context, o Options) (*Queue, error) {
	if o.StateDir == "" || o.Server == "" {
		return nil, errors.New("open queue: state_dir and hostname are required")
	}
	q := &Queue{
		stateDir: o.StateDir,
		server:   o.Server,
		beacon:   beacon{path: nodePath(o.StateDir)},
		onLoss:   o.OnLoss,
		lease:    orDefault(o.Lease, 30*time.Second),
		policy:   policy{base: orDefault(o.BackoffBase, time.Second), cap: orDefault(o.RetryMax, 15*time.Minute)},
		clock:    o.Now,
		random:   rand.Float64,
	}
	if q.clock == nil {
		q.clock = time.Now
	}
	if err := q.connect(ctx, o); err != nil {
		return nil, fmt.Errorf("open queue: %w", err)
	}
	return q, nil
}

func (q *Queue) connect(ctx context.Context, o Options) (err error) {
	if o.URL == "" {
		q.dialect = sqliteDialect
		if q.file, err = newDatabaseFile(databasePath(o.StateDir)); err == nil {
			q.db = sql.OpenDB(q.file)
			// One connection: SQLite has one writer at a time anyway, and database/sql queues fairly where SQLite polls.
			q.db.SetMaxOpenConns(1)
		}
	} else {
		q.db, q.dialect, err = openPostgres(o.URL)
	}
	if err != nil {
		return err
	}
	q.texts = newTexts(q.dialect)
	q.askClock = q.dialect.clock != "" && o.Now == nil
	err = os.MkdirAll(o.StateDir, 0o700)
	if err == nil {
		err = q.read(ctx, func(*tx) error { return nil })
	}
	if err == nil || o.Patient && ctx.Err() == nil && (errors.Is(err, ErrUnavailable) || isStorage(err)) {
		return nil
	}
	q.db.Close()
	return err
}

// orDefault returns d, or def where d is not positive.
func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Close closes the database. Runs must have ended: from now on this process counts as dead.
func (q *Queue) Close() error { return errors.Join(q.db.Close(), q.beacon.close()) }

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
		was := p.paused
		change(&p)
		if err := tx.storePeer(ctx, p); err != nil || p.paused == was {
			return err
		}
		return tx.keepPauses(ctx)
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

// ForgetSeen removes those of the rows that are as they were when they were read, and returns those whose jobs run,
// and so are left. A row that got a change since is left, too: it may be another repository's
// that has the name now.
func (q *Queue) ForgetSeen(ctx context.Context, rows []Row) (running []Row, err error) {
	err = q.update(ctx, func(tx *tx) error {
		running = nil
		byKey := make(map[Key]Row, len(rows))
		for _, row := range rows {
			byKey[row.Key] = row
		}
		jobs, err := tx.loadJobs(ctx, slices.Collect(maps.Keys(byKey)), true)
		if err != nil {
			return err
		}
		for key, j := range jobs {
			switch row := byKey[key]; {
			case j.want != row.Want || millis(row.Created) != j.created:
			case j.running(tx.now):
				running = append(running, row)
			default:
				if err := tx.deleteJob(ctx, key); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("forget %d jobs: %w", len(rows), err)
	}
	return running, nil
}

// mendEvery is how often impossible times are looked for while the clock runs forwards.
const mendEvery = 5 * time.Second

// mendGuard decides when to look for leases of the dead, and for times that only a clock which was set back can explain.
type mendGuard struct {
	mu    sync.Mutex
	last  time.Time // monotonic; zero: not yet
	clock int64     // latest time of the queue's clock
}

// due says whether it is time to look.
func (g *mendGuard) due(now int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.setBack(now) || time.Since(g.last) >= mendEvery
}

func (g *mendGuard) setBack(now int64) bool { return now < g.clock || g.last.IsZero() }

// begin is due that begins to wait again. setBack says that the clock may have been set back since the latest look.
func (g *mendGuard) begin(now int64) (due, setBack bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	setBack = g.setBack(now)
	if due = setBack || time.Since(g.last) >= mendEvery; due {
		g.last = time.Now()
	}
	g.clock = now
	return due, setBack
}

// reset makes the next look due.
func (g *mendGuard) reset() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = time.Time{}
}

// mend keeps jobs from being wedged by workers that died, and by a clock that was set back: run_at,
// retry_at and leases that this clock cannot have written are brought near, and nothing has lasted since
// tomorrow. The lease of somebody who may be alive is shortened and not ended, because he will renew it.
func (tx *tx) mend(ctx context.Context) error {
	due, setBack := tx.q.mends.begin(tx.now)
	if !due {
		return nil
	}
	tx.mended = true
	if err := tx.clampTimes(ctx, tx.q.policy.cap.Milliseconds(), tx.q.lease.Milliseconds(), setBack); err != nil {
		return err
	}
	return tx.bury(ctx)
}
