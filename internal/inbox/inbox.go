// Package inbox is the durable letter box between the hooks, which must be quick
// and must never lose a push, and the worker, which may be down, busy, or unable
// to open its database.
//
// A hook writes one small file per push and rings the worker's bell; that is all it
// does. The worker collects the files, commits what they say to its jobs table, and
// removes them. No lock and no database is needed to write, so a push is recorded as
// long as the disk takes a few hundred bytes.
//
// # Format
//
//	state_dir/inbox/NANOSECONDS-ID.json   an event: one push, and the peers it is for
//	state_dir/inbox/.NANOSECONDS-ID.tmp   an event being written; ignored
//	state_dir/inbox/taken/                events a worker is committing, or will try to commit again
//	state_dir/inbox/bad/                  files that are not events; kept for a person
//	state_dir/worker.sock                 the bell: a unix datagram socket. A datagram "leave" asks
//	                                      a drain to make room for a daemon; all others ring
//
// NANOSECONDS is the time of writing, 19 decimal digits of unix time, so that the order
// of names is the order of pushes. ID is 8 lower-case hexadecimal digits, shown to users
// as the JOB of their push. The content is one JSON object of exactly these members:
//
//	{"repository":"ip1","peers":["sam","gollum"],"origin":"list","time":"2026-11-22T03:55:57.123456789Z"}
//
// One file serves all peers of a push: each file costs two fsyncs in the user's way.
//
// # Notices and what is behind
//
// Two more kinds of file pass between the light programs and the worker in the same
// way: a [Notice], by which a hook has the worker tell a person something, and a
// [Lack], by which the worker has a hook tell whoever pushes.
//
//	state_dir/notices/NANOSECONDS-ID.json   a notice, one JSON object; .NANOSECONDS-ID.tmp and bad/ as above
//	state_dir/behind/KEY                    lacks, a JSON array; the directory is there only while there are any
//
// # Life of a file
//
// It is written under a name that begins with a dot, fsynced, renamed, and its directory
// fsynced. A taker renames it into taken/ before reading it (the rename has one winner, so
// several takers share an inbox safely), commits, and unlinks it. A file never moves back: after a failed
// commit it stays in taken/, and its taker tries again with its next Take. What a killed taker
// left there is adopted by the next holder of the worker lock ([Inbox.Replay]). So whoever looks into the inbox
// first and into taken/ second cannot miss an event that is not committed yet. An event is delivered at least
// once, sometimes twice, and events must be such that twice does no harm.
package inbox

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"mirror-shell/internal/durable"
)

// Inbox is the event directory of one state_dir. Its methods may be called by any
// number of goroutines and processes at once, except where they say otherwise.
type Inbox struct {
	dir string

	mu    sync.Mutex
	again map[string]bool // files in taken/ that the next Take begins with
}

// New returns the inbox of a state directory. It touches nothing on disk; the
// directories are made by the first Put.
func New(stateDir string) *Inbox {
	return &Inbox{dir: filepath.Join(stateDir, "inbox"), again: map[string]bool{}}
}

// Dir is the directory that holds the events.
func (b *Inbox) Dir() string { return b.dir }

func (b *Inbox) takenDir() string { return filepath.Join(b.dir, "taken") }
func (b *Inbox) badDir() string   { return filepath.Join(b.dir, "bad") }

// Put stores an event and returns its new ID. When it returns nil the event
// survives a power cut. A zero Time means now; Event.ID is ignored. After an error the event
// may or may not be there (a failed fsync of the directory tells neither), so the
// caller must treat the push as not queued.
func (b *Inbox) Put(e Event) (id string, err error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	data, err := encode(e)
	if err != nil {
		return "", fmt.Errorf("put event: %w", err)
	}
	if id, err = put(b.dir, data); err != nil {
		return "", fmt.Errorf("put event: %w", err)
	}
	return id, nil
}

// put stores data as a new file NANOSECONDS-ID.json of dir, on the disk before
// it returns.
func put(dir string, data []byte) (id string, err error) {
	id = fmt.Sprintf("%08x", rand.Uint32())
	stem := fmt.Sprintf("%019d-%s", max(time.Now().UnixNano(), 0), id)
	temp := filepath.Join(dir, "."+stem+".tmp")
	err = durable.Create(temp, data)
	if errors.Is(err, fs.ErrNotExist) { // the first push ever: make the directories only when they are missing
		if err = durable.MakeDirs(dir); err == nil {
			err = durable.Create(temp, data)
		}
	}
	if err != nil {
		return "", fmt.Errorf("in %s: %w", dir, err)
	}
	if err := os.Rename(temp, filepath.Join(dir, stem+".json")); err != nil {
		os.Remove(temp)
		return "", err
	}
	return id, durable.SyncDir(dir)
}

// List returns the names of the events that have not been committed, oldest first: those that wait
// to be taken, and those that somebody has taken and is at, or failed to commit. An inbox
// that does not exist yet is empty.
func (b *Inbox) List() ([]string, error) {
	waiting, err := listFiles(b.dir) // this order, which is an event's own, misses none that moves meanwhile
	if err != nil {
		return nil, err
	}
	taken, err := listFiles(b.takenDir())
	if err != nil {
		return nil, err
	}
	all := append(waiting, taken...)
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Pending reports whether there is anything that has not been committed.
func (b *Inbox) Pending() (bool, error) {
	names, err := b.List()
	return len(names) > 0, err
}

// Holds reports whether the event of that ID, as Put returned it, has not been committed yet.
// Once it says no, the event's changes are in the table.
func (b *Inbox) Holds(id string) (bool, error) {
	names, err := b.List()
	return slices.ContainsFunc(names, func(name string) bool {
		found, ok := idOf(name)
		return ok && found == id
	}), err
}

// Bad returns the paths of the files that were set aside because they are not events.
// They stay until a person looks at them.
func (b *Inbox) Bad() ([]string, error) {
	names, err := listFiles(b.badDir())
	for i, name := range names {
		names[i] = filepath.Join(b.badDir(), name)
	}
	return names, err
}

// listFiles names everything in dir that is neither a directory nor hidden, sorted.
func listFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list inbox: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if !entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}
