package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/proc"
	"mirror-shell/peer"
	"mirror-shell/peer/snapshot"
)

// pruned is what became of one repository in a vault.
type pruned struct {
	snapshot.PruneReport
	Forgotten bool   `json:"forgotten,omitempty"` // nothing of it was to be kept
	Error     string `json:"error,omitempty"`
}

// prune removes what the policy does not keep, one repository after the other. One that fails
// does not keep the others.
func (c *command) prune(ctx context.Context) error {
	name, vault, err := c.vault(ctx, c.Prune.From)
	if err != nil {
		return err
	}
	policy := c.policy(name)
	if err := policy.Check(); err != nil {
		return cli.Usage{Message: err.Error()}
	}
	repositories, err := inVault(ctx, vault, c.Prune.Repositories)
	if err != nil {
		return err
	}
	shown := newProgress(c.Stderr, c.Prune.Quiet || c.Prune.JSON)
	defer shown.Close()
	stage := shown.Stage("repositories pruned", len(repositories))
	all := []pruned{}
	for _, repository := range repositories {
		report, err := vault.Prune(ctx, repository, policy)
		if err := stopped(ctx); err != nil {
			return err
		}
		p := pruned{PruneReport: report}
		if err != nil {
			p.Error = proc.OneLine(err.Error(), 600)
			fmt.Fprintf(shown, "mirror-shell: %s: %s\n", repository, p.Error)
		}
		all = append(all, p)
		stage.Done(1)
	}
	shown.Close()
	finished, err := c.finishForgotten(ctx, name, vault)
	if err != nil {
		return err
	}
	return c.finishPrune(append(all, finished...))
}

// policy is what the command line says, or, when it says nothing, the peer's configuration.
func (c *command) policy(name string) snapshot.Policy {
	flags, set := c.Prune, c.server.Peers[name].Backup
	p := snapshot.Policy{
		Last: flags.KeepLast, Hourly: flags.KeepHourly, Daily: flags.KeepDaily, Weekly: flags.KeepWeekly,
		Monthly: flags.KeepMonthly, Yearly: flags.KeepYearly, Within: flags.KeepWithin, IDs: flags.KeepID,
	}
	if errors.Is(p.Check(), snapshot.ErrNoPolicy) {
		p = peer.KeepPolicy(set)
	}
	p.Location, p.DryRun = time.Local, flags.DryRun
	return p
}

func (c *command) finishPrune(all []pruned) error {
	failures := 0
	for _, p := range all {
		if p.Error != "" {
			failures++
		}
	}
	switch {
	case c.Prune.JSON:
		if err := json.NewEncoder(c.Stdout).Encode(all); err != nil {
			return err
		}
	case !c.Prune.Quiet:
		c.tellPruned(all, failures)
	}
	if failures > 0 {
		return cli.Exit(1)
	}
	return nil
}

func (c *command) tellPruned(all []pruned, failures int) {
	verb := "removed"
	if c.Prune.DryRun {
		verb = "would be removed"
	}
	var removed, kept, locked int
	var deleted, waiting snapshot.Amount
	for _, p := range all {
		removed, kept, locked = removed+len(p.Removed), kept+p.Kept, locked+len(p.Locked)
		deleted.Blobs, deleted.Bytes = deleted.Blobs+p.Deleted.Blobs, deleted.Bytes+p.Deleted.Bytes
		waiting.Blobs, waiting.Bytes = waiting.Blobs+p.Waiting.Blobs, waiting.Bytes+p.Waiting.Bytes
		for _, key := range p.Removed {
			if name, err := snapshot.ParseName(key); err == nil {
				fmt.Fprintf(c.Stdout, "%s: %s %s\n", p.Repository, name.Time.Local().Format(time.DateTime), verb)
			}
		}
	}
	fmt.Fprintf(c.Stdout, "%d repositories: %d snapshots kept, %d %s; %d objects deleted (%s), %d wait for the end of the grace period (%s), %d are retained by the store; %d failures\n",
		len(all), kept, removed, verb, deleted.Blobs, bytesText(deleted.Bytes), waiting.Blobs, bytesText(waiting.Bytes), locked, failures)
}
