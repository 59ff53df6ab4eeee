package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Verification says that a comparison found a peer's copy equal, at the digest of our refs.
type Verification struct {
	Key
	Digest string
	Note   string // for status, as a Result's: what the comparison found worth telling although it is equal
	// ExactNote has the row's note be Note at once, and none when that is "".
	ExactNote bool
}

// successFor is how long a recorded success stays as it is while comparisons confirm it: an hourly
// comparison of thirty thousand copies right after another writes nothing.
const successFor = 10 * time.Minute

// Verified records copies that a comparison found equal to refs of ours, which had not changed from
// since until they were compared.
//
//	the job lacks something, all of it recorded before since    satisfied as by a successful run, whatever kept it
//	                                                            from running; n counts these
//	something was recorded since (the same millisecond counts)  left alone
//	it runs                                                     left alone: the run will tell
//	it was equal                                                digest brought up to date, and the time of the
//	                                                            success when that is ten minutes old; a note is then
//	                                                            as now found, and a new or an exact one at once
//	there is no row                                             a row is made, equal
//
// Each peer named has answered, so it is not down any more. The work is done in many transactions: after
// an error a part of the copies is recorded, which is no harm.
func (q *Queue) Verified(ctx context.Context, copies []Verification, since time.Time) (n int, err error) {
	byPeer := map[string]map[Key]Verification{}
	for _, c := range copies {
		if err := c.Key.check(); err != nil {
			return 0, fmt.Errorf("record equal copies: %w", err)
		}
		if byPeer[c.Peer] == nil {
			byPeer[c.Peer] = map[Key]Verification{}
		}
		byPeer[c.Peer][c.Key] = Verification{c.Key, oneLine(c.Digest), oneLine(c.Note), c.ExactNote}
	}
	for peer, of := range byPeer {
		if err := q.answered(ctx, peer); err != nil {
			return n, fmt.Errorf("record that %s answers: %w", peer, err)
		}
		for part := range slices.Chunk(slices.SortedFunc(maps.Keys(of), compareKeys), chunk) {
			satisfied, err := q.verify(ctx, part, of, since)
			n += satisfied
			if err != nil {
				return n, fmt.Errorf("record equal copies: %w", err)
			}
		}
	}
	return n, nil
}

// verification is what is to be written for some copies at one peer.
type verification struct {
	changed   []job // rows to be stored
	confirmed []Key // rows that only get a new time of success
	satisfied int
}

// verify records one chunk of copies at one peer. Where nodes share the rows it looks first, and locks only what
// there is to write.
func (q *Queue) verify(ctx context.Context, keys []Key, found map[Key]Verification, since time.Time) (n int, err error) {
	var v verification
	if q.shared {
		err := q.read(ctx, func(tx *tx) (err error) {
			v, err = tx.verification(ctx, keys, found, since, false)
			return err
		})
		if err != nil {
			return 0, err
		}
		keys = v.confirmed
		for _, j := range v.changed {
			keys = append(keys, j.Key)
		}
		if len(keys) == 0 {
			return 0, nil
		}
	}
	err = q.update(ctx, func(tx *tx) error {
		if v, err = tx.verification(ctx, keys, found, since, true); err != nil {
			return err
		}
		if err := tx.storeJobs(ctx, v.changed...); err != nil {
			return err
		}
		return tx.confirm(ctx, v.confirmed)
	})
	if err != nil {
		return 0, err
	}
	return v.satisfied, nil
}

func (tx *tx) verification(
	ctx context.Context, keys []Key, found map[Key]Verification, since time.Time, forStore bool,
) (v verification, err error) {
	jobs, err := tx.loadJobs(ctx, keys, forStore)
	if err != nil {
		return v, err
	}
	before := tx.when(since)
	for _, k := range keys {
		j := job{Key: k}
		if loaded := jobs[k]; loaded != nil {
			j = *loaded
		}
		after := j.verified(found[k], before, tx.now)
		if after == j {
			continue
		}
		if j.pending() && !after.pending() {
			v.satisfied++
		}
		if j.lastSuccess = after.lastSuccess; after == j {
			v.confirmed = append(v.confirmed, k)
		} else {
			v.changed = append(v.changed, after)
		}
	}
	return v, nil
}

// when is a moment of this machine's clock on the clock of the rows, or earlier: the clocks may differ,
// and either may have been set since. What was recorded after t is never dated before it.
func (tx *tx) when(t time.Time) int64 {
	now := tx.read // after the other clock: the age is never too short
	age := max(now.Sub(t), now.Round(0).Sub(t.Round(0)), 0)
	return tx.now - int64((age+time.Millisecond-1)/time.Millisecond)
}

// answered notes that a peer is not down.
func (q *Queue) answered(ctx context.Context, name string) error {
	known := false
	err := q.read(ctx, func(tx *tx) error {
		peers, err := tx.peersByName(ctx)
		p, ok := peers[name]
		known = ok && !p.down()
		return err
	})
	if err != nil || known {
		return err
	}
	return q.changePeer(ctx, "clear", name, func(p *peerRow) {
		*p = p.settledWith(result{state: StateOK}, false, 0, nil, 0)
	})
}
