package queue

import (
	"context"
	"fmt"
	"time"

	"mirror-shell/internal/inbox"
)

// pollFirst and pollMax bound the pauses between looks at the table.
const (
	pollFirst = 20 * time.Millisecond
	pollMax   = 500 * time.Millisecond
)

// RunNow runs one job in the caller's process, for a push in the foreground. It records a
// change, waits while another process runs the same job, then runs fn under the
// job's lease, whatever backoff, pause or the state of the peer say, and returns fn's own
// result and error. When ctx ends first, the job is left for the worker. When fn succeeds but its result
// cannot be recorded, the error says so: status will show the job as waiting until it has run again.
func (q *Queue) RunNow(ctx context.Context, k Key, origin inbox.Origin, fn Func) (Result, error) {
	change := Change{Key: k, Origin: origin}
	if err := checkChanges([]Change{change}); err != nil {
		return Result{}, fmt.Errorf("run: %w", err)
	}
	var c *claim
	for pause := pollFirst; ; pause = min(2*pause, pollMax) {
		first := pause == pollFirst
		err := q.update(ctx, func(tx *tx) (err error) {
			if first {
				if _, err := tx.enqueue(ctx, []Change{change}); err != nil {
					return err
				}
			}
			c, err = tx.claimKey(ctx, change)
			return err
		})
		if err != nil {
			return Result{}, fmt.Errorf("run %s: %w", k, err)
		}
		if c != nil {
			break
		}
		if err := sleep(ctx, pause); err != nil {
			return Result{}, fmt.Errorf("run %s: waiting for the run in progress: %w", k, err)
		}
	}
	e := q.execute(ctx, c, fn)
	if e.err == nil && e.lost != nil {
		return e.result.Result, fmt.Errorf("done, but: %w", e.lost)
	}
	return e.result.Result, e.err
}

// Await waits until each ticket's job has an outcome that its change could have had a part in, and
// calls each, in this goroutine, once per ticket, with the row and in Row.State the outcome:
//
//	ok, dropped   a run that began after the change ended so
//	failed, held  the same; the job is retried, but the caller is told now
//	down          a run to the peer, of any repository, began after the change and found it down
//	paused        the peer is paused, so there is nothing to wait for
//
// A failure of a run that had begun before the change says nothing about it and is waited out. A
// row that was forgotten meanwhile counts as dropped. Await starts no runs: a worker must, and a peer
// that was down before is probed when its backoff ends unless ProbeNow is called.
// The error is ctx's, or the database's when that fails for half a minute.
func (q *Queue) Await(ctx context.Context, tickets []Ticket, each func(Row)) error {
	waiting := append([]Ticket(nil), tickets...)
	seen := time.Now()
	for pause := pollFirst; len(waiting) > 0; pause = min(pause*3/2, pollMax) {
		began := time.Now()
		rows, err := q.lookUp(ctx, waiting)
		switch {
		case err == nil:
			seen = time.Now()
			waiting = report(waiting, rows, each)
		case ctx.Err() != nil || time.Since(seen) > awaitPatience:
			return fmt.Errorf("wait for %d jobs: %w", len(waiting), err)
		}
		if len(waiting) == 0 {
			break
		}
		if err := sleep(ctx, max(pause, 4*time.Since(began))); err != nil { // a long table is looked at less often
			return fmt.Errorf("wait for %d jobs, first of them %s: %w", len(waiting), waiting[0].Key, err)
		}
	}
	return nil
}

// awaitPatience is for how long Await bears a database that fails: a server is restarted in less.
const awaitPatience = 30 * time.Second

// report calls each for the rows with an outcome and returns the other tickets.
func report(waiting []Ticket, rows []Row, each func(Row)) (rest []Ticket) {
	rest = waiting[:0]
	for i, t := range waiting {
		if rows[i].State == "" {
			rest = append(rest, t)
		} else {
			each(rows[i])
		}
	}
	return rest
}

// lookUp returns the row of each ticket, with its outcome or "" in State.
func (q *Queue) lookUp(ctx context.Context, tickets []Ticket) ([]Row, error) {
	keys := make([]Key, len(tickets))
	for i, t := range tickets {
		keys[i] = t.Key
	}
	rows := make([]Row, len(tickets))
	err := q.read(ctx, func(tx *tx) error {
		jobs, peers, err := tx.jobsAndPeers(ctx, keys)
		for i, t := range tickets {
			j := jobs[t.Key]
			if j == nil {
				rows[i] = Row{Key: t.Key, State: StateDropped, Error: "forgotten meanwhile"}
				continue
			}
			p := peers[t.Peer]
			rows[i] = newRow(*j, p, tx.now)
			rows[i].State = t.outcome(*j, p, tx.now)
		}
		return err
	})
	return rows, err
}

// jobsAndPeers looks at the jobs, without those that are missing, and at all peers.
func (tx *tx) jobsAndPeers(ctx context.Context, keys []Key) (map[Key]*job, map[string]peer, error) {
	peers, err := tx.peersByName(ctx)
	if err != nil {
		return nil, nil, err
	}
	jobs, err := tx.loadJobs(ctx, keys, false)
	return jobs, peers, err
}

// outcome is what became of a ticket's change, "" while that is open.
func (t Ticket) outcome(j job, p peer, now int64) State {
	switch {
	case j.done >= t.want && j.state == StateDropped:
		return StateDropped
	case j.done >= t.want:
		return StateOK
	case j.settled > t.run:
		return j.state
	case j.running(now):
		return ""
	case p.down() && p.downRun > t.peerRun:
		return StateDown
	case p.paused:
		return StatePaused
	}
	return ""
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
