package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/peer/store"
)

// make takes the snapshot: packs, upload, manifest, and a walk where nobody has walked yet.
func (t *taking) make(ctx context.Context) error {
	began := t.v.now()
	lap := func(d *time.Duration) {
		now := t.v.now()
		*d, began = now.Sub(began), now
	}
	kept, fresh, err := t.choose(ctx)
	lap(&t.result.Phases.Pack)
	if err != nil {
		return err
	}
	m := t.now.Manifest
	t.walked = t.walked || len(t.tips) == 0
	m.Previous, m.Time = t.latest.Sum, after(t.now.Time, t.latest.Time)
	if m.Time.Sub(t.now.Time) > clocksDiffer {
		t.note(fmt.Sprintf("it is listed as of %s, right after the one before it: the clock was ahead then, or is behind now", m.Time.Format(time.DateTime)+" UTC"))
	}
	stop := t.walkAside(ctx, fresh)
	err = t.upload(ctx, &m, kept, fresh)
	stop(err)
	m.Unwalked = !t.walked
	t.result.Uploaded = t.put.sent.Load()
	lap(&t.result.Phases.Upload)
	if err != nil {
		return err
	}
	err = t.publish(ctx, &m)
	lap(&t.result.Phases.Publish)
	if err != nil {
		return err
	}
	t.put.attempt.end()
	err = t.check(ctx, fresh)
	lap(&t.result.Phases.Check)
	if err != nil {
		return err
	}
	t.result.Checked = true
	t.memory.keepManifest(t.result.Name.Sum, &m)
	t.remember(recalled{Sum: t.result.Name.Sum, Looked: t.v.now(), Retain: m.Retain})
	return nil
}

// smallPacks is up to how many bytes of packs are walked through while they are uploaded. It is a variable for tests.
var smallPacks int64 = 16 << 20

// walkAside walks through the history that fresh packs have, when nobody has yet and they are small: such a snapshot is
// published a moment later and is never unwalked. If something is missing the snapshot is published all the same, for what it has,
// and check tells. What is returned has to be called with the error of the upload, and waits for the walk.
func (t *taking) walkAside(ctx context.Context, fresh []*localPack) (stop func(uploaded error)) {
	size := int64(0)
	for _, p := range fresh {
		size += p.size
	}
	if t.walked || size > smallPacks {
		return func(error) {}
	}
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan error, 1)
	go func() { result <- t.walk(ctx, fresh) }()
	return func(uploaded error) {
		if uploaded != nil {
			cancel()
		}
		whole := <-result == nil
		cancel()
		t.walked, t.aside = whole, whole
	}
}

// upload puts what the store has not, and sets the manifest's packs, files and LFS objects.
func (t *taking) upload(ctx context.Context, m *Manifest, kept []Pack, fresh []*localPack) error {
	if t.base == nil && len(fresh) > 0 && !t.put.fresh {
		if err := t.lookForPacks(ctx); err != nil {
			return err
		}
	}
	u := &uploading{t: t}
	m.Packs = slices.Clone(kept)
	if m.Packs == nil {
		m.Packs = []Pack{}
	}
	m.Packs = slices.Grow(m.Packs, len(fresh))
	for _, p := range fresh {
		m.Packs = append(m.Packs, Pack{Name: p.name})
		pack := &m.Packs[len(m.Packs)-1]
		both := p.contents(m.Repository)
		u.add(both[0], &pack.Pack)
		u.add(both[1], &pack.Index)
	}
	m.Files, m.LFS = slices.Clone(t.now.Files), slices.Clone(t.now.LFS)
	copies := u.addFiles(m)
	if err := u.addLFS(m); err != nil {
		return err
	}
	if err := u.run(ctx); err != nil {
		return err
	}
	for to, from := range copies {
		m.Files[to].Object = m.Files[from].Object
	}
	t.result.Packs = len(m.Packs)
	return nil
}

// lookForPacks finds what an earlier attempt put that never came to its manifest, so that a
// first backup which was cut off does not begin from nothing.
func (t *taking) lookForPacks(ctx context.Context) error {
	if len(t.v.Recipients) > 0 {
		return nil
	}
	there, err := t.v.infos(ctx, "packs", dataOf(t.src.Repository)+"pack-")
	t.put.there = there
	return err
}

// uploading is a list of what is to be put.
type uploading struct {
	t     *taking
	tasks []func(context.Context) error
	total int64
}

// add puts content, and sets to.
func (u *uploading) add(c content, to *Object) {
	u.total += c.size
	u.tasks = append(u.tasks, func(ctx context.Context) error {
		o, err := u.t.put.putObject(ctx, c)
		if err == nil {
			*to = o
		}
		return err
	})
}

// addFiles puts each content once, and none that the base has. It returns which files, by their place in the
// manifest, get their object from which others.
func (u *uploading) addFiles(m *Manifest) (copies map[int]int) {
	had := map[string]Object{}
	if base := u.t.base; base != nil {
		for _, f := range base.Files {
			had[f.SHA256] = f.Object
		}
	}
	copies, first := map[int]int{}, map[string]int{}
	for i := range m.Files {
		f := &m.Files[i]
		if o, ok := had[f.SHA256]; ok && o.Size == f.Size {
			f.Object = o
			continue
		}
		if j, ok := first[f.SHA256]; ok {
			copies[i] = j
			continue
		}
		first[f.SHA256] = i
		root, name := u.t.now.files.files, f.Path
		u.add(content{
			key: dataOf(m.Repository) + "file-" + f.SHA256, size: f.Size, sum: f.SHA256, compress: true,
			damage: fmt.Errorf("%w: %s", errMoved, name),
			open: func() (io.ReadCloser, error) {
				r, _, err := openBelow(root, name)
				return r, gone(err)
			},
		}, &f.Object)
	}
	return copies
}

// addLFS puts the LFS objects that the base has not.
func (u *uploading) addLFS(m *Manifest) error {
	had := map[string]Object{}
	if base := u.t.base; base != nil {
		for _, l := range base.LFS {
			had[l.OID] = l.Object
		}
	}
	for i := range m.LFS {
		l := &m.LFS[i]
		if o, ok := had[l.OID]; ok {
			l.Object = o
			continue
		}
		root, name := u.t.now.files.lfs, lfsPath(l.OID)
		info, err := root.Stat(name)
		if err != nil {
			return &sourceError{gone(err)}
		}
		u.add(content{
			key: dataOf(m.Repository) + "lfs-" + l.OID, size: info.Size(), sum: l.OID, compress: true,
			damage: fmt.Errorf("LFS object %s is damaged: take it from a copy, or remove it and have a client push it again (git lfs push --all)", l.OID),
			open: func() (io.ReadCloser, error) {
				r, _, err := openBelow(root, name)
				return r, gone(err)
			},
		}, &l.Object)
	}
	return nil
}

// gone says of a file that is not there any more that another look helps.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errMoved, err)
	}
	return err
}

func (u *uploading) run(ctx context.Context) error {
	var done atomic.Int64
	u.t.put.moved = func(n int64) { u.t.progress("upload", done.Add(n), u.total) }
	return all(ctx, uploads, u.tasks)
}

// publish writes the manifest, after a last look at all that it relies on, and once that is durable: a manifest is
// never there after a power cut without what it names.
func (t *taking) publish(ctx context.Context, m *Manifest) error {
	if err := t.put.settle(ctx); err != nil {
		return err
	}
	if err := t.extendRetention(ctx, m); err != nil {
		return err
	}
	if elapsed(t.began, t.v.now()) > t.v.grace()/2 {
		if err := t.stillThere(ctx, m); err != nil {
			return err
		}
	}
	name, _, err := t.v.publish(ctx, m)
	if err != nil {
		return err
	}
	t.result.Name = name
	return nil
}

// extendRetention has the store keep what is used again for longer, where that would end within half of what the vault wants.
func (t *taking) extendRetention(ctx context.Context, m *Manifest) error {
	keeper, ok := t.v.Store.(store.Retainer)
	if !ok || t.v.Retain == 0 {
		return nil
	}
	until := t.v.retainUntil()
	due := map[string]bool{}
	var tasks []func(context.Context) error
	for _, o := range m.Objects() {
		if until.Sub(o.Retained) > t.v.Retain/2 {
			due[o.Key] = true
			tasks = append(tasks, func(ctx context.Context) error {
				err := keeper.Retain(ctx, o.Key, until)
				if errors.Is(err, fs.ErrNotExist) {
					return t.lost(o.Key)
				}
				return err
			})
		}
	}
	if err := all(ctx, uploads, tasks); err != nil {
		return fmt.Errorf("extend the retention: %w", err)
	}
	set := func(o *Object) {
		if due[o.Key] {
			o.Retained = until
		}
	}
	for i := range m.Packs {
		set(&m.Packs[i].Pack)
		set(&m.Packs[i].Index)
	}
	for i := range m.Files {
		set(&m.Files[i].Object)
	}
	for i := range m.LFS {
		set(&m.LFS[i].Object)
	}
	return nil
}

// lost says that the store has not what the base snapshot needs. Whatever deleted it (a prune that took
// the base for one that nobody builds on), a new look finds another base.
func (t *taking) lost(key string) error {
	return fmt.Errorf("%w: %s is not in the store any more", errMoved, key)
}

// stillThere looks whether what the manifest relies on was deleted while the backup lasted: a prune
// spares only for so long what no manifest names.
func (t *taking) stillThere(ctx context.Context, m *Manifest) error {
	doomed, err := t.v.doomed(ctx, m.Repository) // before it is listed what is there: see "Pruning" in the package comment
	if err != nil {
		return err
	}
	there, err := t.v.infos(ctx, "data", dataOf(m.Repository))
	if err != nil {
		return err
	}
	for _, o := range m.Objects() {
		size, _ := o.Stored()
		if have, ok := there[o.Key]; !ok || have.Size != size || doomed[o.Key] {
			return t.lost(o.Key)
		}
	}
	if t.base != nil {
		if info, err := t.v.stat(ctx, t.latest.Key()); err != nil {
			return err
		} else if info.Key == "" {
			return t.lost(t.latest.Key())
		}
	}
	return nil
}

// check walks through the history in packs that were taken as they are: not in the repository, where a gc may
// be at work, but in the very files that were put. A snapshot that lacks something is marked, so that
// nobody restores it, and nothing is built on it.
func (t *taking) check(ctx context.Context, fresh []*localPack) error {
	if t.walked {
		if t.aside { // other machines need not load the manifest to know
			t.recordGood(ctx, t.v.recordHint)
		}
		return nil
	}
	t.remember(recalled{Sum: t.result.Name.Sum, Unchecked: true})
	t.progress("check", 0, 0)
	err := t.walk(ctx, fresh)
	if err == nil {
		t.recordGood(ctx, t.v.record)
		return nil
	}
	if !errors.Is(err, git.ErrMissing) {
		return err
	}
	err = t.nameTips(err)
	mark := t.v.recordVerdict(ctx, t.result.Name, Check{Kind: checkBad, Snapshot: t.result.Name.Sum, Error: err.Error()})
	return errors.Join(&sourceError{fmt.Errorf("the snapshot that was taken is marked as bad: %w", err)}, mark)
}

// recordGood has record write down that the snapshot is whole.
func (t *taking) recordGood(ctx context.Context, record func(context.Context, string, Check) error) {
	good := Check{Kind: checkGood, Snapshot: t.result.Name.Sum, Time: after(t.v.now(), t.result.Name.Time), Text: "git has walked through all of its history"}
	if err := record(ctx, t.src.Repository, good); err != nil { // this server knows it all the same
		t.note("that the snapshot is whole could not be written down for others: " + err.Error())
	}
}

// walk walks through history in the files of fresh packs. An error wraps git.ErrMissing when something is
// not there.
func (t *taking) walk(ctx context.Context, fresh []*localPack) error {
	for _, p := range fresh {
		if err := t.show(p); err != nil {
			return fmt.Errorf("check the snapshot: %w", err)
		}
	}
	// With grafts some of what was taken is what the base had; the repository has it too.
	place := &t.tmp
	if t.base != nil && !t.anew {
		place = nil
	}
	return t.src.Repo.Complete(ctx, place, t.tips)
}

// show makes an open pack seen in the scratch place, whether its files have a name still or not.
func (t *taking) show(p *localPack) error {
	for suffix, f := range map[string]*os.File{".pack": p.pack, ".idx": p.idx} {
		link := t.tmp.PackPath(p.name + suffix)
		if _, err := os.Lstat(link); err == nil {
			continue // it was made there
		}
		target := filepath.Join("/proc", strconv.Itoa(os.Getpid()), "fd", strconv.Itoa(int(f.Fd())))
		if _, err := os.Stat(target); err != nil {
			target = f.Name()
		}
		if err := os.Symlink(target, link); err != nil {
			return err
		}
	}
	return nil
}
