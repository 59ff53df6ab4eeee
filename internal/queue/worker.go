package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/internal/inbox"
)

// ErrUnfinished is wrapped by Drain's error when it leaves while jobs still fail.
var ErrUnfinished = errors.New("not everything could be done")

// Worker moves events from the inbox to the queue and runs the jobs that are due. Queue, Inbox and
// Run are required; the fields must not change while it works.
type Worker struct {
	Queue *Queue
	Inbox *inbox.Inbox // of the same state directory as Queue
	Run   Func
	// Rebuild makes good a loss of the table (LostTable): it compares every copy that there should be, and calls
	// Rebuilt. It is run beside everything else, and again after a pause while the loss stands. nil: others do it.
	Rebuild func(context.Context) error

	Jobs        int // runs at a time; 0: 8. Probes of peers that are down come on top, one per peer
	JobsPerPeer int // of this node; 0: 4

	// Poll is how often to look at inbox and table without being woken; 0: 3 s, or 0.5 s when nodes share the table.
	Poll   time.Duration
	Linger time.Duration // 0: 10 min. How long Drain stays for jobs that only fail

	Log *slog.Logger // nil: nothing is logged
}

// Serve works until ctx ends, then cancels what runs, waits for it, and returns nil. A drain
// that holds the state directory is asked to leave first, and waited for; when another server
// holds it, the error wraps ErrBusy. Nothing that happens later ends it: errors of the database or
// the inbox are logged, and it tries again.
func (w *Worker) Serve(ctx context.Context) error {
	err := w.session(ctx, &loop{w: w.withDefaults(), kind: KindServe})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Drain works until nothing is left to do: jobs that are held, or whose peer is paused, do not
// count. While jobs only fail, or their peers are down, it stays for their retries until Linger
// after the last progress, which is a change that arrived or a job that did not fail; then its error wraps ErrUnfinished.
// When a server asks for its place it leaves at once and returns nil: its runs are cancelled, and the server
// begins them again. Its error wraps ErrBusy when another worker is at work, and is ctx's when ctx ended first.
func (w *Worker) Drain(ctx context.Context) error {
	l := &loop{w: w.withDefaults(), kind: KindDrain, progress: time.Now()}
	for first := true; ; first = false {
		err := w.session(ctx, l)
		if errors.Is(err, ErrBusy) && !first {
			return nil // whoever came in between has it now
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("drain: %w", err)
		}
		if l.asked {
			l.w.Log.Info("left, because a server asked for it")
			return nil
		}
		if !l.missed(ctx) {
			return l.verdict // of then: what came since is in other hands
		}
		l.progress = time.Now()
	}
}

func (w *Worker) withDefaults() *Worker {
	c := *w
	if c.Jobs <= 0 {
		c.Jobs = 8
	}
	if c.JobsPerPeer <= 0 {
		c.JobsPerPeer = 4
	}
	poll := 3 * time.Second
	if c.Queue.shared {
		poll = 500 * time.Millisecond // nobody rings when another node has more to do than it can
	}
	c.Poll = orDefault(c.Poll, poll)
	c.Linger = orDefault(c.Linger, 10*time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &c
}

// session works under the lock once.
func (w *Worker) session(ctx context.Context, l *loop) error {
	lock, err := l.acquire(ctx)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	defer l.deafen() // before the lock goes: the socket is the holder's
	ctx, l.leave = context.WithCancel(ctx)
	defer l.leave()
	l.listen(ctx)
	if err := l.w.Inbox.Replay(); err != nil {
		l.w.Log.Error("events of an earlier worker are left aside", "error", err)
	}
	if l.kind == KindServe {
		if err := l.w.Queue.inspect(ctx); err != nil && ctx.Err() == nil && !isStorage(err) { // of the disk the first turn tells
			l.w.Log.Error("the jobs database cannot be checked", "error", err)
		}
	}
	l.w.Queue.mends.reset() // whoever worked before is dead: the first claim ends what it left running
	l.run(ctx)
	return nil
}

// listen makes the worker's bell, again while that fails: a full disk has no room for it.
func (l *loop) listen(ctx context.Context) {
	if l.waker != nil {
		return
	}
	waker, err := inbox.Listen(l.w.Queue.stateDir)
	if err != nil {
		if !l.deaf {
			l.w.Log.Error("nobody can wake the worker; it looks at the inbox instead", "every", l.w.Poll, "error", err)
		}
		l.deaf = true
		return
	}
	l.waker, l.wake, l.deaf = waker, waker.C, false
	if l.kind == KindDrain {
		l.asking.Go(func() {
			select {
			case <-waker.Leave:
				l.asked = true
				l.leave()
			case <-ctx.Done():
			}
		})
	}
}

// deafen is for after leave.
func (l *loop) deafen() {
	l.asking.Wait()
	if l.waker != nil {
		l.waker.Close()
		l.waker, l.wake = nil, nil
	}
}

func (l *loop) acquire(ctx context.Context) (*flock.Flock, error) {
	if l.kind == KindServe {
		return takeOver(ctx, l.w.Queue.stateDir, l.w.Log)
	}
	return acquire(ctx, l.w.Queue.stateDir, l.kind)
}

// loop is one goroutine that owns the state of a worker; runs are goroutines beside it that report to
// ended.
type loop struct {
	w    *Worker
	kind string

	waker  *inbox.Waker // nil: nobody can wake us
	wake   <-chan struct{}
	deaf   bool           // the log says so
	leave  func()         // ends the session
	asking sync.WaitGroup // hears when somebody wants a drain's place

	ended   chan ending
	jobs    int // running, without probes
	probes  int
	trouble trouble
	rebuild rebuilding

	// Of a drain only:
	progress time.Time // the latest
	changes  int64     // recorded in the table, ever, when it last looked
	left     []string  // events in the inbox when it decided to go
	gaveUp   bool      // it went because of Linger
	verdict  error     // what it left undone then
	asked    bool      // it went because a server asked; known after deafen
}

func (l *loop) run(ctx context.Context) {
	l.ended = make(chan ending)
	for ctx.Err() == nil {
		err := l.ingest(ctx)
		if !l.lingered() { // a drain that is about to give up starts nothing more
			err = errors.Join(err, l.dispatch(ctx))
		}
		l.note(ctx, err)
		l.mayRebuild(ctx)
		if l.kind == KindDrain && l.mayLeave(ctx) {
			break
		}
		l.wait(ctx, l.pause(ctx))
		l.listen(ctx)
	}
	l.leave() // what still runs is told to stop
	for l.jobs+l.probes > 0 {
		l.collect(<-l.ended)
	}
	if l.rebuild.ended != nil {
		l.rebuiltWith(ctx, <-l.rebuild.ended)
	}
}

// trouble is a row of turns that met an error of inbox or database.
type trouble struct {
	turns  int
	began  time.Time
	logged time.Time
}

// noteEvery is the first pause between two lines in the log about the same trouble; it doubles. A disk that is full
// at night must not be filled by the log in the morning.
const noteEvery = time.Minute

// note logs the trouble of a turn, and counts it to slow down.
func (l *loop) note(ctx context.Context, err error) {
	t := &l.trouble
	switch {
	case ctx.Err() != nil:
	case err == nil:
		if t.turns > 0 {
			l.w.Log.Info("the queue works again", "after", time.Since(t.began).Round(time.Second))
		}
		*t = trouble{}
	default:
		if t.turns++; t.turns == 1 {
			t.began = time.Now()
		} else if time.Since(t.logged) < max(noteEvery, t.logged.Sub(t.began)) {
			return
		}
		t.logged = time.Now()
		l.w.Log.Error("the queue has a problem; events stay in the inbox, trying again", "times", t.turns, "error", err)
	}
}

// ingest moves everything in the inbox to the table.
func (l *loop) ingest(ctx context.Context) error {
	for ctx.Err() == nil {
		n, err := l.w.Inbox.Take(func(events []inbox.Event) error {
			_, err := l.w.Queue.Enqueue(ctx, changesOf(events))
			return err
		})
		if n > 0 {
			_, _ = l.count(ctx) // tried again by mayLeave
			l.progress = time.Now()
		}
		if errors.Is(err, inbox.ErrBad) { // it is out of the way now
			l.w.Log.Error("something in the inbox is not an event", "error", err)
		} else if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
	}
	return nil
}

// changesOf gives each peer of each event its own change.
func changesOf(events []inbox.Event) []Change {
	var changes []Change
	for _, e := range events {
		for _, peer := range e.Peers {
			changes = append(changes, Change{Key: Key{e.Repository, peer}, Origin: e.Origin, Time: e.Time})
		}
	}
	return changes
}

func (l *loop) limits() limits {
	return limits{perPeer: l.w.JobsPerPeer, probesOnly: l.jobs >= l.w.Jobs}
}

// dispatch starts whatever is due and has room.
func (l *loop) dispatch(ctx context.Context) error {
	for ctx.Err() == nil {
		c, err := l.w.Queue.claim(ctx, l.limits())
		if c == nil || err != nil {
			return err
		}
		if c.Probe {
			l.probes++
		} else {
			l.jobs++
		}
		go func() { l.ended <- l.w.Queue.execute(ctx, c, l.w.Run) }() // run's last loop, or wait, receives
	}
	return nil
}

// collect takes note of a run's end.
func (l *loop) collect(e ending) {
	if e.claim.Probe {
		l.probes--
	} else {
		l.jobs--
	}
	switch e.result.state {
	case StateOK, StateDropped, StateHeld:
		l.progress = time.Now()
	}
	log := l.w.Log.With("repository", e.claim.Repository, "peer", e.claim.Peer)
	switch {
	case e.lost != nil:
		log.Error("a result could not be recorded; the job runs again", "result", e.result.state, "error", e.lost)
	case !e.current:
		log.Warn("a run ended after its lease; its result does not count", "result", e.result.state)
	case e.result.state == StateOK:
		log.Info("equal", "digest", e.result.Digest, "note", e.result.Note)
	case e.result.state == stateReleased:
		log.Info("stopped before its end")
	default:
		var p *panicError
		if errors.As(e.err, &p) {
			log = log.With("stack", string(p.stack))
		}
		log.Warn("not equal", "state", e.result.state, "attempt", e.claim.Attempt+1, "error", e.err)
	}
}

// wait sleeps until something happens, and collects every run that ended meanwhile.
func (l *loop) wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-l.wake:
	case err := <-l.rebuild.ended:
		l.rebuiltWith(ctx, err)
	case e := <-l.ended:
		l.collect(e)
	}
	for {
		select {
		case e := <-l.ended:
			l.collect(e)
		default:
			return
		}
	}
}

// troublePause is the first pause after an error, troubleMax the longest: what waits
// for a cleared disk should not wait much longer than an idle worker's look takes to come round.
const (
	troublePause = 500 * time.Millisecond
	troubleMax   = 5 * time.Second
	// lockedPause keeps a worker from asking without end for a job that is due but locked by somebody's transaction.
	lockedPause = 5 * time.Millisecond
)

// pause is how long to sleep if nothing happens.
func (l *loop) pause(ctx context.Context) time.Duration {
	if n := l.trouble.turns; n > 0 {
		return min(troublePause<<min(n-1, 5), troubleMax)
	}
	d := l.w.Poll
	if l.lingered() {
		return d // only the end of what runs matters
	}
	if wait, ok, err := l.w.Queue.nextRun(ctx, l.limits()); err == nil && ok {
		d = min(d, max(wait, lockedPause))
	}
	if l.kind == KindDrain {
		d = min(d, l.w.Linger-time.Since(l.progress))
	}
	if l.rebuild.standing && l.rebuild.ended == nil {
		d = min(d, time.Until(l.rebuild.next))
	}
	return max(d, time.Millisecond)
}

// lingered reports whether a drain has seen no progress for too long.
func (l *loop) lingered() bool {
	return l.kind == KindDrain && time.Since(l.progress) >= l.w.Linger
}

// count looks at the table for a drain: how many jobs keep it, and whether somebody recorded
// changes past the inbox.
func (l *loop) count(ctx context.Context) (pending int, err error) {
	if l.kind != KindDrain {
		return 0, nil
	}
	pending, changes, err := l.w.Queue.pending(ctx)
	if err == nil && changes != l.changes {
		l.changes, l.progress = changes, time.Now()
	}
	return pending, err
}

// mayLeave decides whether a drain ends here.
func (l *loop) mayLeave(ctx context.Context) bool {
	if l.jobs+l.probes > 0 {
		return false
	}
	l.left, l.verdict = nil, nil
	names, err := l.w.Inbox.List()
	pending, perr := l.count(ctx)
	if err = errors.Join(err, perr); err == nil {
		l.left = names
		if pending == 0 && len(names) == 0 && !l.rebuild.open() {
			l.gaveUp = false
			return true
		}
		err = fmt.Errorf("%d jobs still fail and %d events could not be read", pending, len(names))
		if l.rebuild.open() {
			err = fmt.Errorf("%w, and lost jobs have not been found again", err)
		}
	}
	if l.gaveUp = l.lingered(); l.gaveUp {
		l.verdict = fmt.Errorf("drain: %w: %w; serve or a timer must try again", ErrUnfinished, err)
	}
	return l.gaveUp
}

// missed reports whether something came for a drain that has just let go of its lock: a hook whose ring
// it did not hear any more, or whose own drain found it still there, relies on this look.
func (l *loop) missed(ctx context.Context) bool {
	now, err := l.w.Inbox.List()
	if err != nil {
		return false
	}
	for _, name := range now {
		if !slices.Contains(l.left, name) {
			return true
		}
	}
	if _, changes, err := l.w.Queue.pending(ctx); err != nil || changes > l.changes {
		return err == nil
	}
	if l.gaveUp {
		return false // what is due now would only fail again
	}
	due, err := l.w.Queue.due(ctx, limits{perPeer: l.w.JobsPerPeer})
	return err == nil && due
}
