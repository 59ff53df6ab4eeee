package queue

import (
	"context"
	"fmt"
)

// Tickets returns the places of what has been recorded for the jobs so far, for
// Await, without recording anything. A run that includes all of it counts, also
// when it is under way or over; a job without a row gets no ticket.
func (q *Queue) Tickets(ctx context.Context, keys []Key) ([]Ticket, error) {
	var tickets []Ticket
	err := q.read(ctx, func(tx *tx) error {
		jobs, peers, err := tx.jobsAndPeers(ctx, keys)
		for _, k := range keys {
			if j := jobs[k]; j != nil {
				tickets = append(tickets, ticketOf(*j, peers[k.Peer]))
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look up %d jobs: %w", len(keys), err)
	}
	return tickets, nil
}

func ticketOf(j job, p peer) Ticket {
	t := Ticket{Key: j.Key, want: j.want, run: j.run, peerRun: p.runs}
	if j.run > 0 && j.seen >= j.want { // the latest run began with every change in view
		t.run--
	}
	return t
}
