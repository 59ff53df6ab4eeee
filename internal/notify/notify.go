// Package notify tells a person when a copy needs one, and when it is well again.
//
// # Incidents
//
// A mirror that fails in silence is worse than none, so staleness counts and not only
// errors: a copy whose oldest missing change is older than [notify] lag is an
// incident, whether its pushes fail, its peer is down or paused, or nothing works
// on it at all. A sync that is held is an incident at once. There are three sorts:
//
//   - of a copy (a repository at a peer): it is held, or it is late and its own
//     pushes fail;
//   - of a peer: copies there are late, and that is the peer's doing or the worker's. However many
//     they are: a server that goes down is one incident and not ten thousand.
//   - of a schedule (a backup peer): its runs fail, or one was not made, for longer than lag. The daemon judges it; where
//     none runs, whoever looks.
//
// An incident is told when it opens, once more if what was only late becomes held, and once when it
// closes: the copy is equal, or no longer wanted; or it has been equal meanwhile and
// lacks only something new. What is told is an [Event]. A notice that a light program left
// in the inbox's notices/ is an event without an incident.
//
// # Delivery
//
// An event goes to each configured channel: a command that reads it on standard input, and a webhook
// that it is posted to. It is delivered at least once: a process that dies between delivering and
// writing that down delivers again, with the same id. What cannot be delivered is tried
// again, after 10 seconds and then twice as long each time, up to an hour, for ever; it is in the log, and
// [Warnings] says so to status. Events of one peer are delivered in their order.
//
// # Files
//
//	state_dir/incidents.json    what follows; mode 0600, replaced whole
//	state_dir/incidents.lock    its time is that of the latest look. flock: held while the jobs are read and incidents.json is replaced, never while something is delivered
//	state_dir/delivery.lock     flock: held by the process that delivers; the others leave it to that one
//	state_dir/incidents.json.bad    an incidents.json that could not be read; for a person
//
// incidents.json is one JSON object:
//
//	{"version": 1,
//	 "incidents": [{"kind": "lag"|"held"|"schedule", "peer": "sam", "repository": "ip1", "opened": TIME}, …],
//	 "outgoing":  [{"event": EVENT, "left": [{"channel": "command"|"webhook", "attempts": 2, "next": TIME, "error": "…"}, …]}, …]}
//
// An incident of a peer or a schedule has no repository. An event stays in outgoing until left is empty. Any
// number of processes (serve, drain, sync) work on one file. It is a memory of what was told, and
// nothing more: without it everything that is open is told again.
//
// The package also keeps what the hooks tell to whoever pushes (inbox.SetBehind).
package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"mirror-shell/internal/inbox"
	"mirror-shell/internal/queue"
	"mirror-shell/mirrorcfg"
)

// Table is where the jobs are read from: a *queue.Queue.
type Table interface {
	Rows(context.Context, queue.Filter) ([]queue.Row, error)
	Peers(context.Context) ([]queue.Peer, error)
}

// Notifier looks at the jobs of one server and tells what is to be told. Server and
// Table are required; the fields must not change while it is used.
type Notifier struct {
	Server *mirrorcfg.Server
	Table  Table
	Log    *slog.Logger     // nil: nothing is logged
	Now    func() time.Time // nil: time.Now
	// Schedules tells how scheduled backups go. Known is false when this is not this process's to say, or cannot be found out: what was
	// told stays as it is. nil: nobody asks.
	Schedules func(now time.Time) (all []Schedule, known bool)

	once    sync.Once
	poke    chan struct{}
	mu      sync.Mutex
	watched map[queue.Key]bool // open incidents; without repository: of a peer
	heard   bool               // an outcome that may have changed what is open
}

func (n *Notifier) init() {
	n.once.Do(func() {
		n.poke = make(chan struct{}, 1)
		if n.Log == nil {
			n.Log = slog.New(slog.DiscardHandler)
		}
		if n.Now == nil {
			n.Now = time.Now
		}
	})
}

// Pauses of Run. A result is in the table a moment after the job's function has returned.
const (
	every    = time.Minute
	settling = 500 * time.Millisecond
	apart    = 5 * time.Second // looks that outcomes cause
	soonest  = time.Second
)

// Run looks after the time first, then every minute, when a copy is about to be late, and soon
// after an Outcome that matters, until ctx ends. Its errors are in the log.
func (n *Notifier) Run(ctx context.Context, first time.Duration) {
	n.init()
	if b, err := n.load(); err == nil {
		n.watch(b)
	}
	wait, looked := first, time.Time{}
	for n.sleep(ctx, wait, looked) {
		looked = time.Now()
		next, err := n.look(ctx)
		if err != nil && ctx.Err() == nil {
			n.Log.Error("notifications have a problem", "error", err)
		}
		wait = min(max(next, soonest), every)
	}
}

// sleep waits so long, or until there was an outcome that matters and its result is in
// the table. It reports false when ctx ended.
func (n *Notifier) sleep(ctx context.Context, d time.Duration, looked time.Time) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-n.poke:
		timer.Reset(max(settling, apart-time.Since(looked)))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
	}
	return ctx.Err() == nil
}

// Outcome is called with every job that ended, and what it ended with. It returns at once.
func (n *Notifier) Outcome(key queue.Key, err error) {
	n.init()
	over := err == nil || errors.Is(err, queue.ErrDropped)
	n.mu.Lock()
	n.heard = n.heard || err != nil
	matters := errors.Is(err, queue.ErrHeld) || over && (n.watched[key] || n.watched[queue.Key{Peer: key.Peer}])
	n.heard = n.heard || matters
	n.mu.Unlock()
	if matters { // of all others it will be told when they are late
		select {
		case n.poke <- struct{}{}:
		default:
		}
	}
}

// CheckIfNeeded is Check, unless nothing was heard here and some process looked less than a minute ago:
// without a daemon a worker is started for every push, and to read the jobs of ten thousand repositories
// takes longer than a push.
func (n *Notifier) CheckIfNeeded(ctx context.Context) error {
	n.init()
	n.mu.Lock()
	heard := n.heard
	n.mu.Unlock()
	if info, err := os.Stat(n.path(stampFile)); err == nil && !heard {
		if age := time.Since(info.ModTime()); age >= 0 && age < every && !inbox.HasNotices(n.Server.StateDir) {
			return nil
		}
	}
	return n.Check(ctx)
}

// checkTimeout bounds Check: it stands at the end of commands that cron waits for.
const checkTimeout = time.Minute

// Check looks once, and delivers what is due. For the end of a command; within a
// minute it is over.
func (n *Notifier) Check(ctx context.Context) error {
	n.init()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_, err := n.look(ctx)
	return err
}

// look brings incidents and files up to date, delivers, and says how long there
// is nothing else to do. When the table cannot be read, notices and what could not
// be delivered before still go out.
func (n *Notifier) look(ctx context.Context) (wait time.Duration, err error) {
	wait = every
	var readErr error
	err = n.update(ctx, func(b *book) error {
		// Under the lock: of two processes, the one that read first must not have its say last.
		pending, down, err := n.pending(ctx)
		if err != nil {
			readErr = err
			return nil
		}
		now, threshold := n.Now(), time.Duration(n.Server.Notify.Lag)
		wait = untilLate(pending, threshold)
		b.judge(n.Server.Hostname, pending, now, threshold, n.channels())
		if n.Schedules != nil {
			if all, known := n.Schedules(now); known {
				b.judgeSchedules(n.Server.Hostname, all, now, threshold, n.channels())
			}
		}
		n.watch(b)
		n.stamp()
		if err := inbox.SetBehind(n.Server.StateDir, lacks(pending, down, now, threshold)); err != nil {
			n.Log.Error("whoever pushes is not told what is behind", "error", err)
		}
		return nil
	})
	if ctx.Err() != nil {
		return every, ctx.Err()
	}
	noticeErr := n.takeNotices(ctx)
	next, deliverErr := n.deliver(ctx)
	return min(wait, next), errors.Join(readErr, err, noticeErr, deliverErr)
}

// pending reads the jobs that lack something, and the peers that are down.
func (n *Notifier) pending(ctx context.Context) (pending []queue.Row, down []queue.Peer, err error) {
	peers, err := n.Table.Peers(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range peers {
		if !p.DownSince.IsZero() {
			down = append(down, p)
		}
	}
	pending, err = n.Table.Rows(ctx, queue.Filter{Pending: true})
	return pending, down, err
}

// stampFile is touched by every look that read the jobs.
const stampFile = "incidents.lock"

func (n *Notifier) stamp() {
	now := time.Now()
	if err := os.Chtimes(n.path(stampFile), now, now); err != nil {
		n.Log.Error("the look at the jobs is not on record; the next process looks again", "error", err)
	}
}

// watch remembers what is open, for Outcome.
func (n *Notifier) watch(b *book) {
	watched := map[queue.Key]bool{}
	copies, _ := b.split() // no job's outcome says anything of a schedule
	for _, i := range copies {
		watched[i.key()] = true
	}
	n.mu.Lock()
	n.watched = watched
	n.mu.Unlock()
}

// takeNotices makes events of the notices. A notice whose file outlived an earlier take has the
// same id, and is not told twice.
func (n *Notifier) takeNotices(ctx context.Context) error {
	unlock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return inbox.TakeNotices(n.Server.StateDir, func(notices []inbox.Notice) error {
		b, err := n.load()
		if err != nil {
			return err
		}
		for _, notice := range notices {
			n.Log.Warn("notice", "kind", notice.Kind, "repository", notice.Repository, "peer", notice.Peer, "refs", notice.Refs)
			b.send(ofNotice(n.Server.Hostname, notice), n.channels())
		}
		return n.save(b)
	})
}

// channels names the channels that are configured.
func (n *Notifier) channels() []string {
	var names []string
	if len(n.Server.Notify.Command) > 0 {
		names = append(names, channelCommand)
	}
	if n.Server.Notify.Webhook != "" {
		names = append(names, channelWebhook)
	}
	return names
}

// Warnings says, for status, what could not be delivered so far.
func Warnings(server *mirrorcfg.Server) []string {
	b, err := (&Notifier{Server: server}).load()
	if err != nil {
		return []string{"notifications: " + err.Error()}
	}
	var warnings []string
	for _, channel := range []string{channelCommand, channelWebhook} {
		count, last := 0, attempt{}
		for _, o := range b.Outgoing {
			for _, a := range o.Left {
				if a.Channel == channel && a.Attempts > 0 {
					count, last = count+1, a
				}
			}
		}
		if count > 0 {
			warnings = append(warnings, fmt.Sprintf("%d notifications could not be delivered to the %s, tried again at %s: %s",
				count, channel, last.Next.UTC().Format(time.TimeOnly+" MST"), last.Error))
		}
	}
	return warnings
}
