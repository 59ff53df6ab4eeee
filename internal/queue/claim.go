package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"mirror-shell/internal/inbox"
)

// Job is what a run function gets to know: which peer must be made equal for which
// repository. Everything else it reads after the claim, so that it sees every change counted.
type Job struct {
	Key
	Origin  inbox.Origin
	Attempt int       // failures since the latest success
	Oldest  time.Time // the oldest change that the peer lacks
	Newest  time.Time // the newest
	Probe   bool      // the peer was down when the run began
}

// Result is what a run tells beside its error. Both texts are kept as one line of at most 500 bytes.
type Result struct {
	Digest string // of the refs that were confirmed; kept on success only
	Note   string // for status
	// Renote, where it is not nil, makes the row's note of what that is when a run ends well: for a run that did not find out all of
	// it. It is called within a transaction, and may be called again.
	Renote func(before string) string
}

// Func makes a peer equal. Its error decides what becomes of the job:
//
//	nil          done, for every change that was counted when the run began
//	ErrPeerDown  the peer is backed off, the job keeps its place (errors.Is, as for the next two)
//	ErrHeld      shown as held; looked at again after RetryMax, or when something is pushed
//	ErrDropped   shown as dropped, with the error as the reason; not tried again until the next change
//	ErrGone      is ErrDropped of a name that is not in use any more: its row goes as well, unless there is a newer change
//	other        retried for ever, with the job's own backoff
//
// An error after its context was cancelled because the worker stops does not count as an attempt.
// The function must end soon after its context does: the next run may begin a quarter of a
// lease later. A panic is a failure of the job.
type Func func(ctx context.Context, job Job) (Result, error)

// claim is a job that we run.
type claim struct {
	Job
	owner   string
	run     int64
	peerRun int64
	tried   bool // to settle it, but the database's answer did not come
}

// board is what decides which peers may get another run.
type board struct {
	now     int64
	peers   []peer
	live    map[string]int  // live runs of this node per peer: other nodes have connections of their own
	probing map[string]bool // a live run, of any node, tries a peer that is down
	expires int64           // first end of a live lease, 0 without any
}

// board looks at peers and runs. For a claim it keeps the peers locked, and with them all other claims.
func (tx *tx) board(ctx context.Context, claim bool) (board, error) {
	b := board{now: tx.now, live: map[string]int{}, probing: map[string]bool{}}
	var err error
	if b.peers, err = tx.listPeers(ctx, claim); err != nil { // before the runs: see the package comment
		return b, err
	}
	running, err := tx.running(ctx)
	for _, r := range running {
		if r.lease > tx.now && !r.dead {
			if tx.q.owns(r.owner) {
				b.live[r.Peer]++
			}
			b.probing[r.Peer] = b.probing[r.Peer] || r.probe
			b.expires = minKnown(b.expires, r.lease)
		}
	}
	return b, err
}

// limits of a claim.
type limits struct {
	perPeer    int  // live runs to one peer; 0: no limit
	probesOnly bool // only for a peer that is down: probes have room of their own, so that peers which hang cannot fill the worker
}

// admits tells since when, or from when on, a peer may get another run; ok is false while only
// something else than time can change that (a run's end, a person).
func (b board) admits(p peer, lim limits) (from int64, ok bool) {
	switch {
	case p.paused:
		return 0, false
	case p.down():
		return p.retryAt, !b.probing[p.name]
	}
	return 0, !lim.probesOnly && (lim.perPeer <= 0 || b.live[p.name] < lim.perPeer)
}

// next is the job that has been, or will be, claimable first among all peers: when, and its peer's row.
type next struct {
	job
	peer peer
	at   int64
}

// next returns nil where no peer admits a run or has a job.
func (tx *tx) next(ctx context.Context, b board, lim limits, claim bool) (best *next, err error) {
	for _, p := range b.peers {
		from, open := b.admits(p, lim)
		if !open {
			continue
		}
		j, some, err := tx.first(ctx, p.name, claim)
		if err != nil {
			return nil, err
		}
		// Of those that are due, whoever stands in line longest; of the others, the first to be due.
		n := next{j, p, max(from, j.runAt)}
		if some && (best == nil || n.before(*best, b.now)) {
			best = &n
		}
	}
	return best, nil
}

func (n next) before(other next, now int64) bool {
	a, b := max(n.at, now), max(other.at, now)
	return a < b || a == b && n.runAt < other.runAt
}

// nextRun is how long a worker has no reason to look again if nothing else happens: until a job is due, or
// somebody's lease ends. ok is false when there is no such time.
func (q *Queue) nextRun(ctx context.Context, lim limits) (wait time.Duration, ok bool, err error) {
	err = q.read(ctx, func(tx *tx) error {
		b, err := tx.board(ctx, false)
		if err != nil {
			return err
		}
		n, err := tx.next(ctx, b, lim, false)
		at := b.expires
		if n != nil {
			at = minKnown(max(n.at, tx.now), at)
		}
		wait, ok = time.Duration(at-tx.now)*time.Millisecond, at > 0
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("find the next job: %w", err)
	}
	return wait, ok, nil
}

// due reports whether a claim would find something now.
func (q *Queue) due(ctx context.Context, lim limits) (due bool, err error) {
	err = q.read(ctx, func(tx *tx) error {
		due, err = tx.due(ctx, lim)
		return err
	})
	return due, err
}

func (tx *tx) due(ctx context.Context, lim limits) (bool, error) {
	b, err := tx.board(ctx, false)
	if err != nil {
		return false, err
	}
	n, err := tx.next(ctx, b, lim, false)
	return n != nil && n.at <= tx.now, err
}

// claim takes the lease of the job that is due longest, or returns nil when none is due.
func (q *Queue) claim(ctx context.Context, lim limits) (c *claim, err error) {
	if q.shared && !q.found.Load() { // most looks of an idle worker find nothing: these lock no rows
		worthwhile := true
		err := q.read(ctx, func(tx *tx) (err error) {
			worthwhile, err = tx.due(ctx, lim)
			worthwhile = worthwhile || q.mends.due(tx.now)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look for a job: %w", err)
		}
		if !worthwhile {
			return nil, nil
		}
	}
	err = q.update(ctx, func(tx *tx) error {
		c = nil
		if err := tx.mend(ctx); err != nil {
			return err
		}
		b, err := tx.board(ctx, true)
		if err != nil {
			return err
		}
		n, err := tx.next(ctx, b, lim, true)
		if err != nil || n == nil || n.at > tx.now {
			return err
		}
		c, err = tx.take(ctx, n.job, n.peer)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim a job: %w", err)
	}
	if !lim.probesOnly {
		q.found.Store(c != nil)
	}
	return c, nil
}

// claimKey takes the lease of one job whatever its backoff and its peer say, or returns nil while
// somebody else has it. A job that has nothing to do gets one more generation.
func (tx *tx) claimKey(ctx context.Context, change Change) (*claim, error) {
	if err := tx.mend(ctx); err != nil {
		return nil, err
	}
	j, err := tx.job(ctx, change.Key)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if j.running(tx.now) {
		return nil, nil
	}
	if !j.pending() {
		if _, err := tx.enqueue(ctx, []Change{change}); err != nil {
			return nil, err
		}
		if j, err = tx.job(ctx, change.Key); err != nil {
			return nil, err
		}
	}
	p, err := tx.ensurePeer(ctx, change.Peer, true)
	if err != nil {
		return nil, err
	}
	return tx.take(ctx, j, p)
}

// take marks a job as run by us; both rows were loaded to be stored.
func (tx *tx) take(ctx context.Context, j job, p peer) (*claim, error) {
	owner, err := tx.q.newOwner()
	if err != nil {
		return nil, err
	}
	p.runs++
	j = j.claimed(owner, p.down(), tx.q.lease, tx.now)
	if err := tx.storePeer(ctx, p); err != nil {
		return nil, err
	}
	if err := tx.storeJobs(ctx, j); err != nil {
		return nil, err
	}
	return &claim{
		Job: Job{Key: j.Key, Origin: j.origin, Attempt: j.attempt, Probe: j.probe,
			Oldest: fromMillis(j.oldest), Newest: fromMillis(j.newest)},
		owner: j.owner, run: j.run, peerRun: p.runs,
	}, nil
}

// settle ends a run. current is false when the lease had passed to somebody else, or the row was
// forgotten: then nothing is changed. Settling twice does no harm, so that it can be tried again when
// the connection broke before the database's answer came.
func (q *Queue) settle(ctx context.Context, c *claim, r result) (current bool, err error) {
	err = q.update(ctx, func(tx *tx) error {
		current = false
		j, err := tx.job(ctx, c.Key)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if j.owner != c.owner {
			current = c.tried && j.settled == c.run // it was our earlier try that settled that run
			return nil
		}
		current = true
		after := j.settledWith(r, q.wait, q.policy.cap, tx.now)
		if r.gone && !after.pending() {
			err = tx.deleteJob(ctx, c.Key)
		} else {
			err = tx.storeJobs(ctx, after)
		}
		if err != nil {
			return err
		}
		return tx.settlePeer(ctx, c, r, j.probe, q.wait)
	})
	if err != nil {
		return false, fmt.Errorf("record the result of %s: %w", c.Key, err)
	}
	return current, nil
}

// settlePeer locks the peer only when there is something new about it.
func (tx *tx) settlePeer(ctx context.Context, c *claim, r result, probe bool, wait func(int) time.Duration) error {
	for _, store := range []bool{false, true} {
		p, err := tx.ensurePeer(ctx, c.Peer, store)
		if err != nil {
			return err
		}
		after := p.settledWith(r, probe, c.peerRun, wait, tx.now)
		if after == p {
			return nil
		}
		if store {
			return tx.storePeer(ctx, after)
		}
	}
	return nil
}

// ending is how a claim ended.
type ending struct {
	claim   *claim
	result  result
	err     error // what the run function returned
	current bool  // the table has the result
	lost    error // why it has not: the database's error, nil for a stale owner
}

// execute runs a claimed job under a heartbeat and settles it.
func (q *Queue) execute(ctx context.Context, c *claim, run Func) ending {
	jobCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := q.heartbeat(c, func() { cancel(ErrLeaseLost) })
	defer stop()
	res, err := invoke(jobCtx, c.Job, run)
	e := ending{claim: c, err: err, result: judge(res, err, jobCtx.Err() != nil)}
	e.current, e.lost = q.settleSurely(ctx, c, e.result)
	return e
}

// panicError is a panic of a run function.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// invoke turns a panic into an error: one broken repository must not take the worker down.
func invoke(ctx context.Context, job Job, run Func) (res Result, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicError{v, debug.Stack()}
		}
	}()
	return run(ctx, job)
}

// stopGrace bounds how long a worker that was told to stop tries to record a result.
const stopGrace = 5 * time.Second

// settleSurely settles in spite of a cancelled context, and tries again while the database fails,
// as long as the lease lasts. After that the job is simply run again.
func (q *Queue) settleSurely(ctx context.Context, c *claim, r result) (current bool, err error) {
	began := time.Now()
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(q.lease, stopGrace))
		current, err = q.settle(try, c, r)
		cancel()
		if err == nil {
			return current, nil
		}
		c.tried = true
		limit := q.lease
		if ctx.Err() != nil {
			limit = min(limit, stopGrace)
		}
		if time.Since(began)+pause > limit {
			return false, err
		}
		time.Sleep(pause)
	}
}

// heartbeat renews a claim's lease until stop is called, which waits for it. When the lease has passed to
// somebody else, or could not be renewed for three quarters of its length, it calls
// lost once and ends: the remaining quarter is the run's time to end before the next owner begins.
func (q *Queue) heartbeat(c *claim, lost func()) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(q.lease / 4)
		defer ticker.Stop()
		renewed := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			began := time.Now()
			ours, err := q.renew(ctx, c)
			switch {
			case err == nil && ours:
				renewed = began
			case err == nil, time.Since(renewed) > q.lease*7/10:
				lost()
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (q *Queue) renew(ctx context.Context, c *claim) (ours bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.lease/4)
	defer cancel()
	err = q.update(ctx, func(tx *tx) error {
		ours, err = tx.renew(ctx, c.Key, c.owner, tx.now+q.lease.Milliseconds())
		return err
	})
	return ours, err
}
