// Package status tells how far behind every copy is.
//
// It puts two things side by side that can disagree: what is configured now
// (every repository's role, and the peers its lists name) and what the jobs table
// remembers. A copy that is configured and was never made is shown as never; one
// that the table knows and nobody configures any more is shown with what the
// table says.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/repos"
	"mirror-shell/internal/rescue"
	"mirror-shell/mirrorcfg"
)

// Report is everything that status shows.
type Report struct {
	Hostname string   `json:"hostname"`
	Lines    []Line   `json:"lines"`
	Warnings []string `json:"warnings"` // what concerns no single copy
}

// Line is one copy of one repository; for a repository that this server does not
// push, one line without peer.
type Line struct {
	Repository  string     `json:"repository"`
	Role        string     `json:"role"`             // master, slave, local, or unreadable
	Master      string     `json:"master,omitempty"` // of a slave
	Peer        string     `json:"peer,omitempty"`
	State       string     `json:"state,omitempty"`     // of queue.State, or never, unlisted, unknown
	LagSeconds  float64    `json:"lag_seconds"`         // 0 when equal
	Late        bool       `json:"late"`                // the lag is over notify.lag, whatever the state, or the first scheduled backup is overdue
	Scheduled   bool       `json:"scheduled,omitempty"` // never, and nothing but the peer's schedule will change that
	LastSuccess *time.Time `json:"last_success,omitempty"`
	LastAttempt *time.Time `json:"last_attempt,omitempty"`
	NextTry     *time.Time `json:"next_try,omitempty"`
	Attempts    int        `json:"attempts"` // failures since the last success
	Error       string     `json:"error,omitempty"`
	Note        string     `json:"note,omitempty"`
	Digest      string     `json:"digest,omitempty"`
}

// States besides the queue's.
const (
	// Never is the state of a copy that is configured and has no job yet.
	Never    = "never"
	unlisted = "unlisted" // was equal once; no list names the peer, so nothing keeps it so
	unknown  = "unknown"  // was equal once; what we have ourselves cannot be read now
)

// Failing reports whether a person should look at the copy. Staleness counts and
// not only errors: a copy that is late while it waits, runs or is paused needs somebody too.
func (l Line) Failing() bool {
	switch l.State {
	case string(queue.StateFailed), string(queue.StateHeld), string(queue.StateDown):
		return true
	case string(queue.StateRunning): // a new try: what failed is not well for as long as it takes
		if l.Error != "" {
			return true
		}
	case Never:
		return !l.Scheduled || l.Late // a new repository's first run is to come
	}
	return l.Role == unreadable || l.Late
}

const unreadable = "unreadable"

// Rows is where the jobs are read from: a *queue.Queue.
type Rows interface {
	Rows(context.Context, queue.Filter) ([]queue.Row, error)
}

// Collect makes the report of the repositories that the patterns select, or of
// all. A local repository is listed only when it was asked for.
func Collect(ctx context.Context, server *mirrorcfg.Server, rows Rows, patterns []string) (*Report, error) {
	report := &Report{Hostname: server.Hostname, Lines: []Line{}, Warnings: []string{}}
	jobs, err := rows.Rows(ctx, queue.Filter{})
	if err != nil {
		return nil, err
	}
	names, err := selected(server, jobs, patterns)
	if err != nil {
		if len(names) == 0 {
			return nil, err
		}
		report.Warnings = append(report.Warnings, proc.OneLine(err.Error(), 300))
	}
	byRepo := map[string][]queue.Row{}
	for _, row := range jobs {
		byRepo[row.Repository] = append(byRepo[row.Repository], row)
	}
	for _, lines := range inOrder(names, func(name string) []Line {
		return ofRepository(ctx, server, name, byRepo[name], len(patterns) > 0)
	}) {
		report.Lines = append(report.Lines, lines...)
	}
	for i, line := range report.Lines {
		report.Lines[i].Late = line.LagSeconds > time.Duration(server.Notify.Lag).Seconds()
	}
	return report, nil
}

// selected is the repositories to show: those that exist and those that only the
// jobs table knows. A pattern may match either.
func selected(server *mirrorcfg.Server, jobs []queue.Row, patterns []string) ([]string, error) {
	names, err := server.Select(patterns)
	if errors.Is(err, mirrorcfg.ErrNoRepo) {
		err = nil
	}
	known := map[string]bool{}
	for _, name := range names {
		known[name] = true
	}
	for _, job := range jobs {
		if !known[job.Repository] && matchesAny(patterns, job.Repository) {
			known[job.Repository] = true
			names = append(names, job.Repository)
		}
	}
	if err == nil && len(names) == 0 && len(patterns) > 0 {
		err = fmt.Errorf("%w: nothing matches %s", mirrorcfg.ErrNoRepo, strings.Join(patterns, " "))
	}
	sort.Strings(names)
	return names, err
}

func matchesAny(patterns []string, name string) bool {
	for _, p := range patterns {
		if mirrorcfg.MatchGlob(strings.TrimSuffix(p, ".git"), name) {
			return true
		}
	}
	return len(patterns) == 0
}

// inOrder runs f for each name, a few at a time, and returns the results in the
// order of the names.
func inOrder(names []string, f func(string) []Line) [][]Line {
	results := make([][]Line, len(names))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(4, len(names)) {
		workers.Go(func() {
			for i := range next {
				results[i] = f(names[i])
			}
		})
	}
	for i := range names {
		next <- i
	}
	close(next)
	workers.Wait()
	return results
}

// ofRepository is the lines of one repository.
func ofRepository(ctx context.Context, server *mirrorcfg.Server, name string, jobs []queue.Row, asked bool) []Line {
	cfg, repo, err := server.OpenRepo(ctx, name)
	if err != nil {
		if errors.Is(err, mirrorcfg.ErrNoRepo) {
			if e, deleted, trashErr := repos.InTrash(server, name); deleted && trashErr == nil {
				return ofDeleted(e, jobs, asked)
			}
		}
		return withoutConfig(name, jobs, err)
	}
	role := cfg.Role(server.Hostname)
	base := Line{Repository: name, Role: role.String()}
	var lines []Line
	switch role {
	case mirrorcfg.Slave:
		base.Master = cfg.Master
		base.Note = rescued(ctx, name, repo)
		lines = append(lines, base)
	case mirrorcfg.Local:
		if asked {
			lines = append(lines, base)
		}
	case mirrorcfg.Master:
		return withScheduled(ofMaster(cfg, server, base, jobs), server, base, jobs)
	}
	for _, job := range jobs { // backups are made in any role; the rest is left from when this server was the master
		if job.State != queue.StateOK || isBackup(server, job.Peer) {
			lines = append(lines, fromRow(base, job))
		}
	}
	return withScheduled(lines, server, base, jobs)
}

// withScheduled adds a line for each backup peer whose schedule covers the repository, as it
// does all, and that has not had its turn yet. A line that only says that there is no peer gives way.
func withScheduled(lines []Line, server *mirrorcfg.Server, base Line, jobs []queue.Row) []Line {
	seen := map[string]bool{}
	for _, job := range jobs {
		seen[job.Peer] = true
	}
	for _, line := range lines {
		seen[line.Peer] = true
	}
	for _, name := range slices.Sorted(maps.Keys(server.Peers)) {
		if server.Peers[name].Schedule != "" && !seen[name] {
			line := base
			line.Peer, line.State, line.Scheduled = name, Never, true
			lines = append(lines, line)
		}
	}
	if base.Role != mirrorcfg.Slave.String() && len(lines) > 1 {
		lines = slices.DeleteFunc(lines, func(l Line) bool { return l.Peer == "" && l.State == "" })
	}
	sort.SliceStable(lines, func(i, j int) bool { return lines[i].Peer < lines[j].Peer })
	return lines
}

// ofDeleted is a line for each peer that is still to be told of a deletion, and when
// it was asked for, for the others, too.
func ofDeleted(e repos.Entry, jobs []queue.Row, asked bool) []Line {
	base := Line{Repository: e.Name, Role: "deleted", Note: "in the trash: " + e.ID}
	var lines []Line
	for _, job := range jobs {
		if asked || !settled(job) {
			lines = append(lines, fromRow(base, job))
		}
	}
	if asked && len(lines) == 0 {
		return []Line{base}
	}
	return lines
}

// rescued tells of the commits that this server keeps, because a mirror push would
// have destroyed them.
func rescued(ctx context.Context, name string, repo git.Repo) string {
	kept, err := rescue.List(ctx, repo)
	switch {
	case err != nil:
		return proc.OneLine("rescued refs cannot be read: "+err.Error(), 200)
	case len(kept) == 0:
		return ""
	}
	return fmt.Sprintf("%d rescued: mirror-shell rescued %s", len(kept), name)
}

// ofMaster is a line for every peer that has a job or that a list names.
func ofMaster(cfg *mirrorcfg.Repo, server *mirrorcfg.Server, base Line, jobs []queue.Row) []Line {
	hostname := server.Hostname
	var lines []Line
	seen := map[string]bool{}
	for _, job := range jobs {
		seen[job.Peer] = true
		line := fromRow(base, job)
		// A backup needs no list: a schedule, or cron, keeps it up.
		if !cfg.Listed(hostname, job.Peer) && settled(job) && !isBackup(server, job.Peer) {
			line.State = unlisted
		}
		lines = append(lines, line)
	}
	for _, key := range cfg.Lists() {
		peers, err := cfg.Expand(hostname, key)
		if err != nil {
			line := base
			line.State, line.Error = string(queue.StateFailed), proc.OneLine(err.Error(), 300)
			lines = append(lines, line)
		}
		for _, peer := range peers {
			if !seen[peer] {
				seen[peer] = true
				line := base
				line.Peer, line.State = peer, Never
				lines = append(lines, line)
			}
		}
	}
	if len(lines) == 0 {
		lines = append(lines, base)
	}
	sort.SliceStable(lines, func(i, j int) bool { return lines[i].Peer < lines[j].Peer })
	return lines
}

func isBackup(server *mirrorcfg.Server, peer string) bool {
	return server.Peers[peer].Kind == "backup"
}

// settled reports whether a job waits for nothing.
func settled(job queue.Row) bool {
	return job.State == queue.StateOK || job.State == queue.StateDropped
}

func withoutConfig(name string, jobs []queue.Row, err error) []Line {
	base := Line{Repository: name, Role: unreadable, Error: proc.OneLine(err.Error(), 300)}
	if len(jobs) == 0 {
		return []Line{base}
	}
	var lines []Line
	for _, job := range jobs {
		line := fromRow(base, job)
		line.Error = base.Error
		if settled(job) {
			line.State = unknown
		}
		lines = append(lines, line)
	}
	return lines
}

func fromRow(line Line, row queue.Row) Line {
	line.Peer, line.State = row.Peer, string(row.State)
	line.LagSeconds = row.Lag.Seconds()
	line.LastSuccess, line.LastAttempt, line.NextTry = known(row.LastSuccess), known(row.LastAttempt), known(row.NextTry)
	line.Attempts, line.Error, line.Note, line.Digest = row.Attempt, row.Error, row.Note, row.Digest
	switch {
	case row.Standing() == queue.StateDown:
		line.Error = row.PeerError
	case row.State == queue.StateRunning && row.Latest == queue.StateDropped:
		line.Error = "" // it is wanted again
	}
	return line
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// KeepFailing drops the lines that need nobody, and reports whether any is left
// or a warning stands.
func (r *Report) KeepFailing() bool {
	failing := []Line{}
	for _, line := range r.Lines {
		if line.Failing() {
			failing = append(failing, line)
		}
	}
	r.Lines = failing
	return len(failing) > 0 || len(r.Warnings) > 0
}

// JSON writes the report as one object.
func (r *Report) JSON(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

// Table writes the report for people.
func (r *Report) Table(w io.Writer, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "REPOSITORY\tROLE\tPEER\tSTATE\tLAG\tLAST SUCCESS\tTRIES\tLAST ERROR")
	for _, l := range r.Lines {
		role, lag, text := l.Role, "", l.Error
		if l.Master != "" {
			role += " of " + l.Master
		}
		if l.Peer != "" && l.State != Never && l.State != unlisted && l.State != unknown {
			lag = short(time.Duration(l.LagSeconds * float64(time.Second)))
		}
		if text == "" && l.Note != "" {
			text = "(" + l.Note + ")"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			l.Repository, role, dash(l.Peer), dash(l.State), dash(lag), ago(l.LastSuccess, now), tries(l.Attempts), proc.OneLine(text, 160))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, warning := range r.Warnings {
		if _, err := fmt.Fprintln(w, "warning:", warning); err != nil {
			return err
		}
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func tries(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func ago(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	return short(now.Sub(*t)) + " ago"
}

// short writes a duration in the two units that matter.
func short(d time.Duration) string {
	switch {
	case d <= 0:
		return "0"
	case d < time.Second:
		return "<1s"
	case d < time.Hour:
		return d.Truncate(time.Second).String()
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}
