package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"mirror-shell/mirrorcfg"
	"mirror-shell/peer/store"
)

// ForgetOptions choose how a repository is forgotten.
type ForgetOptions struct {
	// DryRun finds out what there is, and writes and deletes nothing.
	DryRun bool
	// AtOnce deletes data without waiting for the end of the grace period: nobody may be backing the repository up, anywhere.
	AtOnce bool
	// Note, when it is not nil, is given the Sums of all snapshots before the first is removed, to be remembered for Vault.ToForget: some may
	// be retained. Its error ends the run.
	Note func(sums []string) error
}

// ForgetReport says what Forget found, and what it did.
type ForgetReport struct {
	Repository string `json:"repository"`
	DryRun     bool   `json:"dry_run,omitempty"`
	// Snapshots, and of when the oldest and the newest is, and Data are what was found.
	Snapshots int       `json:"snapshots"`
	Oldest    time.Time `json:"oldest,omitzero"`
	Newest    time.Time `json:"newest,omitzero"`
	Data      Amount    `json:"data"`
	// Removed counts snapshots, Deleted is data. Waiting is data that can be deleted After, by another run.
	Removed int       `json:"removed"`
	Deleted Amount    `json:"deleted"`
	Waiting Amount    `json:"waiting"`
	After   time.Time `json:"after,omitzero"`
	// Retained counts blobs of all kinds that the store refuses to delete, or that a snapshot needs which it refuses to delete; the
	// last of them is free at Until, zero when the store does not say.
	Retained int       `json:"retained"`
	Until    time.Time `json:"until,omitzero"`
	// Locked are those of them that the store refused to delete.
	Locked []LockedBlob `json:"-"`
	// Gone: the vault has nothing of the repository any more.
	Gone bool `json:"gone"`
}

// forgetting is one run of Forget.
type forgetting struct {
	pruning
	options ForgetOptions
	names   []Name                // newest first
	records map[string]store.Info // checks, by their keys
	found   ForgetReport
	free    bool // no snapshot is left
}

// Forget removes all that the vault has of a repository: the snapshots at once, and what the store does not retain of the data when the grace period
// is over, by another run or by that of Prune; "Forgetting" in the package comment says how. It may run at any time, beside
// backups, and may be killed at any time. The report tells what was done also when there is an error.
//
// Errors may wrap ErrNoSnapshot (the vault has nothing of it), ErrBusy, ErrDamaged and those of the store. That something
// is retained or waits is no error.
func (v *Vault) Forget(ctx context.Context, repository string, o ForgetOptions) (ForgetReport, error) {
	return v.forget(ctx, repository, o, false)
}

// FinishForgetting deletes what Forget left of a repository and what may be deleted by now. When there
// are snapshots of it it does nothing: Prune deletes what they do not need.
func (v *Vault) FinishForgetting(ctx context.Context, repository string) (ForgetReport, error) {
	return v.forget(ctx, repository, ForgetOptions{}, true)
}

func (v *Vault) forget(ctx context.Context, repository string, o ForgetOptions, finish bool) (ForgetReport, error) {
	f := &forgetting{options: o, pruning: pruning{v: v, repository: repository, atOnce: o.AtOnce, now: v.now(), named: v.newInventory()}}
	f.found = ForgetReport{Repository: repository, DryRun: o.DryRun}
	if clean, err := mirrorcfg.CleanRepo(repository); err != nil || clean != repository {
		return f.found, fmt.Errorf("forget: %q is no repository's name", repository)
	}
	if !o.DryRun {
		lease, err := v.lease(ctx, repository)
		if err != nil {
			return f.found, err
		}
		defer lease.release(ctx)
		f.lease, f.now = lease, lease.now
	}
	steps := []func(context.Context) error{f.list, f.tombstone, f.removeAll, f.condemn, f.sweepAll, f.clear}
	if o.DryRun {
		steps = []func(context.Context) error{f.list, f.askRetained}
	}
	for i, step := range steps {
		if err := step(ctx); err != nil {
			return f.found, fmt.Errorf("forget %s: %w", repository, err)
		}
		if i == 0 && finish && len(f.names) > 0 {
			break
		}
	}
	return f.found, nil
}

// list lists everything, data before manifests as look does.
func (f *forgetting) list(ctx context.Context) (err error) {
	if f.marks, f.retired, err = f.v.marks(ctx, f.repository); err != nil {
		return err
	}
	if f.data, err = f.v.infos(ctx, "data", dataOf(f.repository)); err != nil {
		return err
	}
	for _, info := range f.data {
		f.found.Data.add(info.Size)
	}
	if f.records, err = f.v.infos(ctx, "checks", checksOf(f.repository)); err != nil {
		return err
	}
	if f.names, err = f.v.manifests(ctx, f.repository); err != nil {
		return err
	}
	if f.found.Snapshots = len(f.names); f.found.Snapshots > 0 {
		f.found.Newest, f.found.Oldest = f.names[0].Time, f.names[len(f.names)-1].Time
	}
	if len(f.names)+len(f.data)+len(f.records)+len(f.marks)+len(f.retired) == 0 {
		return fmt.Errorf("%w: the vault has nothing of it", ErrNoSnapshot)
	}
	return nil
}

// tombstone puts the mark that says what is forgotten. All older marks end by it: what they name may be in use by a backup that began from
// a snapshot which is removed only now.
func (f *forgetting) tombstone(ctx context.Context) error {
	f.named.heed(f.marks)
	if len(f.names) == 0 && slices.ContainsFunc(f.marks, func(m mark) bool { return m.Forgotten }) {
		return nil // an earlier run did
	}
	if err := f.note(); err != nil {
		return err
	}
	if err := f.learnGrace(ctx); err != nil {
		return err
	}
	m := mark{Forgotten: true, Grace: int64(f.grace() / time.Second), Retires: slices.Clone(f.retired)}
	said := map[string]bool{}
	for _, n := range f.names {
		m.remove(removed{n.Sum, n.Time}, said)
	}
	for _, old := range f.marks {
		m.Retires = append(m.Retires, old.key)
		for _, r := range old.Removed {
			m.remove(r, said)
		}
	}
	if err := f.put(ctx, &m); err != nil {
		return err
	}
	f.marks, f.retired = []mark{m}, m.Retires
	return nil
}

func (f *forgetting) note() error {
	if f.options.Note == nil {
		return nil
	}
	sums := make([]string, len(f.names))
	for i, n := range f.names {
		sums[i] = n.Sum
	}
	return f.options.Note(sums)
}

// learnGrace finds out for how long those who made the snapshots need what is there: each of them may be at work, also one that did not make
// the latest. What cannot be read, as it is encrypted for others or damaged, is left out.
func (f *forgetting) learnGrace(ctx context.Context) error {
	return each(ctx, loadsAtATime, f.names, func(ctx context.Context, n Name) error {
		m, err := f.v.Load(ctx, n)
		if errors.Is(err, ErrKey) || errors.Is(err, ErrDamaged) {
			return nil
		}
		if err == nil {
			f.named.mu.Lock()
			defer f.named.mu.Unlock()
			f.named.needs(m.Grace)
		}
		return err
	})
}

// put writes a mark under the lease. It counts as put now, which is not too early: the lease was taken before.
func (f *forgetting) put(ctx context.Context, m *mark) error {
	within, cancel, err := f.lease.hold(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	m.stored = f.v.now()
	if f.now.After(m.stored) {
		m.stored = f.now
	}
	return f.v.putMark(within, f.repository, m)
}

// removeAll deletes the manifests, the oldest first. One that the store retains gets a record that it is forgotten: no backup
// begins from it then, and no restore finds it by itself.
func (f *forgetting) removeAll(ctx context.Context) error {
	for _, n := range slices.Backward(f.names) {
		deleted, err := f.delete(ctx, n.Key())
		if err == nil && !deleted {
			err = f.recordForgotten(ctx, n)
		}
		if err != nil {
			return err
		}
		if deleted {
			f.found.Removed++
		}
	}
	left, err := f.v.manifests(ctx, f.repository)
	if err != nil {
		return err
	}
	if f.free = len(left) == 0; f.free {
		return nil
	}
	for _, n := range left {
		if !slices.Contains(f.names, n) {
			return errors.New("a backup has made a snapshot meanwhile: see that none is made any more, and run it again")
		}
	}
	keys := f.keys() // what they need stays, so that they are whole or not there
	for _, n := range left {
		keys = append(keys, n.Key())
	}
	return f.askAbout(ctx, keys)
}

// recordForgotten says of a snapshot that it is forgotten, once.
func (f *forgetting) recordForgotten(ctx context.Context, n Name) error {
	for key := range f.records {
		if c, err := parseCheckName(key); err == nil && c.Kind == checkForgotten && c.Sum == n.Sum {
			return nil
		}
	}
	unlocked := *f.v
	unlocked.Retain = 0
	return unlocked.recordVerdict(ctx, n, Check{Kind: checkForgotten, Snapshot: n.Sum, Text: "forgotten; it is there because the store retains it"})
}

// keys are those of the data, sorted.
func (f *forgetting) keys() []string { return slices.Sorted(maps.Keys(f.data)) }

// asksAtATime bounds the questions about retention.
const asksAtATime = 8

// askAbout counts which of the blobs are retained: all of them, when a manifest is among them that could not be deleted.
func (f *forgetting) askAbout(ctx context.Context, keys []string) error {
	retainer, ok := f.v.Store.(store.Retainer)
	if !ok {
		if !f.options.DryRun {
			f.found.Retained += len(keys)
		}
		return nil
	}
	now := f.v.now()
	var mu sync.Mutex
	return each(ctx, asksAtATime, keys, func(ctx context.Context, key string) error {
		until, err := retainer.Retained(ctx, key)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if !f.options.DryRun || until.After(now) {
			f.found.Retained++
		}
		if until.After(f.found.Until) && until.After(now) {
			f.found.Until = until
		}
		return nil
	})
}

// askRetained is what a dry run finds out besides.
func (f *forgetting) askRetained(ctx context.Context) error {
	keys := f.keys()
	for _, n := range f.names {
		keys = append(keys, n.Key())
	}
	for key := range f.records {
		keys = append(keys, key)
	}
	return f.askAbout(ctx, keys)
}

// condemn puts marks with all data that is in none yet, now that no snapshot is left. A run that found none already leaves alone what is young: a
// backup that begins anew puts it there, and were it marked by each run, a long one would have to put everything again, and again.
func (f *forgetting) condemn(ctx context.Context) error {
	if !f.free {
		return nil
	}
	said := map[string]bool{}
	for _, m := range f.marks {
		for _, key := range m.Candidates {
			said[key] = !f.ahead(m.stored) || said[key] // of a clock that was ahead: once more, as it would wait for as long
		}
	}
	var keys []string
	for _, key := range f.keys() {
		if !said[key] && within(key, dataOf(f.repository)) && !f.spared(key) {
			keys = append(keys, key)
		}
	}
	for some := range slices.Chunk(keys, maxCandidates) {
		m := mark{Candidates: some}
		if err := f.put(ctx, &m); err != nil {
			return err
		}
		f.marks = append(f.marks, m)
	}
	return nil
}

// spared reports whether data may be that of a backup which is at work.
func (f *forgetting) spared(key string) bool {
	return len(f.names) == 0 && !f.atOnce && f.now.Sub(f.data[key].Time) < f.grace()
}

// sweepAll deletes what may go by now, and counts the rest.
func (f *forgetting) sweepAll(ctx context.Context) error {
	if !f.free {
		return nil
	}
	err := f.sweep(ctx)
	f.found.Deleted = f.report.Deleted
	f.countLocked()
	if err != nil {
		return err
	}
	locked := map[string]bool{}
	for _, l := range f.report.Locked {
		locked[l.Key] = true
	}
	for key, info := range f.data {
		if locked[key] {
			continue
		}
		f.found.Waiting.add(info.Size)
		if f.spared(key) {
			f.waitUntil(info.Time.Add(f.grace() + f.gracePlus()))
		}
	}
	for _, m := range f.marks {
		if f.found.Waiting.Blobs > 0 && len(m.Candidates) > 0 && !f.ahead(m.stored) {
			f.waitUntil(m.stored.Add(f.gracePlus()))
		}
	}
	return nil
}

// waitUntil says that something has to wait until then.
func (f *forgetting) waitUntil(at time.Time) {
	if at.After(f.found.After) {
		f.found.After = at
	}
}

// countLocked takes over what deleting found to be locked.
func (f *forgetting) countLocked() {
	f.found.Retained, f.found.Locked = len(f.report.Locked), f.report.Locked
	for _, l := range f.report.Locked {
		if l.Until.After(f.found.Until) {
			f.found.Until = l.Until
		}
	}
}

// clear removes checks and marks when nothing else is left; last of all the mark that says that the repository is forgotten, because another run goes
// by it.
func (f *forgetting) clear(ctx context.Context) error {
	if !f.free || len(f.data) > 0 {
		return nil
	}
	keys := slices.Sorted(maps.Keys(f.records))
	for _, m := range f.marks {
		if !m.Forgotten {
			keys = append(keys, m.key)
		}
	}
	slices.SortFunc(f.retired, func(x, y string) int { return strings.Compare(y, x) }) // the oldest first
	keys = append(keys, f.retired...)
	for _, key := range keys {
		if _, err := f.delete(ctx, key); err != nil {
			return err
		}
	}
	if f.countLocked(); len(f.report.Locked) > 0 {
		return nil
	}
	f.found.Gone = true
	for _, m := range f.marks {
		if !m.Forgotten {
			continue
		}
		deleted, err := f.delete(ctx, m.key)
		if err != nil {
			return err
		}
		f.found.Gone = f.found.Gone && deleted
	}
	f.countLocked()
	return nil
}

// Forgotten returns the repositories that were forgotten, that have no snapshots any more, and of which other things are still there,
// sorted. FinishForgetting deletes those when it may.
func (v *Vault) Forgotten(ctx context.Context) ([]string, error) {
	with, err := v.Repositories(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, name := range with {
		seen[name] = true
	}
	var all []string
	for info, err := range v.Store.List(ctx, "marks/", "", 0) {
		if err != nil {
			return nil, fmt.Errorf("list marks: %w", err)
		}
		repository, rest, err := cutRepository(info.Key, "marks/")
		if err != nil || seen[repository] || leasePattern.MatchString(rest) {
			continue
		}
		seen[repository] = true
		marks, _, err := v.marks(ctx, repository)
		if errors.Is(err, ErrDamaged) {
			v.log().Warn("whether a repository is forgotten cannot be read", "repository", repository, "error", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(marks, func(m mark) bool { return m.Forgotten }) {
			all = append(all, repository)
		}
	}
	slices.Sort(all)
	return all, nil
}

// without splits snapshots into those whose Sums are among some, and the others.
func without(names []Name, some map[string]bool) (others, those []Name) {
	for _, n := range names {
		if some[n.Sum] {
			those = append(those, n)
		} else {
			others = append(others, n)
		}
	}
	return others, those
}
