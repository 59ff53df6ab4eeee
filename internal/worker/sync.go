package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/refcache"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
)

// syncSummary is what sync prints in the end, and as JSON.
type syncSummary struct {
	Compared int         `json:"compared"` // copies looked at
	Equal    int         `json:"equal"`    // of them equal without a push
	Pushed   int         `json:"pushed"`   // equal after one
	Failed   int         `json:"failed"`   // not equal in the end, and not held
	Held     int         `json:"held"`     // waiting for a person
	Failures []syncEntry `json:"failures"` // one for each of the two
	Seconds  float64     `json:"seconds"`
}

// syncEntry is a copy that is not equal; without peer, a repository that could
// not be read; without repository, a peer that could not be asked.
type syncEntry struct {
	Repository string `json:"repository,omitempty"`
	Peer       string `json:"peer,omitempty"`
	State      string `json:"state"`
	Error      string `json:"error"`
	Copies     int    `json:"copies,omitempty"` // of a peer: how many are concerned
}

// replica is a copy that there should be, and what we have ourselves.
type replica struct {
	queue.Key
	state refcache.State
}

// syncRun is the state of one sync.
type syncRun struct {
	*command
	peers   *peer.Peers
	shown   *progress
	words   []string // list keys
	rows    map[queue.Key]queue.Row
	began   time.Time
	mu      sync.Mutex
	summary syncSummary
}

// sync compares every copy of the repositories asked for with the master's
// refs, one exchange per peer, has the worker push what differs, waits for it,
// and exits with 1 unless everything is equal.
func (c *command) sync(ctx context.Context) error {
	if c.Sync.PullFrom != "" {
		if err := c.pullFrom(ctx); err != nil {
			return err
		}
	}
	run := &syncRun{command: c, words: []string{mirrorcfg.SlavesKey, mirrorcfg.SyncKey}, began: time.Now(), summary: syncSummary{Failures: []syncEntry{}}}
	if key := c.Sync.Key; key != "" {
		if !mirrorcfg.IsKey(key) {
			return fmt.Errorf("--key %q: write a list key, such as gitolite.mirror.hourly", key)
		}
		run.words = []string{key}
	}
	run.shown = newProgress(c.Stderr, c.Sync.Quiet || c.Sync.JSON)
	defer run.shown.Close()
	byPeer, err := run.replicas(ctx)
	if err != nil {
		return err
	}
	var stop func()
	run.peers, stop = c.newPeers()
	defer stop()
	rows, err := c.queue.Rows(ctx, queue.Filter{})
	if err != nil {
		return err
	}
	run.rows = make(map[queue.Key]queue.Row, len(rows))
	for _, row := range rows {
		run.rows[row.Key] = row
	}
	different := run.compare(ctx, byPeer)
	if err := ctx.Err(); err != nil {
		return err
	}
	if different, err = run.withUntold(ctx, different); err != nil {
		return err
	}
	if c.Sync.DryRun {
		return run.dryRun(different)
	}
	defer c.notifyAfterSync(ctx, &run.summary)
	if err := run.push(ctx, different); err != nil {
		return err
	}
	if len(c.Sync.Repositories) == 0 {
		c.expireRescued(ctx)
		c.expireTrash(ctx)
	}
	return run.finish()
}

// replicas lists the copies that there should be, by peer. A repository that
// cannot be read is a failure of its own and does not stop the others.
func (r *syncRun) replicas(ctx context.Context) (map[string][]replica, error) {
	names, err := r.server.Select(r.Sync.Repositories)
	if err != nil && len(names) == 0 {
		return nil, err
	}
	if err != nil {
		r.fail(syncEntry{State: "unreadable", Error: err.Error()})
	}
	cache := refcache.OpenCache(r.server.StateDir)
	byPeer := map[string][]replica{}
	looked := r.shown.Stage("repositories", len(names))
	err = cache.LoadAll(ctx, r.server, names, func(name string, s refcache.State, err error) error {
		looked.Done(1)
		if err != nil {
			if s.Config == nil || s.Config.Role(r.server.Hostname) == mirrorcfg.Master {
				r.fail(syncEntry{Repository: name, State: "unreadable", Error: err.Error()})
			}
			return nil
		}
		if s.Config.Role(r.server.Hostname) != mirrorcfg.Master {
			return nil
		}
		peers, err := s.Config.Expand(r.server.Hostname, r.words...)
		if err != nil {
			r.fail(syncEntry{Repository: name, State: "unreadable", Error: err.Error()})
		}
		for _, p := range peers {
			byPeer[p] = append(byPeer[p], replica{queue.Key{Repository: name, Peer: p}, s})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := cache.Save(); err != nil {
		fmt.Fprintf(r.shown, "mirror-shell: %v\n", err)
	}
	return byPeer, nil
}

// compare asks all peers at once and returns the copies that differ or that can
// only be compared by trying to push.
func (r *syncRun) compare(ctx context.Context, byPeer map[string][]replica) []replica {
	var different []replica
	var peers sync.WaitGroup
	limit := make(chan struct{}, r.server.Worker.Jobs)
	asked := r.shown.Stage("peers asked", len(byPeer))
	for name, copies := range byPeer {
		r.summary.Compared += len(copies)
		peers.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			found, err := r.comparePeer(ctx, name, copies)
			asked.Done(1)
			if err != nil {
				state := queue.StateFailed
				if errors.Is(err, peer.ErrUnreachable) {
					state = queue.StateDown
				}
				r.fail(syncEntry{Peer: name, State: string(state), Error: err.Error(), Copies: len(copies)})
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			different = append(different, found...)
		})
	}
	peers.Wait()
	slices.SortFunc(different, func(a, b replica) int {
		return cmp.Or(cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Peer, b.Peer))
	})
	return different
}

// comparePeer returns which copies on one peer differ.
func (r *syncRun) comparePeer(ctx context.Context, name string, copies []replica) ([]replica, error) {
	standings, err := r.peers.Compare(ctx, name)
	switch {
	case errors.Is(err, peer.ErrForeign):
		return r.compareForeign(ctx, name, copies)
	case errors.Is(err, peer.ErrUnreachable) || ctx.Err() != nil:
		return nil, err
	case err != nil:
		return copies, err
	}
	return r.judge(ctx, copies, standings)
}

// compareForeign looks at the copies one by one, some at a time: a peer that is
// no server of ours shows the refs of one repository when a push begins.
func (r *syncRun) compareForeign(ctx context.Context, name string, copies []replica) ([]replica, error) {
	standings := make(map[string]peer.Standing, len(copies))
	var mu sync.Mutex
	var down error
	var looks sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	limit := make(chan struct{}, r.server.Worker.JobsPerPeer)
	for _, c := range copies {
		if r.peers.MakeFirst(c.state.Dir, name) {
			continue
		}
		looks.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			if ctx.Err() != nil {
				return
			}
			s, err := r.peers.Look(ctx, name, c.state.Config)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				standings[c.Repository] = s
			case errors.Is(err, peer.ErrUnreachable) && down == nil:
				down = err // the others need not be tried
				stop()
			}
		})
	}
	looks.Wait()
	if down != nil {
		return nil, down
	}
	return r.judge(ctx, copies, standings) // of what failed, the push will say why
}

// judge returns the copies that differ from the master, or of which nothing is known.
func (r *syncRun) judge(ctx context.Context, copies []replica, standings map[string]peer.Standing) (different []replica, err error) {
	var equal []queue.Verification
	for _, c := range copies {
		s, known := standings[c.Repository]
		switch {
		case !known || s.Reason != "" || s.Digest != c.state.Digest:
			different = append(different, c)
		case r.remember(ctx, c, s) != nil: // its push will say what is wrong
			different = append(different, c)
		case headDiffers(c, s) || r.peers.NewMeta(c.state.Dir, c.Peer, c.state.Meta, c.state.Head):
			different = append(different, c)
		case !r.noteMeta(ctx, c, &s):
			different = append(different, c)
		default:
			note, exact := s.Renote(r.rows[c.Key].Note, c.Peer)
			equal = append(equal, queue.Verification{Key: c.Key, Digest: s.Digest, Note: note, ExactNote: exact})
		}
	}
	r.mu.Lock()
	r.summary.Equal += len(equal)
	r.mu.Unlock()
	_, err = r.queue.Verified(ctx, equal, r.began)
	return different, err
}

// noteMeta adds what did not travel beside the refs, where a note says so until now, or nothing is known of the copy. It is false
// where that has to be sent: the peer tells its HEAD, and so is a server of ours now, which it was not when it was pushed to.
func (r *syncRun) noteMeta(ctx context.Context, c replica, s *peer.Standing) bool {
	if row, known := r.rows[c.Key]; s.Note != "" || known && row.Note == "" {
		return true
	}
	note, foreign, err := r.peers.MetaNote(c.state.Dir, c.Peer, c.state.Config, c.state.Digest, c.state.Head)
	switch {
	case err != nil:
		return false // its push will say what is wrong
	case foreign && !s.NoHead:
		_ = r.peers.SetKnownHead(ctx, c.Repository, c.Peer, "") // the push then tells all, or again what is wrong
		return false
	}
	s.Note = note
	return true
}

// headDiffers reports whether the copy's HEAD is known and another than ours.
func headDiffers(c replica, s peer.Standing) bool {
	return c.state.Head != "" && !s.NoHead && s.Head != c.state.Head
}

// remember brings what we know of a copy with equal refs up to date.
func (r *syncRun) remember(ctx context.Context, c replica, s peer.Standing) error {
	if headDiffers(c, s) {
		return r.peers.SetKnownHead(ctx, c.Repository, c.Peer, s.Head)
	}
	if row := r.rows[c.Key]; row.State == queue.StateOK && row.Digest == s.Digest && r.peers.Knows(c.Repository, c.Peer) {
		return nil
	}
	return r.peers.Confirm(ctx, c.Repository, c.Peer, s.Digest, s.Head)
}

// push queues what differs and waits for the outcomes.
func (r *syncRun) push(ctx context.Context, different []replica) error {
	if len(different) == 0 {
		return nil
	}
	changes := make([]queue.Change, len(different))
	for i, c := range different {
		changes[i] = queue.Change{Key: c.Key, Origin: inbox.OriginList, Time: r.began}
	}
	tickets, err := r.queue.Enqueue(ctx, changes)
	if err != nil {
		return err
	}
	if err := errors.Join(r.probe(ctx), r.wake()); err != nil {
		return err
	}
	defer r.keepAwake(ctx)()
	pushed := map[queue.Key]queue.Row{}
	ended := r.shown.Stage("copies pushed", len(tickets))
	err = r.queue.Await(ctx, tickets, func(row queue.Row) {
		ended.Done(1)
		if row.State == queue.StateOK {
			pushed[row.Key] = row
			return
		}
		r.fail(syncEntry{Repository: row.Repository, Peer: row.Peer, State: string(row.State), Error: outcomeError(row)})
	})
	if err != nil {
		return err
	}
	r.check(ctx, different, pushed)
	return nil
}

// wakeEvery is how often sync sees to it that a worker runs: the one that it
// relies on may be stopped meanwhile.
const wakeEvery = 5 * time.Second

// keepAwake wakes the worker again and again until stop is called.
func (r *syncRun) keepAwake(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		for sleep(ctx, wakeEvery) == nil {
			if err := r.wake(); err != nil {
				fmt.Fprintf(r.shown, "mirror-shell: the worker cannot be woken: %v\n", err)
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// check asks the peers again for what was just pushed. A push sees what
// receive-pack shows; that can hide a ref, or leave out one that cannot be read.
func (r *syncRun) check(ctx context.Context, different []replica, pushed map[queue.Key]queue.Row) {
	standings := map[string]map[string]peer.Standing{}
	for _, c := range different {
		row, ok := pushed[c.Key]
		if !ok {
			continue
		}
		if _, asked := standings[c.Peer]; !asked {
			standings[c.Peer], _ = r.peers.Compare(ctx, c.Peer) // a foreign peer, or one that went away, has no more to say
		}
		s, known := standings[c.Peer][c.Repository]
		switch {
		case known && s.Reason != "":
			r.fail(syncEntry{Repository: c.Repository, Peer: c.Peer, State: "unreadable", Error: c.Peer + " says: " + s.Reason})
		case known && s.Digest != row.Digest && r.still(ctx, c, row.Digest):
			r.fail(syncEntry{Repository: c.Repository, Peer: c.Peer, State: "differs",
				Error: "after a push: refs are hidden there, or gitolite.mirror.refs is another"})
		default:
			r.summary.Pushed++
		}
	}
}

// still reports whether our refs are what they were when they were pushed.
func (r *syncRun) still(ctx context.Context, c replica, pushed string) bool {
	now, err := refcache.OpenCache(r.server.StateDir).Load(ctx, r.server, c.Repository)
	return err == nil && now.Digest == pushed
}

// fail notes and tells what is not equal.
func (r *syncRun) fail(e syncEntry) {
	e.Error = proc.OneLine(e.Error, 400)
	r.mu.Lock()
	r.summary.Failures = append(r.summary.Failures, e)
	r.mu.Unlock()
	what := e.Repository
	switch {
	case what == "" && e.Peer != "":
		what = fmt.Sprintf("%s (%d copies)", e.Peer, e.Copies)
	case e.Peer != "":
		what += " to " + e.Peer
	case what == "":
		what = "repositories"
	}
	fmt.Fprintf(r.shown, "mirror-shell: %s: %s: %s\n", what, e.State, strings.TrimPrefix(e.Error, string(e.State)+": "))
}

// dryRun names what would be pushed.
func (r *syncRun) dryRun(different []replica) error {
	r.shown.Close()
	for _, c := range different {
		r.summary.Failures = append(r.summary.Failures, syncEntry{Repository: c.Repository, Peer: c.Peer, State: "differs", Error: "not pushed: dry run"})
		if !r.Sync.JSON {
			fmt.Fprintf(r.Stdout, "%s differs on %s\n", c.Repository, c.Peer)
		}
	}
	return r.finish()
}

// finish prints the summary; the error is that not all is equal.
func (r *syncRun) finish() error {
	r.shown.Close()
	s := &r.summary
	s.Seconds = time.Since(r.began).Seconds()
	for _, f := range s.Failures {
		if f.State == string(queue.StateHeld) {
			s.Held++
		}
	}
	s.Failed = len(s.Failures) - s.Held
	held := ""
	if s.Held > 0 {
		held = fmt.Sprintf(" (%d held)", s.Held)
	}
	if r.Sync.JSON {
		if err := json.NewEncoder(r.Stdout).Encode(s); err != nil {
			return err
		}
	} else if !r.Sync.Quiet || len(s.Failures) > 0 {
		fmt.Fprintf(r.Stdout, "%d copies compared: %d equal, %d pushed, %d failures%s, in %.1f s\n", s.Compared, s.Equal, s.Pushed, len(s.Failures), held, s.Seconds)
	}
	if len(s.Failures) > 0 {
		return cli.Exit(1)
	}
	return nil
}
