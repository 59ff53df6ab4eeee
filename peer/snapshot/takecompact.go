package snapshot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/proc"
)

// compact puts small packs together when the base has too many. What is in them is packed anew here,
// by the indexes in the store.
func (t *taking) compact(ctx context.Context, kept []Pack, fresh []*localPack) ([]Pack, []*localPack, error) {
	merge, err := t.toCompact(ctx, kept, len(fresh))
	var merged []*localPack
	if err == nil && len(merge) == 0 {
		return kept, fresh, nil
	}
	var large, small []Pack
	for i, p := range kept {
		if merge[i] {
			small = append(small, p)
		} else {
			large = append(large, p)
		}
	}
	if err == nil {
		merged, err = t.merge(ctx, small, fresh)
	}
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	if errors.Is(err, ErrKey) && len(kept) > maxPacksRetained {
		t.note("the indexes in the store are encrypted and no identity is configured here: everything is taken anew")
		t.walked, t.anew = false, true // what is new stands on what the base has, and now on what is here
		fresh, err = t.everything(ctx)
		return nil, fresh, err
	}
	if err != nil { // what is there is whole, only long
		t.note(fmt.Sprintf("its %d packs could not be put together: %s", len(kept), proc.OneLine(err.Error(), 300)))
		return kept, fresh, nil
	}
	t.result.Compacted = true
	return large, merged, nil
}

// toCompact returns which of the packs in the store are put together, by their places.
func (t *taking) toCompact(ctx context.Context, kept []Pack, fresh int) (map[int]bool, error) {
	c := compaction{fresh: fresh, retain: t.v.retains()}
	for _, p := range kept {
		c.packs = append(c.packs, storedPack{size: p.Pack.Size})
	}
	if c.asks() {
		if err := t.v.surroundings(ctx, t.src.Repository, kept, &c); err != nil {
			return nil, err
		}
	}
	return c.choose(), nil
}

// surroundings fills in what a compaction has to know of the store besides the packs themselves: when they were put, what
// there is beside them, and what the snapshots that stay need.
func (v *Vault) surroundings(ctx context.Context, repository string, kept []Pack, c *compaction) error {
	at := map[string]int{}
	for i, p := range kept {
		at[p.Pack.Key] = i
	}
	for info, err := range v.Store.List(ctx, dataOf(repository)+"pack-", "", 0) {
		if err != nil {
			return fmt.Errorf("list packs: %w", err)
		}
		if i, ok := at[info.Key]; ok {
			c.packs[i].put = info.Time
		} else {
			c.others += info.Size
		}
	}
	published := map[string]time.Time{} // by the store's clock, as the packs
	var names []Name
	for info, err := range v.Store.List(ctx, snapshotsOf(repository), "", 0) {
		if err != nil {
			return fmt.Errorf("list snapshots: %w", err)
		}
		if name, err := ParseName(info.Key); err == nil {
			names, published[info.Key] = append(names, name), info.Time
		}
	}
	keep := v.Keep
	keep.put = published
	for _, n := range keep.lasting(names, v.now(), c.retain) {
		if at := published[n.Key()]; at.After(c.lasting) {
			c.lasting = at
		}
	}
	return nil
}

// merge returns one pack of what is in the small packs, as far as it is in the repository still, and the fresh ones. An object that
// is not there any more is one that nothing reaches, which the walk makes sure of.
func (t *taking) merge(ctx context.Context, small []Pack, fresh []*localPack) ([]*localPack, error) {
	list, err := os.CreateTemp(t.scratch, "ids-")
	if err != nil {
		return nil, err
	}
	defer list.Close()
	gone := 0
	for _, p := range small {
		n, err := t.copyIDs(ctx, list, p)
		if err != nil {
			return nil, t.v.inScratch(fmt.Errorf("%s: %w", p.Name, err))
		}
		gone += n
	}
	if gone > 0 {
		if err := t.src.Repo.Complete(ctx, nil, t.tips); err != nil {
			return nil, err
		}
	}
	if _, err := list.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	ids := []io.Reader{list}
	for _, p := range fresh {
		r := newIDReader([]iter.Seq2[string, error]{p.index.ids()})
		defer r.close()
		ids = append(ids, r)
	}
	return t.pack(ctx, io.MultiReader(ids...), false)
}

// chunk is how many object ids are looked up at once.
const chunk = 20_000

// copyIDs writes the ids of a stored pack's objects that are in the repository to list, and returns how
// many are not.
func (t *taking) copyIDs(ctx context.Context, list io.Writer, p Pack) (gone int, err error) {
	path := filepath.Join(t.scratch, "index")
	index, err := t.v.download(ctx, p.Index, path)
	if err != nil {
		return 0, err
	}
	defer os.Remove(path)
	defer index.Close()
	x, err := openIndex(index, p.Index.Size, t.now.digits)
	if err != nil {
		return 0, err
	}
	if hex.EncodeToString(x.pack) != strings.TrimPrefix(p.Name, "pack-") {
		return 0, fmt.Errorf("%w: the index is another pack's", ErrDamaged)
	}
	var some []string
	flush := func() error {
		there, err := t.src.Repo.Existing(ctx, some)
		if err != nil {
			return err
		}
		gone += len(some) - len(there)
		some = some[:0]
		_, err = io.Copy(list, idLines("", slices.Collect(maps.Keys(there))))
		return err
	}
	for id, err := range x.ids() {
		if err != nil {
			return 0, err
		}
		if some = append(some, id); len(some) == chunk {
			if err := flush(); err != nil {
				return 0, err
			}
		}
	}
	return gone, flush()
}

// download writes an object's content to a file.
func (v *Vault) download(ctx context.Context, o Object, path string) (*os.File, error) {
	r, err := v.open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
