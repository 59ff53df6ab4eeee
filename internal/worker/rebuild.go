package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/refcache"
	"mirror-shell/mirrorcfg"
)

// tellLoss says that the jobs table was lost, to whoever runs the command and in the log.
func tellLoss(server *mirrorcfg.Server) func(string) {
	return func(text string) {
		fmt.Fprintf(os.Stderr, "mirror-shell: %s\n", text)
		if file, err := server.OpenLog(); err == nil {
			defer file.Close()
			logger(file).Error("the jobs table was lost", "what", text)
		}
	}
}

// open opens the queue for a command. When the command is the one to find that the table was lost, done has a worker
// make that good.
func (c *command) open(ctx context.Context, options queue.Options) (done func(), err error) {
	tell, lost := options.OnLoss, make(chan struct{}, 1)
	options.OnLoss = func(text string) {
		tell(text)
		select {
		case lost <- struct{}{}:
		default:
		}
	}
	if c.queue, err = queue.Open(ctx, options); err != nil {
		return nil, err
	}
	return func() {
		c.queue.Close()
		select {
		case <-lost:
			if err := c.wake(); err != nil {
				fmt.Fprintf(c.Stderr, "mirror-shell: no worker can be started to compare everything: %v; run mirror-shell sync\n", err)
			}
		default:
		}
	}, nil
}

// rebuilder returns what a worker does after a loss: it runs a sync of everything as a process of its own,
// which ends well when the table has it all (see syncAll).
func (c *command) rebuilder(log *slog.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		log.Warn("comparing all copies, because the jobs database was lost")
		cmd := proc.Command(ctx, proc.Env(), c.Sibling("mirrord"), "--config", c.server.File, "sync", "-q")
		cmd.Dir = "/"
		_, err := proc.Run(cmd)
		return err
	}
}

// syncAll is sync. After a loss of the table, one that has compared everything gives each copy that could not
// be compared a job, and then the loss is made good: every copy is equal, or the table knows that it may not be.
func (c *command) syncAll(ctx context.Context) error {
	loss, standing, err := queue.LostTable(c.server.StateDir) // before anything is compared
	if err != nil {
		return err
	}
	err = c.sync(ctx)
	var differs cli.Exit
	if !standing || !c.ofEverything() || err != nil && !errors.As(err, &differs) || ctx.Err() != nil {
		return err
	}
	queued, rerr := c.queueUnknown(ctx, loss)
	if rerr == nil {
		rerr = queue.Rebuilt(ctx, c.server.StateDir, loss)
	}
	if rerr != nil {
		return fmt.Errorf("after the loss of the jobs database: %w", rerr)
	}
	if !c.Sync.Quiet && !c.Sync.JSON {
		fmt.Fprintf(c.Stderr, "mirror-shell: the jobs table is whole again; %d copies that could not be compared are in the queue\n", queued)
	}
	return err
}

func (c *command) ofEverything() bool {
	s := &c.Sync
	return len(s.Repositories) == 0 && s.Key == "" && s.PullFrom == "" && !s.DryRun
}

// queueUnknown queues every copy that the table does not know, and says how many.
func (c *command) queueUnknown(ctx context.Context, loss queue.Loss) (n int, err error) {
	wanted, err := c.copies(ctx)
	if err != nil {
		return 0, err
	}
	rows, err := c.queue.Rows(ctx, queue.Filter{})
	if err != nil {
		return 0, err
	}
	known := make(map[queue.Key]bool, len(rows))
	for _, row := range rows {
		known[row.Key] = true
	}
	var changes []queue.Change
	for _, key := range wanted {
		if !known[key] {
			changes = append(changes, queue.Change{Key: key, Origin: inbox.OriginList, Time: loss.Time})
		}
	}
	if len(changes) == 0 {
		return 0, nil
	}
	if _, err := c.queue.Enqueue(ctx, changes); err != nil {
		return 0, err
	}
	return len(changes), c.wake()
}

// copies lists what sync compares. A repository whose lists cannot be read is an error: what it has lacked is not known.
func (c *command) copies(ctx context.Context) (keys []queue.Key, err error) {
	names, err := c.server.Select(nil)
	if err != nil {
		return nil, err
	}
	var problems []error
	cache := refcache.OpenCache(c.server.StateDir)
	err = cache.LoadAll(ctx, c.server, names, func(name string, s refcache.State, err error) error {
		if s.Config == nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
			return nil
		}
		if s.Config.Role(c.server.Hostname) != mirrorcfg.Master {
			return nil
		}
		peers, err := s.Config.Expand(c.server.Hostname, mirrorcfg.SlavesKey, mirrorcfg.SyncKey)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
		for _, peer := range peers {
			keys = append(keys, queue.Key{Repository: name, Peer: peer})
		}
		return nil
	})
	return keys, errors.Join(append(problems, err)...)
}

// lossWarning tells of a loss that is not made good.
func (c *command) lossWarning() []string {
	loss, standing, err := queue.LostTable(c.server.StateDir)
	switch {
	case err != nil:
		return []string{err.Error()}
	case !standing:
		return nil
	}
	return []string{fmt.Sprintf("%s, at %s; what waited in it is not known until all copies have been compared: a worker does so, or run mirror-shell sync. "+
		"Pushes that were asked for by hand to a peer in no list must be asked for again",
		loss.Reason, loss.Time.UTC().Format(time.DateTime+" MST"))}
}
