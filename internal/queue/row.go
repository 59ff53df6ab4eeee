package queue

import (
	"errors"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"mirror-shell/internal/inbox"
)

// State is what status shows of a job.
type State string

const (
	StateWaiting State = "waiting" // due, or about to be
	StateRunning State = "running" // under a live lease
	StateOK      State = "ok"      // equal
	StateFailed  State = "failed"  // the latest attempt failed; it is retried
	StateHeld    State = "held"    // waits for a person; looked at again after RetryMax
	StateDropped State = "dropped" // the peer is no longer wanted
	StatePaused  State = "paused"  // a person paused the peer
	StateDown    State = "down"    // the peer cannot be reached

	stateReleased State = "released" // an ending that leaves no trace: the worker was stopped
)

// job is a row of the table jobs. Times are unix milliseconds, 0 for none.
type job struct {
	Key
	want, seen, done int64

	origin         inbox.Origin // of what is not done; explicit wins
	oldest, newest int64        // oldest change not done; newest change ever
	later          int64        // oldest change since the latest claim
	laterOrigin    inbox.Origin // origin of those changes

	runAt   int64 // not before
	lease   int64 // end of the run's lease
	owner   string
	probe   bool  // the run tries a peer that is down
	run     int64 // runs begun, ever
	settled int64 // number of the latest run that ended with a result

	attempt     int   // failures since the latest success
	state       State // result of the latest run that had one: ok, failed, held, dropped, down, or ""
	err         string
	note        string
	digest      string // of the latest success
	lastSuccess int64
	lastAttempt int64
	changed     int64 // when the newest change was recorded
	created     int64

	version int64 // changes with every store
	orphan  bool  // not stored: its owner has died, and was left out when the row was loaded
}

// peer is a row of the table peers.
type peer struct {
	name      string
	paused    bool
	downSince int64 // 0: reachable as far as we know
	lastDown  int64
	attempt   int   // probes that failed since downSince
	retryAt   int64 // no probe before
	err       string
	runs      int64 // runs begun, of all its jobs
	downRun   int64 // number of the latest of these that found it down
	version   int64
}

// policy is the arithmetic of retries.
type policy struct {
	base, cap time.Duration
}

// backoff is the wait after the attempt-th failure in a row (1 is the first): base, doubled with each, capped,
// then a random part of [1/2, 1) of it, so that what failed together does not return together.
// r is of [0,1). The result is of [base/2, cap).
func (p policy) backoff(attempt int, r float64) time.Duration {
	d := p.base
	for i := 1; i < attempt && d < p.cap; i++ {
		d *= 2
	}
	d = min(d, p.cap)
	return d/2 + time.Duration(r*float64(d/2))
}

func (j job) pending() bool          { return j.want > j.done }
func (j job) running(now int64) bool { return j.owner != "" && j.lease > now }
func (j job) changedDuringRun() bool { return j.want > j.seen }
func (p peer) down() bool            { return p.downSince > 0 }

// orphaned is what a row whose owner has died means: nobody runs it.
func (j job) orphaned() job {
	j.owner, j.lease, j.probe, j.orphan = "", 0, false, true
	return j
}

// buried puts a job back into the line after its worker died. It is run again at once. A job whose runs
// keep killing their worker has to wait as one that keeps failing, or no other would get its turn.
func (j job) buried(wait func(n int) time.Duration, now int64) job {
	j.orphan = false
	if !j.pending() {
		return j
	}
	j.err = "the worker ended in the middle of the run"
	if j.attempt > 0 && !j.changedDuringRun() {
		j.runAt = max(j.runAt, now+wait(j.attempt).Milliseconds())
	}
	j.attempt++
	return j
}

// minKnown is the smaller of two times of which 0 means none.
func minKnown(a, b int64) int64 {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// merged is the origin of a set of changes to which another is added: a person's wish is not
// forgotten because a list names the peer too.
func merged(a, b inbox.Origin) inbox.Origin {
	if a == inbox.OriginExplicit {
		return a
	}
	return b
}

// enqueued adds a change made at t.
func (j job) enqueued(origin inbox.Origin, t, now int64) job {
	if t <= 0 || t > now {
		t = now
	}
	if j.pending() {
		j.origin = merged(j.origin, origin)
		j.oldest = minKnown(j.oldest, t)
		j.runAt = min(j.runAt, now) // its place in the line is kept, or a busy repository would never come first
	} else {
		j.origin, j.oldest, j.runAt = origin, t, now
	}
	j.laterOrigin = merged(j.laterOrigin, origin)
	j.later = minKnown(j.later, t)
	j.newest = max(j.newest, t)
	j.changed = max(j.changed, now)
	if j.created == 0 {
		j.created = now
	}
	j.want++
	return j
}

// claimed begins a run.
func (j job) claimed(owner string, probe bool, lease time.Duration, now int64) job {
	j.seen = j.want
	j.later, j.laterOrigin = 0, ""
	j.owner, j.lease, j.probe = owner, now+lease.Milliseconds(), probe
	j.run++
	j.lastAttempt = now
	return j
}

// result is how a run ended.
type result struct {
	state State // ok, failed, held, dropped, down or released
	err   string
	gone  bool // the row has no use any more
	Result
}

// judge turns what a run function returned into a result; stopped says that the run was told to end.
func judge(res Result, err error, stopped bool) result {
	r := result{Result: res}
	if err != nil {
		r.err = oneLine(err.Error())
	}
	switch {
	case err == nil:
		r.state = StateOK
	case stopped: // whatever it reports, it is our doing
		r.state = stateReleased
	case errors.Is(err, ErrDropped):
		r.state, r.gone = StateDropped, errors.Is(err, ErrGone)
	case errors.Is(err, ErrHeld):
		r.state = StateHeld
	case errors.Is(err, ErrPeerDown):
		r.state = StateDown
	default:
		r.state = StateFailed
	}
	return r
}

// settledWith ends a run. wait is the backoff of a job that failed n times in a row.
func (j job) settledWith(r result, wait func(n int) time.Duration, cap time.Duration, now int64) job {
	j.owner, j.lease, j.probe = "", 0, false
	if r.state == stateReleased {
		return j
	}
	j.state, j.err, j.settled = r.state, r.err, j.run
	if r.Note != "" || r.state == StateOK {
		note := r.Note
		if r.state == StateOK && r.Renote != nil {
			note = r.Renote(j.note)
		}
		j.note = oneLine(note)
	}
	switch r.state {
	case StateOK, StateDropped:
		j.done, j.attempt = j.seen, 0
		j.oldest = j.later
		if j.changedDuringRun() {
			j.origin = j.laterOrigin
		}
		if r.state == StateOK {
			j.digest, j.lastSuccess = oneLine(r.Digest), now
		}
	case StateFailed:
		j.attempt++
		j.runAt = now + wait(j.attempt).Milliseconds()
	case StateHeld:
		j.runAt = now + cap.Milliseconds()
	case StateDown: // keeps its place: the peer's row says when
	}
	if j.changedDuringRun() {
		j.runAt = min(j.runAt, now) // a push is a reason to try now
	}
	return j
}

// verified is the row after a comparison found the copy equal to our refs of the moment before, which no
// change recorded earlier can have escaped. A zero row but for its key is new.
func (j job) verified(found Verification, before, now int64) job {
	switch {
	case j.running(now), j.changed >= before:
		j.changed = min(j.changed, now) // of a clock that was set back since: not left alone again
		return j
	case j.pending():
		j.seen, j.done = j.want, j.want
		j.oldest, j.later, j.laterOrigin = 0, 0, ""
		j.owner, j.lease, j.probe = "", 0, false // of a worker that died
	case j.state == StateOK && j.digest == found.Digest && (found.Note == "" && !found.ExactNote || found.Note == j.note) &&
		j.lastSuccess <= now && now-j.lastSuccess < successFor.Milliseconds():
		return j
	}
	if j.created == 0 {
		j.created = now
	}
	j.state, j.err, j.note, j.attempt = StateOK, "", found.Note, 0
	j.digest, j.lastSuccess = found.Digest, now
	return j
}

// settledWith notes what a run tells about its peer. Only a success proves that it is back:
// a failure may have happened before anything was sent. Runs that began before the
// peer was down do not lengthen its backoff: four of them may find out together.
func (p peer) settledWith(r result, probe bool, peerRun int64, wait func(n int) time.Duration, now int64) peer {
	switch r.state {
	case StateOK:
		p.downSince, p.attempt, p.retryAt, p.err = 0, 0, 0, ""
	case StateDown:
		p.err, p.lastDown = r.err, now
		p.downRun = max(p.downRun, peerRun)
		if p.down() && !probe {
			return p
		}
		if !p.down() {
			p.downSince, p.attempt = now, 0
		}
		p.attempt++
		p.retryAt = now + wait(p.attempt).Milliseconds()
	}
	return p
}

// stateOf is what status shows. A failure is never hidden by a change that waits behind it,
// and a peer's being down hides it only if that was learnt later.
func stateOf(j job, p peer, now int64) State {
	own := j.state == StateFailed || j.state == StateHeld
	switch {
	case j.running(now):
		return StateRunning
	case !j.pending():
		return j.state
	case p.paused:
		return StatePaused
	case p.down() && !(own && j.lastAttempt > p.lastDown):
		return StateDown
	case own:
		return j.state
	}
	return StateWaiting
}

// nextTry is when the worker will next consider a job, 0 for never (or not before something else happens).
func nextTry(j job, p peer, now int64) int64 {
	switch {
	case !j.pending(), p.paused:
		return 0
	case j.running(now):
		return j.lease
	case p.down():
		return max(j.runAt, p.retryAt)
	}
	return j.runAt
}

// maxTextBytes bounds what is kept of an error or a note.
const maxTextBytes = 500

// oneLine makes text fit for a table and for any database: one line, no control characters,
// valid UTF-8, of bounded length.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= maxTextBytes {
		return s
	}
	cut := maxTextBytes - len("…")
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
