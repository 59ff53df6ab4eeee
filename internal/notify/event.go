package notify

import (
	"fmt"
	"math/rand/v2"
	"time"

	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
)

// Kinds of events. A notice's kind is its event's.
const (
	KindLag     = "lag"               // late: see the package comment
	KindHeld    = "held"              // waits for a person
	KindWell    = "well"              // what was told is over
	KindRescued = inbox.NoticeRescued // commits were kept that a push would have destroyed
)

// Event is what a command or a webhook gets, as one JSON object.
type Event struct {
	ID     string    `json:"id"`    // the same when it is delivered again
	Kind   string    `json:"event"` // KindLag, …
	Time   time.Time `json:"time"`
	Server string    `json:"server"` // whose worker tells it
	Peer   string    `json:"peer,omitempty"`
	// Copies are the repositories concerned, at most maxCopies of Count. There are
	// none when it is well with a peer as a whole.
	Copies []Copy   `json:"copies,omitempty"`
	Count  int      `json:"count,omitempty"`
	Refs   []string `json:"refs,omitempty"` // of rescued
	Text   string   `json:"text"`           // all of it in one line
}

// Copy is a repository at the event's peer.
type Copy struct {
	Repository  string     `json:"repository"`
	State       string     `json:"state,omitempty"`        // of queue.State
	Since       *time.Time `json:"since,omitempty"`        // when the oldest change that it lacks was made
	LastSuccess *time.Time `json:"last_success,omitempty"` // none: it was never made
	Error       string     `json:"error,omitempty"`        // one line
}

// maxCopies and maxRefs bound an event; what reads it may be a chat.
const (
	maxCopies = 20
	maxRefs   = 20
	maxError  = 300 // bytes
)

func newEvent(server, kind, peer string, now time.Time) Event {
	return Event{ID: fmt.Sprintf("%016x", rand.Uint64()), Kind: kind, Time: now.UTC().Truncate(time.Millisecond), Server: server, Peer: peer}
}

// ofRows is the event that something is wrong with these copies of one peer.
func ofRows(server, kind string, rows []queue.Row, now time.Time) Event {
	e := newEvent(server, kind, rows[0].Peer, now)
	e.Count = len(rows)
	for _, row := range rows[:min(len(rows), maxCopies)] {
		e.Copies = append(e.Copies, Copy{
			Repository: row.Repository, State: string(row.Standing()),
			Since: known(row.Oldest), LastSuccess: known(row.LastSuccess), Error: reason(row),
		})
	}
	oldest := rows[0]
	for _, row := range rows {
		if row.Oldest.Before(oldest.Oldest) {
			oldest = row
		}
	}
	e.Text = server + ": " + badText(kind, oldest, len(rows)-1, now)
	return e
}

func badText(kind string, row queue.Row, others int, now time.Time) string {
	what := row.Repository
	if others > 0 {
		what += fmt.Sprintf(" and %d others", others)
	}
	if kind == KindHeld {
		return fmt.Sprintf("the sync of %s to %s is held: %s", what, row.Peer, reason(row))
	}
	return inbox.Lack{Repository: what, Peer: row.Peer, Since: row.Oldest, Why: string(row.Standing()) + colon(reason(row))}.Text(now)
}

// ofWell is the event that it is over for these repositories of a peer.
func ofWell(server, peer string, repositories []string, now time.Time) Event {
	e := newEvent(server, KindWell, peer, now)
	e.Count = len(repositories)
	for _, name := range repositories[:min(len(repositories), maxCopies)] {
		e.Copies = append(e.Copies, Copy{Repository: name})
	}
	what := repositories[0]
	if e.Count > 1 {
		what += fmt.Sprintf(" and %d others", e.Count-1)
	}
	e.Text = fmt.Sprintf("%s: well again: %s on %s", server, what, peer)
	return e
}

// ofWellPeer is the event that it is over for a peer as a whole; so many of its copies have
// incidents of their own.
func ofWellPeer(server, peer string, own int, now time.Time) Event {
	e := newEvent(server, KindWell, peer, now)
	e.Text = fmt.Sprintf("%s: well again: %s", server, peer)
	if own > 0 {
		e.Text += fmt.Sprintf(", but for %d repositories there that were told on their own", own)
	}
	return e
}

// ofNotice is the event of a notice, and has its id.
func ofNotice(server string, n inbox.Notice) Event {
	e := newEvent(server, n.Kind, n.Peer, n.Time)
	e.ID = "notice-" + n.ID
	e.Refs = n.Refs[:min(len(n.Refs), maxRefs)]
	if n.Repository != "" {
		e.Copies, e.Count = []Copy{{Repository: n.Repository}}, 1
	}
	what := ""
	if len(n.Refs) > 0 {
		what = ": " + n.Refs[0]
	}
	if len(n.Refs) > 1 {
		what += fmt.Sprintf(" and %d others", len(n.Refs)-1)
	}
	if n.Kind == KindRescued {
		e.Text = fmt.Sprintf("%s: commits of %s that a push would have destroyed were kept (%s)%s: see mirror-shell rescued %s",
			server, n.Repository, n.Peer, what, n.Repository)
	} else {
		e.Text = fmt.Sprintf("%s: %s: %s %s%s", server, n.Kind, n.Repository, n.Peer, what)
	}
	e.Text = proc.OneLine(e.Text, 1000)
	return e
}

// reason is why a copy is not equal, for a person.
func reason(row queue.Row) string {
	text := row.Error
	switch row.Standing() {
	case queue.StateDown:
		text = row.PeerError
	case queue.StatePaused:
		text = "" // whoever paused it knows
	}
	return proc.OneLine(text, maxError)
}

func colon(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
