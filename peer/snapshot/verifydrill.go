package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
)

// drill restores a snapshot for practice, and records how that went. Only what concerns the vault counts as
// its failure: a full disk here says nothing about a backup.
func (ver *verification) drill(ctx context.Context, name Name) error {
	start := time.Now()
	done, err := ver.v.practise(ctx, name)
	if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrIncomplete) && !errors.Is(err, ErrKey) {
		return fmt.Errorf("drill: %w", err)
	}
	c := Check{Kind: checkDrill, Snapshot: name.Sum, ID: name.ID, Time: ver.v.now(), Seconds: time.Since(start).Seconds(), Bytes: done.Bytes, Objects: int64(done.Objects),
		Text: fmt.Sprintf("restored %d refs and %d bytes in %.1f s, checked in %.1f s", done.Refs, done.Bytes, done.Download.Seconds(), done.Check.Seconds())}
	if err != nil {
		c.Error, c.Text = proc.OneLine(err.Error(), 4000), "the restore failed"
		if !errors.Is(err, ErrKey) {
			ver.damage(name, c.Error)
		}
	}
	ver.found.Drill = &c
	return ver.v.record(ctx, name.Repository, c)
}

// practise restores a snapshot into the scratch directory, has git look for anything wrong with it,
// and removes it. Hooks and config are not restored: nothing shall ever run there.
func (v *Vault) practise(ctx context.Context, name Name) (Restored, error) {
	dir, remove, err := v.scratchDir("drill")
	if err != nil {
		return Restored{}, err
	}
	defer remove()
	target := filepath.Join(dir, "repository.git")
	done := Restored{Snapshot: name, Dir: target}
	if err := v.inScratch(v.restore(ctx, &done, RestoreOptions{Check: Full, WithoutHooks: true})); err != nil {
		return done, fmt.Errorf("restore %s of %s: %w", name.Repository, name.Time.UTC().Format(timeLayout), err)
	}
	repo := git.Repo{Dir: target}
	if err := dropUnborn(ctx, repo); err != nil {
		return done, err
	}
	err = repo.Fsck(ctx)
	if proc.ExitCode(err) > 0 {
		err = fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return done, err
}

// dropUnborn removes the symbolic refs to nothing: git fsck calls each an error, and the repository that was backed up has
// them, too.
func dropUnborn(ctx context.Context, repo git.Repo) error {
	refs, targets, err := repo.RefsAndTargets(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	for name := range targets {
		if _, ok := refs[name]; !ok {
			if err := os.Remove(filepath.Join(repo.Dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
