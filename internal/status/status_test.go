package status

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/queue"
	"mirror-shell/mirrorcfg"
)

// table is a jobs table made of rows.
type table []queue.Row

func (t table) Rows(context.Context, queue.Filter) ([]queue.Row, error) { return t, nil }

func newServer(t *testing.T, repos map[string]string) *mirrorcfg.Server {
	t.Helper()
	dir := t.TempDir()
	s := &mirrorcfg.Server{File: "x.toml", Hostname: "frodo", RepoBase: filepath.Join(dir, "repositories"), StateDir: dir}
	os.Mkdir(s.RepoBase, 0o700)
	for name, config := range repos {
		repo := filepath.Join(s.RepoBase, name+".git")
		if out, err := exec.Command("git", "init", "-q", "--bare", repo).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		f, err := os.OpenFile(filepath.Join(repo, "config"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString(config)
		f.Close()
	}
	return s
}

func row(repo, peer string, state queue.State) queue.Row {
	return queue.Row{Key: queue.Key{Repository: repo, Peer: peer}, State: state}
}

func TestCollect(t *testing.T) {
	server := newServer(t, map[string]string{
		"ip1":    "[gitolite \"mirror\"]\nmaster = frodo\nslaves = sam gollum\nnightly = gimli\n",
		"ip2":    "[gitolite \"mirror\"]\nmaster = sam\n",
		"local":  "",
		"cycle":  "[gitolite \"mirror\"]\nmaster = frodo\nslaves = gitolite.mirror.slaves\n",
		"broken": "[gitolite \"mirror\"]\nmaster = -x\n",
		"alone":  "[gitolite \"mirror\"]\nmaster = frodo\n",
	})
	failed := row("ip1", "gollum", queue.StateFailed)
	failed.Error, failed.Lag, failed.Attempt = "disk full", 90*time.Second, 3
	down := row("gone", "sam", queue.StateDown)
	down.Error, down.PeerError = "old", "connection refused"
	jobs := table{row("broken", "sam", queue.StateOK), down, failed, row("ip1", "merry", queue.StateOK), row("ip1", "sam", queue.StateOK),
		row("ip2", "frodo", queue.StateDropped), row("ip2", "gimli", queue.StateOK)}

	got := lines(t, server, jobs)
	want := []string{
		"alone master ",
		"broken unreadable sam unknown",
		"cycle master  failed",
		"gone unreadable sam down",
		"ip1 master gimli never",
		"ip1 master gollum failed",
		"ip1 master merry unlisted",
		"ip1 master sam ok",
		"ip2 slave ",
		"ip2 slave frodo dropped",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := lines(t, server, jobs, "local"); strings.Join(got, "\n") != "local local " {
		t.Errorf("a local repository that was asked for: %q", got)
	}
	if got := lines(t, server, jobs, "gon*"); strings.Join(got, "\n") != "gone unreadable sam down" {
		t.Errorf("a repository that only the table knows: %q", got)
	}
	if _, err := Collect(context.Background(), server, jobs, []string{"nothing"}); !errors.Is(err, mirrorcfg.ErrNoRepo) {
		t.Errorf("a pattern without a match: %v", err)
	}
}

// A backup is made in any role, and needs no list to be kept up.
func TestBackups(t *testing.T) {
	server := newServer(t, map[string]string{
		"ip1":   "[gitolite \"mirror\"]\nmaster = frodo\n",
		"ip2":   "[gitolite \"mirror\"]\nmaster = sam\n",
		"local": "",
		"other": "",
	})
	server.Peers = map[string]mirrorcfg.PeerConfig{"vault": {Kind: "backup"}}
	jobs := table{row("ip1", "vault", queue.StateOK), row("ip2", "vault", queue.StateOK), row("local", "vault", queue.StateOK)}
	want := []string{"ip1 master vault ok", "ip2 slave ", "ip2 slave vault ok", "local local vault ok"}
	if got := lines(t, server, jobs); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A schedule covers every repository, from its first hour on.
func TestScheduled(t *testing.T) {
	server := newServer(t, map[string]string{
		"ip1":   "[gitolite \"mirror\"]\nmaster = frodo\nslaves = sam vault\n",
		"ip2":   "[gitolite \"mirror\"]\nmaster = sam\n",
		"ip3":   "[gitolite \"mirror\"]\nmaster = frodo\n",
		"local": "",
		"done":  "",
	})
	server.Peers = map[string]mirrorcfg.PeerConfig{"vault": {Kind: "backup", Backup: mirrorcfg.Backup{Schedule: "@daily"}}, "attic": {Kind: "backup"}}
	jobs := table{row("done", "vault", queue.StateOK), row("ip1", "sam", queue.StateOK)}
	want := []string{"done local vault ok", "ip1 master sam ok", "ip1 master vault never", "ip2 slave ", "ip2 slave vault never", "ip3 master vault never", "local local vault never"}
	if got := lines(t, server, jobs); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := lines(t, server, jobs, "local"); strings.Join(got, "\n") != "local local vault never" {
		t.Errorf("a local one that was asked for: %q", got)
	}
	report, err := Collect(context.Background(), server, jobs, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range report.Lines {
		report.Lines[i].Late = l.Repository == "local"
	}
	// A push should have backed ip1 up; of the others only the one is late that somebody says is.
	if !report.KeepFailing() || len(report.Lines) != 2 || report.Lines[0].Repository != "ip1" || report.Lines[1].Repository != "local" {
		t.Errorf("failing: %+v", report.Lines)
	}
}

// Staleness counts in every state.
func TestLate(t *testing.T) {
	server := newServer(t, map[string]string{"ip1": "[gitolite \"mirror\"]\nmaster = frodo\nslaves = sam gollum gimli\n"})
	server.Notify.Lag = mirrorcfg.Duration(time.Hour)
	waiting, paused, ok := row("ip1", "sam", queue.StateWaiting), row("ip1", "gollum", queue.StatePaused), row("ip1", "gimli", queue.StateOK)
	waiting.Lag, paused.Lag = time.Hour+time.Second, time.Hour
	report, err := Collect(context.Background(), server, table{ok, paused, waiting}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !report.KeepFailing() || len(report.Lines) != 1 || report.Lines[0].Peer != "sam" {
		t.Errorf("failing: %+v", report.Lines)
	}
}

func lines(t *testing.T, server *mirrorcfg.Server, jobs table, patterns ...string) []string {
	t.Helper()
	report, err := Collect(context.Background(), server, jobs, patterns)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range report.Lines {
		got = append(got, strings.TrimSuffix(strings.Join([]string{l.Repository, l.Role, l.Peer, l.State}, " "), " "))
		if l.Repository == "gone" && l.State == "down" && !strings.Contains(l.Error, "no such repository") {
			t.Errorf("the error of a repository that is gone: %q", l.Error)
		}
	}
	return got
}

func TestFailingAndTable(t *testing.T) {
	success := time.Now().Add(-49 * time.Hour)
	r := Report{Lines: []Line{
		{Repository: "ip1", Role: "master", Peer: "sam", State: "ok", LastSuccess: &success, Note: "HEAD was not sent"},
		{Repository: "ip1", Role: "master", Peer: "gollum", State: "failed", LagSeconds: 90, Attempts: 3, Error: "two\nlines\x1b[31m"},
		{Repository: "ip2", Role: "slave", Master: "sam"},
	}}
	var out strings.Builder
	if err := r.Table(&out, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2d01h ago", "(HEAD was not sent)", "1m30s", "two lines [31m", "slave of sam"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("table\n%s lacks %q", out.String(), want)
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("a control character reaches the terminal")
	}
	if !r.KeepFailing() || len(r.Lines) != 1 || r.Lines[0].Peer != "gollum" {
		t.Errorf("failing: %+v", r.Lines)
	}
	r = Report{Lines: []Line{{Peer: "sam", State: "paused"}, {Peer: "sam", State: "paused", Late: true}, {Peer: "sam", State: "running", Late: true}}}
	if !r.KeepFailing() || len(r.Lines) != 2 {
		t.Errorf("late: %+v", r.Lines)
	}
	r = Report{Lines: []Line{{Peer: "sam", State: "running"}, {Peer: "sam", State: "running", Error: "refused the last time"}}}
	if !r.KeepFailing() || len(r.Lines) != 1 || r.Lines[0].Error == "" {
		t.Errorf("a new try: %+v", r.Lines)
	}
	again := fromRow(Line{Peer: "sam"}, queue.Row{State: queue.StateRunning, Latest: queue.StateDropped, Error: "no list names sam any more"})
	if r = (Report{Lines: []Line{again}}); r.KeepFailing() {
		t.Errorf("wanted again: %+v", again)
	}
	if r = (Report{}); r.KeepFailing() {
		t.Error("an empty report fails")
	}
}
