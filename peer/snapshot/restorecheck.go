package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// check refuses a build that is not a whole repository.
func (b *build) check(ctx context.Context) error {
	if err := b.checkPacks(); err != nil {
		return err
	}
	// Grafts say what a history is. They are data, and the only kept file that is there while git runs.
	for _, f := range b.m.Files {
		if f.Path == graftsFile {
			if err := b.download(ctx, []download{{f.Object, f.Path, 0o644}}); err != nil {
				return err
			}
		}
	}
	if b.o.Check == Checksums {
		return nil
	}
	return b.checkHistory(ctx)
}

// checkPacks makes sure that packs and indexes belong together, and that each ref's value is in one.
func (b *build) checkPacks() error {
	w, err := newSought(b.m.tips())
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range b.m.Packs {
		if err := b.matchPack(p.Name, w); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s: %w", ErrIncomplete, p.Pack.Key, err))
		}
	}
	missing := w.missing()
	var refs []string
	for name, oid := range b.m.Refs {
		if missing[oid] {
			refs = append(refs, name+" ("+oid+")")
		}
	}
	if missing[b.m.Detached] {
		refs = append(refs, "HEAD ("+b.m.Detached+")")
	}
	if slices.Sort(refs); len(refs) > 0 {
		errs = append(errs, fmt.Errorf("%w: no pack has the value of %s", ErrIncomplete, some(refs)))
	}
	return errors.Join(errs...)
}

// some joins up to maxErrors words.
func some(words []string) string {
	if more := len(words) - maxErrors; more > 0 {
		words = append(slices.Clone(words[:maxErrors]), fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}

func (b *build) matchPack(name string, w *sought) error {
	pack, err := b.root.Open("objects/pack/" + name + ".pack")
	if err != nil {
		return err
	}
	defer pack.Close()
	index, err := b.root.Open("objects/pack/" + name + ".idx")
	if err != nil {
		return err
	}
	defer index.Close()
	return matchPack(pack, index, hashOf(b.m.ObjectFormat), w)
}
