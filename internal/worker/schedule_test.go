package worker

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"mirror-shell/mirrorcfg"
)

func TestDue(t *testing.T) {
	at := func(text string) time.Time {
		v, err := time.Parse("2006-01-02 15:04:05", text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	now := at("2026-11-22 03:20:00")
	for name, c := range map[string]struct {
		expression string
		last       time.Time
		want       time.Time
		slack      time.Duration
	}{
		"never yet":      {"@hourly", time.Time{}, at("2026-11-22 04:00:00"), 5 * time.Minute},
		"done":           {"@hourly", at("2026-11-22 03:01:00"), at("2026-11-22 04:00:00"), 5 * time.Minute},
		"missed":         {"@hourly", at("2026-11-22 01:30:00"), now, time.Minute},
		"daily":          {"15 3 * * *", at("2026-11-22 03:17:00"), at("2026-11-23 03:15:00"), 5 * time.Minute},
		"every minute":   {"* * * * *", at("2026-11-22 03:20:00"), at("2026-11-22 03:21:00"), 6 * time.Second},
		"clock ran back": {"@daily", at("2026-11-25 00:00:00"), at("2026-11-23 00:00:00"), 5 * time.Minute},
	} {
		got, slack, err := schedule{"vault", c.expression}.due(c.last, now)
		if err != nil || !got.Equal(c.want) || slack != c.slack {
			t.Errorf("%s: %v + %v, %v; want %v + %v", name, got, slack, err, c.want, c.slack)
		}
	}
}

// What was written while the clock was years ahead hides no run that is missed after it was set right.
func TestTame(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 30, 0, 0, time.UTC)
	ahead, yesterday := now.AddDate(4, 0, 0), now.AddDate(0, 0, -1)
	for name, c := range map[string]struct {
		record, want scheduleRecord
	}{
		"begun ahead":     {scheduleRecord{Since: yesterday, Began: ahead}, scheduleRecord{Since: yesterday, Began: now}},
		"kept ahead":      {scheduleRecord{Since: ahead, Failing: ahead}, scheduleRecord{Since: now, Failing: now}},
		"as it should be": {scheduleRecord{Since: yesterday, Began: now}, scheduleRecord{Since: yesterday, Began: now}},
	} {
		got := c.record
		if changed := got.tame(now); changed != (c.record != c.want) || got != c.want {
			t.Errorf("%s: %v, %+v", name, changed, got)
		}
	}
	s, r := schedule{"vault", "@hourly"}, scheduleRecord{Schedule: "@hourly", Since: yesterday, Began: ahead}
	r.tame(now)
	if state := s.judge(r, true, now.Add(2*time.Hour)); state.overdue.IsZero() {
		t.Error("nobody is told of a missed run")
	}
}

// A clock that is set while a schedule waits is noticed within two minutes, and one that runs is waited for to the second.
func TestWaitUntil(t *testing.T) {
	for name, c := range map[string]struct {
		wait, set time.Duration // set by so much in the tenth minute
		there     bool
		waited    time.Duration
	}{
		"nothing to wait for": {wait: -time.Second, there: true},
		"no change":           {wait: 90 * time.Minute, there: true, waited: 90 * time.Minute},
		"a little":            {wait: 20 * time.Minute, set: -30 * time.Second, there: true, waited: 20*time.Minute + 30*time.Second},
		"forwards":            {wait: 30 * 24 * time.Hour, set: 20 * 365 * 24 * time.Hour, waited: 10 * time.Minute},
		"back":                {wait: 30 * 24 * time.Hour, set: -20 * 365 * 24 * time.Hour, waited: 10 * time.Minute},
	} {
		start := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
		clock, waited := start, time.Duration(0)
		there, err := waitUntil(t.Context(), start.Add(c.wait), func() time.Time { return clock }, func(_ context.Context, d time.Duration) error {
			if waited += d; waited == 10*time.Minute {
				clock = clock.Add(c.set)
			}
			clock = clock.Add(d)
			return nil
		})
		if there != c.there || err != nil || waited != c.waited {
			t.Errorf("%s: %v after %s, %v", name, there, waited, err)
		}
	}
	stop := errors.New("stop")
	if _, err := waitUntil(t.Context(), time.Now().Add(time.Hour), time.Now, func(context.Context, time.Duration) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}

// A scheduled run that fails is tried again, and not at its next time only.
func TestPersist(t *testing.T) {
	c := &command{server: &mirrorcfg.Server{StateDir: t.TempDir(), Worker: mirrorcfg.Worker{RetryMax: mirrorcfg.Duration(time.Millisecond)}}}
	log := slog.New(slog.DiscardHandler)
	tries := 0
	err := c.persist(t.Context(), "vault", log, func() error {
		if tries++; tries < 4 {
			return errors.New("cannot be reached")
		}
		return nil
	})
	if err != nil || tries != 4 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if r, err := c.scheduleRecord("vault"); err != nil || r.Error != "cannot be reached" || r.Failing.IsZero() {
		t.Errorf("what went wrong was not written down: %+v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.persist(ctx, "vault", log, func() error { cancel(); return errors.New("no") }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What a person is told of a schedule.
func TestJudge(t *testing.T) {
	at := func(text string) time.Time {
		v, err := time.Parse("2006-01-02 15:04", text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	now := at("2026-11-22 12:19")
	kept := scheduleRecord{Schedule: "@hourly", Since: at("2026-11-01 00:00"), Began: at("2026-11-22 12:02")}
	with := func(change func(*scheduleRecord)) scheduleRecord {
		r := kept
		change(&r)
		return r
	}
	for name, c := range map[string]struct {
		record  scheduleRecord
		serving bool
		overdue time.Time
		want    string // a part of the problem
	}{
		"kept":                     {kept, true, time.Time{}, ""},
		"the daemon starts again":  {kept, false, time.Time{}, ""},
		"a run that takes time":    {with(func(r *scheduleRecord) { r.Began = at("2026-11-22 11:01") }), true, time.Time{}, ""},
		"and too much":             {with(func(r *scheduleRecord) { r.Began = at("2026-11-22 10:01") }), true, at("2026-11-22 11:00"), "not made, the last one began"},
		"the daemon was off":       {with(func(r *scheduleRecord) { r.Began = at("2026-11-21 10:01") }), false, at("2026-11-21 11:00"), "serve does not run"},
		"never, and is not due":    {scheduleRecord{Schedule: "@hourly", Since: at("2026-11-22 12:10")}, true, time.Time{}, ""},
		"never, and was due":       {scheduleRecord{Schedule: "@hourly", Since: at("2026-11-22 10:10")}, true, at("2026-11-22 11:00"), "nor any before it"},
		"no daemon ever":           {scheduleRecord{}, false, time.Time{}, "is not kept: mirror-shell serve does not run"},
		"written while it ran":     {scheduleRecord{}, true, time.Time{}, "started before that was written"},
		"changed while it ran":     {with(func(r *scheduleRecord) { r.Schedule = "@daily" }), true, time.Time{}, "started before that was written"},
		"fails":                    {with(func(r *scheduleRecord) { r.failed(errors.New("disk full"), now) }), true, time.Time{}, "has failed since 2026-11-22"},
		"of an older version":      {scheduleRecord{Began: at("2026-11-22 12:02")}, true, time.Time{}, "started before"},
		"the clock was ahead once": {with(func(r *scheduleRecord) { r.Began = at("2027-01-01 00:00") }), true, time.Time{}, ""},
	} {
		got := schedule{"vault", "@hourly"}.judge(c.record, c.serving, now)
		if !got.overdue.Equal(c.overdue) || (got.problem == "") != (c.want == "") || !strings.Contains(got.problem, c.want) || (got.problem == "") != (got.do == "") {
			t.Errorf("%s: overdue %v, %q, do %q", name, got.overdue, got.problem, got.do)
		}
	}
}

// What is written down survives a restart: a time that passes while no daemon runs is made up for, also when
// there has been no run before.
func TestScheduleRecord(t *testing.T) {
	var r scheduleRecord
	then := time.Date(2026, 11, 22, 3, 20, 0, 0, time.UTC)
	r.keep("@daily", then)
	r.keep("@daily", then.Add(48*time.Hour))
	if at, _, err := (schedule{"vault", "@daily"}).due(r.kept(), then.Add(48*time.Hour)); err != nil || !at.Equal(then.Add(48*time.Hour)) {
		t.Errorf("the first run was missed, and the next is at %v, %v", at, err)
	}
	r.failed(errors.New("one"), then)
	r.failed(errors.New("two"), then.Add(time.Hour))
	if !r.Failing.Equal(then) || r.Error != "two" {
		t.Errorf("%+v", r)
	}
	r.done(then.Add(49 * time.Hour))
	if r.Error != "" || !r.Failing.IsZero() || !r.kept().Equal(then.Add(49*time.Hour)) {
		t.Errorf("%+v", r)
	}
	r.keep("@hourly", then.Add(72*time.Hour)) // another schedule: what the old one missed is over
	if !r.kept().Equal(then.Add(72 * time.Hour)) {
		t.Errorf("%+v", r)
	}
}

// What people are told of schedules: what the record says, by the process that keeps it.
func TestScheduleTroubles(t *testing.T) {
	server := &mirrorcfg.Server{StateDir: t.TempDir(), Peers: map[string]mirrorcfg.PeerConfig{"vault": {Kind: kindBackup, Backup: mirrorcfg.Backup{Schedule: "@hourly"}}}}
	c := &command{server: server}
	now := time.Now()
	want := func(what string, since time.Time, problem string) {
		t.Helper()
		all, known := c.scheduleTroubles(now)
		if !known || len(all) != 1 || all[0].Peer != "vault" || !all[0].Since.Equal(since) || !strings.Contains(all[0].Problem, problem) || (problem == "") != (all[0].Problem == "") {
			t.Errorf("%s: %+v, %v", what, all, known)
		}
	}
	record := func(change func(*scheduleRecord)) { c.record("vault", slog.New(slog.DiscardHandler), change) }
	want("nobody has kept it", time.Time{}, "")
	record(func(r *scheduleRecord) { r.keep("@hourly", now.Add(-24*time.Hour)); r.done(now) })
	want("kept", time.Time{}, "")
	failing := now.Add(-time.Minute).UTC()
	record(func(r *scheduleRecord) { r.failed(errors.New("disk full"), failing) })
	want("fails", failing, "disk full")
	record(func(r *scheduleRecord) { r.done(now.Add(-5 * time.Hour)) })
	all, known := c.scheduleTroubles(now)
	if !known || !strings.Contains(all[0].Problem, "was not made") || now.Sub(all[0].Since) < 4*time.Hour || now.Sub(all[0].Since) > 5*time.Hour {
		t.Errorf("%+v, %v", all, known)
	}
	c.serving = now.Add(-time.Minute)
	want("missed before serve began", c.serving, "was not made")
	if err := os.WriteFile(c.scheduleFile("vault"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all, known := c.scheduleTroubles(now); known {
		t.Errorf("of a record that cannot be read: %+v", all)
	}
}

// A machine that starts in 1970, and is told the time a minute later, has missed nothing.
func TestScheduleBeforeTheClockIsSet(t *testing.T) {
	s := schedule{"vault", "0 3 * * *"}
	now := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	r := scheduleRecord{Schedule: s.expression, Since: now.AddDate(0, -1, 0), Began: now.Add(-6 * time.Hour)}
	before := r
	if r.tame(time.Date(1970, 1, 1, 0, 1, 0, 0, time.UTC)) || r != before {
		t.Errorf("%+v", r)
	}
	if at, _, err := s.due(r.kept(), now); err != nil || !at.Equal(now.Add(18*time.Hour)) {
		t.Errorf("the next run is at %s, %v", at, err)
	}
	if missed := s.overdue(r.kept(), now); !missed.IsZero() {
		t.Errorf("missed is that of %s", missed)
	}
}
