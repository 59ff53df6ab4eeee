package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"mirror-shell/peer/store"
)

// deferring is a store that a power cut takes blobs from which were not settled.
type deferring struct {
	*memory
	unsettled map[string]bool
	gone      bool // the next Settle finds that something was deleted
}

func (d *deferring) PutDeferred(ctx context.Context, key string, b store.Blob) error {
	if err := d.Put(ctx, key, b); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsettled[key] = true
	return nil
}

func (d *deferring) Settle(_ context.Context, keys []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		d.gone = false
		return fmt.Errorf("settle: %w", fs.ErrNotExist)
	}
	for _, key := range keys {
		delete(d.unsettled, key)
	}
	return nil
}

// powerCut is what a power cut leaves.
func (d *deferring) powerCut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key := range d.unsettled {
		delete(d.blobs, key)
		delete(d.times, key)
	}
	clear(d.unsettled)
}

func deferringVault(t *testing.T) (*Vault, *deferring) {
	v, m := testVault(t)
	d := &deferring{memory: m, unsettled: map[string]bool{}}
	v.Store = d
	return v, d
}

// When a manifest is written all that it names is durable, also what somebody else was putting.
func TestTakeSettles(t *testing.T) {
	for _, packed := range []bool{false, true} {
		t.Run(fmt.Sprintf("packed %t", packed), func(t *testing.T) {
			v, d := deferringVault(t)
			r := newSource(t)
			commitTo(t, r, "refs/heads/main", "1 first")
			if packed {
				run(t, r.Dir, "repack", "-adq")
			}
			src, cut := sourceOf(t, r), errors.New("no power")
			d.before = func(op, key string) error {
				if op == "put" && strings.HasPrefix(key, "snapshots/") {
					return cut
				}
				return nil
			}
			if _, err := v.Take(t.Context(), src); !errors.Is(err, cut) {
				t.Fatal(err)
			}
			manifests := 0
			for range 3 {
				d.before = func(op, key string) error {
					if op == "put" && strings.HasPrefix(key, "snapshots/") {
						manifests++
						for key := range d.unsettled {
							t.Errorf("a manifest is published before %s is durable", key)
						}
					}
					return nil
				}
				name := takeNow(t, v, src).Name
				d.before = nil
				d.powerCut()
				compare(t, v, name, r)
				commitTo(t, r, "refs/heads/main", fmt.Sprintf("%d next", manifests))
			}
			if manifests != 3 {
				t.Errorf("%d manifests", manifests)
			}
		})
	}
}

// What was deleted between the put and the settling is put again.
func TestTakeSettleGone(t *testing.T) {
	v, d := deferringVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	d.gone = true
	compare(t, v, takeNow(t, v, sourceOf(t, r)).Name, r)
	if d.gone {
		t.Error("nothing was settled")
	}
}

// That small packs are whole is known before they are published, and only then.
func TestTakeWalksSmallPacksAside(t *testing.T) {
	for name, limit := range map[string]int64{"small": smallPacks, "large": 0} {
		t.Run(name, func(t *testing.T) {
			defer func(old int64) { smallPacks = old }(smallPacks)
			smallPacks = limit
			v, _ := deferringVault(t)
			r := newSource(t)
			commitTo(t, r, "refs/heads/main", "1 first")
			run(t, r.Dir, "repack", "-adq")
			got := takeNow(t, v, sourceOf(t, r))
			m, err := v.Load(t.Context(), got.Name)
			if err != nil || m.Unwalked != (limit == 0) || !got.Checked {
				t.Errorf("%+v, %v", got, err)
			}
			if all := kinds(t, v); len(all) != 1 || all[0] != checkGood {
				t.Errorf("checks %v", all)
			}
		})
	}
}
