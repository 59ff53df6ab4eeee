package queue

import (
	"context"
	"time"

	"pgregory.net/rapid"

	"mirror-shell/internal/inbox"
)

// Check compares every row with the model after every action.
func (m *machine) Check(t *rapid.T) {
	rows, err := m.qs[0].Rows(context.Background(), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != len(m.jobs) {
		t.Fatalf("%d rows, the model has %d", len(rows), len(m.jobs))
	}
	for _, r := range rows {
		m.checkRow(t, r)
	}
	peers, err := m.qs[1].Peers(context.Background())
	if err != nil || len(peers) != len(m.peers) {
		t.Fatalf("%d peers, %v, the model has %d", len(peers), err, len(m.peers))
	}
	for _, p := range peers {
		want := m.peers[p.Name]
		if p.Paused != want.paused || p.Attempt != want.attempt || millis(p.DownSince) != want.downSince || millis(p.RetryAt) != want.retryAt {
			t.Fatalf("peer %+v, the model: %+v", p, want)
		}
	}
}

func (m *machine) checkRow(t *rapid.T, r Row) {
	j, p, now := m.jobs[r.Key], m.peers[r.Peer], m.now()
	if j == nil {
		t.Fatalf("unknown row %s", r.Key)
	}
	var oldest int64
	origin := inbox.OriginList
	for _, c := range j.missing {
		if oldest == 0 || c.at < oldest {
			oldest = c.at
		}
		if c.origin == inbox.OriginExplicit {
			origin = c.origin
		}
	}
	var lag time.Duration
	if oldest > 0 {
		lag = time.Duration(now-oldest) * time.Millisecond
	}
	if missing := len(j.missing) > 0; r.Want > r.Done != missing || r.Lag != lag || millis(r.Oldest) != oldest || missing && r.Origin != origin {
		t.Fatalf("%s: want %d done %d lag %v origin %s; the model: %+v, lag %v, %s", r.Key, r.Want, r.Done, r.Lag, r.Origin, j, lag, origin)
	}
	want := StateWaiting
	own := j.state == StateFailed || j.state == StateHeld
	switch {
	case m.live(j.run):
		want = StateRunning
	case len(j.missing) == 0:
		want = j.state
	case p.paused:
		want = StatePaused
	case own && (!m.down(p) || j.began > p.lastDown):
		want = j.state
	case m.down(p):
		want = StateDown
	}
	if r.Digest != j.digest || r.Note != j.note || millis(r.LastSuccess) != j.lastSuccess {
		t.Fatalf("%s: digest %q, note %q, last success %v; the model: %+v", r.Key, r.Digest, r.Note, r.LastSuccess, j)
	}
	if r.State != want || r.Attempt != j.attempt || millis(r.PeerDownSince) != p.downSince {
		t.Fatalf("%s is %s, attempt %d, down since %v; want %s; the model: %+v %+v", r.Key, r.State, r.Attempt, r.PeerDownSince, want, j, p)
	}
}

// finish proves that nothing was lost: with everything in order again, all changes arrive.
func (m *machine) finish(t *rapid.T) {
	for name, p := range m.peers {
		if err := m.qs[0].Resume(context.Background(), name); err != nil {
			t.Fatal(err)
		}
		p.paused, p.retryAt = false, 0
	}
	for range 1000 {
		m.clock.add(time.Hour)
		c, err := m.qs[0].claim(context.Background(), limits{perPeer: 9})
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			break
		}
		r := m.begin(t, c.Key, c)
		if current, err := m.qs[1].settle(context.Background(), c, judge(Result{}, nil, false)); err != nil || !current {
			t.Fatal(current, err)
		}
		m.ended(r, "ok")
		m.Check(t)
	}
	for k, j := range m.jobs {
		if len(j.missing) > 0 {
			t.Fatalf("lost: %s %+v", k, j)
		}
	}
}
