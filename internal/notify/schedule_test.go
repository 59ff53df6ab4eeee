package notify

import (
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/queue"
)

func TestJudgeSchedules(t *testing.T) {
	const h = time.Hour
	wrong := func(peer string, ago time.Duration) Schedule { return Schedule{peer, "was not made", now.Add(-ago)} }
	good := func(peer string) Schedule { return Schedule{Peer: peer} }
	of := func(peer string) incident { return incident{KindSchedule, peer, "", now.Add(-h)} }
	for _, tt := range []struct {
		name       string
		open       []incident
		schedules  []Schedule
		told, left string
	}{
		{"no schedule", nil, nil, "", ""},
		{"kept", nil, []Schedule{good("vault")}, "", ""},
		{"may mend itself", nil, []Schedule{wrong("vault", h)}, "", ""},
		{"late", nil, []Schedule{wrong("vault", 2*h), good("other")}, "schedule vault", "schedule @vault"},
		{"two", nil, []Schedule{wrong("other", 2*h), wrong("vault", 2*h)}, "schedule other; schedule vault", "schedule @other; schedule @vault"},
		{"told", []incident{of("vault")}, []Schedule{wrong("vault", 3*h)}, "", "schedule @vault"},
		{"another run fails", []incident{of("vault")}, []Schedule{wrong("vault", 0)}, "", "schedule @vault"},
		{"well", []incident{of("vault"), of("other")}, []Schedule{good("vault"), wrong("other", 2*h)}, "well vault", "schedule @other"},
		{"no schedule any more", []incident{of("vault")}, nil, "well vault", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			left, events := judgeSchedules(tt.open, tt.schedules, now, h, "frodo")
			if got := told(events); got != tt.told {
				t.Errorf("told %q, want %q", got, tt.told)
			}
			if got := opened(left); got != tt.left {
				t.Errorf("left %q, want %q", got, tt.left)
			}
			if _, again := judgeSchedules(left, tt.schedules, now, h, "frodo"); again != nil {
				t.Errorf("told twice: %q", told(again))
			}
		})
	}
}

// A schedule is told once, beside what is wrong with the peer's copies, and each is well on its own.
func TestScheduleOncePerIncident(t *testing.T) {
	w := newWorld(t)
	var schedules []Schedule
	known := true
	check := func(want string) {
		t.Helper()
		n := w.process()
		n.Schedules = func(time.Time) ([]Schedule, bool) { return schedules, known }
		if err := n.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.want(want)
	}
	schedules = []Schedule{{"vault", "the scheduled backup\nhas failed", now.Add(-2 * time.Hour)}}
	w.set(job("ip1@vault", queue.StateDown, 2*time.Hour))
	check("lag vault ip1; schedule vault")
	check("")
	w.check() // a process that knows nothing of schedules
	w.want("")
	known = false
	check("")
	w.set()
	check("well vault")
	known, schedules = true, []Schedule{{Peer: "vault"}}
	check("well vault")
	check("")
	w.server.Notify.Command = nil
	schedules = []Schedule{{"vault", "has failed", now.Add(-2 * time.Hour)}}
	check("")
}

func TestScheduleTexts(t *testing.T) {
	left, events := judgeSchedules(nil, []Schedule{{"vault", "the scheduled backup\nhas failed" + strings.Repeat("x", 2000), now.Add(-time.Hour)}}, now, 0, "frodo")
	if len(events) != 1 || !strings.HasPrefix(events[0].Text, "frodo: vault: the scheduled backup has failed") || len(events[0].Text) > 1010 {
		t.Errorf("%+v", events)
	}
	if _, events = judgeSchedules(left, nil, now, 0, "frodo"); len(events) != 1 || events[0].Text != "frodo: well again: the scheduled backups to vault" {
		t.Errorf("%+v", events)
	}
}
