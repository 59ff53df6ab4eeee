package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/rescue"
	"mirror-shell/mirrorcfg"
)

// After a restore the copies are newer than the master. PullFrom brings what one
// of them has back: refs that are missing here come back, refs that are behind move
// forward, and where both sides have gone on, ours stays and theirs is kept as a
// rescued ref. Nothing that is here is lost, and afterwards the usual syncs
// may make the copies like us again.

// Puller is a peer that a master can fetch from.
type Puller interface {
	// Pull fetches the copy's mirrored refs into src and merges them as
	// PullFrom says. The caller holds the lock for (src, peer).
	Pull(ctx context.Context, src Source, say io.Writer) (Pulled, error)
}

// Pulled is what a pull has done.
type Pulled struct {
	Created, Forwarded []string          // refs, sorted
	Kept               map[string]string // refs that diverged, and where the peer's value is kept
	Equal, Newer       int               // refs that needed nothing; of the latter ours were ahead
}

// PullFrom pulls from the copy at the peer of that name, which must be in one of
// the lists of the repository, and this server its master. It tells what it does
// through say, in lines, and takes the mark off a repository that was restored.
func (p *Peers) PullFrom(ctx context.Context, repository, name string, say io.Writer) (Pulled, error) {
	opened, err := p.Open(name)
	if err != nil {
		return Pulled{}, err
	}
	if repository, err = mirrorcfg.CleanRepo(repository); err != nil {
		return Pulled{}, err
	}
	repo, unlock, err := p.lock(ctx, repository, name)
	if err != nil {
		return Pulled{}, err
	}
	defer unlock()
	cfg, err := mirrorcfg.LoadRepo(ctx, repository, repo)
	if err != nil {
		return Pulled{}, err
	}
	puller, able := opened.(Puller)
	switch role := cfg.Role(p.Server.Hostname); {
	case p.Kind(name) == KindBackup:
		return Pulled{}, fmt.Errorf("%s is a backup: mirror-shell restore %s --from %s --in-place brings back what it has", name, cfg.Name, name)
	case role != mirrorcfg.Master:
		return Pulled{}, fmt.Errorf("%s is not the master of %s (%s here): pull on the master", p.Server.Hostname, cfg.Name, role)
	case !cfg.Listed(p.Server.Hostname, name):
		return Pulled{}, fmt.Errorf("no list of %s names %s: a master fetches from its own slaves only", cfg.Name, name)
	case !able:
		return Pulled{}, fmt.Errorf("%s is not a peer that can be fetched from", name)
	}
	pulled, err := puller.Pull(ctx, Source{Config: cfg, Repo: repo}, say)
	if err != nil {
		return pulled, err
	}
	if err := p.pullHead(ctx, opened, repo, cfg.Name, name, say); err != nil {
		return pulled, err
	}
	return pulled, clearRestored(repo.Dir, name)
}

// pullHead takes the peer's HEAD over, where it tells one and the branch is here: it was changed
// after the backup was made. What is on record of it was rolled back, and is forgotten.
func (p *Peers) pullHead(ctx context.Context, opened Peer, repo git.Repo, repository, name string, say io.Writer) error {
	if err := forgetHead(repo, name); err != nil {
		return err
	}
	comparer, ok := opened.(Comparer)
	if !ok {
		return nil
	}
	standings, err := comparer.Compare(ctx)
	if errors.Is(err, ErrForeign) {
		return nil
	}
	if err != nil {
		return err
	}
	head := standings[repository].Head
	ours, err := repo.Head(ctx)
	if err != nil || head == "" || head == ours {
		return err
	}
	refs, err := repo.ReadRefs(ctx)
	if err != nil || refs[head] == "" {
		return err
	}
	if err := repo.SetHead(ctx, head); err != nil {
		return err
	}
	fmt.Fprintf(say, "HEAD is %s, as on %s; it was %s\n", head, name, cmp.Or(ours, "detached"))
	return nil
}

// Pull implements Puller.
func (p *sshPeer) Pull(ctx context.Context, src Source, say io.Writer) (pulled Pulled, err error) {
	say = &oneAtATime{w: say}
	space := "refs/mirror/pull/" + refElement(p.name) + "/"
	if err := dropBelow(ctx, src.Repo, space); err != nil {
		return pulled, err
	}
	defer func() {
		tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = also(err, dropBelow(tidy, src.Repo, space))
	}()
	if err := p.fetch(ctx, src.Repo, src.Config.Name, []string{"+refs/*:" + space + "*", "^refs/mirror/*"}, say); err != nil {
		return pulled, err
	}
	for range pullTries {
		var again bool
		if pulled, again, err = p.merge(ctx, src, space); !again {
			break
		}
	}
	if err == nil {
		pulled.tell(say, p.name)
	}
	return pulled, err
}

// pullTries is how often refs are compared anew because somebody pushed meanwhile.
const pullTries = 5

// merge is one attempt; again says that our refs have changed meanwhile.
func (p *sshPeer) merge(ctx context.Context, src Source, space string) (pulled Pulled, again bool, err error) {
	all, err := src.Repo.ReadRefs(ctx)
	if err != nil {
		return pulled, false, err
	}
	theirs := map[string]string{}
	for name, oid := range all {
		if ref, ok := strings.CutPrefix(name, space); ok {
			theirs["refs/"+ref] = oid
		}
	}
	if theirs = src.Config.MirroredRefs(theirs); len(theirs) == 0 {
		return pulled, false, fmt.Errorf("%s has no refs of %s: pull from another peer", p.name, src.Config.Name)
	}
	kept, err := keptHere(ctx, src.Repo)
	if err != nil {
		return pulled, false, err
	}
	now := time.Now()
	m := merger{
		ours: src.Config.MirroredRefs(all), everything: all,
		ancestor: func(a, b string) bool {
			is, err := src.Repo.IsAncestor(ctx, a, b)
			return err == nil && is
		},
		keep: func(ref, oid string) (name string, isNew bool) {
			if name := kept[rescue.Value{Ref: ref, OID: oid}]; name != "" {
				return name, false
			}
			return rescuedRef(p.name, now, ref, oid), true
		},
	}
	pulled, updates := m.merge(theirs)
	if err := ctx.Err(); err != nil { // ancestor could not answer
		return Pulled{}, false, err
	}
	if err := src.Repo.UpdateRefs(ctx, updates); err != nil {
		after, readErr := src.Repo.ReadRefs(ctx)
		return Pulled{}, readErr == nil && !maps.Equal(all, after), err
	}
	return pulled, false, nil
}

// merger decides what a pull does with each ref.
type merger struct {
	ours       map[string]string // mirrored
	everything map[string]string // every ref that is here
	ancestor   func(a, b string) bool
	keep       func(ref, oid string) (name string, isNew bool)
}

func (m merger) merge(theirs map[string]string) (pulled Pulled, updates []git.RefUpdate) {
	pulled.Kept = map[string]string{}
	dirs := m.directories()
	for _, ref := range slices.Sorted(maps.Keys(theirs)) {
		oid, have := theirs[ref], m.ours[ref]
		zero := strings.Repeat("0", len(oid))
		switch m.compare(ref, have, oid, dirs) {
		case same:
			pulled.Equal++
		case newerHere:
			pulled.Newer++
		case missing:
			pulled.Created = append(pulled.Created, ref)
			updates = append(updates, git.RefUpdate{Ref: ref, Old: zero, New: oid})
		case behind:
			pulled.Forwarded = append(pulled.Forwarded, ref)
			updates = append(updates, git.RefUpdate{Ref: ref, Old: have, New: oid})
		case diverged:
			name, isNew := m.keep(ref, oid)
			if isNew {
				updates = append(updates, git.RefUpdate{Ref: name, Old: zero, New: oid})
			}
			pulled.Kept[ref] = name
		}
	}
	return pulled, updates
}

// standing is how a ref here stands to the peer's.
type standing int

const (
	same standing = iota
	missing
	behind
	newerHere
	diverged // or they are different tags of one commit, or one's name does not go with the other's
)

func (m merger) compare(ref, have, oid string, dirs map[string]bool) standing {
	switch {
	case have == oid:
		return same
	case have == "" && (dirs[ref] || m.below(ref)):
		return diverged // x cannot be beside x/y
	case have == "":
		return missing
	}
	switch past, future := m.ancestor(have, oid), m.ancestor(oid, have); {
	case past && !future:
		return behind
	case future && !past:
		return newerHere
	}
	return diverged
}

// directories returns the names that cannot be refs because refs are below them.
func (m merger) directories() map[string]bool {
	dirs := map[string]bool{}
	for name := range m.everything {
		for i := strings.LastIndexByte(name, '/'); i > 0; i = strings.LastIndexByte(name[:i], '/') {
			dirs[name[:i]] = true
		}
	}
	return dirs
}

// below reports whether a ref would stand below another one.
func (m merger) below(ref string) bool {
	for i := strings.LastIndexByte(ref, '/'); i > 0; i = strings.LastIndexByte(ref[:i], '/') {
		if m.everything[ref[:i]] != "" {
			return true
		}
	}
	return false
}

func (p Pulled) tell(say io.Writer, peer string) {
	told := teller{say: say}
	for _, ref := range p.Created {
		told.line(" * [came back]        " + ref)
	}
	for _, ref := range p.Forwarded {
		told.line("   [moved forward]    " + ref)
	}
	for _, ref := range slices.Sorted(maps.Keys(p.Kept)) {
		told.line(" ! [diverged]         " + ref + " stays as it is here; what " + peer + " has is kept as " + p.Kept[ref])
	}
	told.end()
	fmt.Fprintf(say, "from %s: %d refs came back, %d moved forward, %d diverged; %d were equal and %d newer here\n",
		peer, len(p.Created), len(p.Forwarded), len(p.Kept), p.Equal, p.Newer)
}

// dropBelow deletes all refs below a prefix that ends in a slash.
func dropBelow(ctx context.Context, repo git.Repo, prefix string) error {
	refs, err := repo.ReadRefs(ctx)
	if err != nil {
		return err
	}
	var updates []git.RefUpdate
	for name, oid := range refs {
		if strings.HasPrefix(name, prefix) {
			updates = append(updates, git.RefUpdate{Ref: name, Old: oid, New: strings.Repeat("0", len(oid))})
		}
	}
	if err := repo.UpdateRefs(ctx, updates); err != nil {
		return fmt.Errorf("remove %s*: %w", prefix, err)
	}
	return nil
}
