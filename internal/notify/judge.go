package notify

import (
	"maps"
	"slices"
	"time"

	"mirror-shell/internal/inbox"
	"mirror-shell/internal/queue"
)

// incident is something that was told and is not over.
type incident struct {
	Kind       string    `json:"kind"` // KindLag or KindHeld: what was told latest; KindSchedule
	Peer       string    `json:"peer"`
	Repository string    `json:"repository,omitempty"` // none: of the peer
	Opened     time.Time `json:"opened"`
}

func (i incident) key() queue.Key { return queue.Key{Repository: i.Repository, Peer: i.Peer} }

// verdict is what judge makes of the jobs. Nothing in it says the same thing twice.
type verdict struct {
	open  []incident
	held  map[string][]queue.Row // to be told, by peer
	late  map[string][]queue.Row
	well  map[string][]string // repositories, by peer
	whole []string            // peers with which it is well as a whole
}

// judge compares the incidents that are open with the jobs that lack something. A job that
// is not among these lacks nothing, or nobody wants it any more.
func judge(open []incident, pending []queue.Row, now time.Time, threshold time.Duration) verdict {
	v := verdict{held: map[string][]queue.Row{}, late: map[string][]queue.Row{}, well: map[string][]string{}}
	rows := make(map[queue.Key]queue.Row, len(pending))
	for _, row := range pending {
		rows[row.Key] = row
	}
	own := map[queue.Key]bool{}
	peers := map[string]incident{}
	for _, i := range open {
		if i.Repository == "" {
			peers[i.Peer] = i
			continue
		}
		own[i.key()] = v.review(i, rows, threshold)
	}
	stale := map[string][]queue.Row{} // by the peer's doing
	for _, row := range pending {
		_, known := peers[row.Peer]
		switch {
		case own[row.Key]:
		case row.Standing() == queue.StateHeld:
			v.open = append(v.open, incident{KindHeld, row.Peer, row.Repository, now})
			v.held[row.Peer] = append(v.held[row.Peer], row)
		case row.Lag <= threshold:
		case ownDoing(row, known):
			v.open = append(v.open, incident{KindLag, row.Peer, row.Repository, now})
			v.late[row.Peer] = append(v.late[row.Peer], row)
		default:
			stale[row.Peer] = append(stale[row.Peer], row)
		}
	}
	v.judgePeers(peers, stale, now)
	return v
}

// review decides whether an incident of a copy stays open.
func (v *verdict) review(i incident, rows map[queue.Key]queue.Row, threshold time.Duration) (open bool) {
	row, pending := rows[i.key()]
	again := row.LastSuccess.After(i.Opened) && row.Lag <= threshold && row.Standing() != queue.StateHeld
	if !pending || again {
		v.well[i.Peer] = append(v.well[i.Peer], i.Repository)
		return false
	}
	if row.Standing() == queue.StateHeld && i.Kind != KindHeld {
		i.Kind = KindHeld
		v.held[i.Peer] = append(v.held[i.Peer], row)
	}
	v.open = append(v.open, i)
	return true
}

// ownDoing reports whether a late copy is so because of itself. While it runs, the state does not tell:
// a copy that failed before is, unless its peer has trouble which explains that.
func ownDoing(row queue.Row, peerKnown bool) bool {
	return row.State == queue.StateFailed ||
		row.State == queue.StateRunning && row.Attempt > 0 && row.PeerDownSince.IsZero() && !peerKnown
}

// judgePeers opens and closes the incidents of peers. One whose copies are still being
// made after it came back is not well yet.
func (v *verdict) judgePeers(open map[string]incident, stale map[string][]queue.Row, now time.Time) {
	for _, peer := range slices.Sorted(maps.Keys(open)) {
		if stale[peer] == nil {
			v.whole = append(v.whole, peer)
			continue
		}
		v.open = append(v.open, open[peer])
	}
	for _, peer := range slices.Sorted(maps.Keys(stale)) {
		if _, known := open[peer]; !known {
			v.open = append(v.open, incident{Kind: KindLag, Peer: peer, Opened: now})
			v.late[peer] = append(v.late[peer], stale[peer]...)
		}
	}
}

// events writes down what the verdict wants told, worst first.
func (v verdict) events(server string, now time.Time) []Event {
	var events []Event
	for _, peer := range slices.Sorted(maps.Keys(v.held)) {
		events = append(events, ofRows(server, KindHeld, v.held[peer], now))
	}
	for _, peer := range slices.Sorted(maps.Keys(v.late)) {
		events = append(events, ofRows(server, KindLag, v.late[peer], now))
	}
	for _, peer := range slices.Sorted(maps.Keys(v.well)) {
		events = append(events, ofWell(server, peer, v.well[peer], now))
	}
	for _, peer := range v.whole {
		own := 0
		for _, i := range v.open {
			if i.Peer == peer {
				own++
			}
		}
		events = append(events, ofWellPeer(server, peer, own, now))
	}
	return events
}

// untilLate is how long it takes until the next job that lacks something is late: one that is there, or
// one that comes now.
func untilLate(pending []queue.Row, threshold time.Duration) time.Duration {
	wait := min(every, threshold)
	for _, row := range pending {
		if left := threshold - row.Lag; left >= 0 {
			wait = min(wait, left+time.Millisecond)
		}
	}
	return wait
}

// lacks is what whoever pushes is to be told: copies that are late, and peers that have been
// down for as long.
func lacks(pending []queue.Row, down []queue.Peer, now time.Time, threshold time.Duration) []inbox.Lack {
	var lacks []inbox.Lack
	for _, row := range pending {
		if row.Lag > threshold {
			lacks = append(lacks, inbox.Lack{Repository: row.Repository, Peer: row.Peer, Since: row.Oldest, Why: pusherReason(row)})
		}
	}
	for _, p := range down {
		if now.Sub(p.DownSince) > threshold {
			lacks = append(lacks, inbox.Lack{Peer: p.Name, Since: p.DownSince, Why: reason(queue.Row{State: queue.StateDown, PeerError: p.Error})})
		}
	}
	return lacks
}

// pusherReason is a hint that does not change from minute to minute, or the file would.
func pusherReason(row queue.Row) string {
	switch row.Standing() {
	case queue.StatePaused:
		return "paused by an administrator"
	case queue.StateHeld:
		return "held until an administrator looks at it" + colon(reason(row))
	case queue.StateDown:
		return "cannot be reached" + colon(reason(row))
	}
	if row.Error != "" {
		return reason(row)
	}
	return "no worker has got to it"
}
