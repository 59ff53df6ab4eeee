package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
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

// checkHistory has git read all objects and, at the same time, walk all that can be reached: neither
// keeps two processors busy.
func (b *build) checkHistory(ctx context.Context) error {
	if len(b.m.Packs) == 0 { // and so no refs
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	repo := git.Repo{Dir: b.dir}
	var walk error
	var wg sync.WaitGroup
	wg.Go(func() {
		if walk = repo.Connected(ctx, b.m.tips()); errors.Is(walk, git.ErrMissing) {
			walk = fmt.Errorf("%w: %w", ErrIncomplete, walk)
		}
	})
	workers := min(len(b.m.Packs), runtime.NumCPU())
	read := each(ctx, workers, b.m.Packs, func(ctx context.Context, p Pack) error {
		pack := filepath.Join(b.dir, "objects", "pack", p.Name+".pack")
		err := repo.VerifyPack(ctx, pack, max(runtime.NumCPU()/workers, 1))
		if proc.ExitCode(err) > 0 {
			return fmt.Errorf("%w: %s: %w", ErrIncomplete, p.Pack.Key, err)
		}
		return err
	})
	wg.Wait()
	return errors.Join(read, walk)
}
