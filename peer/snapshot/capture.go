package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
)

// capture is what a repository is at one moment, its packs apart.
type capture struct {
	Manifest          // without packs; objects of files and LFS have no key yet
	files    *kept    // where the content of the files is
	borrows  bool     // objects of other repositories are used
	grafts   bool     // history is not what the commits say
	digits   int      // bytes of an object id
	dir      string   // the repository
	dropped  []string // what cannot be kept, of refs and files, for people
}

// errPartial: there is no saying what is missing in such a repository, and what is not there by intent.
var errPartial = errors.New("it is a partial clone, which lacks objects by intent, and a backup of it could not be restored: unset remote.NAME.partialclonefilter, fetch everything with git fetch --refetch, then unset remote.NAME.promisor and extensions.partialClone, and remove objects/pack/*.promisor")

// capture looks at everything but objects. Refs come first: what they reach is in the object
// directory by then, and stays there for as long as git's gc spares what is young.
func (t *taking) capture(ctx context.Context) (*capture, error) {
	repo := t.src.Repo
	if !git.IsRepository(repo.Dir) {
		return nil, fmt.Errorf("%s is not a repository", repo.Dir)
	}
	c := &capture{dir: repo.Dir}
	c.Time = t.v.now()
	if err := c.refuse(ctx, repo); err != nil {
		return nil, err
	}
	if err := c.readRefs(ctx, repo); err != nil {
		return nil, err
	}
	mirrored := t.src.Mirrored
	if mirrored == nil {
		mirrored = outsideMirror
	}
	c.Digest = digest.Of(mirrored(maps.Clone(c.Refs)))
	var err error
	c.files, c.Files, c.LFS, err = t.v.keep(ctx, repo.Dir, t.memory)
	if err != nil {
		return nil, fmt.Errorf("read the files: %w", err)
	}
	if text := c.files.note(); text != "" {
		c.dropped = append(c.dropped, text)
	}
	c.Repository, c.ID, c.Server, c.Program = t.src.Repository, t.src.ID, t.v.Server, t.v.Program
	c.SealedFor, c.Grace = t.v.sealedFor(), int64(min(t.v.grace(), maxGrace)/time.Second)
	c.Format = c.format()
	return c, nil
}

// refuse says which repositories cannot be backed up, and notes what is unusual.
func (c *capture) refuse(ctx context.Context, repo git.Repo) error {
	partial, err := repo.Partial(ctx)
	if err != nil {
		return err
	}
	if partial {
		return errPartial
	}
	if holds(repo.Dir, "shallow") {
		return errors.New("it is a shallow clone, whose history ends somewhere, and a backup of it could not be restored: git fetch --unshallow")
	}
	if _, err := os.Lstat(filepath.Join(repo.Dir, "commondir")); err == nil {
		return errors.New("it is a worktree of another repository: back that one up")
	}
	c.grafts = holds(repo.Dir, "info/grafts")
	c.borrows = holds(repo.Dir, "objects/info/alternates")
	return nil
}

// holds reports whether a file of the repository is there and not empty.
func holds(dir, name string) bool {
	info, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name)))
	return err == nil && info.Size() > 0
}

func (c *capture) readRefs(ctx context.Context, repo git.Repo) (err error) {
	if c.ObjectFormat, err = repo.ObjectFormat(ctx); err != nil {
		return err
	}
	if c.digits = map[string]int{"sha1": 20, "sha256": 32}[c.ObjectFormat]; c.digits == 0 {
		return fmt.Errorf("its object format %q is unknown", c.ObjectFormat)
	}
	if c.Refs, c.SymRefs, err = repo.RefsAndTargets(ctx); err != nil {
		return err
	}
	c.dropTargets()
	if err := c.readWorktrees(ctx, repo); err != nil {
		return err
	}
	if c.Head, err = repo.Head(ctx); err != nil || c.Head != "" {
		return err
	}
	c.Detached, err = repo.DetachedHead(ctx)
	return err
}

// dropTargets leaves out symbolic refs that point to what is no ref's name: to git they do not exist. One to a name outside of refs/ has a value, and
// is kept as an ordinary ref.
func (c *capture) dropTargets() {
	for _, name := range slices.Sorted(maps.Keys(c.SymRefs)) {
		if target := c.SymRefs[name]; !isTarget(target) || !isRef(name) {
			delete(c.SymRefs, name)
			what := "left out"
			if _, ok := c.Refs[name]; ok {
				what = "kept as an ordinary ref"
			}
			c.dropped = append(c.dropped, fmt.Sprintf("the symbolic ref %q to %.100q is none that git reads, and was %s", name, target, what))
		}
	}
}

// worktreeRefs is where what linked worktrees stand on is kept. A snapshot has no worktrees, only what is in
// their commits.
const worktreeRefs = "refs/mirror/worktrees/"

// readWorktrees adds the commits of worktrees as refs: nothing else may reach them.
func (c *capture) readWorktrees(ctx context.Context, repo git.Repo) error {
	roots, unknown, err := repo.Worktrees(ctx)
	if err != nil {
		return err
	}
	for _, name := range unknown {
		c.dropped = append(c.dropped, fmt.Sprintf("worktrees/%s cannot be read, and what only it reaches was left out", name))
	}
	places := takenBelow(worktreeRefs, c.Refs, c.SymRefs)
	for _, name := range slices.Sorted(maps.Keys(roots)) {
		oid := roots[name]
		ref, ok := places.beside(c.Refs, name, oid)
		if !ok || !isRef(ref) {
			c.dropped = append(c.dropped, fmt.Sprintf("worktrees/%s has no name that a ref may have here, and what only it reaches was left out", name))
			continue
		}
		c.Refs[ref] = oid
		places.take(ref)
	}
	return nil
}

// places are where no other ref can be: false of a ref, true of what refs are below.
type places map[string]bool

// beside returns the ref for what worktrees/NAME is: one that has that value, or that can be made. There may be a ref of that name
// from a snapshot that was restored, or because somebody has made one.
func (p places) beside(refs map[string]string, name, oid string) (ref string, ok bool) {
	tree, rest, _ := strings.Cut(name, "/")
	ref = worktreeRefs + name
	for n := 1; n < 100; n++ {
		if refs[ref] == oid || p.free(ref) {
			return ref, true
		}
		ref = worktreeRefs + tree + "-" + oid[:8]
		if n > 1 {
			ref += fmt.Sprintf("-%d", n)
		}
		ref += "/" + rest
	}
	return "", false
}

// takenBelow are the places that refs take below a prefix, which ends in "/".
func takenBelow(prefix string, all ...map[string]string) places {
	p := places{}
	for _, refs := range all {
		for ref := range refs {
			if strings.HasPrefix(ref, prefix) || strings.HasPrefix(prefix, ref+"/") {
				p.take(ref)
			}
		}
	}
	return p
}

func (p places) take(ref string) {
	p[ref] = false
	for dir := path.Dir(ref); dir != "refs" && dir != "."; dir = path.Dir(dir) {
		p[dir] = true
	}
}

// free reports whether a ref can be made, beside those that there are.
func (p places) free(ref string) bool {
	if _, taken := p[ref]; taken {
		return false
	}
	for dir := path.Dir(ref); dir != "refs" && dir != "."; dir = path.Dir(dir) {
		if below, taken := p[dir]; taken && !below {
			return false
		}
	}
	return true
}

// outsideMirror are the refs that peers are compared by, unless the caller says otherwise.
func outsideMirror(refs map[string]string) map[string]string {
	maps.DeleteFunc(refs, func(name, _ string) bool { return strings.HasPrefix(name, "refs/mirror/") })
	return refs
}

// tips returns the objects that the snapshot has to reach everything from, each once, sorted.
func (m *Manifest) tips() []string {
	seen := make(map[string]bool, len(m.Refs))
	for _, oid := range m.Refs {
		seen[oid] = true
	}
	if m.Detached != "" {
		seen[m.Detached] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// sameRefs reports whether nothing moved between two looks.
func (m *Manifest) sameRefs(other *Manifest) bool {
	return m.Head == other.Head && m.Detached == other.Detached && maps.Equal(m.Refs, other.Refs) && maps.Equal(m.SymRefs, other.SymRefs)
}

// after returns the time of a snapshot that follows one of that time.
func after(now, latest time.Time) time.Time {
	now = now.UTC().Truncate(time.Millisecond)
	if next := latest.Add(time.Millisecond); next.After(now) {
		return next.UTC()
	}
	return now
}
