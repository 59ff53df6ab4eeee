package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/refcache"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/peer/snapshot"
)

const kindBackup = peer.KindBackup // where a variable is called peer

// backupSummary is what backup prints in the end, and as JSON.
type backupSummary struct {
	Peer         string        `json:"peer"`
	ID           string        `json:"id,omitempty"`
	Repositories int           `json:"repositories"`
	Unchanged    int           `json:"unchanged"` // are as their latest snapshot says
	Taken        []backupEntry `json:"taken"`     // have a new one
	Failures     []backupEntry `json:"failures"`
	Bytes        int64         `json:"bytes"`  // uploaded
	Queued       int           `json:"queued"` // wait for a vault that cannot be reached
	Seconds      float64       `json:"seconds"`
}

// backupEntry is one repository.
type backupEntry struct {
	Repository string `json:"repository,omitempty"` // "": what concerns all that are left
	Bytes      int64  `json:"bytes,omitempty"`
	Note       string `json:"note,omitempty"`
	Error      string `json:"error,omitempty"`
}

// backupRun is one run of a backup over many repositories.
type backupRun struct {
	*command
	peer, id string
	peers    *peer.Peers
	shown    *progress
	bytes    *stage // uploaded; nil: nobody looks
	began    time.Time
	mu       sync.Mutex
	equal    []queue.Verification
	summary  backupSummary
}

// backupPeer returns the backup peer that a command names, or the only one.
func (c *command) backupPeer(flag, named string) (string, error) {
	var all []string
	for name, p := range c.server.Peers {
		if p.Kind == kindBackup {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	switch {
	case named != "" && len(all) > 0 && !slices.Contains(all, named):
		return "", fmt.Errorf("%.100q is no backup peer: those of %s are %s", named, c.server.File, strings.Join(all, ", "))
	case named != "":
		return named, mirrorcfg.CheckHost(named)
	case len(all) == 1:
		return all[0], nil
	case len(all) == 0:
		return "", fmt.Errorf("no backup peer is configured: write [peer.NAME] with kind = \"backup\" and url into %s", c.server.File)
	}
	return "", cli.Usage{Message: fmt.Sprintf("say which backup peer with %s: %s", flag, strings.Join(all, ", "))}
}

// backup brings every repository asked for to a backup peer, several at once. One that
// fails does not keep the others.
func (c *command) backup(ctx context.Context) error {
	name, err := c.backupPeer("--to", c.Backup.To)
	if err != nil {
		return err
	}
	var id string
	if c.Backup.ID != nil { // an empty one is a script's mistake
		if id = *c.Backup.ID; snapshot.CheckID(id) != nil {
			return cli.Usage{Message: snapshot.CheckID(id).Error()}
		}
	}
	peers, stop := c.newPeers()
	defer stop()
	if peers.Kind(name) != kindBackup { // any other error of it is one that is queued for
		_, err := peers.Vault(ctx, name)
		return err
	}
	r := c.newBackupRun(name, peers)
	r.id, r.summary.ID = id, id
	r.shown = newProgress(c.Stderr, c.Backup.Quiet || c.Backup.JSON)
	defer r.shown.Close()
	changed, err := r.look(ctx, c.Backup.Repositories)
	if err != nil {
		return err
	}
	r.take(ctx, changed)
	return r.finish(ctx)
}

func (c *command) newBackupRun(name string, peers *peer.Peers) *backupRun {
	return &backupRun{
		command: c, peer: name, peers: peers, began: time.Now(),
		summary: backupSummary{Peer: name, Taken: []backupEntry{}, Failures: []backupEntry{}},
	}
}

// look returns the repositories that are not as their latest snapshot says. Of the others it
// records so.
func (r *backupRun) look(ctx context.Context, patterns []string) ([]string, error) {
	names, err := r.selected(patterns)
	if err != nil && len(names) == 0 {
		return nil, err
	}
	if err != nil {
		r.failed("", err)
	}
	r.summary.Repositories = len(names)
	cache := refcache.OpenCache(r.server.StateDir)
	looked := r.stage("repositories compared", len(names))
	compares, comparing := errgroup.WithContext(ctx)
	compares.SetLimit(r.server.Worker.Jobs)
	var found []string
	differs := func(name string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		found = append(found, name)
	}
	err = cache.LoadAll(ctx, r.server, names, func(name string, s refcache.State, err error) error {
		if s.Config == nil || err != nil { // taking it will say what is wrong
			differs(name)
			looked.Done(1)
			return nil
		}
		compares.Go(func() error {
			defer looked.Done(1)
			equal, err := r.compare(comparing, name, s.Config)
			if err == nil && !equal {
				differs(name)
			}
			return err
		})
		return comparing.Err()
	})
	if stopped := compares.Wait(); stopped != nil {
		err = stopped
	}
	if errors.Is(err, peer.ErrUnreachable) && ctx.Err() == nil {
		return r.unlike(names), r.recordEqual(ctx) // whoever takes them will be told the same
	}
	if err != nil {
		return nil, err
	}
	if err := cache.Save(); err != nil {
		fmt.Fprintf(r.Stderr, "mirror-shell: %v\n", err)
	}
	slices.Sort(found)
	return found, r.recordEqual(ctx)
}

// selected returns the repositories that the patterns select. Where it is all of them, what cannot be backed
// up because it is no repository to us is a failure: nobody would miss it before it is needed.
func (r *backupRun) selected(patterns []string) ([]string, error) {
	if len(patterns) > 0 {
		return r.server.Select(patterns)
	}
	names, notServed, err := r.server.Survey()
	for _, d := range notServed {
		r.failed(proc.OneLine(d.Path, 300), fmt.Errorf("not backed up: %w", d.Reason))
	}
	return names, err
}

// unlike returns the names that were not found to be as their latest snapshot says.
func (r *backupRun) unlike(names []string) []string {
	equal := map[string]bool{}
	for _, v := range r.equal {
		equal[v.Repository] = true
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return equal[name] })
}

// compare looks at one repository. Its error is one that stops them all: of any other, taking it will tell.
func (r *backupRun) compare(ctx context.Context, name string, cfg *mirrorcfg.Repo) (equal bool, err error) {
	digest, note, err := r.peers.LookAt(ctx, r.peer, cfg, r.id)
	if errors.Is(err, peer.ErrUnreachable) || ctx.Err() != nil {
		return false, err
	}
	if err != nil || digest == "" {
		return false, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.equal = append(r.equal, queue.Verification{Key: queue.Key{Repository: name, Peer: r.peer}, Digest: digest, Note: note})
	return true, nil
}

func (r *backupRun) recordEqual(ctx context.Context) error {
	r.summary.Unchanged = len(r.equal)
	_, err := r.queue.Verified(ctx, r.equal, r.began)
	return err
}

// take backs up several repositories at once, through the jobs table: status then
// knows, and the worker tries again what failed.
func (r *backupRun) take(ctx context.Context, names []string) {
	taken := r.stage("repositories backed up", len(names))
	r.bytes = r.shown.Bytes("uploaded")
	all, trying := errgroup.WithContext(ctx)
	all.SetLimit(r.server.Worker.JobsPerPeer)
	left := map[string]bool{}
	for _, name := range names {
		left[name] = true
		all.Go(func() error {
			defer taken.Done(1)
			if err := trying.Err(); err != nil {
				return err
			}
			out, err := r.takeOne(trying, name)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.summary.Bytes += out.Sent
			switch {
			case errors.Is(err, peer.ErrUnreachable):
				return err // the others need not be tried
			case trying.Err() != nil:
				return err
			case err != nil:
				delete(left, name)
				r.failed(name, err)
			default:
				delete(left, name)
				r.summary.Taken = append(r.summary.Taken, backupEntry{Repository: name, Bytes: out.Sent, Note: out.Note})
			}
			return nil
		})
	}
	err := all.Wait()
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, r.enqueue(ctx, slices.Sorted(maps.Keys(left))))
		r.summary.Queued = len(left)
		r.failed("", fmt.Errorf("%w: %d repositories wait for it, and are tried again by the worker", err, len(left)))
	}
}

// enqueue has the worker back up repositories: it tries again what fails, and status shows them.
func (r *backupRun) enqueue(ctx context.Context, names []string) error {
	changes := make([]queue.Change, len(names))
	for i, repository := range names {
		changes[i] = queue.Change{Key: queue.Key{Repository: repository, Peer: r.peer}, Origin: inbox.OriginExplicit, Time: r.began}
	}
	if _, err := r.queue.Enqueue(ctx, changes); err != nil {
		return err
	}
	return r.wake()
}

func (r *backupRun) takeOne(ctx context.Context, name string) (out peer.Outcome, err error) {
	key := queue.Key{Repository: name, Peer: r.peer}
	_, err = r.queue.RunNow(ctx, key, inbox.OriginExplicit, func(ctx context.Context, j queue.Job) (queue.Result, error) {
		var err error
		out, err = r.peers.Sync(ctx, peer.Job{Repository: name, Peer: r.peer, ID: r.id, Progress: r.uploaded()}, r.Stderr)
		return queue.Result{Digest: out.Digest, Note: out.Note}, inQueueTerms(err)
	})
	return out, err
}

// uploaded returns a function for one repository that counts what it uploads.
func (r *backupRun) uploaded() func(stage string, done, total int64) {
	var mu sync.Mutex
	var was, wasTotal int64
	return func(stage string, done, total int64) {
		if stage != "upload" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		r.bytes.Expect(total - wasTotal)
		r.bytes.Done(done - was)
		was, wasTotal = done, total
	}
}

func (r *backupRun) stage(name string, steps int) *stage {
	if r.shown == nil {
		return &stage{}
	}
	return r.shown.Stage(name, steps)
}

// failed notes and tells a failure. The lock is held, or nobody else is at work.
func (r *backupRun) failed(repository string, err error) {
	e := backupEntry{Repository: repository, Error: proc.OneLine(strings.TrimPrefix(err.Error(), r.peer+": "), 600)}
	r.summary.Failures = append(r.summary.Failures, e)
	if r.shown != nil {
		fmt.Fprintf(r.shown, "mirror-shell: %s: %s\n", cmp.Or(repository, r.peer), e.Error)
	}
}

// finish prints the summary; the error is that not everything is in the vault.
func (r *backupRun) finish(ctx context.Context) error {
	r.shown.Close()
	if err := stopped(ctx); err != nil {
		return err
	}
	s := &r.summary
	s.Seconds = time.Since(r.began).Seconds()
	slices.SortFunc(s.Taken, func(a, b backupEntry) int { return cmp.Compare(a.Repository, b.Repository) })
	quiet := r.Backup.Quiet && len(s.Failures) == 0
	switch {
	case r.Backup.JSON:
		if err := json.NewEncoder(r.Stdout).Encode(s); err != nil {
			return err
		}
	case !quiet:
		for _, e := range s.Taken {
			fmt.Fprintf(r.Stdout, "%s: %s%s\n", e.Repository, bytesText(e.Bytes), inParentheses(e.Note))
		}
		fmt.Fprintf(r.Stdout, "%d repositories to %s: %d unchanged, %d backed up, %d failures, %s in %.1f s\n",
			s.Repositories, s.Peer, s.Unchanged, len(s.Taken), len(s.Failures), bytesText(s.Bytes), s.Seconds)
	}
	r.notifyAfterBackup(ctx)
	if len(s.Failures) > 0 {
		return cli.Exit(1)
	}
	return nil
}

// notifyAfterBackup has people told what a worker would tell them.
func (r *backupRun) notifyAfterBackup(ctx context.Context) {
	r.notifyAfterSync(ctx, &syncSummary{Pushed: len(r.summary.Taken), Failures: make([]syncEntry, len(r.summary.Failures))})
}

func inParentheses(note string) string {
	if note == "" {
		return ""
	}
	return " (" + note + ")"
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	f, i := float64(n), 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
