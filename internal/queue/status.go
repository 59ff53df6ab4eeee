package queue

import (
	"context"
	"fmt"
	"time"

	"mirror-shell/internal/inbox"
)

// Row is a job as status shows it.
type Row struct {
	Key
	State  State
	Latest State // what the latest run that ended came to; "" without any
	Origin inbox.Origin
	Lag    time.Duration // age of the oldest change that the peer lacks; 0 when equal

	Want, Seen, Done int64 // generations: see the package comment
	Attempt          int   // failures since the latest success

	Error  string // of the latest attempt, one line; the reason when held or dropped
	Note   string
	Digest string // confirmed by the latest success

	Oldest, Newest time.Time // changes: the oldest that the peer lacks, the newest ever. Zero: none
	NextTry        time.Time // zero: nothing to do, or only after a person acts
	LastSuccess    time.Time
	LastAttempt    time.Time
	Created        time.Time
	Owner          string // HOST:PID:NODE:RANDOM while running
	Lease          time.Time

	PeerPaused    bool
	PeerDownSince time.Time // zero: reachable as far as we know
	PeerError     string
}

func newRow(j job, p peer, now int64) Row {
	r := Row{
		Key: j.Key, State: stateOf(j, p, now), Latest: j.state, Origin: j.origin,
		Want: j.want, Seen: j.seen, Done: j.done, Attempt: j.attempt,
		Error: j.err, Note: j.note, Digest: j.digest,
		Newest: fromMillis(j.newest), NextTry: fromMillis(nextTry(j, p, now)),
		LastSuccess: fromMillis(j.lastSuccess), LastAttempt: fromMillis(j.lastAttempt), Created: fromMillis(j.created),
		PeerPaused: p.paused, PeerDownSince: fromMillis(p.downSince), PeerError: p.err,
	}
	if j.pending() {
		r.Oldest = fromMillis(j.oldest)
		r.Lag = time.Duration(max(0, now-j.oldest)) * time.Millisecond
	}
	if j.running(now) {
		r.Owner, r.Lease = j.owner, fromMillis(j.lease)
	}
	return r
}

// Standing is State, but of a copy that is just being tried again: what has not been overcome is
// down, failed or held for as long as that takes.
func (r Row) Standing() State {
	switch {
	case r.State != StateRunning:
		return r.State
	case !r.PeerDownSince.IsZero():
		return StateDown
	case r.Latest == StateFailed, r.Latest == StateHeld:
		return r.Latest
	}
	return StateRunning
}

// Filter chooses rows; an empty member matches all.
type Filter struct {
	Repository string
	Peer       string
	Pending    bool // only what the peer lacks: Want > Done. However long the table is, the others cost nothing
}

// Rows returns the jobs of this server, by repository and then peer.
func (q *Queue) Rows(ctx context.Context, f Filter) ([]Row, error) {
	var rows []Row
	err := q.read(ctx, func(tx *tx) error {
		peers, err := tx.peersByName(ctx)
		if err != nil {
			return err
		}
		return tx.eachJob(ctx, f, func(j job) { rows = append(rows, newRow(j, peers[j.Peer], tx.now)) })
	})
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	return rows, nil
}

// Peer is what the queue knows of a peer.
type Peer struct {
	Name      string
	Paused    bool
	DownSince time.Time // zero: reachable as far as we know
	Attempt   int       // probes that failed since then
	RetryAt   time.Time // no probe before
	Error     string    // why it is down, one line
}

// Peers returns the peers that ever had a job or were paused, by name.
func (q *Queue) Peers(ctx context.Context) ([]Peer, error) {
	var list []peer
	err := q.read(ctx, func(tx *tx) (err error) {
		list, err = tx.listPeers(ctx, false)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	peers := make([]Peer, len(list))
	for i, p := range list {
		peers[i] = Peer{Name: p.name, Paused: p.paused, DownSince: fromMillis(p.downSince), Attempt: p.attempt,
			RetryAt: fromMillis(p.retryAt), Error: p.err}
	}
	return peers, nil
}
