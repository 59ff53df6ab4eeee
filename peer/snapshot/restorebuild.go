package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// transfers is how many objects are read from the store at once. Each costs a buffer of copySize bytes.
const (
	transfers = 4
	copySize  = 256 << 10
)

// build is a repository in the making. All its files are written through root, which follows no
// link and leaves the directory for nothing.
type build struct {
	v     *Vault
	m     *Manifest
	o     RestoreOptions
	dir   string
	root  *os.Root
	notes []string

	refs    map[string]string // of what was at the target when the restore began; nil: nothing was
	unknown error             // why refs is not known

	objects atomic.Int64
	bytes   atomic.Int64

	mu   sync.Mutex
	dirs map[string]bool // that were made or written to
}

// halfMade is a file in a directory that a restore has not finished with. No snapshot
// has a file of that name (see keepable).
const halfMade = ".mirror-shell-half-made"

func newBuild(v *Vault, m *Manifest, target string, o RestoreOptions) (*build, error) {
	dir, err := os.MkdirTemp(filepath.Dir(target), beside(target)+"*")
	if err != nil {
		return nil, err
	}
	m = withoutTwins(m)
	b := &build{v: v, m: m, o: o, dir: dir, dirs: map[string]bool{".": true}}
	if b.root, err = os.OpenRoot(dir); err == nil {
		err = b.write(halfMade, 0o600, "")
	}
	if err == nil {
		err = b.mkdir("objects/pack", "objects/info", "refs/heads", "refs/tags")
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return b, nil
}

// withoutTwins returns the manifest with each pack once. A pack that was made again from the same
// objects, after a ref went and came back, has the same name. Either has all of them.
func withoutTwins(m *Manifest) *Manifest {
	once, seen := *m, make(map[string]bool, len(m.Packs))
	once.Packs = nil
	for _, p := range m.Packs {
		if !seen[p.Name] {
			seen[p.Name] = true
			once.Packs = append(once.Packs, p)
		}
	}
	return &once
}

// remove ends the build. A repository that took its place is no longer at its directory.
func (b *build) remove() {
	b.root.Close()
	if b.dir == "" {
		return
	}
	if err := removeBuild(b.dir); err != nil {
		b.v.log().Warn("what a failed restore made is left; the next restore removes it", "dir", b.dir, "error", err)
	}
}

// writeGit writes all that git needs, with a config that nobody but us has a say in.
func (b *build) writeGit(ctx context.Context) error {
	if err := checkNames(b.m); err != nil {
		return err
	}
	head := b.m.Detached + "\n"
	if b.m.Head != "" {
		head = "ref: " + b.m.Head + "\n"
	}
	if err := errors.Join(b.write("HEAD", 0o644, head), b.write("config", 0o644, plainConfig(b.m.ObjectFormat))); err != nil {
		return err
	}
	if err := b.writeRefs(); err != nil {
		return err
	}
	var all []download
	for _, p := range b.m.Packs {
		base := "objects/pack/" + p.Name
		all = append(all, download{p.Pack, base + ".pack", 0o444}, download{p.Index, base + ".idx", 0o444})
	}
	for _, l := range b.m.LFS {
		all = append(all, download{l.Object, path.Join("lfs/objects", l.OID[:2], l.OID[2:4], l.OID), 0o444})
	}
	return b.download(ctx, all)
}

// checkNames refuses refs that cannot be together in one repository.
func checkNames(m *Manifest) error {
	taken := func(name string) bool {
		_, ref := m.Refs[name]
		_, symbolic := m.SymRefs[name]
		return ref || symbolic
	}
	for _, names := range []map[string]string{m.Refs, m.SymRefs} {
		for name := range names {
			for dir := path.Dir(name); dir != "refs" && dir != "."; dir = path.Dir(dir) {
				if taken(dir) {
					return fmt.Errorf("%w: refs %s and %s cannot both be there", ErrIncomplete, dir, name)
				}
			}
		}
	}
	return nil
}

// writeRefs writes the refs: packed all but the symbolic ones, which can only be files. That no values of
// annotated tags are given beside them is what the header says by not promising it.
func (b *build) writeRefs() error {
	var packed bytes.Buffer
	packed.WriteString("# pack-refs with: sorted \n")
	for _, name := range slices.Sorted(maps.Keys(b.m.Refs)) {
		if _, symbolic := b.m.SymRefs[name]; !symbolic {
			fmt.Fprintf(&packed, "%s %s\n", b.m.Refs[name], name)
		}
	}
	if strings.Contains(packed.String(), " "+worktreeRefs) {
		b.notes = append(b.notes, "of linked worktrees there are only the commits, as "+worktreeRefs+"…")
	}
	if err := b.write("packed-refs", 0o644, packed.String()); err != nil {
		return err
	}
	for name, target := range b.m.SymRefs {
		if err := b.write(name, 0o644, "ref: "+target+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// writeFiles writes the kept files, but the config, which comes last.
func (b *build) writeFiles(ctx context.Context) error {
	var all []download
	hooks := 0
	for _, f := range b.m.Files {
		switch first, _, _ := strings.Cut(f.Path, "/"); {
		case f.Path == configFile, f.Path == graftsFile:
		case first == "hooks" && b.o.WithoutHooks:
			hooks++
		default:
			all = append(all, download{f.Object, f.Path, fs.FileMode(f.Mode)})
		}
	}
	if hooks > 0 {
		b.notes = append(b.notes, fmt.Sprintf("%d files of hooks/ were left out", hooks))
	}
	if b.o.Mark != "" {
		if err := b.write(b.o.Mark, 0o600, ""); err != nil {
			return fmt.Errorf("mark it as restored: %w", err)
		}
	}
	return b.download(ctx, all)
}

// graftsFile changes what commits' parents are, so it has to be there when the history is checked.
const graftsFile = "info/grafts"

// download is an object of the store and the file that it becomes.
type download struct {
	Object
	path string
	mode fs.FileMode
}

// download writes the files, several at once, the largest first. All that are damaged are named.
func (b *build) download(ctx context.Context, all []download) error {
	slices.SortStableFunc(all, func(x, y download) int { return int(min(max(y.Size-x.Size, -1), 1)) })
	return each(ctx, transfers, all, func(ctx context.Context, d download) error {
		if err := b.fetch(ctx, d); err != nil {
			return fmt.Errorf("%s: %w", d.path, err)
		}
		return nil
	})
}

func (b *build) fetch(ctx context.Context, d download) (err error) {
	r, err := b.v.open(ctx, d.Object)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := b.create(d.path, d.mode)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(filling{f, b}, r, make([]byte, copySize))
	if err == nil && n != d.Size {
		err = fmt.Errorf("%w: %d bytes in place of %d", ErrDamaged, n, d.Size)
	}
	if err == nil {
		err = f.Sync()
	}
	b.objects.Add(1)
	return errors.Join(err, f.Close())
}

// filling hides a file's ReadFrom, which would ignore the buffer, and counts.
type filling struct {
	f *os.File
	b *build
}

func (c filling) Write(p []byte) (int, error) {
	n, err := c.f.Write(p)
	c.b.bytes.Add(int64(n))
	if c.b.o.Progress != nil {
		c.b.o.Progress(int64(n))
	}
	return n, err
}

// create makes a new file and the directories above it.
func (b *build) create(name string, mode fs.FileMode) (*os.File, error) {
	if err := b.mkdir(path.Dir(name)); err != nil {
		return nil, err
	}
	return b.root.OpenFile(filepath.FromSlash(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
}

// mkdir makes directories, and remembers them and those above for sync.
func (b *build) mkdir(names ...string) error {
	for _, name := range names {
		b.mu.Lock()
		known := b.dirs[name]
		b.mu.Unlock()
		if known {
			continue
		}
		if err := b.root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		b.mu.Lock()
		for dir := name; dir != "."; dir = path.Dir(dir) {
			b.dirs[dir] = true
		}
		b.mu.Unlock()
	}
	return nil
}

// write makes a small file and brings it to the disk.
func (b *build) write(name string, mode fs.FileMode, content string) error {
	f, err := b.create(name, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// sync brings the names in all directories to the disk.
func (b *build) sync() error {
	for dir := range b.dirs {
		d, err := b.root.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}
