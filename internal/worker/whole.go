package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/repos"
	"mirror-shell/mirrorcfg"
)

// owned opens a repository that may be deleted or renamed here, and returns the
// peers that are to be told: all that any list of it names, and all that were equal once and
// have a job. Jobs are all that there are of it.
func (c *command) owned(ctx context.Context, what, name string, here bool) (cfg *mirrorcfg.Repo, peers []string, jobs []queue.Row, err error) {
	cfg, _, err = c.server.OpenRepo(ctx, name)
	if err != nil {
		return nil, nil, nil, err
	}
	if jobs, err = c.queue.Rows(ctx, queue.Filter{Repository: cfg.Name}); err != nil {
		return nil, nil, nil, err
	}
	switch role := cfg.Role(c.server.Hostname); {
	case here || role == mirrorcfg.Local:
		return cfg, nil, jobs, nil
	case role == mirrorcfg.Slave:
		return nil, nil, nil, fmt.Errorf("the master of %s is %s: %s it there, or with --here only this copy", cfg.Name, cfg.Master, what)
	}
	if peers, err = cfg.Expand(c.server.Hostname, cfg.Lists()...); err != nil {
		return nil, nil, nil, fmt.Errorf("whom to tell cannot be told: %w: correct that, or use --here", err)
	}
	for _, row := range jobs {
		if row.State != queue.StateDropped && !row.LastSuccess.IsZero() && !slices.Contains(peers, row.Peer) {
			peers = append(peers, row.Peer) // pushed to by its name, and about to be again perhaps
		}
	}
	// A backup keeps what it has, above all of what is deleted.
	peers = slices.DeleteFunc(peers, func(p string) bool { return c.server.Peers[p].Kind == "backup" })
	return cfg, peers, jobs, nil
}

// delete moves a repository to the trash, and has its peers told.
func (c *command) delete(ctx context.Context) error {
	cfg, peers, jobs, err := c.owned(ctx, "delete", c.Delete.Repo, c.Delete.Here)
	if err != nil {
		return err
	}
	e, err := repos.Delete(ctx, c.server, repos.Deletion{Name: cfg.Name, Peers: peers})
	if err != nil {
		return err
	}
	fmt.Fprintf(c.Stdout, "%s is in the trash: mirror-shell trash --restore %s brings it back\n", cfg.Name, e.ID)
	return errors.Join(c.forgetJobs(ctx, jobs), c.tellPeers(ctx, cfg.Name, peers))
}

// rename gives a repository another name, and has its peers told.
func (c *command) rename(ctx context.Context) error {
	cfg, peers, jobs, err := c.owned(ctx, "rename", c.Rename.Old, c.Rename.Here)
	if err != nil {
		return err
	}
	name, err := mirrorcfg.CleanRepo(c.Rename.New)
	if err != nil {
		return err
	}
	if err := repos.Rename(ctx, c.server, repos.Renaming{Old: cfg.Name, New: name, Peers: peers}); err != nil {
		return err
	}
	fmt.Fprintf(c.Stdout, "%s is called %s now\n", cfg.Name, name)
	return errors.Join(c.forgetJobs(ctx, jobs), c.carryOver(ctx, jobs, name, peers), c.tellPeers(ctx, name, peers))
}

// forgetJobs removes the jobs of a name that was in use when they were read, and is not any more. One that runs
// is run once more instead: then it finds that by itself. So does one that was pushed to since, unless the name
// is another repository's by now; that one's peers are its own lists' to name.
func (c *command) forgetJobs(ctx context.Context, jobs []queue.Row) error {
	running, err := c.queue.ForgetSeen(ctx, jobs)
	if err != nil || len(running) == 0 {
		return err
	}
	again := make([]queue.Change, len(running))
	for i, row := range running {
		again[i] = queue.Change{Key: row.Key, Origin: inbox.OriginList, Time: time.Now()}
	}
	_, err = c.queue.Enqueue(ctx, again)
	return err
}

// carryOver queues by its new name what was still to be done by the old one, and is not for one of the peers
// that are told anyway: for a backup, or a peer that no list names.
func (c *command) carryOver(ctx context.Context, jobs []queue.Row, name string, told []string) error {
	var changes []queue.Change
	for _, row := range jobs {
		if row.Want > row.Done && !slices.Contains(told, row.Peer) {
			changes = append(changes, queue.Change{Key: queue.Key{Repository: name, Peer: row.Peer}, Origin: row.Origin, Time: row.Oldest})
		}
	}
	if len(changes) == 0 {
		return nil
	}
	if _, err := c.queue.Enqueue(ctx, changes); err != nil {
		return fmt.Errorf("what was to be done for it is done by the next sync: %w", err)
	}
	return c.wake()
}

// tellPeers queues a job for each peer: make equal what has that name.
func (c *command) tellPeers(ctx context.Context, name string, peers []string) error {
	if len(peers) == 0 {
		return nil
	}
	changes := make([]queue.Change, len(peers))
	for i, p := range peers {
		changes[i] = queue.Change{Key: queue.Key{Repository: name, Peer: p}, Origin: inbox.OriginExplicit, Time: time.Now()}
	}
	if _, err := c.queue.Enqueue(ctx, changes); err != nil {
		return fmt.Errorf("the peers are told by the next sync: %w", err)
	}
	fmt.Fprintf(c.Stdout, "%s are told: see mirror-shell status %s\n", strings.Join(peers, ", "), name)
	return c.wake()
}

// withUntold adds the names of which peers are still to be told something: jobs for
// them may have been lost, and what is deleted is not compared.
func (r *syncRun) withUntold(ctx context.Context, different []replica) ([]replica, error) {
	waiting, err := repos.Waiting(ctx, r.server)
	if err != nil {
		return nil, err
	}
	for peer, ops := range waiting {
		for _, op := range ops {
			c := replica{Key: queue.Key{Repository: op.Name, Peer: peer}}
			if op.Kind == repos.Renamed {
				c.Repository = op.To
			}
			if r.selects(c.Repository) && !slices.ContainsFunc(different, func(d replica) bool { return d.Key == c.Key }) {
				different = append(different, c)
			}
		}
	}
	return different, nil
}

// selects reports whether sync was asked to look at a repository.
func (r *syncRun) selects(name string) bool {
	return len(r.Sync.Repositories) == 0 || slices.ContainsFunc(r.Sync.Repositories, func(p string) bool {
		return mirrorcfg.MatchGlob(strings.TrimSuffix(p, ".git"), name)
	})
}

// expireTrash destroys what has been in the trash for longer than guard.keep_trash, once
// in each sync of everything, and forgets the jobs of what was deleted when nobody has to
// be told of it any more.
func (c *command) expireTrash(ctx context.Context) {
	err := c.forgetDeleted(ctx)
	if keep := time.Duration(c.server.Guard.KeepTrash); keep > 0 {
		gone, expireErr := repos.Expire(ctx, c.server, time.Now().Add(-keep))
		for _, e := range gone {
			c.fileLog().Warn("deleted repository destroyed, older than guard.keep_trash", "repository", e.Name, "id", e.ID)
		}
		err = errors.Join(err, expireErr)
	}
	if err != nil {
		c.fileLog().Error("the trash cannot be looked through", "error", err)
		fmt.Fprintf(c.Stderr, "mirror-shell: %s\n", proc.OneLine(err.Error(), 400))
	}
}

func (c *command) forgetDeleted(ctx context.Context) error {
	list, err := repos.Trash(c.server)
	if len(list) == 0 {
		return err
	}
	rows, err := c.queue.Rows(ctx, queue.Filter{})
	if err != nil {
		return err
	}
	open := map[string]bool{}
	known := map[string][]queue.Row{}
	for _, row := range rows {
		known[row.Repository] = append(known[row.Repository], row)
		if row.State != queue.StateOK && row.State != queue.StateDropped {
			open[row.Repository] = true
		}
	}
	for _, e := range list {
		if _, _, err := c.server.Find(e.Name); e.By != "" || known[e.Name] == nil || open[e.Name] || !errors.Is(err, mirrorcfg.ErrNoRepo) {
			continue
		}
		if err := c.forgetJobs(ctx, known[e.Name]); err != nil {
			return err
		}
		delete(known, e.Name)
	}
	return nil
}
