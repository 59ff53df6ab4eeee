package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
)

// Moved is a ref that was changed in a repository while that was being replaced: who did so was told that
// it has arrived, and it is only in the directory that was moved aside.
type Moved struct {
	Ref string `json:"ref"`
	Old string `json:"old,omitempty"` // object id; "": there was none
	New string `json:"new,omitempty"` // "": it was deleted
}

var ( // tests have less
	// pushPatience is how long pushes that are under way are waited for before the swap. Most take a fraction of a
	// second. A client that has gone to sleep would be waited for for ever.
	pushPatience = 10 * time.Second
	// refusalPatience is how long a push may take to say that it was refused. Whatever is at work after it in the directory
	// that was moved aside is ended.
	refusalPatience = 2 * time.Second
)

// pushPoll is how often is looked whether a push has ended.
const pushPoll = 5 * time.Millisecond

// replaced is a repository that a restore is about to move aside, and what is known about pushes to it.
//
// Pushes that come now are refused, by the mark. Those under way have been asked already whether they may, and are waited for, a
// while. What still works in the directory after the swap can bring nothing to the repository any more: it is
// ended, so that whoever pushes is told of a failure and tries again. Then nobody moves refs there any more, and
// those that have moved since the restore began are named.
type replaced struct {
	v       *Vault
	name    string // of the repository
	dir     fs.FileInfo
	mark    *refset.Restoring
	refs    map[string]string
	unknown error // why refs is not known
}

// watch reads the refs of what is at the target. It is called before anything is downloaded, which may take hours.
func (b *build) watch(ctx context.Context, target string) error {
	is, err := inspect(target, b.o.Replace)
	if err != nil || is == nothing {
		return err
	}
	b.refs, b.unknown = git.Repo{Dir: target}.ReadRefs(ctx)
	return ctx.Err()
}

// replaces is the repository in a directory, nil when there is none. One that came there since watch has
// nothing but what was put there meanwhile.
func (b *build) replaces(dir string) (*replaced, error) {
	is, err := inspect(dir, b.o.Replace)
	if err != nil || is == nothing {
		return nil, err
	}
	info, err := os.Stat(dir)
	return &replaced{v: b.v, name: b.m.Repository, dir: info, refs: b.refs, unknown: b.unknown}, err
}

// close has pushes refused and waits for those under way. The notes say what could not be done: the restore goes
// on, because what is replaced may be broken. Only a full disk is an error: it is somebody's to mend first.
func (r *replaced) close(ctx context.Context, target string) (notes []string, err error) {
	text := fmt.Sprintf("%s is being restored: try again in a minute", r.name)
	if r.mark, err = refset.MarkRestoring(target, text); isFull(err) {
		return nil, err
	} else if err != nil {
		notes = append(notes, fmt.Sprintf("pushes could not be refused meanwhile: %v", err))
	}
	left, err := r.wait(ctx, pushPatience)
	if err != nil {
		notes = append(notes, fmt.Sprintf("pushes that are under way cannot be seen: %v", err))
	}
	closeAll(left)
	return notes, nil
}

// wait waits for the pushes that are under way now, and not for later ones. It returns those that are left.
func (r *replaced) wait(ctx context.Context, patience time.Duration) ([]proc.Process, error) {
	left, err := proc.Pushes(r.dir)
	for until := time.Now().Add(patience); len(left) > 0 && time.Now().Before(until) && ctx.Err() == nil; {
		time.Sleep(pushPoll)
		left = slices.DeleteFunc(left, func(p proc.Process) bool {
			ended := p.Ended()
			if ended {
				p.Close()
			}
			return ended
		})
	}
	return left, err
}

func closeAll(all []proc.Process) {
	for _, p := range all {
		p.Close()
	}
}

// end is called when the repository has been moved aside. It ends the pushes that are still at work there, and returns which refs
// have moved since watch, sorted. What it does is not stopped by ctx: the swap has happened.
func (r *replaced) end(ctx context.Context, aside string) (moved []Moved, notes []string, err error) {
	ctx = context.WithoutCancel(ctx)
	ended := map[int]bool{}
	for _, step := range []struct {
		signal   unix.Signal
		patience time.Duration
	}{{0, refusalPatience}, {unix.SIGTERM, refusalPatience}, {unix.SIGKILL, refusalPatience}} {
		left, err := proc.Pushes(r.dir)
		if err != nil {
			closeAll(left)
			notes = append(notes, fmt.Sprintf("pushes that are under way cannot be seen: %v", err))
			break
		}
		for _, p := range left {
			if step.signal != 0 && p.Signal(step.signal) == nil {
				ended[p.PID] = true
			}
		}
		closeAll(left)
		if left, _ = r.wait(ctx, step.patience); len(left) == 0 {
			break
		}
		closeAll(left)
	}
	if len(ended) > 0 {
		notes = append(notes, fmt.Sprintf("%d pushes that had begun before were still under way, and were ended", len(ended)))
	}
	moved, more, err := r.compare(ctx, aside)
	return moved, append(notes, more...), err
}

func (r *replaced) compare(ctx context.Context, aside string) (moved []Moved, notes []string, err error) {
	if r.unknown != nil {
		return nil, []string{"whether something was pushed meanwhile cannot be told, because the refs of what was there cannot be read: " + proc.OneLine(r.unknown.Error(), 300)}, nil
	}
	refs, err := git.Repo{Dir: aside}.ReadRefs(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%w, but whether something was pushed to the old one meanwhile, which is now %s, cannot be told: %w", errPlaced, aside, err)
	}
	return difference(r.refs, refs), nil, nil
}

// difference returns the refs that are other than they were.
func difference(before, after map[string]string) (moved []Moved) {
	for ref, old := range before {
		if after[ref] != old {
			moved = append(moved, Moved{ref, old, after[ref]})
		}
	}
	for ref := range maps.Keys(after) {
		if _, was := before[ref]; !was {
			moved = append(moved, Moved{Ref: ref, New: after[ref]})
		}
	}
	slices.SortFunc(moved, func(a, b Moved) int { return cmp.Compare(a.Ref, b.Ref) })
	return moved
}

// open ends the mark, wherever the repository is by now.
func (r *replaced) open() {
	if r.mark == nil {
		return
	}
	if err := r.mark.Release(); err != nil {
		r.v.log().Warn("the mark of a restore that is over is left; it does no harm", "error", err)
	}
	r.mark = nil
}
