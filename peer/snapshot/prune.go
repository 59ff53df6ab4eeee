package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"mirror-shell/mirrorcfg"
	"mirror-shell/peer/store"
)

// PruneReport says what Prune did, or would do in a dry run.
type PruneReport struct {
	Repository string   `json:"repository"`
	DryRun     bool     `json:"dry_run,omitempty"`
	Kept       int      `json:"kept"`    // snapshots
	Removed    []string `json:"removed"` // keys of snapshots that the policy dropped, newest first
	// Deleted is data that no snapshot needed for longer than the grace period, Waiting that
	// which can be deleted when the grace period is over.
	Deleted Amount `json:"deleted"`
	Waiting Amount `json:"waiting"`
	// Locked are blobs that would have gone, and that the store still retains.
	Locked []LockedBlob `json:"locked,omitempty"`
	// Extended counts blobs whose retention was prolonged, because kept snapshots need them.
	Extended int `json:"extended,omitempty"`
}

// Amount is a number of blobs and their bytes together.
type Amount struct {
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

func (a *Amount) add(size int64) { a.Blobs, a.Bytes = a.Blobs+1, a.Bytes+size }

// LockedBlob is a blob that the store refuses to delete before Until; zero: it did not say when.
type LockedBlob struct {
	Key   string    `json:"key"`
	Until time.Time `json:"until,omitzero"`
}

// pruning is one run.
type pruning struct {
	v          *Vault
	repository string
	policy     Policy
	lease      *lease // nil in a dry run
	atOnce     bool   // nothing waits for the end of the grace period
	now        time.Time
	report     PruneReport

	stay, gone []Name
	checks     []checkName
	named      *inventory
	data       map[string]store.Info // by key; what was deleted is taken out
	marks      []mark                // that count, oldest first
	retired    []string              // keys of marks that do not, and are there still
}

// Prune removes the snapshots of a repository that the policy drops, and data that none has needed for longer
// than the grace period; "Pruning" in the package comment says how. It may run at any time, beside
// backups, and may be killed at any time. The report tells what was done also when there is an error.
//
// Errors may wrap ErrNoPolicy, ErrNoSnapshot (of a repository without any nothing is deleted), ErrKey, ErrBusy,
// ErrDamaged and those of the store. Blobs that the store retains are no error.
func (v *Vault) Prune(ctx context.Context, repository string, policy Policy) (PruneReport, error) {
	p := &pruning{v: v, repository: repository, policy: policy, report: PruneReport{Repository: repository, DryRun: policy.DryRun, Removed: []string{}}}
	if err := policy.Check(); err != nil {
		return p.report, err
	}
	if clean, err := mirrorcfg.CleanRepo(repository); err != nil || clean != repository {
		return p.report, fmt.Errorf("prune: %q is no repository's name", repository)
	}
	if err := v.needIdentities(nil); err != nil {
		return p.report, err
	}
	p.now = v.now()
	if !policy.DryRun {
		lease, err := v.lease(ctx, repository)
		if err != nil {
			return p.report, err
		}
		defer lease.release(ctx)
		p.lease, p.now = lease, lease.now
	}
	for _, step := range []func(context.Context) error{p.look, p.sweep, p.announce, p.remove, p.nominate, p.thin, p.extend} {
		if err := step(ctx); err != nil {
			return p.report, fmt.Errorf("prune %s: %w", repository, err)
		}
	}
	return p.report, nil
}

// look lists everything. The order matters: what is listed as data before the manifests are was either put
// before them, or is younger than the lease.
func (p *pruning) look(ctx context.Context) error {
	var err error
	if p.marks, p.retired, err = p.v.marks(ctx, p.repository); err != nil {
		return err
	}
	if p.data, err = p.v.infos(ctx, "data", dataOf(p.repository)); err != nil {
		return err
	}
	maps.DeleteFunc(p.data, func(key string, _ store.Info) bool { return !within(key, dataOf(p.repository)) })
	for info, err := range p.v.Store.List(ctx, checksOf(p.repository), "", 0) {
		if err != nil {
			return fmt.Errorf("list checks: %w", err)
		}
		if name, err := parseCheckName(info.Key); err == nil {
			p.checks = append(p.checks, name)
		}
	}
	var names []Name
	if names, p.policy.put, err = p.v.manifestsPut(ctx, p.repository); err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("%w in the vault: nothing is deleted", ErrNoSnapshot)
	}
	if err := p.v.needIdentities(names); err != nil {
		return err
	}
	rest, forgotten := without(names, p.v.toForget(p.repository))
	p.stay, p.gone = p.policy.choose(rest, knownBad(p.checks), foundSame(p.checks), p.v.now())
	p.gone = slices.SortedFunc(slices.Values(append(p.gone, forgotten...)), newestFirst)
	p.report.Kept = len(p.stay)
	p.named = p.v.newInventory()
	p.named.heed(p.marks)
	if err := p.named.add(ctx, p.stay, true); err != nil {
		return err
	}
	return p.named.add(ctx, p.gone, false)
}

// knownBad returns the Sums of snapshots that are bad or forgotten: a policy takes one where
// there is no other. Checks are sorted newest first.
func knownBad(checks []checkName) map[string]bool {
	bad := map[string]bool{}
	for sum, kind := range verdicts(checks) {
		bad[sum] = kind != checkGood
	}
	return bad
}

// foundSame returns the IDs of the runs that found a snapshot unchanged, newest first, by its Sum.
func foundSame(checks []checkName) map[string][]string {
	runs := map[string][]string{}
	for _, c := range checks {
		if c.Kind == checkSame && c.ID != "" && !slices.Contains(runs[c.Sum], c.ID) {
			runs[c.Sum] = append(runs[c.Sum], c.ID)
		}
	}
	return runs
}

// gracePlus is the age from which on a mark and its candidates count as old. Backups measure half a grace
// period by the clocks of their machines; the quarter is what those may be wrong by.
func (p *pruning) gracePlus() time.Duration { return p.grace() + p.grace()/4 }

// grace is the grace period of this server, or of one that made a snapshot which is there if that is longer.
func (p *pruning) grace() time.Duration { return max(p.v.grace(), p.named.grace) }

func (p *pruning) old(t time.Time) bool { return p.atOnce || p.now.Sub(t) > p.gracePlus() }

// ahead reports whether the store's clock was set back since then.
func (p *pruning) ahead(t time.Time) bool { return t.Sub(p.now) > p.gracePlus() }

// delete removes a blob under the lease. A locked one is reported, and is no error.
func (p *pruning) delete(ctx context.Context, key string) (deleted bool, err error) {
	within, cancel, err := p.lease.hold(ctx)
	if err != nil {
		return false, err
	}
	defer cancel()
	err = p.v.Store.Delete(within, key)
	if errors.Is(err, store.ErrLocked) {
		p.report.Locked = append(p.report.Locked, LockedBlob{key, p.v.lockedUntil(ctx, key)})
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete %s: %w", key, err)
	}
	return true, nil
}

// lockedUntil asks until when a blob is retained; zero when nobody knows.
func (v *Vault) lockedUntil(ctx context.Context, key string) time.Time {
	retainer, ok := v.Store.(store.Retainer)
	if !ok {
		return time.Time{}
	}
	until, err := retainer.Retained(ctx, key)
	if err != nil {
		v.log().Warn("the store does not say until when it retains a blob", "key", key, "error", err)
	}
	return until
}

// remove deletes the manifests that the policy drops, the oldest first, and their checks. The mark that says so
// is in the store.
func (p *pruning) remove(ctx context.Context) error {
	for _, n := range slices.Backward(p.gone) {
		if p.lease == nil {
			p.report.Removed = append(p.report.Removed, n.Key())
			continue
		}
		deleted, err := p.delete(ctx, n.Key())
		if err != nil {
			return err
		}
		if deleted {
			p.report.Removed = append(p.report.Removed, n.Key())
		}
	}
	slices.Sort(p.report.Removed)
	return nil
}

// thin deletes checks: those of snapshots that are gone; and of the findings that nothing had changed, and of the drills, those that
// the policy would not keep either if they were snapshots. A repository that nobody changes has one snapshot for ever, and a drill each week.
func (p *pruning) thin(ctx context.Context) error {
	if p.lease == nil {
		return nil
	}
	gone := map[string]bool{}
	for _, n := range p.gone {
		gone[n.Sum] = slices.Contains(p.report.Removed, n.Key())
	}
	var drop []string
	for _, c := range p.checks {
		if gone[c.Sum] {
			drop = append(drop, c.key())
		}
	}
	for _, kind := range []string{checkSame, checkDrill} {
		var staying []Name
		keys := map[string]string{}
		for _, c := range p.checks {
			if c.Kind == kind && !gone[c.Sum] {
				as := Name{Repository: c.Repository, Time: c.Time, Sum: c.Sum}
				if kind == checkSame { // the run it was found in; a drill has that of its snapshot
					as.ID = c.ID
				}
				staying, keys[as.Key()] = append(staying, as), c.key()
			}
		}
		_, thinned := p.policy.choose(staying, nil, nil, p.v.now())
		for _, n := range thinned {
			drop = append(drop, keys[n.Key()])
		}
	}
	before := len(p.report.Locked)
	for _, key := range drop {
		if _, err := p.delete(ctx, key); err != nil {
			return err
		}
	}
	p.report.Locked = p.report.Locked[:before] // a check that stays a while is not worth a word
	return nil
}

// extend has the store retain what the snapshots that stay need.
func (p *pruning) extend(ctx context.Context) error {
	if p.lease == nil {
		return nil
	}
	n, err := p.v.extend(ctx, p.stay, p.named)
	p.report.Extended = n
	return err
}

// Extend has the store retain everything that the snapshots of a repository need for at least half of v.Retain from
// now on: what is retained for less is prolonged to the whole of it. It returns how many blobs were
// prolonged. Without v.Retain, or in a store that cannot retain, it does nothing.
func (v *Vault) Extend(ctx context.Context, repository string) (int, error) {
	if _, ok := v.Store.(store.Retainer); !ok || v.Retain == 0 {
		return 0, nil
	}
	names, err := v.manifests(ctx, repository)
	if err != nil {
		return 0, err
	}
	names, _ = without(names, v.toForget(repository))
	if err := v.needIdentities(names); err != nil {
		return 0, err
	}
	named := v.newInventory()
	if err := named.add(ctx, names, true); err != nil {
		return 0, err
	}
	return v.extend(ctx, names, named)
}

// extend is Extend for the manifests called names and the data that those that stay need. A blob that is gone does not stop the others.
func (v *Vault) extend(ctx context.Context, names []Name, named *inventory) (int, error) {
	retainer, ok := v.Store.(store.Retainer)
	if !ok || v.Retain == 0 {
		return 0, nil
	}
	now := v.now()
	enough := now.Add(v.Retain / 2)
	var keys []string
	for _, n := range names {
		// A time that is still to come is not when it was made, and says nothing.
		if n.Time.After(now) || n.Time.Add(named.retain[n.Key()]).Before(enough) {
			keys = append(keys, n.Key())
		}
	}
	for key, known := range named.stays {
		if known.Before(enough) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return v.extendKeys(ctx, retainer, keys, enough)
}

func (v *Vault) extendKeys(ctx context.Context, retainer store.Retainer, keys []string, enough time.Time) (int, error) {
	done, missing := make(chan struct{}, len(keys)), make(chan error, len(keys))
	err := each(ctx, loadsAtATime, keys, func(ctx context.Context, key string) error {
		until, err := retainer.Retained(ctx, key)
		if err == nil && !until.Before(enough) {
			return nil
		}
		if err == nil {
			err = retainer.Retain(ctx, key, v.retainUntil())
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing <- fmt.Errorf("%s: %w: it is gone", key, ErrDamaged)
		case err != nil:
			return fmt.Errorf("retain %s: %w", key, err)
		default:
			done <- struct{}{}
		}
		return nil
	})
	close(missing)
	errs := []error{err}
	for e := range missing {
		if len(errs) < 20 { // enough to begin with: verify tells all
			errs = append(errs, e)
		}
	}
	return len(done), errors.Join(errs...)
}
