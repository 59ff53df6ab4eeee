package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/queue"
)

// await is for post-receive: once the worker has taken the hook's event into the
// table, it waits for the outcome at the synchronous peers.
func (c *command) await(ctx context.Context) error {
	cmd := c.Await
	ctx, cancel := context.WithTimeout(ctx, cmd.Timeout)
	defer cancel()
	open := map[string]bool{}
	var keys []queue.Key
	for _, peer := range cmd.Peers {
		open[peer] = true
		keys = append(keys, queue.Key{Repository: cmd.Repo, Peer: peer})
	}
	failed := false
	err := c.outcomes(ctx, keys, func(row queue.Row) {
		delete(open, row.Peer)
		if row.State == queue.StateOK {
			fmt.Fprintf(c.Stderr, "%s ==== (%s) ===> %s: equal\n", c.server.Hostname, row.Repository, row.Peer)
			return
		}
		failed = true
		fmt.Fprintf(c.Stderr, "%s ==//==> %s: %s is NOT there yet (%s): %s\n", c.server.Hostname, row.Peer, row.Repository, row.State, outcomeError(row))
	})
	if errors.Is(err, context.DeadlineExceeded) {
		for _, peer := range slices.Sorted(maps.Keys(open)) {
			fmt.Fprintf(c.Stderr, "%s ==//==> %s: %s is NOT there after %s; it goes on in the background\n", c.server.Hostname, peer, cmd.Repo, cmd.Timeout)
		}
		return cli.Exit(1)
	}
	if err == nil && failed {
		return cli.Exit(1)
	}
	return err
}

// outcomes waits for the jobs of an event. A peer that is down is probed now.
func (c *command) outcomes(ctx context.Context, keys []queue.Key, each func(queue.Row)) error {
	box := inbox.New(c.server.StateDir)
	for {
		held, err := box.Holds(c.Await.Event)
		if err != nil {
			return err
		}
		if !held {
			break
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	tickets, err := c.queue.Tickets(ctx, keys)
	if err != nil {
		return err
	}
	if len(tickets) < len(keys) {
		return fmt.Errorf("%s: the event %s is not in the jobs table: see mirror-shell status", c.Await.Repo, c.Await.Event)
	}
	if err := c.probe(ctx); err != nil {
		return err
	}
	return c.queue.Await(ctx, tickets, each)
}

// probe has peers that are down tried now rather than after their backoff:
// somebody waits.
func (c *command) probe(ctx context.Context) error {
	peers, err := c.queue.Peers(ctx)
	if err != nil {
		return err
	}
	for _, peer := range peers {
		if !peer.DownSince.IsZero() {
			err = errors.Join(err, c.queue.ProbeNow(ctx, peer.Name), c.wake())
		}
	}
	return err
}

// outcomeError is why a job has not ended well.
func outcomeError(row queue.Row) string {
	switch row.State {
	case queue.StateDown:
		return row.PeerError
	case queue.StatePaused:
		return "the peer is paused: mirror-shell resume " + row.Peer
	}
	return row.Error
}
