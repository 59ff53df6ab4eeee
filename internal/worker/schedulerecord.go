package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/adhocore/gronx"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/metrics"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/status"
)

// scheduleRecord is what is remembered of one peer's schedule, as JSON in
// state_dir/schedule-PEER.json. The daemon writes it; status and doctor judge by it whether
// the schedule is kept, also when no daemon runs.
type scheduleRecord struct {
	Schedule string    `json:",omitempty"` // what the daemon keeps: the configuration as it started
	Since    time.Time `json:",omitzero"`  // from when on it does
	Began    time.Time `json:",omitzero"`  // the last run that did its work began then
	Failing  time.Time `json:",omitzero"`  // when the first run failed since
	Error    string    `json:",omitempty"` // and why the last did
}

// kept is the time up to which nothing was missed; zero where the schedule was never kept.
func (r *scheduleRecord) kept() time.Time {
	if r.Began.After(r.Since) {
		return r.Began
	}
	return r.Since
}

// firstYear is when nobody had this program yet.
var firstYear = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// tame has nothing be of a time that is still to come, which a clock wrote that was ahead: until then no run
// would count as missed. It reports whether there was any. A clock that is not set yet brings nothing back to 1970: each start
// of a machine without a clock of its own would be a run that was missed for half a century.
func (r *scheduleRecord) tame(now time.Time) (changed bool) {
	if now.Before(firstYear) {
		return false
	}
	for _, t := range []*time.Time{&r.Since, &r.Began, &r.Failing} {
		if t.After(now) {
			*t, changed = now.UTC(), true
		}
	}
	return changed
}

// keep notes that a daemon keeps a schedule from now on. Another one begins anew: its times before now
// were nobody's to keep.
func (r *scheduleRecord) keep(expression string, now time.Time) {
	if r.Schedule == expression {
		return
	}
	if r.Schedule != "" || r.Began.IsZero() {
		r.Since = now.UTC()
	}
	r.Schedule = expression
}

func (r *scheduleRecord) done(began time.Time) {
	r.Began, r.Failing, r.Error = began.UTC(), time.Time{}, ""
}

func (r *scheduleRecord) failed(err error, now time.Time) {
	if r.Failing.IsZero() {
		r.Failing = now.UTC()
	}
	r.Error = proc.OneLine(err.Error(), 600)
}

func (c *command) scheduleFile(peer string) string {
	return filepath.Join(c.server.StateDir, "schedule-"+peer+".json")
}

// scheduleRecord reads what is remembered; there may be nothing.
func (c *command) scheduleRecord(peer string) (r scheduleRecord, err error) {
	data, err := os.ReadFile(c.scheduleFile(peer))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

// record changes what is remembered. One that cannot be read is written anew.
func (c *command) record(peer string, log *slog.Logger, change func(*scheduleRecord)) {
	r, _ := c.scheduleRecord(peer)
	change(&r)
	data, err := json.Marshal(r)
	if err == nil {
		err = durable.Replace(c.scheduleFile(peer), append(data, '\n'))
	}
	if err != nil {
		log.Error("what became of the scheduled backup cannot be written down", "peer", peer, "error", err)
	}
}

// patience is how much longer than its jitter a run may take before it is told as overdue.
const patience = 15 * time.Minute

// overdue returns the time of the first run that was missed, zero for none. Kept is as in due.
func (s schedule) overdue(kept, now time.Time) time.Time {
	if kept.IsZero() {
		return time.Time{}
	}
	missed, err := gronx.NextTickAfter(s.expression, kept.In(now.Location()), false)
	if err != nil {
		return time.Time{} // a date that does not come again
	}
	next, err := gronx.NextTickAfter(s.expression, missed, false)
	if err != nil {
		next = missed
	}
	if now.Before(missed.Add(min(next.Sub(missed)/10, maxJitter) + patience)) {
		return time.Time{}
	}
	return missed
}

// scheduleState is how one schedule is kept.
type scheduleState struct {
	schedule
	record  scheduleRecord
	overdue time.Time // the first run that was missed; zero: none
	serving bool      // a daemon runs
	unknown bool      // the record cannot be read
	problem string    // what a person should know; "": it is kept
	do      string
}

const (
	scheduleNotKept = "schedule = %q is not kept: mirror-shell serve does not run"
	howToKeep       = "run mirror-shell serve as a service, or take schedule out and run mirror-shell backup from cron"
)

// scheduleStates judges all schedules, sorted by peer. The error is of the configuration.
func (c *command) scheduleStates(now time.Time) ([]scheduleState, error) {
	all, err := c.schedules()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	holder, running, _ := queue.WorkerHolder(c.server.StateDir)
	serving := running && holder.Kind == queue.KindServe
	states := make([]scheduleState, len(all))
	for i, s := range all {
		r, err := c.scheduleRecord(s.peer)
		if err != nil {
			states[i] = scheduleState{schedule: s, serving: serving, unknown: true, problem: "it is not known whether the schedule is kept: " + proc.OneLine(err.Error(), 200),
				do: "delete " + c.scheduleFile(s.peer) + " and start mirror-shell serve again"}
			continue
		}
		states[i] = s.judge(r, serving, now)
	}
	return states, nil
}

// judge tells what is wrong with how a schedule is kept.
func (s schedule) judge(r scheduleRecord, serving bool, now time.Time) scheduleState {
	state := scheduleState{schedule: s, serving: serving, record: r, overdue: s.overdue(r.kept(), now)}
	switch kept := r.Schedule == s.expression; {
	case serving && !kept:
		state.problem = fmt.Sprintf("schedule = %q is not kept: mirror-shell serve was started before that was written", s.expression)
		state.do = "start mirror-shell serve again"
	case !serving && !kept:
		state.problem, state.do = fmt.Sprintf(scheduleNotKept, s.expression), howToKeep
	case r.Error != "":
		state.problem = fmt.Sprintf("the scheduled backup has failed since %s, and is tried again by mirror-shell serve: %s", minute(r.Failing), r.Error)
		state.do = "mend what it says"
	case !state.overdue.IsZero():
		state.problem = fmt.Sprintf("the scheduled backup of %s was not made, %s", minute(state.overdue), since(r))
		state.do = "mirror-shell status shows what the worker does"
		if !serving {
			state.problem += "; mirror-shell serve does not run"
			state.do = howToKeep
		}
	}
	return state
}

func since(r scheduleRecord) string {
	if r.Began.IsZero() {
		return "nor any before it"
	}
	return "the last one began " + minute(r.Began)
}

func minute(t time.Time) string { return t.Local().Format("2006-01-02 15:04 MST") }

// tellSchedules has status say which schedules are not kept. A repository that waits for its first run is late
// when that run is.
func (c *command) tellSchedules(report *status.Report, now time.Time) {
	states, err := c.scheduleStates(now)
	if err != nil {
		report.Warnings = append(report.Warnings, proc.OneLine(err.Error(), 300))
	}
	for _, s := range states {
		if s.problem == "" {
			continue
		}
		report.Warnings = append(report.Warnings, s.peer+": "+s.problem)
		for i, line := range report.Lines {
			if line.Peer == s.peer && line.Scheduled {
				report.Lines[i].Late = true
			}
		}
	}
}

// examineSchedules has doctor say how the schedules are kept: only the daemon does.
func (c *command) examineSchedules() []Finding {
	states, err := c.scheduleStates(time.Now())
	if err != nil {
		return []Finding{{"schedule", fail, proc.OneLine(err.Error(), 300), "correct it in " + c.server.File}}
	}
	var findings []Finding
	for _, s := range states {
		check := "peer " + s.peer
		switch {
		case s.problem != "":
			findings = append(findings, Finding{check, fail, s.problem, s.do})
		case !s.serving: // which status does not mention until something is late
			findings = append(findings, Finding{check, fail, fmt.Sprintf(scheduleNotKept, s.expression), howToKeep})
		default:
			findings = append(findings, Finding{check, ok, fmt.Sprintf("schedule = %q is kept, %s", s.expression, since(s.record)), ""})
		}
	}
	return findings
}

// scheduleMetrics is what monitoring reads of the schedules.
func (c *command) scheduleMetrics() ([]metrics.Schedule, error) {
	now := time.Now()
	states, err := c.scheduleStates(now)
	all := make([]metrics.Schedule, len(states))
	for i, s := range states {
		all[i] = metrics.Schedule{Peer: s.peer, LastRun: s.record.Began}
		if !s.overdue.IsZero() {
			all[i].Overdue = now.Sub(s.overdue)
		}
	}
	return all, err
}

// scheduledRows is the jobs table with a row for each repository that a schedule
// covers and that has not been backed up yet.
type scheduledRows struct {
	*command
}

// Rows implements metrics.Table.
func (r scheduledRows) Rows(ctx context.Context, filter queue.Filter) ([]queue.Row, error) {
	rows, err := r.queue.Rows(ctx, filter)
	if err != nil {
		return nil, err
	}
	peers := r.scheduledPeers()
	if len(peers) == 0 {
		return rows, nil
	}
	names, err := r.server.Select(nil)
	if err != nil && len(names) == 0 {
		return nil, err
	}
	have := map[queue.Key]bool{}
	for _, row := range rows {
		have[row.Key] = true
	}
	for _, peer := range peers {
		for _, name := range names {
			if key := (queue.Key{Repository: name, Peer: peer}); !have[key] {
				rows = append(rows, queue.Row{Key: key, State: status.Never})
			}
		}
	}
	return rows, nil
}
