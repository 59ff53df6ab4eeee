package worker

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/adhocore/gronx"

	"mirror-shell/peer"
)

// maxJitter bounds by how much a scheduled run is late on purpose: a tenth of the time between
// two runs, and not more than this. Servers with the same schedule then do not fall upon the vault together.
const maxJitter = 5 * time.Minute

// schedule is when a backup peer gets a run over all repositories.
type schedule struct {
	peer, expression string
}

// scheduledPeers are the peers that have a schedule, sorted.
func (c *command) scheduledPeers() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.server.Peers)) {
		if c.server.Peers[name].Schedule != "" {
			names = append(names, name)
		}
	}
	return names
}

// schedules returns those of the configuration, each checked, sorted by peer.
func (c *command) schedules() ([]schedule, error) {
	var all []schedule
	for _, name := range c.scheduledPeers() {
		expression := c.server.Peers[name].Schedule
		if !gronx.IsValid(expression) {
			return nil, fmt.Errorf("peer.%s.schedule = %q in %s is not a schedule: write \"@hourly\", \"@daily\" or the five fields of cron, such as \"15 3 * * *\"", name, expression, c.server.File)
		}
		all = append(all, schedule{name, expression})
	}
	return all, nil
}

// due returns when the next run is, without jitter, and how much later it may be. One that was
// missed after kept, because nothing ran, is due at once. Kept is when the last run began, or, where there
// was none, since when the schedule is kept; zero: from now on.
func (s schedule) due(kept, now time.Time) (at time.Time, slack time.Duration, err error) {
	next, err := gronx.NextTickAfter(s.expression, now, false)
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("schedule of %s: %w", s.peer, err)
	}
	previous, err := gronx.PrevTickBefore(s.expression, now, true)
	if err != nil {
		return next, 0, nil // there is none: a single date
	}
	slack = min(next.Sub(previous)/10, maxJitter)
	if !kept.IsZero() && kept.Before(previous) {
		return now, min(slack, time.Minute), nil
	}
	return next, slack, nil
}

// keepSchedules runs the scheduled backups until stop is called.
func (c *command) keepSchedules(ctx context.Context, all []schedule, peers *peer.Peers, log *slog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	for _, s := range all {
		done.Go(func() { c.keepSchedule(ctx, s, peers, log) })
	}
	return func() {
		cancel()
		done.Wait()
	}
}

func (c *command) keepSchedule(ctx context.Context, s schedule, peers *peer.Peers, log *slog.Logger) {
	c.record(s.peer, log, func(r *scheduleRecord) { r.keep(s.expression, time.Now()) })
	for ctx.Err() == nil {
		r, err := c.scheduleRecord(s.peer)
		if err != nil {
			log.Error("it is not known when the last scheduled backup was", "peer", s.peer, "error", err)
		}
		now := time.Now()
		if r.tame(now) {
			c.record(s.peer, log, func(r *scheduleRecord) { r.tame(now) })
		}
		at, slack, err := s.due(r.kept(), now)
		if err != nil {
			log.Error("no more scheduled backups", "peer", s.peer, "error", err)
			return
		}
		at = at.Add(time.Duration(rand.Int64N(int64(slack) + 1)))
		switch there, err := waitUntil(ctx, at, time.Now, sleep); {
		case err != nil:
			return
		case !there:
			continue
		}
		began := time.Now()
		if c.persist(ctx, s.peer, log, func() error { return c.scheduled(ctx, s.peer, peers, log) }) != nil {
			return
		}
		// Only now: one that was ended is missed, and made up for at the next start.
		c.record(s.peer, log, func(r *scheduleRecord) { r.done(began) })
	}
}

// longestNap is how soon a clock that was set is noticed.
const longestNap = time.Minute

// waitUntil waits until a time on the clock on the wall. It returns false when that clock was set, or the machine was suspended: then
// it is to be found out anew what is due. A timer alone would know nothing of either, and a machine that starts in 1970 and is told
// the time a minute later would wait for its first Sunday.
func waitUntil(ctx context.Context, at time.Time, now func() time.Time, nap func(context.Context, time.Duration) error) (there bool, err error) {
	for {
		before := now().Round(0) // without the time since the machine started
		left := at.Sub(before)
		if left <= 0 {
			return true, nil
		}
		left = min(left, longestNap)
		if err := nap(ctx, left); err != nil {
			return false, err
		}
		if set := now().Round(0).Sub(before) - left; set.Abs() > longestNap {
			return false, nil
		}
	}
}

// persist tries a run until it succeeds: a vault that cannot be reached for a minute must not cost a
// week. What goes wrong is written down, for status. The error is that ctx has ended.
func (c *command) persist(ctx context.Context, peer string, log *slog.Logger, run func() error) error {
	longest := time.Duration(c.server.Worker.RetryMax)
	for wait := min(longest, firstWait); ; wait = min(2*wait, longest) {
		err := run()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.Error("scheduled backup", "peer", peer, "error", err, "again in", wait)
		c.record(peer, log, func(r *scheduleRecord) { r.failed(err, time.Now()) })
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// firstWait is how long after a scheduled run that failed the next try is; each further one waits twice as long.
const firstWait = 10 * time.Second

// scheduled compares all repositories with the vault and queues those that have changed: the worker
// runs them, tries again what fails, and status shows them. The others cost one request each.
func (c *command) scheduled(ctx context.Context, name string, peers *peer.Peers, log *slog.Logger) error {
	r := c.newBackupRun(name, peers)
	changed, err := r.look(ctx, nil)
	if err != nil {
		return err
	}
	if err := r.enqueue(ctx, changed); err != nil {
		return err
	}
	log.Info("scheduled backup", "peer", name, "repositories", r.summary.Repositories, "unchanged", r.summary.Unchanged, "queued", len(changed))
	for _, f := range r.summary.Failures {
		log.Error("scheduled backup", "peer", name, "repository", f.Repository, "error", f.Error)
	}
	return nil
}
