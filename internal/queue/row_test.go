package queue

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"mirror-shell/internal/inbox"
)

func TestBackoff(t *testing.T) {
	p := policy{base: time.Second, cap: 15 * time.Minute}
	for _, c := range []struct {
		attempt int
		full    time.Duration
	}{
		{0, time.Second}, {1, time.Second}, {2, 2 * time.Second}, {3, 4 * time.Second}, {10, 512 * time.Second},
		{11, 15 * time.Minute}, {12, 15 * time.Minute}, {1 << 40, 15 * time.Minute},
	} {
		for _, r := range []float64{0, 0.25, 0.5, 0.999999} {
			got := p.backoff(c.attempt, r)
			want := c.full/2 + time.Duration(r*float64(c.full/2))
			if got != want || got < c.full/2 || got >= c.full {
				t.Errorf("backoff(%d, %v) = %v, want %v", c.attempt, r, got, want)
			}
		}
	}
	if d := (policy{base: time.Hour, cap: time.Minute}).backoff(1, 0.99); d >= time.Minute {
		t.Errorf("a base above the cap: %v", d)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		err     error
		stopped bool
		want    State
	}{
		{nil, false, StateOK},
		{nil, true, StateOK}, // it was faster than the stop
		{errors.New("x"), false, StateFailed},
		{errors.New("signal: killed"), true, stateReleased},
		{fmt.Errorf("ssh: %w", ErrPeerDown), false, StateDown},
		{fmt.Errorf("ssh: %w", ErrPeerDown), true, stateReleased},
		{fmt.Errorf("guard: %w", ErrHeld), false, StateHeld},
		{fmt.Errorf("list: %w", ErrDropped), false, StateDropped},
		{errors.Join(ErrPeerDown, ErrHeld), false, StateHeld}, // a person is needed in any case
	} {
		if got := judge(Result{}, c.err, c.stopped).state; got != c.want {
			t.Errorf("judge(%v, stopped %v) = %s, want %s", c.err, c.stopped, got, c.want)
		}
	}
}

func TestSettle(t *testing.T) {
	const now, retryMax = 1_000_000, 900_000
	wait := func(n int) time.Duration { return time.Duration(n) * time.Second }
	// A run of generation 3 while generation 2 was done, claimed at 999000.
	running := job{want: 3, seen: 3, done: 2, origin: inbox.OriginExplicit, oldest: 990_000, newest: 995_000,
		runAt: 995_000, owner: "me", lease: now + 30_000, run: 7, settled: 6, attempt: 2, state: StateFailed,
		err: "before", digest: "old", lastSuccess: 1, lastAttempt: 999_000}
	pushed := running.enqueued(inbox.OriginList, 999_500, 999_600)

	type want struct {
		done, oldest, runAt, settled int64
		attempt                      int
		state                        State
		pending                      bool
		origin                       inbox.Origin
	}
	for name, c := range map[string]struct {
		before job
		state  State
		want   want
	}{
		"ok":                 {running, StateOK, want{3, 0, 995_000, 7, 0, StateOK, false, inbox.OriginExplicit}},
		"ok, push meanwhile": {pushed, StateOK, want{3, 999_500, 995_000, 7, 0, StateOK, true, inbox.OriginList}},
		"dropped":            {running, StateDropped, want{3, 0, 995_000, 7, 0, StateDropped, false, inbox.OriginExplicit}},
		"failed":             {running, StateFailed, want{2, 990_000, now + 3000, 7, 3, StateFailed, true, inbox.OriginExplicit}},
		"failed, push":       {pushed, StateFailed, want{2, 990_000, now, 7, 3, StateFailed, true, inbox.OriginExplicit}},
		"held":               {running, StateHeld, want{2, 990_000, now + retryMax, 7, 2, StateHeld, true, inbox.OriginExplicit}},
		"held, push":         {pushed, StateHeld, want{2, 990_000, now, 7, 2, StateHeld, true, inbox.OriginExplicit}},
		"down":               {running, StateDown, want{2, 990_000, 995_000, 7, 2, StateDown, true, inbox.OriginExplicit}},
		"released":           {running, stateReleased, want{2, 990_000, 995_000, 6, 2, StateFailed, true, inbox.OriginExplicit}},
	} {
		t.Run(name, func(t *testing.T) {
			r := result{state: c.state, err: "why", Result: Result{Digest: "new", Note: "a\nnote"}}
			if c.state == StateOK {
				r.err = ""
			}
			j := c.before.settledWith(r, wait, retryMax*time.Millisecond, now)
			got := want{j.done, j.oldest, j.runAt, j.settled, j.attempt, j.state, j.pending(), j.origin}
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
			if j.owner != "" || j.lease != 0 {
				t.Errorf("still owned by %q until %d", j.owner, j.lease)
			}
			success := c.state == StateOK
			if (j.digest == "new") != success || (j.lastSuccess == now) != success {
				t.Errorf("digest %q, last success %d", j.digest, j.lastSuccess)
			}
			if c.state == stateReleased && (j.err != "before" || j.note != "") {
				t.Errorf("a stop left a trace: %q, %q", j.err, j.note)
			}
			if c.state != stateReleased && (j.err != r.err || j.note != "a note") {
				t.Errorf("error %q, note %q", j.err, j.note)
			}
		})
	}
}

func TestSettlePeer(t *testing.T) {
	const now = 1_000_000
	wait := func(n int) time.Duration { return time.Duration(n) * time.Second }
	up := peer{name: "sam", runs: 9}
	down := peer{name: "sam", runs: 9, downSince: 500_000, lastDown: 900_000, attempt: 4, retryAt: 990_000, err: "no route", downRun: 5}
	for name, c := range map[string]struct {
		before peer
		state  State
		probe  bool
		want   peer
	}{
		"first": {up, StateDown, false,
			peer{name: "sam", runs: 9, downSince: now, lastDown: now, attempt: 1, retryAt: now + 1000, err: "why", downRun: 8}},
		"probe": {down, StateDown, true,
			peer{name: "sam", runs: 9, downSince: 500_000, lastDown: now, attempt: 5, retryAt: now + 5000, err: "why", downRun: 8}},
		"a run from before": {down, StateDown, false,
			peer{name: "sam", runs: 9, downSince: 500_000, lastDown: now, attempt: 4, retryAt: 990_000, err: "why", downRun: 8}},
		"back":          {down, StateOK, true, peer{name: "sam", runs: 9, lastDown: 900_000, downRun: 5}},
		"failed":        {down, StateFailed, true, down},
		"held":          {down, StateHeld, true, down},
		"dropped":       {down, StateDropped, true, down},
		"released":      {down, stateReleased, true, down},
		"released, up":  {up, stateReleased, false, up},
		"nothing to do": {up, StateOK, false, up},
	} {
		if got := c.before.settledWith(result{state: c.state, err: "why"}, c.probe, 8, wait, now); got != c.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c.want)
		}
	}
}

func TestEnqueued(t *testing.T) {
	const now = 1000
	fresh := job{}.enqueued(inbox.OriginList, 400, now)
	if fresh.want != 1 || fresh.oldest != 400 || fresh.newest != 400 || fresh.runAt != now || fresh.created != now {
		t.Errorf("first change: %+v", fresh)
	}
	if j := (job{}).enqueued(inbox.OriginList, 5000, now); j.oldest != now {
		t.Errorf("a change from the future counts from %d", j.oldest)
	}
	if j := (job{}).enqueued(inbox.OriginList, 0, now); j.oldest != now {
		t.Errorf("a change without time counts from %d", j.oldest)
	}
	older := fresh.enqueued(inbox.OriginExplicit, 300, 2000)
	if older.oldest != 300 || older.newest != 400 || older.runAt != now || older.origin != inbox.OriginExplicit {
		t.Errorf("an older, explicit change: %+v", older)
	}
	if j := older.enqueued(inbox.OriginList, 500, 2000); j.origin != inbox.OriginExplicit {
		t.Error("a list overrode a person")
	}
	backedOff := fresh
	backedOff.runAt = 9000
	if j := backedOff.enqueued(inbox.OriginList, 1500, 2000); j.runAt != 2000 {
		t.Errorf("a push must be tried now, not at %d", j.runAt)
	}
	satisfied := older
	satisfied.done = satisfied.want
	if j := satisfied.enqueued(inbox.OriginList, 1800, 2000); j.origin != inbox.OriginList || j.oldest != 1800 || j.runAt != 2000 {
		t.Errorf("after it was equal: %+v", j)
	}
}

func TestStateOf(t *testing.T) {
	const now = 1000
	down := peer{downSince: 500, lastDown: 700}
	pending := func(state State, lastAttempt int64) job {
		return job{want: 2, done: 1, state: state, lastAttempt: lastAttempt}
	}
	running := job{want: 1, owner: "x", lease: now + 1}
	expired := job{want: 1, owner: "x", lease: now}
	for name, c := range map[string]struct {
		j    job
		p    peer
		want State
	}{
		"new":                       {pending("", 0), peer{}, StateWaiting},
		"equal":                     {job{want: 2, done: 2, state: StateOK}, down, StateOK},
		"dropped":                   {job{want: 2, done: 2, state: StateDropped}, peer{paused: true}, StateDropped},
		"pushed again":              {pending(StateOK, 5), peer{}, StateWaiting},
		"wanted again":              {pending(StateDropped, 5), peer{}, StateWaiting},
		"failed":                    {pending(StateFailed, 5), peer{}, StateFailed},
		"held":                      {pending(StateHeld, 5), peer{}, StateHeld},
		"running":                   {running, peer{paused: true}, StateRunning},
		"worker died":               {expired, peer{}, StateWaiting},
		"paused":                    {pending(StateFailed, 5), peer{paused: true, downSince: 1}, StatePaused},
		"down":                      {pending(StateDown, 600), down, StateDown},
		"down, never tried":         {pending("", 0), down, StateDown},
		"failed, then peer down":    {pending(StateFailed, 600), down, StateDown},
		"peer down, failed by then": {pending(StateFailed, 800), down, StateFailed},
		"peer is back":              {pending(StateDown, 600), peer{lastDown: 700}, StateWaiting},
	} {
		if got := stateOf(c.j, c.p, now); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "",
		" a\n\tb\r\n c\x00\x1b[31m": "a b c [31m",
		"bad \xff byte":             "bad \uFFFD byte",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
	long := oneLine(strings.Repeat("é", 1000))
	if len(long) > maxTextBytes || !utf8.ValidString(long) || !strings.HasSuffix(long, "…") {
		t.Errorf("a long text became %d bytes: %q", len(long), long)
	}
}
