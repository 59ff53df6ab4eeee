package worker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"mirror-shell/internal/notify"
	"mirror-shell/internal/queue"
)

// notifyMeanwhile tells people what needs one, first after a time, until stop is called.
func (c *command) notifyMeanwhile(ctx context.Context, first time.Duration, log *slog.Logger) (n *notify.Notifier, stop func()) {
	n = &notify.Notifier{Server: c.server, Table: c.queue, Log: log}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() { n.Run(ctx, first) })
	return n, func() {
		cancel()
		done.Wait()
	}
}

// notifyAfter is for the end of a worker that was not told to end.
func (c *command) notifyAfter(ctx context.Context, n *notify.Notifier) {
	if ctx.Err() != nil {
		return
	}
	if err := n.CheckIfNeeded(ctx); err != nil {
		n.Log.Error("notifications have a problem", "error", err)
	}
}

// notifyAfterSync is for a command that cron runs: without a daemon, nobody else may look for
// long. Nothing has changed when all was equal.
func (c *command) notifyAfterSync(ctx context.Context, s *syncSummary) {
	n := &notify.Notifier{Server: c.server, Table: c.queue, Log: c.fileLog()}
	check := n.CheckIfNeeded
	if s.Pushed > 0 || len(s.Failures) > 0 {
		check = n.Check
	}
	if ctx.Err() == nil {
		if err := check(ctx); err != nil {
			n.Log.Error("notifications have a problem", "error", err)
		}
	}
}

// heard has the notifier hear how a job ended.
func heard(n *notify.Notifier, run queue.Func) queue.Func {
	return func(ctx context.Context, j queue.Job) (queue.Result, error) {
		result, err := run(ctx, j)
		n.Outcome(j.Key, err)
		return result, err
	}
}
