package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
)

// choose decides which packs the snapshot consists of: those that the base has and are
// used again, and those of this machine that are to be put.
func (t *taking) choose(ctx context.Context) (kept []Pack, fresh []*localPack, err error) {
	if t.base != nil && !t.now.grafts {
		fresh, err = t.update(ctx)
		if err != nil {
			return nil, nil, err
		}
		return t.compact(ctx, t.base.Packs, fresh)
	}
	// With grafts "all that is reachable" depends on a file that may go: all objects are taken.
	if fresh, err = t.everything(ctx); err != nil || t.base == nil {
		return nil, fresh, err
	}
	for _, p := range t.base.Packs {
		if i := slices.IndexFunc(fresh, func(l *localPack) bool { return l.name == p.Name }); i >= 0 {
			kept, fresh = append(kept, p), slices.Delete(fresh, i, i+1)
		}
	}
	return kept, fresh, nil
}

// everything returns the repository's packs as they are, and its loose objects in one more.
func (t *taking) everything(ctx context.Context) ([]*localPack, error) {
	if t.now.borrows {
		return t.packAnew(ctx)
	}
	var err error
	t.raw, err = readObjects(ctx, t.now.dir, t.now.digits, t.tips)
	switch {
	case errors.Is(err, errTooMany):
		t.note("the repository has " + err.Error() + ", so it was packed anew: git gc makes backups faster")
		return t.packAnew(ctx)
	case errors.As(err, new(*missingTips)) && t.moved(ctx):
		return nil, fmt.Errorf("%w: %w", errMoved, err)
	case err != nil:
		return nil, &sourceError{t.nameTips(err)}
	}
	if made, err := t.looseOnly(ctx); made != nil || err != nil {
		return made, err
	}
	packs, folded := t.fold()
	if len(t.raw.loose) == 0 && len(folded) == 0 {
		return packs, nil
	}
	ids := []iter.Seq2[string, error]{t.raw.looseIDs()}
	for _, p := range folded {
		ids = append(ids, p.index.ids())
	}
	made, err := t.pack(ctx, newIDReader(ids), false)
	if err != nil {
		return t.looseFailed(ctx, err)
	}
	return append(packs, made...), nil
}

// maxWalkLoose is up to how many objects are walked from while they are packed.
const maxWalkLoose = 10_000

// looseOnly packs the objects of a repository that has no packs yet, as most small ones are. The refs reach nothing
// else, so git may walk through their history meanwhile, and needs no process of its own to do so later. It returns nothing
// where there are packs, and where something is wrong, which may be in what nobody reaches: others tell.
func (t *taking) looseOnly(ctx context.Context) ([]*localPack, error) {
	if len(t.raw.packs) > 0 || len(t.raw.loose) == 0 || len(t.raw.loose) > maxWalkLoose || t.now.grafts {
		return nil, nil
	}
	made, err := t.pack(ctx, newIDReader([]iter.Seq2[string, error]{t.raw.looseIDs()}), true)
	if proc.ExitCode(err) > 0 {
		return nil, ctx.Err()
	}
	t.walked, t.aside = err == nil, err == nil
	return made, err
}

// looseFailed goes on after objects could not be packed by their ids. A gc may have removed unreachable ones: then
// another look helps. Or one is damaged, as a power cut leaves them, and nothing may need it: what the refs reach tells.
func (t *taking) looseFailed(ctx context.Context, cause error) ([]*localPack, error) {
	if ctx.Err() != nil || proc.ExitCode(cause) < 0 {
		return nil, cause
	}
	if t.attempt == 1 {
		return nil, fmt.Errorf("%w: %w", errMoved, cause)
	}
	t.raw.close()
	packs, err := t.packAnew(ctx)
	if err != nil {
		return nil, err
	}
	t.note("an object that nothing reaches cannot be read and was left out: " + proc.OneLine(cause.Error(), 300))
	return packs, nil
}

// looseIDs are the loose objects, sorted: the same objects make the same pack each time, which need not be put again.
func (s *objectStore) looseIDs() iter.Seq2[string, error] {
	return withoutError(slices.Values(slices.Sorted(maps.Keys(s.loose))))
}

// fold divides the packs into those that are taken as they are and, where they are many, small ones that are put
// together.
func (t *taking) fold() (packs, folded []*localPack) {
	if len(t.raw.packs) <= maxPacks {
		return slices.Clone(t.raw.packs), nil
	}
	sizes := make([]int64, len(t.raw.packs))
	for i, p := range t.raw.packs {
		sizes[i] = p.size
	}
	merge := toMerge(sizes, maxPacks)
	for i, p := range t.raw.packs {
		if merge[i] {
			folded = append(folded, p)
		} else {
			packs = append(packs, p)
		}
	}
	return packs, folded
}

// toMerge says which of the packs with these sizes are put together when there are too many: the smallest, and more as long as
// that leaves more than half of limit, or the next is no larger than all before it
// together. So what is in a pack is written again only as often as the pack at least doubles.
func toMerge(sizes []int64, limit int) map[int]bool {
	order := make([]int, len(sizes))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(min(max(sizes[a]-sizes[b], -1), 1)) })
	merge, sum := map[int]bool{}, int64(0)
	for n, i := range order {
		if n > 0 && sizes[i] > sum && len(sizes)-n+1 <= limit/2 {
			break
		}
		merge[i], sum = true, sum+sizes[i]
	}
	return merge
}

// packAnew returns one pack of what the refs reach.
func (t *taking) packAnew(ctx context.Context) ([]*localPack, error) {
	packs, err := t.pack(ctx, idLines("", t.tips), true)
	if err != nil {
		return nil, t.gitFailed(ctx, err)
	}
	t.walked = true
	return packs, nil
}

// pack has git make a pack and opens it; none when there is nothing to pack.
func (t *taking) pack(ctx context.Context, ids io.Reader, revs bool) ([]*localPack, error) {
	if stop, ok := ids.(*idReader); ok {
		defer stop.close()
	}
	t.progress("pack", 0, 0)
	name, err := t.src.Repo.PackTo(ctx, t.tmp, ids, revs)
	if err != nil || name == "" {
		return nil, t.v.inScratch(err)
	}
	p, err := openPack(strings.TrimSuffix(t.tmp.PackPath(name+".pack"), ".pack"), t.now.digits)
	if err != nil {
		return nil, err
	}
	t.made = append(t.made, p)
	return []*localPack{p}, nil
}

// gitFailed says whether git's failure is due to a change of the repository, or its fault.
func (t *taking) gitFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil || proc.ExitCode(err) < 0 {
		return err
	}
	if t.moved(ctx) {
		return fmt.Errorf("%w: %w", errMoved, err)
	}
	return &sourceError{t.nameTips(err)}
}

// moved reports whether refs are other than they were when the attempt began.
func (t *taking) moved(ctx context.Context) bool {
	var now capture
	err := now.readRefs(ctx, t.src.Repo)
	return err == nil && !now.sameRefs(&t.now.Manifest)
}

func (t *taking) walkError(ctx context.Context, err error) error {
	if errors.Is(err, git.ErrMissing) {
		return t.gitFailed(ctx, err)
	}
	return err
}

// update returns a pack of what the repository has and the base has not.
func (t *taking) update(ctx context.Context) ([]*localPack, error) {
	base := set(t.base.tips())
	want := slices.DeleteFunc(slices.Clone(t.tips), func(id string) bool { return base[id] })
	if len(want) == 0 {
		t.walked = true
		return nil, nil
	}
	have, sure, err := t.known(ctx, want, base)
	if err != nil {
		return nil, t.gitFailed(ctx, err)
	}
	packs, err := t.packBeyond(ctx, want, have)
	if !sure && proc.ExitCode(err) > 0 && ctx.Err() == nil {
		there, lookErr := t.src.Repo.Existing(ctx, have)
		if lookErr != nil {
			return nil, t.gitFailed(ctx, lookErr)
		}
		packs, err = t.packBeyond(ctx, want, slices.Collect(maps.Keys(there)))
	}
	if err != nil {
		if t.attempt == 1 && proc.ExitCode(err) > 0 && ctx.Err() == nil { // something it stands on may have been pruned just now
			return nil, fmt.Errorf("%w: %w", errMoved, err)
		}
		return nil, t.gitFailed(ctx, err)
	}
	t.walked = true
	return packs, nil
}

// packBeyond packs what want reaches and have does not.
func (t *taking) packBeyond(ctx context.Context, want, have []string) ([]*localPack, error) {
	return t.pack(ctx, io.MultiReader(idLines("", want), idLines("^", have)), true)
}

// fewTips is up to how many values git is told of at once: it reads each of them, which for 50,000 takes
// longer than all the rest.
const fewTips = 2000

// known returns objects that the base reaches, so that nothing behind them has to be packed again. Any choice is
// right, and the nearer they are to what is wanted the less is packed. What was pruned here since is left out. When it is
// not sure of that, git tells: it packs nothing then. That is rare, and to ask first is a process for each backup.
func (t *taking) known(ctx context.Context, want []string, base map[string]bool) (have []string, sure bool, err error) {
	now := set(t.tips)
	var here, moved []string
	for id := range base {
		if now[id] {
			here = append(here, id)
		} else {
			moved = append(moved, id)
		}
	}
	if len(base) <= fewTips {
		return append(here, moved...), false, nil
	}
	var near []string
	if len(moved) <= fewTips {
		// Most are far from what is new. Near are those that history comes to first: they are here.
		all := false
		if near, all, err = t.src.Repo.Nearest(ctx, want, func(id string) bool { return base[id] }, fewTips); err != nil || all {
			return near, true, err
		}
	}
	there, err := t.src.Repo.Existing(ctx, moved)
	if err != nil {
		return nil, false, err
	}
	many := len(moved) > fewTips
	if moved = slices.Collect(maps.Keys(there)); many {
		return append(here, moved...), true, nil
	}
	// Something stands on old history, between the base's tips. It is found from the places where refs moved.
	near = append(near, moved...)
	if id := t.base.Refs[t.now.Head]; now[id] {
		near = append(near, id)
	}
	_, edge, all, err := t.src.Repo.Adds(ctx, want, near, fewTips)
	if err != nil {
		return nil, false, err
	}
	if !all {
		return append(here, moved...), true, nil
	}
	return append(near, edge...), true, nil
}

func set(ids []string) map[string]bool {
	s := make(map[string]bool, len(ids))
	for _, id := range ids {
		s[id] = true
	}
	return s
}

// idLines are ids, one a line, each after prefix.
func idLines(prefix string, ids []string) io.Reader {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(prefix + id + "\n")
	}
	return strings.NewReader(b.String())
}

func withoutError(ids iter.Seq[string]) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for id := range ids {
			if !yield(id, nil) {
				return
			}
		}
	}
}

// idReader streams ids, one a line: those of a pack need not be in memory.
type idReader struct {
	next    func() (string, error, bool)
	stop    func()
	pending []byte
}

func newIDReader(all []iter.Seq2[string, error]) *idReader {
	next, stop := iter.Pull2(func(yield func(string, error) bool) {
		for _, ids := range all {
			for id, err := range ids {
				if !yield(id, err) {
					return
				}
			}
		}
	})
	return &idReader{next: next, stop: stop}
}

func (r *idReader) close() { r.stop() }

func (r *idReader) Read(b []byte) (int, error) {
	for len(r.pending) < len(b) {
		id, err, ok := r.next()
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		r.pending = append(append(r.pending, id...), '\n')
	}
	if len(r.pending) == 0 {
		return 0, io.EOF
	}
	n := copy(b, r.pending)
	r.pending = append(r.pending[:0], r.pending[n:]...)
	return n, nil
}
