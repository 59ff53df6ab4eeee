package snapshot

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// inventory is what the manifests of a repository name. Of each manifest only that is kept in memory.
type inventory struct {
	v       *Vault
	mu      sync.Mutex
	loaded  map[string]bool          // keys of manifests
	retain  map[string]time.Duration // those keys → for how long from its Name's time it is retained, as far as it knows
	all     map[string]bool          // keys of data that any manifest names
	stays   map[string]time.Time     // those that one that stays names → until when it is known to be retained
	follows map[string]bool          // Sums that those that stay follow
	grace   time.Duration            // the longest of those who made them
}

func (v *Vault) newInventory() *inventory {
	return &inventory{v: v, loaded: map[string]bool{}, retain: map[string]time.Duration{}, all: map[string]bool{}, stays: map[string]time.Time{}, follows: map[string]bool{}}
}

// heed notes the grace periods that marks tell of: who made what was forgotten may be at work still, and no manifest says
// for how long.
func (i *inventory) heed(marks []mark) {
	for _, m := range marks {
		i.needs(m.Grace)
	}
}

// needs notes a grace period, in seconds.
func (i *inventory) needs(grace int64) { i.grace = max(i.grace, time.Duration(grace)*time.Second) }

// loadsAtATime bounds the manifests in memory.
const loadsAtATime = 4

// add loads the manifests that were not loaded before. One that cannot be is an error: what it names
// is unknown, so nothing may be deleted.
func (i *inventory) add(ctx context.Context, names []Name, stay bool) error {
	var missing []Name
	for _, n := range names {
		if !i.loaded[n.Key()] {
			missing = append(missing, n)
		}
	}
	return each(ctx, loadsAtATime, missing, func(ctx context.Context, n Name) error {
		m, err := i.v.Load(ctx, n)
		if err != nil {
			return fmt.Errorf("nothing of %s is deleted, because what a snapshot needs is unknown: %w", n.Repository, err)
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		i.loaded[n.Key()] = true
		i.retain[n.Key()] = time.Duration(m.Retain) * time.Second
		i.needs(m.Grace)
		for _, o := range m.Objects() {
			i.all[o.Key] = true
			if stay && !i.stays[o.Key].After(o.Retained) {
				i.stays[o.Key] = o.Retained
			}
		}
		if stay {
			i.follows[m.Previous] = true
		}
		return nil
	})
}

// manifests lists the snapshots of a repository, newest first. A key among them that is not understood is an error.
func (v *Vault) manifests(ctx context.Context, repository string) ([]Name, error) {
	names, _, err := v.manifestsPut(ctx, repository)
	return names, err
}

// manifestsPut also tells when the store got them, by their keys.
func (v *Vault) manifestsPut(ctx context.Context, repository string) (names []Name, put map[string]time.Time, err error) {
	put = map[string]time.Time{}
	for info, err := range v.Store.List(ctx, snapshotsOf(repository), "", 0) {
		if err != nil {
			return nil, nil, fmt.Errorf("list snapshots of %s: %w", repository, err)
		}
		name, err := ParseName(info.Key)
		if err != nil {
			return nil, nil, fmt.Errorf("nothing of %s is deleted, because there is something that may be a snapshot of a newer version: %w", repository, err)
		}
		names, put[info.Key] = append(names, name), info.Time
	}
	return names, put, nil
}

// needIdentities refuses what an encrypted vault does not let us see.
func (v *Vault) needIdentities(names []Name) error {
	sealed := len(v.Recipients) > 0
	for _, n := range names {
		sealed = sealed || n.Sealed
	}
	if sealed && len(v.Identities) == 0 {
		return fmt.Errorf("which data the snapshots need stands in their encrypted manifests: %w: set identity_file of the peer, or prune on a server that has it", ErrKey)
	}
	return nil
}
