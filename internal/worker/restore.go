package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"mirror-shell/hooks"
	"mirror-shell/internal/cli"
	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/repos"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/peer/snapshot"
)

// restored is what became of one repository.
type restored struct {
	Repository string     `json:"repository"`
	Snapshot   *time.Time `json:"snapshot,omitempty"` // when it was taken
	ID         string     `json:"id,omitempty"`
	Directory  string     `json:"directory,omitempty"`
	Aside      string     `json:"aside,omitempty"` // where what was there is now
	Bytes      int64      `json:"bytes,omitempty"`
	Note       string     `json:"note,omitempty"`
	Error      string     `json:"error,omitempty"`
	Skipped    bool       `json:"skipped,omitempty"` // it was not there at that time
	// Moved is what was pushed to what is at Aside now, while it was being replaced.
	Moved []snapshot.Moved `json:"moved,omitempty"`
}

// restoreRun is one run of restore.
type restoreRun struct {
	*command
	vault *snapshot.Vault
	at    time.Time // zero: the latest snapshots
	id    string    // of the run; "": any
	shown *progress
	bytes *stage
	began time.Time
	mu    sync.Mutex
	all   []restored
	lent  repos.Borrowers // in place only: who borrows from others
}

// restore brings repositories back, in parallel, all to the same point in time.
func (c *command) restore(ctx context.Context) error {
	if c.Restore.All == (len(c.Restore.Repositories) > 0) {
		return cli.Usage{Message: "name repositories, or give --all"}
	}
	if c.Restore.Into == "" && !c.Restore.InPlace {
		return cli.Usage{Message: "say where to, with --into DIR or --in-place"}
	}
	r := &restoreRun{command: c, began: time.Now()}
	// What is given and empty comes from a script whose variable was not set: the latest is not what it wants.
	if c.Restore.ID != nil {
		if r.id = *c.Restore.ID; snapshot.CheckID(r.id) != nil {
			return cli.Usage{Message: snapshot.CheckID(r.id).Error()}
		}
	}
	if c.Restore.At != nil {
		at, err := snapshot.ParseTime(*c.Restore.At, r.began, time.Local)
		if err != nil {
			return cli.Usage{Message: err.Error()}
		}
		r.at = at
		if at.After(r.began.Add(24 * time.Hour)) { // the end of today is not
			fmt.Fprintf(c.Stderr, "mirror-shell: %s is in the future: the latest snapshots are taken\n", *c.Restore.At)
		}
	}
	if into := c.Restore.Into; into != "" {
		abs, err := filepath.Abs(into)
		if err != nil {
			return err
		}
		c.Restore.Into = abs
	}
	name, vault, err := c.vault(ctx, c.Restore.From)
	if err != nil {
		return err
	}
	r.vault = vault
	names, err := inVault(ctx, vault, c.Restore.Repositories)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("%s has nothing in it: correct url of [peer.%s] in %s, bucket, prefix and all", name, name, c.server.File)
	}
	r.shown = newProgress(c.Stderr, c.Restore.Quiet || c.Restore.JSON)
	defer r.shown.Close()
	r.run(ctx, names)
	return r.finish(ctx)
}

// inVault returns the repositories in a vault that the patterns name; all when there is none.
func inVault(ctx context.Context, vault *snapshot.Vault, patterns []string) ([]string, error) {
	all, err := vault.Repositories(ctx)
	if err != nil {
		return nil, err
	}
	return matching(all, patterns)
}

// matching returns those of the names that the patterns mean, sorted; all when there is none.
func matching(all, patterns []string) ([]string, error) {
	if len(patterns) == 0 {
		return all, nil
	}
	var chosen []string
	for _, pattern := range patterns {
		pattern = strings.TrimSuffix(pattern, ".git")
		if err := mirrorcfg.CheckGlob(pattern); err != nil {
			return nil, err
		}
		before := len(chosen)
		for _, name := range all {
			if mirrorcfg.MatchGlob(pattern, name) {
				chosen = append(chosen, name)
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("nothing in the vault matches %q: mirror-shell snapshots lists what there is", pattern)
		}
	}
	slices.Sort(chosen)
	return slices.Compact(chosen), nil
}

func (r *restoreRun) run(ctx context.Context, names []string) {
	done := r.shown.Stage("repositories restored", len(names))
	r.bytes = r.shown.Bytes("written")
	if r.Restore.InPlace {
		r.lent = repos.FindBorrowers(r.server)
	}
	for _, group := range r.lent.InOrder(names) {
		r.together(ctx, group, done)
	}
}

// together restores repositories side by side.
func (r *restoreRun) together(ctx context.Context, names []string, done *stage) {
	var all errgroup.Group
	all.SetLimit(min(r.server.Worker.Jobs, max(2, runtime.NumCPU())))
	for _, name := range names {
		all.Go(func() error {
			if ctx.Err() != nil {
				return nil // finish tells
			}
			defer done.Done(1)
			out := restored{Repository: name}
			if err := r.one(ctx, name, &out); err != nil {
				out.Error = proc.OneLine(err.Error(), 1000)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.all = append(r.all, out)
			r.tell(out)
			return nil
		})
	}
	all.Wait()
}

// one restores one repository. Its error is that the repository is not there as it was.
func (r *restoreRun) one(ctx context.Context, name string, out *restored) error {
	chosen, err := r.vault.Choose(ctx, name, r.at, r.id)
	if errors.Is(err, snapshot.ErrNoSnapshot) {
		err = r.absent(ctx, name, chosen)
		if r.wide() {
			out.Skipped, out.Note = true, err.Error()
			return nil
		}
	}
	if err != nil {
		return err
	}
	if chosen.Forgotten && r.wide() {
		out.Skipped, out.Note = true, strings.Join(chosen.Notes, "; ")
		return nil
	}
	out.Snapshot, out.ID = &chosen.Time, chosen.ID
	dir, err := r.target(name)
	if err != nil {
		return err
	}
	options := snapshot.RestoreOptions{WithoutHooks: r.Restore.WithoutHooks, Progress: r.bytes.Done}
	if r.Restore.Check == "checksums" {
		options.Check = snapshot.Checksums
	}
	if r.Restore.InPlace {
		if git.IsRepository(dir) {
			if err := r.lent.Refuse(git.Repo{Dir: dir}, "restore them in place, too, or "); err != nil {
				return fmt.Errorf("%w; where that fails because objects are damaged, move %s away and restore again", err, proc.OneLine(dir, 300))
			}
		}
		// Slaves may have what came after the snapshot: no push may take it from them unseen.
		options.Replace, options.Mark = true, strings.TrimPrefix(peer.RestoredMark(dir), dir+"/")
		// Somebody may push as soon as it is in its place. That there are no hooks is told below.
		options.Prepare = func(ctx context.Context, build string) error { return r.hooked(ctx, git.Repo{Dir: build}) }
	}
	report, err := r.vault.Restore(ctx, chosen.Name, dir, options)
	if r.at.IsZero() && chosen.Time.After(r.began.Add(time.Hour)) {
		chosen.Notes = append(chosen.Notes, "its time is in the future: the clock of the server that made it was wrong, or this one's is")
	}
	out.Note = strings.Join(append(chosen.Notes, report.Notes...), "; ")
	out.Moved, out.Aside = report.Moved, report.Before
	if err != nil {
		return err
	}
	out.Directory, out.Bytes = dir, report.Bytes
	if r.Restore.InPlace {
		return r.hooked(ctx, git.Repo{Dir: dir})
	}
	return nil
}

// absent says why nothing fits, and what there is.
func (r *restoreRun) absent(ctx context.Context, name string, chosen snapshot.Choice) error {
	if r.id != "" {
		return fmt.Errorf("it has no part in the run %s: mirror-shell snapshots %s lists what there is", r.id, name)
	}
	if len(chosen.Notes) > 0 {
		return fmt.Errorf("%s, and there is none before that", chosen.Notes[len(chosen.Notes)-1])
	}
	var oldest snapshot.Name
	for s, err := range r.vault.Snapshots(ctx, name) {
		if err != nil {
			return err
		}
		oldest = s
	}
	return fmt.Errorf("there is no snapshot from before %s: the oldest is of %s", r.at.Local().Format(time.DateTime), oldest.Time.Local().Format("2006-01-02 15:04:05.000"))
}

// wide reports whether more was asked for than names: what did not exist at that time is then no failure.
func (r *restoreRun) wide() bool {
	return r.Restore.All || slices.ContainsFunc(r.Restore.Repositories, func(p string) bool { return strings.ContainsAny(p, "*?[") })
}

// target is where a repository goes.
func (r *restoreRun) target(name string) (string, error) {
	if r.Restore.Into != "" {
		return filepath.Join(r.Restore.Into, name+".git"), nil
	}
	_, repo, err := r.server.Find(name)
	if err == nil || !errors.Is(err, mirrorcfg.ErrNoRepo) {
		return repo.Dir, err
	}
	return filepath.Join(r.server.RepoBase, name+".git"), nil
}

// hooked puts the hooks into a repository that takes part in mirroring: those in the backup may be of another
// installation, and without ours the repository would take pushes that it must refuse.
func (r *restoreRun) hooked(ctx context.Context, repo git.Repo) error {
	if _, err := hooks.Install(ctx, repo, r.Programs); err != nil {
		return fmt.Errorf("restored, but without hooks: %w: run mirror-shell install-hooks", err)
	}
	return nil
}

// maxMoved is how many refs of a repository people are told of by name; programs are told of all.
const maxMoved = 100

// tellMoved names what was pushed to a repository while it was being replaced. The lock is held.
func (r *restoreRun) tellMoved(out restored) {
	for i, m := range out.Moved {
		if i == maxMoved {
			fmt.Fprintf(r.shown, "mirror-shell: %s: and %d more refs: git ls-remote %s\n", out.Repository, len(out.Moved)-i, out.Aside)
			return
		}
		what := fmt.Sprintf("%s was moved from %.10s to %.10s", m.Ref, m.Old, m.New)
		switch {
		case m.Old == "":
			what = fmt.Sprintf("%s was made at %.10s", m.Ref, m.New)
		case m.New == "":
			what = fmt.Sprintf("%s was deleted at %.10s", m.Ref, m.Old)
		}
		fmt.Fprintf(r.shown, "mirror-shell: %s: somebody pushed while it was being restored: %s in %s, and not here\n", out.Repository, proc.OneLine(what, 1000), out.Aside)
	}
}

// tell says what became of a repository. The lock is held.
func (r *restoreRun) tell(out restored) {
	if !r.Restore.JSON {
		r.tellMoved(out)
	}
	switch {
	case out.Error != "" && out.Aside != "":
		fmt.Fprintf(r.shown, "mirror-shell: %s: replaced, what was there is now %s, but: %s\n", out.Repository, out.Aside, out.Error)
	case out.Error != "":
		fmt.Fprintf(r.shown, "mirror-shell: %s: not restored: %s\n", out.Repository, out.Error)
	case r.Restore.Quiet || r.Restore.JSON:
	case out.Skipped:
		fmt.Fprintf(r.shown, "%s: left out: %s\n", out.Repository, out.Note)
	default:
		aside := ""
		if out.Aside != "" {
			aside = "; what was there is now " + out.Aside
		}
		fmt.Fprintf(r.shown, "%s: as of %s in %s%s%s\n", out.Repository, out.Snapshot.Local().Format(time.DateTime), out.Directory, inParentheses(out.Note), aside)
	}
}

// asOf is the point in time that was restored.
func (r *restoreRun) asOf() time.Time {
	if r.at.IsZero() {
		return r.began
	}
	return r.at
}

// finish prints the summary; the error is that something could not be restored. Programs are told of what was done
// before somebody stopped it, as people were: some pushes may be in the directories that were moved aside.
func (r *restoreRun) finish(ctx context.Context) error {
	r.shown.Close()
	stop := stopped(ctx)
	if stop != nil && !r.Restore.JSON {
		return stop
	}
	slices.SortFunc(r.all, func(a, b restored) int { return cmp.Compare(a.Repository, b.Repository) })
	count := map[string]int{}
	var bytes int64
	for _, out := range r.all {
		bytes += out.Bytes
		switch {
		case out.Error != "":
			count["failed"]++
		case out.Skipped:
			count["skipped"]++
		}
		if len(out.Moved) > 0 {
			count["moved"]++
		}
	}
	took := time.Since(r.began).Seconds()
	if r.Restore.JSON {
		err := json.NewEncoder(r.Stdout).Encode(struct {
			At           time.Time  `json:"at"` // without --at: now, for the latest
			Repositories []restored `json:"repositories"`
			Seconds      float64    `json:"seconds"`
		}{r.asOf().UTC(), r.all, took})
		if err = cmp.Or(stop, err); err != nil {
			return err
		}
	} else if !r.Restore.Quiet {
		fmt.Fprintf(r.Stdout, "%d repositories restored, %d left out, %d failures, %s in %.1f s\n",
			len(r.all)-count["failed"]-count["skipped"], count["skipped"], count["failed"], bytesText(bytes), took)
		if count["moved"] > 0 {
			fmt.Fprintf(r.Stdout, "%d repositories got pushes meanwhile, which are in the directories that were moved aside: git fetch DIRECTORY REF brings them back, or have them pushed again\n", count["moved"])
		}
		if r.Restore.InPlace && len(r.all) > count["failed"]+count["skipped"] {
			fmt.Fprintln(r.Stdout, "what slaves have beyond this is held: see mirror-shell status after mirror-shell sync; mirror-shell sync --pull-from PEER REPO fetches it")
		}
	}
	if count["failed"] > 0 || count["moved"] > 0 || count["skipped"] == len(r.all) { // nothing is not what was asked for
		return cli.Exit(1)
	}
	return nil
}
