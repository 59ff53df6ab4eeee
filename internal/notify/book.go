package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/queue"
)

// book is the content of incidents.json.
type book struct {
	Version   int        `json:"version"`
	Incidents []incident `json:"incidents"`
	Outgoing  []outgoing `json:"outgoing"`

	dropped int // events that were given up to make room, since it was loaded
}

// outgoing is an event on its way.
type outgoing struct {
	Event Event     `json:"event"`
	Left  []attempt `json:"left"` // channels that have not got it
}

// attempt is the state of a delivery.
type attempt struct {
	Channel  string    `json:"channel"`
	Attempts int       `json:"attempts"`
	Next     time.Time `json:"next"`
	Error    string    `json:"error,omitempty"` // of the latest
}

const bookVersion = 1

// maxOutgoing bounds what waits for a channel that never works. The oldest goes first: a person
// who comes back after that long reads status.
const maxOutgoing = 200

var errNewer = errors.New("was written by a newer version")

// judge brings the incidents up to date and sends what is to be told. With nobody to tell there are no
// incidents, so that whoever is configured later is told what is open then.
func (b *book) judge(server string, pending []queue.Row, now time.Time, threshold time.Duration, channels []string) {
	if len(channels) == 0 {
		b.Incidents, b.Outgoing = nil, nil
		return
	}
	others, schedules := b.split()
	v := judge(others, pending, now, threshold)
	b.Incidents = append(v.open, schedules...)
	for _, e := range v.events(server, now) {
		b.send(e, channels)
	}
}

// send adds an event that is not there yet.
func (b *book) send(e Event, channels []string) {
	if len(channels) == 0 || slices.ContainsFunc(b.Outgoing, func(o outgoing) bool { return o.Event.ID == e.ID }) {
		return
	}
	o := outgoing{Event: e}
	for _, channel := range channels {
		o.Left = append(o.Left, attempt{Channel: channel})
	}
	b.Outgoing = append(b.Outgoing, o)
	if over := len(b.Outgoing) - maxOutgoing; over > 0 {
		b.Outgoing = b.Outgoing[over:]
		b.dropped += over
	}
}

// settle notes how a delivery ended.
func (b *book) settle(id string, done attempt) {
	for i, o := range b.Outgoing {
		if o.Event.ID != id {
			continue
		}
		at := slices.IndexFunc(o.Left, func(a attempt) bool { return a.Channel == done.Channel })
		switch {
		case at < 0:
		case done.Error == "":
			b.Outgoing[i].Left = slices.Delete(o.Left, at, at+1)
		default:
			o.Left[at] = done
		}
		break
	}
	b.Outgoing = slices.DeleteFunc(b.Outgoing, func(o outgoing) bool { return len(o.Left) == 0 })
}

// keepChannels forgets channels that are not configured any more.
func (b *book) keepChannels(channels []string) {
	for i := range b.Outgoing {
		b.Outgoing[i].Left = slices.DeleteFunc(b.Outgoing[i].Left, func(a attempt) bool { return !slices.Contains(channels, a.Channel) })
	}
	b.Outgoing = slices.DeleteFunc(b.Outgoing, func(o outgoing) bool { return len(o.Left) == 0 })
}

func (n *Notifier) path(name string) string { return filepath.Join(n.Server.StateDir, name) }

// load reads the book; without a file it is empty. One that cannot be understood is set aside.
func (n *Notifier) load() (*book, error) {
	data, err := os.ReadFile(n.path("incidents.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &book{Version: bookVersion}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read incidents: %w", err)
	}
	b := &book{}
	if err := json.Unmarshal(data, b); err != nil || b.Version < bookVersion {
		return nil, fmt.Errorf("%s: %w", n.path("incidents.json"), errors.Join(errBroken, err))
	}
	if b.Version > bookVersion {
		return nil, fmt.Errorf("%s %w: nobody is told anything", n.path("incidents.json"), errNewer)
	}
	return b, nil
}

var errBroken = errors.New("not a list of incidents")

// save replaces the file if that changes it, and removes it when there is nothing to remember.
func (n *Notifier) save(b *book) error {
	path := n.path("incidents.json")
	if b.dropped > 0 {
		n.Log.Error("notifications were given up: too many wait", "count", b.dropped)
	}
	var err error
	if len(b.Incidents) == 0 && len(b.Outgoing) == 0 {
		if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		var data []byte
		if data, err = json.Marshal(b); err == nil {
			data = append(data, '\n')
			if old, readErr := os.ReadFile(path); readErr != nil || string(old) != string(data) {
				err = durable.Replace(path, data)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("remember incidents: %w", err)
	}
	return nil
}

// update changes the book under its lock.
func (n *Notifier) update(ctx context.Context, change func(*book) error) error {
	unlock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := n.load()
	if errors.Is(err, errBroken) {
		bad := n.path("incidents.json.bad")
		n.Log.Error("the incidents are forgotten, what is open is told again", "kept", bad, "error", err)
		if err = os.Rename(n.path("incidents.json"), bad); err == nil {
			b = &book{Version: bookVersion}
		}
	}
	if err != nil {
		return err
	}
	if err := change(b); err != nil {
		return err
	}
	return n.save(b)
}

// lock takes the book's lock. It is held for as long as it takes to read the jobs.
func (n *Notifier) lock(ctx context.Context) (unlock func(), err error) {
	lock := n.flock("incidents.lock")
	if _, err := lock.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return nil, fmt.Errorf("lock incidents: %w", err)
	}
	return func() { lock.Unlock() }, nil
}

func (n *Notifier) flock(name string) *flock.Flock {
	return flock.New(n.path(name), flock.SetFlag(os.O_RDWR|os.O_CREATE), flock.SetPermissions(0o600))
}
