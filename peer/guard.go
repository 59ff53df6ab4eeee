package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
)

// The guard looks at what a sync is about to do, and holds it when that looks
// like an accident on our side: a source that is empty, was rolled back by a
// restore or replaced by another repository, or a mass deletion. A copy is worth most
// when the original has gone wrong, and must not follow it then. A held sync has
// changed nothing at the peer; a person says what is right (approve.go,
// pullfrom.go).
//
// In the usual case, one ref or a few that move forward, the guard looks at
// nothing but the refs that are known anyway, and starts no process.

// guardView is a sync as the guard sees it.
type guardView struct {
	repo, peer   string
	zero         string
	ours, theirs map[string]string
	commands     []sendpack.Command // what would be done, of values that are known
	received     []sendpack.Command // of unknown values, those that the peer had from us
	unknown      int                // values of the peer's that are not known here, received ones included
	restored     bool               // the source is marked as restored from a backup
	maxDelete    int                // percent
}

// lookups are what the guard asks, each only when it matters.
type lookups struct {
	// contained returns which objects our mirrored refs reach.
	contained func(oids []string) (map[string]bool, error)
	// exist returns which objects are here, reachable or not.
	exist func(oids []string) (map[string]bool, error)
	// back returns those of the updates that move a ref to its own ancestor.
	back func(updates []sendpack.Command) ([]sendpack.Command, error)
	// knows: something is on record of the ref at the peer.
	knows func(ref string) bool
}

// massDeletion is from how many deletions on they may be an accident.
const massDeletion = 3

// several refs that move back at once are a restore; one is a user's force-push.
const several = 2

// reasons says why the sync has to be held; none when it may go on.
func (v guardView) reasons(look lookups) ([]string, error) {
	if len(v.theirs) == 0 {
		return nil, nil
	}
	if len(v.ours) == 0 {
		return []string{fmt.Sprintf("%s is empty here and has %d refs on %s", v.repo, len(v.theirs), v.peer)}, nil
	}
	if replaced, err := v.replaced(look); replaced || err != nil {
		return []string{fmt.Sprintf("%s has nothing in common with %s on %s, as if it had been replaced by another repository of the same name or restored from a very old backup", v.repo, v.repo, v.peer)}, err
	}
	var reasons []string
	if n := len(v.received); n > 0 {
		reasons = append(reasons, fmt.Sprintf("%s was rolled back or replaced here, or rolled back there: %s once got from its master what is not known here (%s at %s)",
			v.repo, v.peer, refList(v.received), v.received[0].Old[:10]))
	}
	for _, rule := range []func(lookups) (string, error){v.aheadOfRestored, v.massDeletion, v.movesBack} {
		reason, err := rule(look)
		if err != nil {
			return nil, err
		}
		if reason != "" {
			reasons = append(reasons, reason)
		}
	}
	return reasons, nil
}

// replaced finds a peer that has nothing which we ever had to do with.
func (v guardView) replaced(look lookups) (bool, error) {
	if v.unknown < len(v.theirs) || len(v.received) > 0 { // the latter says more
		return false, nil
	}
	oids := make([]string, 0, len(v.theirs))
	for ref, oid := range v.theirs {
		if look.knows(ref) {
			return false, nil
		}
		oids = append(oids, oid)
	}
	exist, err := look.exist(distinct(oids))
	return err == nil && len(exist) == 0, err
}

// aheadOfRestored: what the peer has beyond a restored source was pushed after
// the backup was made.
func (v guardView) aheadOfRestored(look lookups) (string, error) {
	if !v.restored {
		return "", nil
	}
	var ahead, moved []sendpack.Command
	for _, c := range v.commands {
		switch {
		case c.New == v.zero:
			ahead = append(ahead, c)
		case c.Old != v.zero:
			moved = append(moved, c)
		}
	}
	contained, err := look.contained(olds(moved))
	for _, c := range moved {
		if !contained[c.Old] {
			ahead = append(ahead, c)
		}
	}
	if len(ahead) == 0 && v.unknown == 0 || err != nil {
		return "", err
	}
	what := refList(ahead)
	if what == "" {
		what = fmt.Sprintf("%d refs", v.unknown)
	}
	return fmt.Sprintf("%s was restored from a backup here, and %s is ahead of it (%s)", v.repo, v.peer, what), nil
}

// massDeletion counts the deletions that lose something: a branch that was
// renamed or merged is still contained in what we have.
func (v guardView) massDeletion(look lookups) (string, error) {
	kept := make(map[string]bool, len(v.ours))
	var deleted []sendpack.Command
	for _, c := range v.commands {
		if c.New == v.zero {
			if len(deleted) == 0 {
				for _, oid := range v.ours {
					kept[oid] = true
				}
			}
			if !kept[c.Old] {
				deleted = append(deleted, c)
			}
		}
	}
	if !v.tooMany(len(deleted)) {
		return "", nil
	}
	contained, err := look.contained(olds(deleted))
	deleted = slices.DeleteFunc(deleted, func(c sendpack.Command) bool { return contained[c.Old] })
	if err != nil || !v.tooMany(len(deleted)) {
		return "", err
	}
	return fmt.Sprintf("%d of %d refs on %s would be deleted with all that only they have (%s)", len(deleted), len(v.theirs), v.peer, refList(deleted)), nil
}

func (v guardView) tooMany(deletions int) bool {
	return deletions >= massDeletion && 100*deletions > v.maxDelete*len(v.theirs)
}

// movesBack: refs that return to their own past.
func (v guardView) movesBack(look lookups) (string, error) {
	var updates []sendpack.Command
	for _, c := range v.commands {
		if c.Old != v.zero && c.New != v.zero {
			updates = append(updates, c)
		}
	}
	if len(updates) < several {
		return "", nil
	}
	back, err := look.back(updates)
	if err != nil || len(back) < several {
		return "", err
	}
	return fmt.Sprintf("%s would go back to older commits on %s", refList(back), v.peer), nil
}

func olds(commands []sendpack.Command) []string {
	oids := make([]string, 0, len(commands))
	for _, c := range commands {
		oids = append(oids, c.Old)
	}
	return oids
}

// RestoredMark is the file, in a repository that was restored from a backup,
// which tells so: until somebody has said what is right (approve, sync --pull-from), no
// peer that is ahead of the backup is touched. That is said of one peer, and what another one
// has is a question of its own: the mark stays, and beside a peer's record PEER.cleared, not older than
// the mark, says that for this peer it does not count any more.
func RestoredMark(repoDir string) string { return filepath.Join(refset.Dir(repoDir), "restored") }

func clearedFile(repoDir, peer string) string { return besideRecord(repoDir, peer, ".cleared") }

// restored reports whether the mark counts for the peer.
func restored(repoDir, peer string) bool {
	mark, err := os.Stat(RestoredMark(repoDir))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	cleared, clearedErr := os.Stat(clearedFile(repoDir, peer))
	return err != nil || clearedErr != nil || cleared.ModTime().Before(mark.ModTime())
}

// clearRestored ends the mark for a peer.
func clearRestored(repoDir, peer string) error {
	if !restored(repoDir, peer) {
		return nil
	}
	if err := writeDurably(clearedFile(repoDir, peer), time.Now().UTC()); err != nil {
		return fmt.Errorf("the mark that the repository was restored: %w", err)
	}
	return nil
}

// guarded finishes a plan: the whole sync is held, an error that wraps ErrHeld, or
// what is divergent is sorted into what may be overwritten, because its value is
// kept somewhere, and what stays.
func (r *syncRun) guarded(ctx context.Context, p plan) (plan, error) {
	approved, err := r.approved()
	if err != nil {
		return plan{}, err
	}
	d, err := r.sortDivergent(ctx, p.divergent)
	if err != nil {
		return plan{}, err
	}
	p.commands = append(p.commands, d.kept...)
	if !approved {
		reasons, err := r.guardReasons(ctx, p, d)
		if err != nil {
			return plan{}, err
		}
		if len(reasons) > 0 {
			return plan{}, r.hold(reasons)
		}
	}
	p.approved = approved
	if err := r.settle(ctx, &p, d); err != nil {
		return plan{}, err
	}
	if len(p.divergent) == 0 && r.adv != nil { // from the record alone nothing is known to be well
		return p, r.unhold()
	}
	return p, nil
}

func (r *syncRun) guardReasons(ctx context.Context, p plan, d divergence) ([]string, error) {
	view := guardView{
		repo: r.src.Config.Name, peer: r.name, zero: r.zero, ours: r.ours, theirs: r.theirs,
		commands: p.commands, received: d.received, unknown: len(p.divergent), restored: restored(r.src.Repo.Dir, r.name), maxDelete: r.maxDelete,
	}
	return view.reasons(lookups{
		contained: func(oids []string) (map[string]bool, error) {
			if len(oids) == 0 {
				return nil, nil
			}
			return r.contained(ctx, oids)
		},
		exist: func(oids []string) (map[string]bool, error) { return r.src.Repo.Existing(ctx, oids) },
		back:  func(updates []sendpack.Command) ([]sendpack.Command, error) { return r.back(ctx, updates) },
		knows: func(ref string) bool { _, ok := r.log.Confirmed(ref); return ok },
	})
}

// wayOut ends the message about a held sync. Where that is cut to fit a table its
// end is kept.
func (r *syncRun) wayOut() string {
	return fmt.Sprintf("to keep what is there: mirror-shell sync --pull-from %[1]s %[2]s; to drop it: mirror-shell approve %[2]s %[1]s", r.name, r.src.Config.Name)
}

// hold returns the error that holds the whole sync, and leaves a note for approve.
func (r *syncRun) hold(reasons []string) error {
	err := fmt.Errorf("%w: %s: %s", ErrHeld, strings.Join(reasons, "; "), r.wayOut())
	return also(err, r.noteHeld(reasons))
}

// back returns those of the updates that move a ref to its own ancestor, as many
// as maxProbes questions find. Whoever only goes forward in commits that have just
// been pushed costs no process.
func (r *syncRun) back(ctx context.Context, updates []sendpack.Command) ([]sendpack.Command, error) {
	updates, err := r.maybeBack(ctx, updates)
	if err != nil || len(updates) < several {
		return nil, err
	}
	var back []sendpack.Command
	for _, c := range updates[:min(len(updates), maxProbes)] {
		is, err := r.src.Repo.IsAncestor(ctx, c.New, c.Old)
		if ctx.Err() != nil {
			return nil, err
		}
		if err == nil && is { // a history with holes, or no commits at all, say nothing
			back = append(back, c)
		}
	}
	return back, nil
}

// maybeBack leaves out, all at once, the updates that cannot have moved back.
func (r *syncRun) maybeBack(ctx context.Context, updates []sendpack.Command) ([]sendpack.Command, error) {
	updates = slices.DeleteFunc(slices.Clone(updates), r.forward)
	if len(updates) < several {
		return nil, nil
	}
	news := make([]string, 0, len(updates))
	for _, c := range updates {
		news = append(news, c.New)
	}
	exist, err := r.src.Repo.Existing(ctx, distinct(slices.Concat(news, olds(updates))))
	if err != nil {
		return nil, err
	}
	// What the peer has and we have not even as an object is no commit that we
	// could be behind: it was rewritten here so long ago that it is gone.
	updates = slices.DeleteFunc(updates, func(c sendpack.Command) bool { return !exist[c.Old] || !exist[c.New] })
	absent := func(oid string) bool { return !exist[oid] }
	beyond, err := r.src.Repo.Beyond(ctx, slices.DeleteFunc(distinct(news), absent), distinct(olds(updates)))
	if err != nil {
		return updates, ctx.Err() // a history with holes: each is looked at by itself
	}
	return slices.DeleteFunc(updates, func(c sendpack.Command) bool { return beyond[c.New] }), nil
}

// maxForward is how many commits of one push are looked at to see that it goes
// forward. A push of more objects than receive.unpackLimit (100) is a pack anyway.
const maxForward = 100

// forward reports whether an update is seen to go forward by loose commits alone.
func (r *syncRun) forward(c sendpack.Command) bool {
	queue, seen := []string{c.New}, map[string]bool{c.New: true}
	for i := 0; i < len(queue) && i < maxForward; i++ {
		parents, _ := r.src.Repo.LooseParents(queue[i])
		for _, p := range parents {
			if p == c.Old {
				return true
			}
			if !seen[p] {
				seen[p] = true
				queue = append(queue, p)
			}
		}
	}
	return false
}
