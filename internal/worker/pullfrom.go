package worker

import (
	"context"
	"fmt"

	"mirror-shell/internal/cli"
	"mirror-shell/mirrorcfg"
)

// pullFrom is the first half of sync --pull-from PEER REPO: what the peer has is
// brought here. The second half is the usual sync, which takes it to all others.
func (c *command) pullFrom(ctx context.Context) error {
	cmd := &c.Sync
	if len(cmd.Repositories) != 1 || cmd.DryRun {
		return cli.Usage{Message: "--pull-from takes exactly one repository, and no --dry-run"}
	}
	name, err := mirrorcfg.CleanRepo(cmd.Repositories[0])
	if err != nil {
		return err
	}
	cmd.Repositories[0] = name
	peers, stop := c.newPeers()
	defer stop()
	say := c.Stdout
	if cmd.JSON {
		say = c.Stderr
	}
	fmt.Fprintf(c.Stderr, "%s <==== (%s) ==== %s\n", c.server.Hostname, name, cmd.PullFrom)
	if _, err := peers.PullFrom(ctx, name, cmd.PullFrom, say); err != nil {
		return fmt.Errorf("pull %s from %s: %w", name, cmd.PullFrom, err)
	}
	return nil
}
