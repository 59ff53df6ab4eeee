package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mirror-shell/internal/lazyregexp"
	"mirror-shell/internal/proc"
)

// What taking a backup asks of git.

// RefsAndTargets returns every ref with its value, as Refs does, and the targets of those that are symbolic. A symbolic
// ref to nothing has a target and no value; git itself does not list it. Targets are as they stand in the
// repository: they may be symbolic refs themselves, and anything at all. Where refs are kept in
// another format than files it is as git lists them. Where there is nothing unusual it starts no process.
func (r Repo) RefsAndTargets(ctx context.Context) (refs, targets map[string]string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if refs, err := r.PlainRefs(); err == nil { // there are no symbolic refs
		return refs, nil, nil
	}
	var out bytes.Buffer
	stderr, err := r.run(ctx, nil, &out, "for-each-ref", "--format=%(objectname) %(refname) %(symref)")
	if err != nil {
		return nil, nil, fmt.Errorf("read refs: %w: repair %s, or restore it (see git fsck)", err, r.Dir)
	}
	if stderr != "" {
		return nil, nil, fmt.Errorf("read refs: git says %q: repair or delete that ref by hand (see git fsck)", proc.OneLine(stderr, 300))
	}
	refs, targets = map[string]string{}, map[string]string{}
	for line := range strings.Lines(out.String()) {
		words := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		if len(words) != 3 {
			return nil, nil, fmt.Errorf("read refs: git printed %q", line)
		}
		refs[words[1]] = words[0]
		if words[2] != "" {
			targets[words[1]] = words[2]
		}
	}
	return refs, targets, r.rawTargets(targets)
}

// rawTargets adds the symbolic refs that are files, as they stand there.
func (r Repo) rawTargets(targets map[string]string) error {
	if _, err := os.Lstat(filepath.Join(r.Dir, "reftable")); err == nil {
		return nil
	}
	return eachLoose(r.Dir, "refs", func(name string, ref RawRef) {
		if ref.OID == "" && ref.Target != "" {
			targets[name] = ref.Target
		}
	})
}

// eachLoose calls each with every loose ref below a directory of the repository, by its path there. What
// vanishes meanwhile is left out.
func eachLoose(dir, below string, each func(name string, ref RawRef)) error {
	return filepath.WalkDir(filepath.Join(dir, below), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && (d.IsDir() || strings.HasSuffix(path, ".lock")) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path[len(dir)+1:]
		ref, err := Repo{Dir: dir}.looseRef(name)
		if err == nil {
			each(name, ref)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// Worktrees returns the objects that the repository's linked worktrees stand on, as far as no ref of the repository says so: WORKTREE/HEAD
// where that is detached, and what they have as refs of their own, such as WORKTREE/bisect/bad. Without worktrees it is
// one look at a directory. Unknown are those of which that cannot be read.
func (r Repo) Worktrees(ctx context.Context) (roots map[string]string, unknown []string, err error) {
	entries, err := os.ReadDir(filepath.Join(r.Dir, "worktrees"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read worktrees: %w", err)
	}
	roots = map[string]string{}
	for _, e := range entries {
		tree := filepath.Join("worktrees", e.Name())
		head, err := r.looseRef(filepath.Join(tree, "HEAD"))
		if _, other := os.Lstat(filepath.Join(r.Dir, tree, "reftable")); other == nil || err != nil || head.OID == "" && head.Target == "" {
			unknown = append(unknown, e.Name()+"/HEAD")
			continue
		}
		if head.OID != "" {
			roots[e.Name()+"/HEAD"] = head.OID
		}
		err = eachLoose(r.Dir, filepath.Join(tree, "refs"), func(name string, ref RawRef) {
			if name = e.Name() + name[len(tree+"/refs"):]; ref.OID != "" {
				roots[name] = ref.OID
			}
		})
		if err != nil {
			return nil, nil, fmt.Errorf("read the refs of worktree %s: %w", e.Name(), err)
		}
	}
	there, err := r.Existing(ctx, slices.Collect(maps.Values(roots)))
	for name, oid := range roots {
		if !there[oid] {
			delete(roots, name)
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return roots, unknown, err
}

// DetachedHead returns the object id that HEAD is when it points to no ref.
func (r Repo) DetachedHead(ctx context.Context) (string, error) {
	if data, err := os.ReadFile(filepath.Join(r.Dir, "HEAD")); err == nil {
		if oid := strings.TrimSuffix(string(data), "\n"); oidPattern.MatchString(oid) {
			return oid, nil
		}
	}
	var out bytes.Buffer
	if _, err := r.run(ctx, nil, &out, "rev-parse", "--verify", "HEAD"); err != nil {
		return "", fmt.Errorf("read HEAD: %w", err)
	}
	return strings.TrimSpace(out.String()), nil
}

var (
	oidPattern = lazyregexp.New(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	oidInText  = lazyregexp.New(`\b([0-9a-f]{64}|[0-9a-f]{40})\b`)
)

// ObjectFormat returns "sha1" or "sha256". No process is started where the repository's config
// does not speak of it.
func (r Repo) ObjectFormat(ctx context.Context) (string, error) {
	if asks, err := r.HasConfig("objectformat"); err != nil || !asks {
		return "sha1", err
	}
	var out bytes.Buffer
	if _, err := r.run(ctx, nil, &out, "rev-parse", "--show-object-format"); err != nil {
		return "", fmt.Errorf("read the object format: %w", err)
	}
	return strings.TrimSpace(out.String()), nil
}

// Partial reports whether the repository is a partial clone: objects may be missing in it that git
// would fetch from elsewhere when they are needed.
func (r Repo) Partial(ctx context.Context) (bool, error) {
	if asks, err := r.HasConfig("partialclone"); err != nil || asks {
		return asks, err
	}
	asks, err := r.HasConfig("promisor")
	if err != nil || !asks {
		return false, err
	}
	entries, err := r.Config(ctx, `^remote\..*\.promisor$`)
	return slices.ContainsFunc(entries, func(e ConfigEntry) bool { return e.Implicit || !strings.EqualFold(e.Value, "false") }), err
}

// Scratch is a place for packs outside of a repository, with the layout of an object directory.
// git writes unfinished packs to its object directory, which may be on another disk.
type Scratch struct{ Dir string }

// NewScratch makes the directories that git expects below dir, which exists.
func NewScratch(dir string) (Scratch, error) {
	return Scratch{dir}, errors.Join(os.MkdirAll(filepath.Join(dir, "pack"), 0o700), os.MkdirAll(filepath.Join(dir, "info"), 0o700))
}

// PackPath returns where a pack or index of PackTo is: its name with ".pack" or ".idx".
func (s Scratch) PackPath(file string) string { return filepath.Join(s.Dir, "pack", file) }

// environment has git write objects to the scratch place, and read them from the repository too if it is given.
func (s Scratch) environment(from *Repo) []string {
	env := []string{"GIT_OBJECT_DIRECTORY=" + s.Dir}
	if from != nil {
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(filepath.Join(from.Dir, "objects"))
		env = append(env, `GIT_ALTERNATE_OBJECT_DIRECTORIES="`+quoted+`"`)
	}
	return env
}

// PackTo writes one self-contained pack and its index to the scratch place, and returns the pack's name
// ("pack-HASH"), or "" when there is nothing to pack. What goes in is read from ids, one a line: objects, or, with
// revs, all that is reachable from them and not from those with a "^" before. All must exist. Every
// object is then read back from the pack and its id computed again: what git copied
// without looking at it is found out here.
func (r Repo) PackTo(ctx context.Context, s Scratch, ids io.Reader, revs bool) (string, error) {
	// The user's config could split packs, or trust a bitmap; both are for other uses.
	// After a power cut nobody looks at a scratch place again: nothing in it has to be on the disk.
	args := []string{"-c", "pack.packSizeLimit=0", "-c", "pack.useBitmaps=false", "-c", "pack.indexVersion=2", "-c", "pack.writeReverseIndex=false",
		"-c", "core.fsync=none", "pack-objects", "--delta-base-offset", "--non-empty", "-q"}
	if revs {
		args = append(args, "--revs")
	}
	var out bytes.Buffer
	if _, err := r.runWith(ctx, s.environment(&r), ids, &out, append(args, s.PackPath("pack"))...); err != nil {
		return "", naming(err)
	}
	hash := strings.TrimSpace(out.String())
	if hash == "" {
		return "", nil
	}
	if !oidPattern.MatchString(hash) {
		return "", fmt.Errorf("git pack-objects printed %q", out.String())
	}
	name := "pack-" + hash
	return name, checkPack(ctx, s.PackPath(name+".pack"), len(hash))
}

// checkPack computes the id of every object in a pack, and fails unless its index has exactly these.
func checkPack(ctx context.Context, path string, digits int) error {
	format := "sha1"
	if digits == 64 {
		format = "sha256"
	}
	// In no repository: git would compare each object with the one that it has already.
	nowhere := Repo{Dir: filepath.Join(filepath.Dir(path), "none")}
	if _, err := nowhere.run(ctx, nil, nil, "index-pack", "--verify", "--object-format="+format, path); err != nil {
		return fmt.Errorf("the repository's objects are damaged: check the new pack: %w", naming(err))
	}
	return nil
}

// Adds returns the commits that are reachable from want and not from have, as far as they are at
// most limit, and the parents of them that are reachable from have; all is false when there are more. All ids
// must exist; those that are no commits or tags of one add nothing.
func (r Repo) Adds(ctx context.Context, want, have []string, limit int) (commits, edge []string, all bool, err error) {
	stdin := io.MultiReader(lines(want, ""), lines(have, "^"))
	out := &lineWriter{line: func(line string) {
		if parent, isEdge := strings.CutPrefix(line, "-"); isEdge {
			edge = append(edge, parent)
		} else {
			commits = append(commits, line)
		}
	}}
	if _, err := r.run(ctx, stdin, out, "rev-list", "--boundary", fmt.Sprintf("--max-count=%d", limit+1), "--stdin"); err != nil {
		return nil, nil, false, err
	}
	return commits, edge, len(commits) <= limit, nil
}

// Nearest follows history from want, newest first, through at most limit commits, until each line of it has come to a
// commit for which known is true. It returns these; all is false when some line has none so near, and
// when one of want is no commit.
func (r Repo) Nearest(ctx context.Context, want []string, known func(oid string) bool, limit int) (near []string, all bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	behind := map[string]bool{} // what is reachable from known commits, as far as it was met
	open := map[string]bool{}   // what was named and not met yet
	met := map[string]bool{}
	for _, oid := range want {
		open[oid] = true
	}
	seen := 0
	out := &lineWriter{line: func(line string) {
		if all || seen > limit {
			return
		}
		seen++
		words := strings.Fields(line)
		id, parents := words[0], words[1:]
		delete(open, id)
		met[id] = true
		isKnown := known(id)
		if isKnown && !behind[id] {
			near = append(near, id)
		}
		for _, parent := range parents {
			switch {
			case isKnown || behind[id]:
				behind[parent] = true
				delete(open, parent)
			case !behind[parent] && !met[parent]:
				open[parent] = true
			}
		}
		if all = len(open) == 0; all || seen > limit {
			cancel()
		}
	}}
	_, err = r.run(ctx, lines(want, ""), out, "rev-list", "--parents", "--stdin")
	if all || seen > limit {
		return near, all, nil
	}
	return near, err == nil && len(open) == 0, err
}

// Complete walks through all that is reachable from tips, and fails when an object of it is not there: the
// error wraps ErrMissing and names it. With a scratch place, only what is there counts as being there.
// Contents of files are not read.
func (r Repo) Complete(ctx context.Context, s *Scratch, tips []string) error {
	if len(tips) == 0 {
		return nil
	}
	env := slices.Clone(bareConfig)
	if s != nil {
		env = append(env, s.environment(nil)...)
	}
	// The commit graph would vouch for commits that are gone.
	args := []string{"-c", "core.commitGraph=false", "-c", "core.multiPackIndex=false", "rev-list", "--objects", "--stdin"}
	_, err := r.runWith(ctx, env, lines(tips, ""), nil, append(args, "--quiet")...)
	if err == nil || ctx.Err() != nil || proc.ExitCode(err) < 0 {
		return err
	}
	missing := objectsIn(err)
	// Git stops at the first. Objects other than commits can be had all at once.
	out := &lineWriter{line: func(line string) {
		if oid, ok := strings.CutPrefix(line, "?"); ok && len(missing) < maxNamed {
			missing = append(missing, oid)
		}
	}}
	_, _ = r.runWith(ctx, env, lines(tips, ""), out, append(args, "--missing=print")...)
	slices.Sort(missing)
	missing = slices.Compact(missing)
	return fmt.Errorf("%w or not readable: %s: %w", ErrMissing, strings.Join(missing, " "), err)
}

// objectsIn returns the object ids that git speaks of when it fails.
func objectsIn(err error) []string {
	var failed *proc.Error
	if !errors.As(err, &failed) {
		return nil
	}
	ids := oidInText.Get().FindAllString(failed.Stderr, -1)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	return ids[:min(len(ids), maxNamed)]
}

// naming puts the object ids that git speaks of first: what else it says may be cut short in a message.
func naming(err error) error {
	if ids := objectsIn(err); len(ids) > 0 && proc.ExitCode(err) > 0 {
		return fmt.Errorf("damaged or missing: %s: %w", strings.Join(ids, " "), err)
	}
	return err
}

// maxNamed bounds how many missing objects an error names.
const maxNamed = 20
