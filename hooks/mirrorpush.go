package hooks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// MirrorPush is a push of the master by the verb mirror-push, taken by a process
// that can do what our two hooks do: that saves git from starting them, and them
// from looking everything up again, which is a third of what such a push costs.
type MirrorPush struct {
	Server   *mirrorcfg.Server
	Config   *mirrorcfg.Repo
	Repo     git.Repo
	Peer     string // who pushes
	Programs string // directory of our programs
	Warn     func(what string, err error)

	updates []update
	record  *record
}

// Begin decides on the push and records what it is going to set. The old values in
// it are ones that the master knows to have set here, or to have found here equal to its
// own: they are on record from now on. alone says that git needs not run the hooks:
// there are none but ours.
func (p *MirrorPush) Begin(ctx context.Context, commands []sendpack.Command) (alone bool, err error) {
	if why := refset.WhyRestoring(p.Repo.Dir); why != "" {
		return false, fmt.Errorf("push refused: %s", why)
	}
	if err := decidePush(p.Server.Hostname, p.Config, p.Peer); err != nil {
		return false, err
	}
	if p.Peer != p.Config.Master {
		return false, errors.New("push refused: not from the master")
	}
	for _, c := range commands {
		p.updates = append(p.updates, update{c.Old, c.New, c.Ref})
	}
	if err := checkPrivate(p.Server.Hostname, p.updates, ""); err != nil {
		return false, err
	}
	var olds []update
	if p.record, err = openRecord(p.Repo.Dir); err != nil {
		p.Warn(recordTrouble, err)
	}
	defer p.record.unlock()
	for _, c := range commands {
		if !refset.IsZero(c.Old) && !p.record.ours(c.Ref, c.Old) {
			olds = append(olds, update{"", c.Old, c.Ref})
		}
	}
	alone = p.onlyOurHooks()
	if alone {
		if err := checkTargets(ctx, p.Server.Hostname, p.Repo, p.updates); err != nil {
			return false, err
		}
		if err := p.record.sending(p.updates); err != nil {
			p.Warn(recordTrouble, err)
		}
	}
	if len(olds) > 0 {
		if err := p.record.sending(olds); err != nil {
			p.Warn(recordTrouble, err)
		}
	}
	return alone, nil
}

// Done records that all was applied, for a push that Begin called alone. What
// goes wrong is warned of: the master is right to call its push a success.
func (p *MirrorPush) Done() {
	err := refset.Remove(p.Repo.Dir) // as post-receive does
	again := p.record.relock(p.Repo.Dir)
	if again == nil && p.record.log != nil {
		again = p.record.log.Confirm(entries(p.updates))
	}
	if err := errors.Join(err, again, p.record.close()); err != nil {
		p.Warn(recordTrouble, err)
	}
}

// Close gives up a push that was not Done.
func (p *MirrorPush) Close() {
	if p.record != nil {
		p.record.close()
	}
}

// onlyOurHooks reports whether no hook but ours would run. Anything that is not
// plainly so counts as another hook.
func (p *MirrorPush) onlyOurHooks() bool {
	if p.Config.HooksPath != "" {
		return false
	}
	if p.Config.Name == p.Server.Map.Repository {
		return false // post-receive applies the map, which is beyond us
	}
	dir := filepath.Join(p.Repo.Dir, "hooks")
	files, err := os.ReadDir(dir)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".sample") {
			continue
		}
		end, err := filepath.EvalSymlinks(filepath.Join(dir, f.Name()))
		switch {
		case err != nil:
			return false
		case slices.Contains(Names, f.Name()) && end == filepath.Join(p.Programs, f.Name()):
		case f.Name() == "update" && p.Server.Gitolite.IsUpdateHook(end):
			// It lets a mirror push pass, and takes perl a tenth of a second per ref for it.
		default:
			return false
		}
	}
	return true
}

// unlock lets others at the record while a pack arrives, which may take hours.
func (r *record) unlock() {
	if r.lock != nil {
		r.lock.Close()
		r.lock = nil
	}
}

// relock locks the record again, and loads it again if it was changed meanwhile.
func (r *record) relock(dir string) error {
	file := refset.Received(dir)
	lock, err := lockRecord(file)
	if err != nil {
		return err
	}
	r.lock = lock
	if r.log != nil && !r.log.Current() {
		r.log.Close()
		r.log, err = refset.Open(file)
	}
	return err
}
