package snapshot

import (
	"context"
	"maps"
	"slices"
)

// sweepBatch is how many blobs are deleted before the manifests are listed again.
const sweepBatch = 100

// sweep deletes candidates of old marks that no manifest names.
func (p *pruning) sweep(ctx context.Context) error {
	candidates := map[string]bool{}
	for _, m := range p.marks {
		if !p.old(m.stored) {
			continue
		}
		for _, key := range m.Candidates {
			if info, there := p.data[key]; there && p.old(info.Time) && !p.named.all[key] {
				candidates[key] = true
			}
		}
	}
	for batch := range slices.Chunk(slices.Sorted(maps.Keys(candidates)), sweepBatch) {
		if err := p.sweepSome(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (p *pruning) sweepSome(ctx context.Context, batch []string) error {
	names, err := p.v.manifests(ctx, p.repository)
	if err != nil {
		return err
	}
	if err := p.named.add(ctx, names, true); err != nil {
		return err
	}
	for _, key := range batch {
		if p.named.all[key] {
			continue
		}
		if p.lease != nil {
			deleted, err := p.delete(ctx, key)
			if err != nil {
				return err
			}
			if !deleted {
				continue
			}
		}
		p.report.Deleted.add(p.data[key].Size)
		delete(p.data, key)
	}
	return nil
}
