package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/hooks"
	"mirror-shell/internal/git"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
	"mirror-shell/shell"
)

// ApplyCmd is apply MAP.toml | --from-repository.
type ApplyCmd struct {
	DryRun         bool   `short:"n" help:"Print what would change, and change nothing."`
	JSON           bool   `name:"json" help:"Print the result as JSON."`
	FromRepository bool   `help:"Read the map, and users' keys, from HEAD of the repository that [map] in the server configuration names."`
	Keys           string `help:"With MAP.toml: let in the users whose key files are in this directory, and those that came from the map before no more." placeholder:"DIR"`
	RemoveAllKeys  bool   `help:"Let users' keys be removed though none would be left."`
	Most           int    `hidden:"" help:"Print the changes of at most that many repositories (used by post-receive)."`
	AuthorizedKeys string `help:"File to edit (default: ~/.ssh/authorized_keys)." default:"~/.ssh/authorized_keys" placeholder:"FILE"`
	Map            string `arg:"" optional:"" name:"map.toml" help:"Mirror map."`
}

// Applied is what apply did, or would do: its JSON.
type Applied struct {
	Server       string              `json:"server"`
	DryRun       bool                `json:"dry_run"`
	Repositories []AppliedRepository `json:"repositories"` // of which there is something to say
	Missing      []string            `json:"missing"`      // named, should be on this server, and are not
	Keys         *shell.KeySync      `json:"keys,omitempty"`
	Notes        []string            `json:"notes"`
}

// AppliedRepository is one repository's part.
type AppliedRepository struct {
	Repository string          `json:"repository"`
	Changes    []AppliedChange `json:"changes"`
	Hooks      []string        `json:"hooks,omitempty"`  // what was changed, or would be
	Queued     []string        `json:"queued,omitempty"` // new peers that it is pushed to, or would be
	Warnings   []string        `json:"warnings,omitempty"`
	Notes      []string        `json:"notes,omitempty"`
	Error      string          `json:"error,omitempty"` // and nothing was changed, or not all
}

// AppliedChange is one key; null stands for a key that is not set.
type AppliedChange struct {
	Key    string  `json:"key"`
	Old    *string `json:"old"`
	New    *string `json:"new"`
	ByHand bool    `json:"by_hand,omitempty"` // who wrote the old value
}

// apply makes the git config of the repositories what a mirror map says. All is
// read, resolved and checked before anything is written.
func (p *Program) apply(ctx context.Context) error {
	cmd := &p.Apply
	if cmd.FromRepository == (cmd.Map != "") || cmd.FromRepository && cmd.Keys != "" {
		return Usage{"name one map, with --keys DIR or without, or give --from-repository alone"}
	}
	server, err := p.Server()
	if err != nil {
		return err
	}
	if !cmd.DryRun {
		// Of two pushes of the map the later one's is read last, too.
		unlock, err := lockApply(ctx, server)
		if err != nil {
			return err
		}
		defer unlock()
	}
	a := p.newApplying(server)
	end := a.noting()
	// Keys do not wait for the map to be right: who has to be kept out, is.
	a.userKeys(ctx)
	err = a.theMap(ctx)
	end(err)
	return err
}

func (p *Program) newApplying(server *mirrorcfg.Server) *applying {
	return &applying{Program: p, server: server, result: Applied{Server: server.Hostname, DryRun: p.Apply.DryRun,
		Repositories: []AppliedRepository{}, Missing: []string{}}}
}

// MapState is what a dry run of apply --from-repository says, for doctor: what would be
// changed, what stands in the way of the map, and of the keys that belong to it.
func (p *Program) MapState(ctx context.Context, server *mirrorcfg.Server) (result Applied, mapErr, keysErr error) {
	quiet := &Program{Programs: p.Programs, Stdout: io.Discard, Stderr: io.Discard}
	quiet.Config = server.File
	quiet.Apply = ApplyCmd{DryRun: true, FromRepository: true, AuthorizedKeys: "~/.ssh/authorized_keys"}
	a := quiet.newApplying(server)
	a.userKeys(ctx)
	err := a.theMap(ctx)
	var exit Exit
	if errors.As(err, &exit) { // what has failed is in the result
		err = nil
	}
	return a.result, err, a.keysErr
}

// nothingChanged begins the errors that come before anything is written.
const nothingChanged = "nothing is changed: "

// theMap applies the map itself.
func (a *applying) theMap(ctx context.Context) error {
	names, unreadable := a.server.Repositories()
	resolved, err := a.resolveMap(ctx, a.server, names)
	if err != nil {
		return fmt.Errorf(nothingChanged+"%w", err)
	}
	a.result.Notes = resolved.Notes
	if unreadable != nil {
		a.failed = true
		a.trouble = append(a.trouble, "mirror map not applied to all repositories: "+unreadable.Error())
		fmt.Fprintf(a.Stderr, "mirror-shell: %v\n", unreadable)
	}
	plans, err := a.planAll(ctx, names, resolved)
	if err != nil {
		return err
	}
	for i, plan := range plans {
		if ctx.Err() != nil {
			a.enqueue()
			return fmt.Errorf("ended after %d of %d repositories: run apply again: %w", i, len(plans), ctx.Err())
		}
		a.carryOut(ctx, plan)
	}
	a.missing(resolved)
	a.enqueue()
	return a.finish()
}

// applyLockWait bounds the wait for another apply: one of ten thousand
// repositories takes a minute.
const applyLockWait = 5 * time.Minute

func lockApply(ctx context.Context, server *mirrorcfg.Server) (unlock func(), err error) {
	if err := os.MkdirAll(server.StateDir, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(server.StateDir, "apply.lock")
	lock := flock.New(file, flock.SetFlag(os.O_RDWR|os.O_CREATE), flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(ctx, applyLockWait)
	defer cancel()
	if _, err := lock.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		return nil, fmt.Errorf("another apply holds %s: %w: wait for it to end, then try again", file, err)
	}
	return func() { lock.Unlock() }, nil
}

// resolveMap reads the map from where it is.
func (p *Program) resolveMap(ctx context.Context, server *mirrorcfg.Server, names []string) (*mirrorcfg.Resolved, error) {
	files, file, done, err := p.mapFiles(ctx, server)
	if err != nil {
		return nil, err
	}
	defer done()
	m, err := mirrorcfg.LoadMap(files, file, server.Hostname)
	if err != nil {
		return nil, err
	}
	return m.Resolve(names)
}

func (p *Program) mapFiles(ctx context.Context, server *mirrorcfg.Server) (files mirrorcfg.MapFiles, file string, done func(), err error) {
	if !p.Apply.FromRepository {
		return openMapDir(p.Apply.Map)
	}
	m := server.Map
	if m.Repository == "" {
		return nil, "", nil, fmt.Errorf("%s says nowhere which repository has the map: write [map] with repository = \"…\"", server.File)
	}
	_, repo, err := server.Find(m.Repository)
	if err != nil {
		return nil, "", nil, fmt.Errorf("map.repository: %w", err)
	}
	tree, err := repo.Tree(ctx, path.Dir(m.File), mirrorcfg.MaxMapFile)
	if err != nil {
		return nil, "", nil, fmt.Errorf("map.repository %s: %w", m.Repository, err)
	}
	if !tree.Has(path.Base(m.File)) {
		return nil, "", nil, fmt.Errorf("map.repository %s has no file %s: push it; one that is empty takes back all that the map has set: %w", m.Repository, m.File, fs.ErrNotExist)
	}
	return tree, path.Base(m.File), func() {}, nil
}

// openMapDir opens the directory of a map: a symbolic link in it that leads out
// of it is not followed.
func openMapDir(file string) (mirrorcfg.MapFiles, string, func(), error) {
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		return nil, "", nil, err
	}
	root, err := os.OpenRoot(filepath.Dir(real))
	if err != nil {
		return nil, "", nil, err
	}
	return mapDir{root.FS()}, filepath.Base(real), func() { root.Close() }, nil
}

// mapDir is a map in a directory.
type mapDir struct{ fs.FS }

func (d mapDir) ReadFile(name string) ([]byte, error)  { return fs.ReadFile(d.FS, name) }
func (d mapDir) Glob(pattern string) ([]string, error) { return fs.Glob(d.FS, pattern) }

// applying is the state of one apply.
type applying struct {
	*Program
	server  *mirrorcfg.Server
	result  Applied
	changed int // repositories
	events  []inbox.Event
	keysErr error
	trouble []string // what went wrong that is no repository's, for the master
	failed  bool
}

// repositoryPlan is what is to be done with one repository, or why nothing is.
type repositoryPlan struct {
	name string
	repo git.Repo
	*mirrorcfg.MapPlan
	before []string // the peers that pushes go to from here, so far
	err    error
}

// planAll reads the config of every repository that the map has, or had,
// something to do with, as many at a time as there are processors: git takes milliseconds for each.
func (a *applying) planAll(ctx context.Context, names []string, resolved *mirrorcfg.Resolved) ([]repositoryPlan, error) {
	plans := make([]*repositoryPlan, len(names))
	var reads sync.WaitGroup
	limit := make(chan struct{}, runtime.NumCPU())
	for i, name := range names {
		limit <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		reads.Go(func() {
			defer func() { <-limit }()
			plans[i] = a.planOne(ctx, name, resolved.Want[name])
		})
	}
	reads.Wait()
	if ctx.Err() != nil {
		return nil, fmt.Errorf(nothingChanged+"%w", ctx.Err())
	}
	var list []repositoryPlan
	for _, plan := range plans {
		if plan != nil {
			list = append(list, *plan)
		}
	}
	return list, nil
}

// planOne is planAll for one repository, nil for one that no map has to do with.
func (a *applying) planOne(ctx context.Context, name string, want mirrorcfg.Settings) *repositoryPlan {
	_, repo, err := a.server.Find(name)
	if err == nil && want == nil {
		var had bool
		if had, err = repo.HasConfig("mirror-map"); err == nil && !had {
			return nil
		}
	}
	plan := &repositoryPlan{name: name, repo: repo, err: err}
	if err == nil {
		plan.err = a.plan(ctx, plan, want)
	}
	return plan
}

func (a *applying) plan(ctx context.Context, plan *repositoryPlan, want mirrorcfg.Settings) error {
	entries, files, err := plan.repo.ConfigOrigins(ctx)
	if err != nil {
		return err
	}
	if now, err := mirrorcfg.ParseRepo(plan.name, entries); err == nil {
		plan.before = hooks.PushedTo(a.server, now)
	}
	plan.MapPlan, err = mirrorcfg.PlanMap(a.server.Hostname, plan.name, entries, files, plan.repo.ConfigFile(), want)
	if err == nil && a.Apply.FromRepository && plan.name == a.server.Map.Repository && plan.Master != "" && plan.Master != plan.Config.Master {
		// A map that gave its own repository away would not reach the new master,
		// and one that took it would make two of them.
		return fmt.Errorf("the master of the map's own repository is %s, and only changed by hand, on every server, the old master first", plan.Master)
	}
	return err
}

// carryOut does what is planned for one repository, and tells. A failure is this
// repository's alone.
func (a *applying) carryOut(ctx context.Context, plan repositoryPlan) {
	r := AppliedRepository{Repository: plan.name, Changes: []AppliedChange{}}
	err := plan.err
	if err == nil {
		r.Warnings, r.Notes = plan.Warnings, plan.Notes
		// The hooks come first: a repository is never mirrored without them.
		r.Hooks, err = a.hooks(ctx, plan)
	}
	if err == nil && !a.result.DryRun {
		err = write(ctx, plan)
	}
	if err == nil {
		for _, c := range plan.Changes {
			r.Changes = append(r.Changes, AppliedChange{c.Key, text(c.Old), text(c.New), c.ByHand})
		}
		r.Queued = a.toQueue(plan)
	} else {
		a.failed = true
		r.Error = err.Error()
	}
	if len(r.Changes)+len(r.Hooks)+len(r.Warnings)+len(r.Notes) > 0 || err != nil {
		a.result.Repositories = append(a.result.Repositories, r)
	}
	a.tell(plan, r)
}

// toQueue notes the push to peers that are new in a repository's lists.
func (a *applying) toQueue(plan repositoryPlan) []string {
	var peers []string
	for _, peer := range hooks.PushedTo(a.server, plan.Config) {
		if !slices.Contains(plan.before, peer) && !slices.Contains(peers, peer) {
			peers = append(peers, peer)
		}
	}
	if len(peers) > 0 {
		a.events = append(a.events, inbox.Event{Repository: plan.name, Peers: peers, Origin: inbox.OriginList})
	}
	return peers
}

// enqueue queues what toQueue has noted. It comes after all of the config: the map's own
// repository, which brings it to the other servers, is among what is pushed.
func (a *applying) enqueue() {
	if a.result.DryRun {
		return
	}
	err := hooks.EnqueueAll(a.server, a.Programs, a.events, a.Apply.Most, a.Stderr)
	if err != nil {
		a.failed = true
		a.trouble = append(a.trouble, "mirror map applied, but "+err.Error())
		fmt.Fprintf(a.Stderr, "mirror-shell: the map is applied, but %s: when that is mended, run mirror-shell sync\n", proc.OneLine(err.Error(), maxLine))
	}
}

func text(v mirrorcfg.Value) *string {
	if !v.Set {
		return nil
	}
	return &v.Text
}

func (a *applying) tell(plan repositoryPlan, r AppliedRepository) {
	if r.Error != "" {
		fmt.Fprintf(a.Stderr, "mirror-shell: %s: not applied: %s\n", plan.name, proc.OneLine(r.Error, maxLine))
	} else if len(r.Changes)+len(r.Hooks) > 0 {
		a.changed++
	}
	if a.Apply.Most > 0 && a.changed > a.Apply.Most {
		return
	}
	if r.Error == "" && !a.Apply.JSON {
		for _, change := range plan.Changes {
			fmt.Fprintf(a.Stdout, "%s: %s\n", plan.name, proc.OneLine(change.String(), maxLine))
		}
		for _, line := range r.Hooks {
			fmt.Fprintf(a.Stdout, "%s: %s\n", plan.name, line)
		}
	}
	for _, line := range r.Warnings {
		fmt.Fprintf(a.Stderr, "mirror-shell: warning: %s: %s\n", plan.name, proc.OneLine(line, maxLine))
	}
	for _, line := range r.Notes {
		fmt.Fprintf(a.Stderr, "mirror-shell: %s: %s\n", plan.name, proc.OneLine(line, maxLine))
	}
}

// maxLine bounds what is said about one key, in bytes.
const maxLine = 2000

// hooks installs what is missing in a repository that is mirrored, or says so.
func (a *applying) hooks(ctx context.Context, plan repositoryPlan) ([]string, error) {
	if plan.Config.Role(a.server.Hostname) == mirrorcfg.Local || a.linked(plan) {
		return nil, nil
	}
	if !a.result.DryRun {
		return hooks.Install(ctx, plan.repo, a.Programs)
	}
	if installed, err := hooks.Installed(ctx, plan.repo); err != nil || installed {
		return nil, err
	}
	return []string{"the hooks are missing, and would be installed"}, nil
}

// linked reports, without a process, whether the hooks are plainly there.
func (a *applying) linked(plan repositoryPlan) bool {
	return plan.Config.HooksPath == "" && !slices.ContainsFunc(hooks.Names, func(name string) bool {
		target, err := os.Readlink(filepath.Join(plan.repo.Dir, "hooks", name))
		return err != nil || target != a.Sibling(name)
	})
}

func write(ctx context.Context, plan repositoryPlan) error {
	for _, w := range plan.Writes {
		err := error(nil)
		if w.New.Set {
			err = plan.repo.SetConfig(ctx, w.Key, w.New.Text)
		} else {
			err = plan.repo.UnsetConfig(ctx, w.Key)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: when that is mended, run apply again", w.Key, err)
		}
	}
	return nil
}

// missing tells of repositories that are named and not here. That is as it
// should be where the map does not name this server as their master or in a list.
func (a *applying) missing(resolved *mirrorcfg.Resolved) {
	for _, name := range slices.Sorted(maps.Keys(resolved.Missing)) {
		if resolved.Missing[name].Involves(a.server.Hostname) {
			a.result.Missing = append(a.result.Missing, name)
			fmt.Fprintf(a.Stderr, "mirror-shell: %s: is to be on %s, and there is no such repository: make it, then run apply again\n", name, a.server.Hostname)
		}
	}
}

func (a *applying) finish() error {
	if a.Apply.JSON {
		if a.result.Notes == nil {
			a.result.Notes = []string{}
		}
		if err := json.NewEncoder(a.Stdout).Encode(a.result); err != nil {
			return err
		}
	}
	if over := a.changed - a.Apply.Most; a.Apply.Most > 0 && over > 0 {
		fmt.Fprintf(a.Stdout, "and %d more repositories\n", over)
	}
	for _, note := range a.result.Notes {
		fmt.Fprintf(a.Stderr, "mirror-shell: note: %s\n", proc.OneLine(note, maxLine))
	}
	if a.failed {
		return Exit(1)
	}
	return nil
}
