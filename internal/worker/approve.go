package worker

import (
	"context"
	"fmt"

	"mirror-shell/internal/inbox"
	"mirror-shell/internal/queue"
	"mirror-shell/mirrorcfg"
)

// approve lets a held sync through, once, and carries it out in this process. When
// the push fails, the approval stays good for the worker's next attempts, as long
// as neither side has changed.
func (c *command) approve(ctx context.Context) error {
	name, err := mirrorcfg.CleanRepo(c.Approve.Repo)
	if err != nil {
		return err
	}
	key := queue.Key{Repository: name, Peer: c.Approve.Name}
	peers, stop := c.newPeers()
	defer stop()
	hold, err := peers.Approve(ctx, key.Repository, key.Peer)
	if err != nil {
		return err
	}
	for _, reason := range hold.Reasons {
		fmt.Fprintf(c.Stderr, "approved, although %s\n", reason)
	}
	result, err := c.queue.RunNow(ctx, key, inbox.OriginExplicit, job(peers, c.Stderr, nil))
	if err != nil {
		return err
	}
	note := ""
	if result.Note != "" {
		note = " (" + result.Note + ")"
	}
	fmt.Fprintf(c.Stdout, "%s on %s is equal%s\n", key.Repository, key.Peer, note)
	return nil
}
