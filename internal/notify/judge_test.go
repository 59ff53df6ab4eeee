package notify

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/queue"
)

var now = time.Date(2026, 11, 22, 3, 55, 57, 0, time.UTC)

// job is a row of something that is missing; extra changes it.
func job(name string, state queue.State, lag time.Duration, extra ...func(*queue.Row)) queue.Row {
	repository, peer, _ := strings.Cut(name, "@")
	row := queue.Row{Key: queue.Key{Repository: repository, Peer: peer}, State: state, Lag: lag, Oldest: now.Add(-lag), Want: 1}
	switch state {
	case queue.StateFailed:
		row.Error, row.Attempt = "disk full", 3
	case queue.StateHeld:
		row.Error = "the source is empty"
	case queue.StateDown:
		row.PeerError, row.PeerDownSince = "connection refused", now.Add(-lag)
	}
	for _, f := range extra {
		f(&row)
	}
	return row
}

func succeeded(ago time.Duration) func(*queue.Row) {
	return func(r *queue.Row) { r.LastSuccess = now.Add(-ago) }
}

func tried(r *queue.Row) { r.Attempt = 2 }

// told writes events as "KIND PEER: REPO REPO", which is what tests compare.
func told(events []Event) string {
	var lines []string
	for _, e := range events {
		line := e.Kind + " " + e.Peer
		for _, c := range e.Copies {
			line += " " + c.Repository
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "; ")
}

func opened(incidents []incident) string {
	var lines []string
	for _, i := range incidents {
		lines = append(lines, fmt.Sprintf("%s %s@%s", i.Kind, i.Repository, i.Peer))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

func TestJudge(t *testing.T) {
	const minute, h = time.Minute, time.Hour
	ago := now.Add(-3 * h)
	lagOf := func(repo, peer string) incident { return incident{KindLag, peer, repo, ago} }
	heldOf := func(repo, peer string) incident { return incident{KindHeld, peer, repo, ago} }
	tests := []struct {
		name string
		open []incident
		jobs []queue.Row
		told string
		left string
	}{
		{"all is well", nil, nil, "", ""},
		{"a push a minute ago", nil, []queue.Row{job("ip1@sam", queue.StateWaiting, minute), job("ip2@sam", queue.StateDown, minute), job("ip3@sam", queue.StateFailed, h)}, "", ""},
		{"a copy that fails", nil, []queue.Row{job("ip1@sam", queue.StateFailed, 2*h)}, "lag sam ip1", "lag ip1@sam"},
		{"held at once", nil, []queue.Row{job("ip1@sam", queue.StateHeld, 0)}, "held sam ip1", "held ip1@sam"},
		{"a peer that is down is one incident", nil, []queue.Row{job("ip1@sam", queue.StateDown, 2*h), job("ip2@sam", queue.StateDown, 3*h), job("ip3@sam", queue.StateDown, 0)}, "lag sam ip1 ip2", "lag @sam"},
		{"and stays one", []incident{lagOf("", "sam")}, []queue.Row{job("ip1@sam", queue.StateDown, 2*h), job("ip9@sam", queue.StateDown, 2*h)}, "", "lag @sam"},
		{"each peer its own", nil, []queue.Row{job("ip1@sam", queue.StateDown, 2*h), job("ip1@gollum", queue.StatePaused, 3*h)}, "lag gollum ip1; lag sam ip1", "lag @gollum; lag @sam"},
		{"never begun is late too", nil, []queue.Row{job("ip1@sam", queue.StateWaiting, 2*h), job("ip2@sam", queue.StateRunning, 2*h)}, "lag sam ip1 ip2", "lag @sam"},
		{"failures of a pass are told together", nil, []queue.Row{job("ip1@sam", queue.StateFailed, 2*h), job("ip2@sam", queue.StateFailed, 2*h)}, "lag sam ip1 ip2", "lag ip1@sam; lag ip2@sam"},
		{"it fails while it runs again", nil, []queue.Row{job("ip1@sam", queue.StateRunning, 2*h, tried)}, "lag sam ip1", "lag ip1@sam"},
		{"the same after its peer came back", []incident{lagOf("", "sam")}, []queue.Row{job("ip1@sam", queue.StateRunning, 2*h, tried)}, "", "lag @sam"},
		{"nothing twice", []incident{lagOf("ip1", "sam"), heldOf("ip2", "sam")}, []queue.Row{job("ip1@sam", queue.StateFailed, 2*h), job("ip2@sam", queue.StateHeld, 2*h)}, "", "held ip2@sam; lag ip1@sam"},
		{"in no state of a retry", []incident{lagOf("ip1", "sam"), heldOf("ip2", "sam"), heldOf("ip3", "sam")},
			[]queue.Row{job("ip1@sam", queue.StateDown, 2*h), job("ip2@sam", queue.StateRunning, 2*h), job("ip3@sam", queue.StatePaused, 2*h)}, "", "held ip2@sam; held ip3@sam; lag ip1@sam"},
		{"what was late is held", []incident{lagOf("ip1", "sam")}, []queue.Row{job("ip1@sam", queue.StateHeld, 2*h)}, "held sam ip1", "held ip1@sam"},
		{"equal", []incident{lagOf("ip1", "sam"), heldOf("ip2", "sam")}, nil, "well sam ip1 ip2", ""},
		{"equal meanwhile, and pushed to again", []incident{lagOf("ip1", "sam")}, []queue.Row{job("ip1@sam", queue.StateWaiting, minute, succeeded(minute))}, "well sam ip1", ""},
		{"equal meanwhile, and held again", []incident{heldOf("ip1", "sam")}, []queue.Row{job("ip1@sam", queue.StateHeld, minute, succeeded(minute))}, "", "held ip1@sam"},
		{"only the clock says less", []incident{lagOf("ip1", "sam")}, []queue.Row{job("ip1@sam", queue.StateFailed, 0, succeeded(9*h))}, "", "lag ip1@sam"},
		{"a peer that is back still catches up", []incident{lagOf("", "sam")}, []queue.Row{job("ip1@sam", queue.StateWaiting, 2*h), job("ip2@sam", queue.StateWaiting, minute)}, "", "lag @sam"},
		{"and has caught up", []incident{lagOf("", "sam")}, []queue.Row{job("ip2@sam", queue.StateWaiting, minute)}, "well sam", ""},
		{"a peer is back and a copy fails", []incident{lagOf("", "sam")}, []queue.Row{job("ip2@sam", queue.StateFailed, 2*h)}, "lag sam ip2; well sam", "lag ip2@sam"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := judge(tt.open, tt.jobs, now, h)
			if got := told(v.events("frodo", now)); got != tt.told {
				t.Errorf("told %q, want %q", got, tt.told)
			}
			if got := opened(v.open); got != tt.left {
				t.Errorf("open %q, want %q", got, tt.left)
			}
			again := judge(v.open, tt.jobs, now, h)
			if got := told(again.events("frodo", now)); got != "" {
				t.Errorf("told twice: %q", got)
			}
		})
	}
}

func TestTexts(t *testing.T) {
	const h = time.Hour
	var many []queue.Row
	for i := range 30 {
		many = append(many, job(fmt.Sprintf("ip%d@sam", i), queue.StateDown, 72*h))
	}
	e := ofRows("frodo", KindLag, many, now)
	if want := "frodo: sam has not had ip0 and 29 others since 2026-11-19 (3 days): down: connection refused"; e.Text != want {
		t.Errorf("%q, want %q", e.Text, want)
	}
	if len(e.Copies) != maxCopies || e.Count != 30 {
		t.Errorf("%d copies of %d", len(e.Copies), e.Count)
	}
	e = ofRows("frodo", KindHeld, []queue.Row{job("ip1@sam", queue.StateHeld, 0)}, now)
	if want := "frodo: the sync of ip1 to sam is held: the source is empty"; e.Text != want {
		t.Errorf("%q, want %q", e.Text, want)
	}
	v := judge([]incident{{KindLag, "sam", "", now}}, []queue.Row{job("ip1@sam", queue.StateFailed, 2*h)}, now, h)
	events := v.events("frodo", now)
	if want := "frodo: well again: sam, but for 1 repositories there that were told on their own"; events[1].Text != want {
		t.Errorf("%q, want %q", events[1].Text, want)
	}
}

func TestUntilLate(t *testing.T) {
	jobs := []queue.Row{job("a@sam", queue.StateWaiting, 2*time.Hour), job("b@sam", queue.StateWaiting, 59*time.Minute+50*time.Second)}
	if got := untilLate(jobs, time.Hour); got < 10*time.Second || got > 11*time.Second {
		t.Errorf("%v", got)
	}
	if got := untilLate(jobs[:1], time.Hour); got != every {
		t.Errorf("%v", got)
	}
}

// What is told does not depend on whether a copy happens to be tried again at that moment.
func TestTriedAgain(t *testing.T) {
	for _, state := range []queue.State{queue.StateDown, queue.StateFailed, queue.StateHeld} {
		row := job("ip1@sam", state, time.Hour)
		still := ofRows("frodo", KindLag, []queue.Row{row}, now)
		hint := pusherReason(row)
		row.State, row.Latest = queue.StateRunning, state
		again := ofRows("frodo", KindLag, []queue.Row{row}, now)
		if again.Text != still.Text || again.Copies[0].State != string(state) || again.Copies[0].Error != still.Copies[0].Error || pusherReason(row) != hint {
			t.Errorf("%+v and %q, not %+v and %q", again, pusherReason(row), still, hint)
		}
	}
}
