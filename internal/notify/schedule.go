package notify

import (
	"slices"
	"time"

	"mirror-shell/internal/proc"
)

// KindSchedule is the event that a scheduled backup fails, or was not made.
const KindSchedule = "schedule"

// Schedule is how the scheduled backups of one peer go.
type Schedule struct {
	Peer    string
	Problem string    // for a person, one line; "": they are made
	Since   time.Time // when the problem began
}

// judgeSchedules compares the incidents of schedules that are open with how the schedules are kept now. A peer that is not
// among these has no schedule any more. What has not been wrong for longer than the threshold may mend itself, as with copies.
func judgeSchedules(open []incident, now []Schedule, at time.Time, threshold time.Duration, server string) (left []incident, events []Event) {
	wrong := map[string]bool{}
	for _, s := range now {
		known := slices.ContainsFunc(open, func(i incident) bool { return i.Peer == s.Peer })
		if s.Problem == "" || !known && at.Sub(s.Since) <= threshold {
			continue
		}
		wrong[s.Peer] = true
		if !known {
			left = append(left, incident{Kind: KindSchedule, Peer: s.Peer, Opened: at})
			e := newEvent(server, KindSchedule, s.Peer, at)
			e.Text = proc.OneLine(server+": "+s.Peer+": "+s.Problem, 1000)
			events = append(events, e)
		}
	}
	for _, i := range open {
		if wrong[i.Peer] {
			left = append(left, i)
			continue
		}
		e := newEvent(server, KindWell, i.Peer, at)
		e.Text = server + ": well again: the scheduled backups to " + i.Peer
		events = append(events, e)
	}
	return left, events
}

// judgeSchedules brings the incidents of schedules up to date and sends what is to be told, as judge does for the others.
func (b *book) judgeSchedules(server string, schedules []Schedule, now time.Time, threshold time.Duration, channels []string) {
	if len(channels) == 0 {
		return // judge has forgotten all
	}
	others, open := b.split()
	left, events := judgeSchedules(open, schedules, now, threshold, server)
	b.Incidents = append(others, left...)
	for _, e := range events {
		b.send(e, channels)
	}
}

// split separates the incidents of copies and peers from those of schedules.
func (b *book) split() (others, schedules []incident) {
	for _, i := range b.Incidents {
		if i.Kind == KindSchedule {
			schedules = append(schedules, i)
		} else {
			others = append(others, i)
		}
	}
	return others, schedules
}
