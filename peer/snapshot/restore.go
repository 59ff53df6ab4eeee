package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"mirror-shell/internal/proc"
)

// Thoroughness is what a restored repository has to pass before it takes its place.
type Thoroughness int

const (
	// Full: besides Checksums, git reads every object of every pack and compares it with its id, and
	// walks from all refs to make sure that nothing is missing.
	Full Thoroughness = iota
	// Checksums: every byte is the one that was backed up (SHA-256), each index belongs to its pack, and
	// every ref's value is in a pack. It starts no git process.
	Checksums
)

// RestoreOptions choose how a snapshot is restored. The zero value checks everything and replaces nothing.
type RestoreOptions struct {
	Check Thoroughness
	// Replace allows a repository to be at the target; it is moved aside. Anything else that
	// is there, an empty directory apart, is refused.
	Replace bool
	// WithoutHooks leaves out all by which somebody who may write to the vault could have a program
	// run here: hooks, and of the config all but what is known to be harmless.
	WithoutHooks bool
	// Mark is the path in the repository of an empty file that is put there before it takes its place, or "".
	Mark string
	// Prepare, when set, is called with the directory of the whole and checked repository before it takes its place: whatever
	// is to be there from the first moment on. Its error ends the restore when it is that the disk is full; others are the caller's.
	Prepare func(ctx context.Context, dir string) error
	// Progress, when set, is called with the bytes that were written since the last call. It may be called by several
	// goroutines at once.
	Progress func(bytes int64)
}

// Restored says what a restore did.
type Restored struct {
	Snapshot Name
	Dir      string   // where it is
	Before   string   // where the repository is now that was there; "": there was none
	Refs     int      // HEAD not counted
	Objects  int      // packs, indexes, files and LFS objects
	Bytes    int64    // of content
	Notes    []string // for people: what was left out, or cleaned up
	Moved    []Moved  // what was pushed to the repository at Before while this one was made

	Download, Check time.Duration

	needs int64 // bytes of content that the snapshot has; 0 before that is known
}

// ErrIncomplete: the store gives what was backed up, but that is not a whole repository.
var ErrIncomplete = errors.New("the snapshot is not whole")

// errPlaced: the repository is restored, and something went wrong after that.
var errPlaced = errors.New("the repository is restored")

// ErrTarget: there is something where a repository should be restored to.
var ErrTarget = errors.New("the target is taken")

// Restore brings a snapshot back as a bare repository at dir, whose missing parents are made. Files belong
// to the caller and have git's modes less the umask; core.sharedRepository of the restored config is
// respected. On an error (ErrDamaged, ErrKey, ErrIncomplete, ErrTarget, ErrNoRoom, or those of the store and the disk) dir is as it was.
func (v *Vault) Restore(ctx context.Context, name Name, dir string, o RestoreOptions) (Restored, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Restored{}, err
	}
	done := Restored{Snapshot: name, Dir: dir}
	if err := noRoomAt(&done, v.restore(ctx, &done, o)); err != nil {
		return done, fmt.Errorf("restore %s of %s: %w", name.Repository, name.Time.UTC().Format(timeLayout), err)
	}
	return done, nil
}

// noRoomAt returns err as an ErrNoRoom when the disk of the target was full and nothing was replaced. What it fills
// is gone by now, so it is said how much it has to be.
func noRoomAt(done *Restored, err error) error {
	if !isFull(err) || errors.Is(err, errPlaced) {
		return err
	}
	dir := filepath.Dir(done.Dir)
	return fmt.Errorf("%w in %s%s: nothing was changed: make room there for %d kB and more, or restore to another disk with --into: %s",
		ErrNoRoom, dir, freeText(dir), (done.needs+999)/1000, proc.OneLine(err.Error(), 300))
}

func (v *Vault) restore(ctx context.Context, done *Restored, o RestoreOptions) error {
	// Before anything is downloaded, and once more at the end.
	if _, err := inspect(done.Dir, o.Replace); err != nil {
		return err
	}
	m, err := v.Load(ctx, done.Snapshot)
	if err != nil {
		return err
	}
	done.needs = contentSize(withoutTwins(m))
	if err := os.MkdirAll(filepath.Dir(done.Dir), 0o755); err != nil {
		return err
	}
	unlock, err := lockTarget(done.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	notes, err := tidy(done.Dir, v.now())
	if err != nil {
		return fmt.Errorf("clean up after a restore that was killed: %w", err)
	}
	done.Notes = append(done.Notes, notes...)
	b, err := newBuild(v, m, done.Dir, o)
	if err != nil {
		return err
	}
	defer b.remove() // nothing, after it took its place
	if err := b.watch(ctx, done.Dir); err != nil {
		return err
	}
	if err := b.make(ctx, done); err != nil {
		return err
	}
	return b.takePlace(ctx, done)
}

// takePlace puts the repository at its target, and finds out what went into the one that was there meanwhile.
func (b *build) takePlace(ctx context.Context, done *Restored) error {
	old, err := b.replaces(done.Dir)
	if err != nil {
		return err
	}
	if old != nil {
		defer old.open()
		notes, err := old.close(ctx, done.Dir)
		if done.Notes = append(done.Notes, notes...); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	done.Before, err = b.swap(done.Dir, b.o.Replace, b.v.now())
	if done.Before == "" {
		return err
	}
	if old == nil { // it came a moment ago
		var unknown error
		if old, unknown = b.replaces(done.Before); unknown != nil || old == nil {
			return errors.Join(err, unknown)
		}
	}
	moved, notes, unknown := old.end(ctx, done.Before)
	done.Moved, done.Notes = moved, append(done.Notes, notes...)
	return errors.Join(err, unknown)
}

// make writes and checks the repository, and brings it to the disk.
func (b *build) make(ctx context.Context, done *Restored) error {
	start := time.Now()
	if err := b.writeGit(ctx); err != nil {
		return err
	}
	done.Download, start = time.Since(start), time.Now()
	if err := b.check(ctx); err != nil {
		return err
	}
	done.Check = time.Since(start)
	if err := b.writeFiles(ctx); err != nil {
		return err
	}
	if err := b.writeConfig(ctx); err != nil {
		return err
	}
	if b.o.Prepare != nil {
		if err := b.o.Prepare(ctx, b.dir); isFull(err) {
			return err
		}
	}
	done.Refs, done.Objects, done.Bytes = len(b.m.Refs), int(b.objects.Load()), b.bytes.Load()
	done.Notes = append(done.Notes, b.notes...)
	return b.sync()
}

// contentSize is how many bytes the files of a repository have that is made from a manifest.
func contentSize(m *Manifest) (size int64) {
	for _, p := range m.Packs {
		size += p.Pack.Size + p.Index.Size
	}
	for _, l := range m.LFS {
		size += l.Size
	}
	for _, f := range m.Files {
		size += f.Size
	}
	return size
}
