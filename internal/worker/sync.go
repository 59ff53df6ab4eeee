package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/status"
	"mirror-shell/mirrorcfg"
)

// syncSummary is what sync prints in the end, and as JSON.
type syncSummary struct {
	Compared int         `json:"compared"` // copies looked at
	Equal    int         `json:"equal"`    // of them equal in the end
	Failures []syncEntry `json:"failures"`
	Seconds  float64     `json:"seconds"`
}

// syncEntry is a copy that is not equal, or a repository that could not be read
// (then without a peer).
type syncEntry struct {
	Repository string `json:"repository"`
	Peer       string `json:"peer,omitempty"`
	State      string `json:"state"`
	Error      string `json:"error"`
}

// sync queues every copy of the repositories asked for, has the worker run them
// (comparing the peer's refs with ours comes first in each run, and a copy that is
// equal is left alone), waits, and exits with 1 unless all are equal.
func (c *command) sync(ctx context.Context) error {
	cmd, began := c.Sync, time.Now()
	words := []string{mirrorcfg.SlavesKey, mirrorcfg.SyncKey}
	if cmd.Key != "" {
		if !mirrorcfg.IsKey(cmd.Key) {
			return fmt.Errorf("--key %q: write a list key, such as gitolite.mirror.hourly", cmd.Key)
		}
		words = []string{cmd.Key}
	}
	changes, summary, err := c.copies(ctx, words)
	if err != nil {
		return err
	}
	summary.Compared = len(changes)
	if len(changes) > 0 {
		if err := c.runAndWait(ctx, changes, func(row queue.Row) { c.settled(summary, row) }); err != nil {
			return err
		}
	}
	summary.Seconds = time.Since(began).Seconds()
	return c.summarize(summary)
}

// copies lists the copies to compare. A repository that cannot be read is a
// failure of its own and does not stop the others.
func (c *command) copies(ctx context.Context, words []string) ([]queue.Change, *syncSummary, error) {
	summary := &syncSummary{Failures: []syncEntry{}}
	names, err := c.server.Select(c.Sync.Repositories)
	if err != nil && len(names) == 0 {
		return nil, nil, err
	}
	fail := func(name string, err error) {
		summary.Failures = append(summary.Failures, syncEntry{Repository: name, State: "unreadable", Error: proc.OneLine(err.Error(), 400)})
		fmt.Fprintf(c.Stderr, "mirror-shell: %s: %s\n", name, proc.OneLine(err.Error(), 400))
	}
	if err != nil {
		fail("-", err)
	}
	var changes []queue.Change
	for _, name := range names {
		cfg, _, err := c.server.OpenRepo(ctx, name)
		if err != nil {
			fail(name, err)
			continue
		}
		if cfg.Role(c.server.Hostname) != mirrorcfg.Master {
			continue
		}
		peers, err := cfg.Expand(c.server.Hostname, words...)
		if err != nil {
			fail(name, err)
			continue
		}
		for _, peer := range peers {
			changes = append(changes, queue.Change{
				Key: queue.Key{Repository: name, Peer: peer}, Origin: inbox.OriginList, Time: time.Now(),
			})
		}
	}
	return changes, summary, ctx.Err()
}

// runAndWait queues changes, sees to it that a worker runs, and waits for their
// outcomes. A peer that is down is probed now: somebody asks.
func (c *command) runAndWait(ctx context.Context, changes []queue.Change, each func(queue.Row)) error {
	tickets, err := c.queue.Enqueue(ctx, changes)
	if err != nil {
		return err
	}
	if err := c.probe(ctx); err != nil {
		return err
	}
	if err := c.wake(); err != nil {
		return err
	}
	return c.queue.Await(ctx, tickets, each)
}

// settled counts one outcome and tells what is not equal.
func (c *command) settled(summary *syncSummary, row queue.Row) {
	if row.State == queue.StateOK {
		summary.Equal++
		return
	}
	entry := syncEntry{Repository: row.Repository, Peer: row.Peer, State: string(row.State), Error: outcomeError(row)}
	summary.Failures = append(summary.Failures, entry)
	fmt.Fprintf(c.Stderr, "mirror-shell: %s to %s: %s: %s\n", entry.Repository, entry.Peer, entry.State, entry.Error)
}

func outcomeError(row queue.Row) string {
	if row.State == queue.StateDown {
		return row.PeerError
	}
	return row.Error
}

func (c *command) summarize(s *syncSummary) error {
	if c.Sync.JSON {
		if err := json.NewEncoder(c.Stdout).Encode(s); err != nil {
			return err
		}
	} else if !c.Sync.Quiet || len(s.Failures) > 0 {
		fmt.Fprintf(c.Stdout, "%d copies compared, %d equal, %d not, in %.1f s\n", s.Compared, s.Equal, len(s.Failures), s.Seconds)
	}
	if len(s.Failures) > 0 {
		return cli.Exit(1)
	}
	return nil
}

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

// status shows the table.
func (c *command) status(ctx context.Context) error {
	report, err := status.Collect(ctx, c.server, c.queue, c.Status.Repositories)
	if err != nil {
		return err
	}
	report.Warnings = append(report.Warnings, c.inboxWarnings()...)
	failing := false
	if c.Status.Failing {
		failing = report.KeepFailing()
	}
	if c.Status.JSON {
		err = report.JSON(c.Stdout)
	} else if !c.Status.Failing || failing {
		err = report.Table(c.Stdout, time.Now())
	}
	if err == nil && failing {
		return cli.Exit(1)
	}
	return err
}

// inboxWarnings tells of events that have not reached the table.
func (c *command) inboxWarnings() []string {
	box := inbox.New(c.server.StateDir)
	var warnings []string
	if bad, err := box.Bad(); err != nil {
		warnings = append(warnings, "inbox: "+err.Error())
	} else if len(bad) > 0 {
		warnings = append(warnings, fmt.Sprintf("%d events could not be read and were put aside in %s/bad: run mirror-shell sync, then delete them", len(bad), box.Dir()))
	}
	if waiting, err := box.List(); err == nil && len(waiting) > 0 {
		if _, running, _ := queue.WorkerHolder(c.server.StateDir); !running {
			warnings = append(warnings, fmt.Sprintf("%d pushes wait in the inbox and no worker runs: start mirror-shell serve, or run mirror-shell drain", len(waiting)))
		}
	}
	return warnings
}
