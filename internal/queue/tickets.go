package queue

import (
	"context"
	"fmt"
)

// Tickets returns the places of what has been recorded for the jobs so far, for
// Await, without recording anything. A run that includes all of it counts, also
// when it is under way or over; a job without a row gets no ticket.
func (q *Queue) Tickets(ctx context.Context, keys []Key) ([]Ticket, error) {
	tx := q.reading()
	var tickets []Ticket
	for _, k := range keys {
		err := tx.jobsWithPeers(ctx, k.Repository, k.Peer, func(j job, p peer) {
			tickets = append(tickets, ticketOf(j, p))
		})
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", k, err)
		}
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
