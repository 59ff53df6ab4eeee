package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/peer/snapshot"
)

// forgetInVault is forget REPO --from PEER: it says what a vault has of a repository, or removes all of it. Exit
// status 0 when nothing is left, or nothing was to be done.
func (c *command) forgetInVault(ctx context.Context, name string) error {
	flags := c.Forget
	if !flags.Yes && (flags.AlthoughInUse || flags.AtOnce) {
		return cli.Usage{Message: "--although-in-use and --at-once mean nothing without --yes"}
	}
	peerName, vault, err := c.vault(ctx, flags.From)
	if err != nil {
		return err
	}
	use, here, err := c.inUse(ctx, name, peerName)
	if err != nil {
		return err
	}
	if !flags.Yes {
		report, err := vault.Forget(ctx, name, snapshot.ForgetOptions{DryRun: true})
		if err != nil {
			return nothingOf(name, peerName, err)
		}
		return c.tellForgettable(report, peerName, use)
	}
	if use != "" && !flags.AlthoughInUse {
		return fmt.Errorf("%s: %s: nothing was removed: delete it or end that first, or, to have it begin anew in the vault, add --although-in-use", name, use)
	}
	if err := c.noBackupRuns(ctx, name, peerName); err != nil {
		return err
	}
	peers := &peer.Peers{Server: c.server}
	note := func(sums []string) error { return peers.NoteForgetting(peerName, name, sums) }
	report, err := vault.Forget(ctx, name, snapshot.ForgetOptions{AtOnce: flags.AtOnce, Note: note})
	if errors.Is(err, snapshot.ErrNoSnapshot) {
		return nothingOf(name, peerName, err)
	}
	c.logForgotten(report, peerName, err)
	if report.Gone {
		err = errors.Join(err, note(nil), peers.KeepPlace(peerName))
	}
	return errors.Join(err, c.forgotten(ctx, report, peerName, here, err == nil))
}

// nothingOf says so in place of an error of the same meaning.
func nothingOf(name, peerName string, err error) error {
	if errors.Is(err, snapshot.ErrNoSnapshot) {
		return fmt.Errorf("%s has nothing of %s: mirror-shell snapshots --from %s lists what it has", peerName, name, peerName)
	}
	return err
}

// inUse says how a repository that is on this server comes into a vault, so that it would be there again soon; "": it does
// not.
func (c *command) inUse(ctx context.Context, name, peerName string) (use string, here bool, err error) {
	cfg, _, err := c.server.OpenRepo(ctx, name)
	switch {
	case errors.Is(err, mirrorcfg.ErrNoRepo):
		return "", false, nil
	case err != nil:
		return "", true, fmt.Errorf("whether %s is in use cannot be found out: %w", name, err)
	case c.server.Peers[peerName].Schedule != "":
		return fmt.Sprintf("it is on this server, and schedule in [peer.%s] backs up all repositories", peerName), true, nil
	case cfg.Listed(c.server.Hostname, peerName):
		return fmt.Sprintf("it is on this server, and a list of it (%s) names %s", strings.Join(cfg.Lists(), ", "), peerName), true, nil
	}
	return "", true, nil
}

// noBackupRuns refuses when a worker of this server is backing the repository up.
func (c *command) noBackupRuns(ctx context.Context, name, peerName string) error {
	rows, err := c.queue.Rows(ctx, queue.Filter{Repository: name, Peer: peerName})
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.State == queue.StateRunning {
			return fmt.Errorf("%s: a backup of it to %s runs: wait until it ends, or mirror-shell pause %s", name, peerName, peerName)
		}
	}
	return nil
}

// logForgotten leaves a line about it: what is gone from a vault is nowhere else.
func (c *command) logForgotten(r snapshot.ForgetReport, peerName string, err error) {
	log := c.fileLog().With("repository", r.Repository, "peer", peerName, "snapshots", r.Removed, "deleted", r.Deleted.Blobs, "bytes", r.Deleted.Bytes,
		"waiting", r.Waiting.Blobs, "retained", r.Retained, "gone", r.Gone)
	if err != nil {
		log = log.With("error", err)
	}
	log.Warn("repository removed from a vault")
}

// forgotten drops what this server remembers of the backups, and tells what is left.
func (c *command) forgotten(ctx context.Context, r snapshot.ForgetReport, peerName string, here, whole bool) error {
	var errs []error
	if here {
		// What it knows of the vault is not so any more.
		if memory := c.backupMemory(r.Repository, peerName); memory != "" {
			errs = append(errs, os.RemoveAll(memory))
		}
		errs = append(errs, c.forgetEqual(ctx, r.Repository, peerName))
	} else if _, err := c.queue.Forget(ctx, r.Repository); err != nil && !errors.Is(err, queue.ErrRunning) {
		errs = append(errs, err)
	}
	if c.Forget.JSON {
		errs = append(errs, json.NewEncoder(c.Stdout).Encode(r))
	} else {
		c.tellForgotten(r, peerName)
	}
	if err := errors.Join(errs...); err != nil || !whole {
		return err
	}
	if !r.Gone {
		return cli.Exit(1)
	}
	return nil
}

// forgetEqual has status not call a copy equal that is not there any more. What waits to be backed up goes on waiting.
func (c *command) forgetEqual(ctx context.Context, name, peerName string) error {
	rows, err := c.queue.Rows(ctx, queue.Filter{Repository: name, Peer: peerName})
	if err != nil {
		return err
	}
	rows = slices.DeleteFunc(rows, func(r queue.Row) bool { return r.State != queue.StateOK })
	_, err = c.queue.ForgetSeen(ctx, rows)
	return err
}

func (c *command) tellForgotten(r snapshot.ForgetReport, peerName string) {
	if r.Gone {
		fmt.Fprintf(c.Stdout, "%s: %d snapshots and %d objects removed (%s): %s has nothing of it any more\n", r.Repository, r.Removed, r.Deleted.Blobs, bytesText(r.Deleted.Bytes), peerName)
		return
	}
	fmt.Fprintf(c.Stdout, "%s: %d snapshots removed from %s, %d objects deleted (%s)\n", r.Repository, r.Removed, peerName, r.Deleted.Blobs, bytesText(r.Deleted.Bytes))
	if r.Waiting.Blobs > 0 {
		fmt.Fprintf(c.Stdout, "%s: %d objects (%s) wait for the end of the grace period: from %s on prune deletes them, or this command\n",
			r.Repository, r.Waiting.Blobs, bytesText(r.Waiting.Bytes), r.After.Local().Format(time.DateTime))
	}
	if r.Retained > 0 {
		fmt.Fprintf(c.Stdout, "%s: %d objects are retained by the store, the last until %s: after that prune deletes them, or this command\n", r.Repository, r.Retained, untilText(r.Until))
	}
}

// tellForgettable says what there is.
func (c *command) tellForgettable(r snapshot.ForgetReport, peerName, use string) error {
	if c.Forget.JSON {
		return json.NewEncoder(c.Stdout).Encode(r)
	}
	fmt.Fprintf(c.Stdout, "%s in %s: %d snapshots", r.Repository, peerName, r.Snapshots)
	if r.Snapshots > 0 {
		fmt.Fprintf(c.Stdout, ", from %s to %s", r.Oldest.Local().Format(time.DateTime), r.Newest.Local().Format(time.DateTime))
	}
	fmt.Fprintf(c.Stdout, "; %d objects, %s\n", r.Data.Blobs, bytesText(r.Data.Bytes))
	if r.Retained > 0 {
		fmt.Fprintf(c.Stdout, "%d of them, manifests and records included, are retained by the store, the last until %s\n", r.Retained, untilText(r.Until))
	}
	more := ""
	if use != "" {
		fmt.Fprintf(c.Stdout, "%s\n", use)
		more = " --although-in-use"
	}
	_, err := fmt.Fprintf(c.Stdout, "nothing was removed; to remove it all, for good: mirror-shell forget %s --from %s --yes%s\n", r.Repository, peerName, more)
	return err
}

func untilText(t time.Time) string {
	if t.IsZero() {
		return "a time that it does not tell"
	}
	return t.Local().Format(time.DateTime)
}

// finishForgotten has prune end what forget began: of what was forgotten it deletes what may go by now. Names given to prune
// are those of others, which have snapshots.
func (c *command) finishForgotten(ctx context.Context, peerName string, vault *snapshot.Vault) ([]pruned, error) {
	if c.Prune.DryRun || len(c.Prune.Repositories) > 0 {
		return nil, nil
	}
	names, err := vault.Forgotten(ctx)
	if err != nil {
		return nil, err
	}
	var all []pruned
	for _, name := range names {
		r, err := vault.FinishForgetting(ctx, name)
		if err := stopped(ctx); err != nil {
			return nil, err
		}
		p := pruned{PruneReport: snapshot.PruneReport{Repository: name, Removed: []string{}, Deleted: r.Deleted, Waiting: r.Waiting, Locked: r.Locked}, Forgotten: true}
		if err != nil {
			p.Error = proc.OneLine(err.Error(), 600)
			fmt.Fprintf(c.Stderr, "mirror-shell: %s: %s\n", name, p.Error)
		}
		all = append(all, p)
	}
	if len(names) > 0 {
		return all, (&peer.Peers{Server: c.server}).KeepPlace(peerName)
	}
	return all, nil
}
