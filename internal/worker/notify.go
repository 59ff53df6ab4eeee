package worker

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"mirror-shell/internal/notify"
	"mirror-shell/internal/queue"
)

// notifyMeanwhile tells people what needs one, first after a time, until stop is called.
func (c *command) notifyMeanwhile(ctx context.Context, first time.Duration, log *slog.Logger) (n *notify.Notifier, stop func()) {
	n = &notify.Notifier{Server: c.server, Table: c.queue, Log: log, Schedules: c.scheduleTroubles}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() { n.Run(ctx, first) })
	return n, func() {
		cancel()
		done.Wait()
	}
}

// scheduleTroubles is how the schedules are kept, for whom people want to be told by. While a daemon runs only that knows: its
// configuration, with which it started, may be another than ours, and what was missed before it began it is about to make up for. A schedule that no daemon has ever kept has no time
// from which on it is late: status and doctor tell of it.
func (c *command) scheduleTroubles(now time.Time) (all []notify.Schedule, known bool) {
	holder, running, err := queue.WorkerHolder(c.server.StateDir)
	if err != nil || running && holder.Kind == queue.KindServe && holder.PID != os.Getpid() {
		return nil, false
	}
	states, err := c.scheduleStates(now)
	if err != nil {
		return nil, false
	}
	for _, s := range states {
		trouble := notify.Schedule{Peer: s.peer}
		switch {
		case s.unknown:
			return nil, false
		case s.record.Schedule != s.expression:
		case s.record.Error != "":
			trouble.Problem, trouble.Since = s.problem, s.record.Failing
		case !s.overdue.IsZero():
			trouble.Problem, trouble.Since = s.problem, s.overdue
			if s.overdue.Before(c.serving) {
				trouble.Since = c.serving
			}
		}
		all = append(all, trouble)
	}
	return all, true
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
	n := &notify.Notifier{Server: c.server, Table: c.queue, Log: c.fileLog(), Schedules: c.scheduleTroubles}
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
