package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"mirror-shell/internal/meta"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/repos"
	"mirror-shell/mirrorcfg"
)

// What becomes of a repository as a whole on its peers: one that is missing is
// created where the peer lets us, and one that was deleted or renamed here is
// deleted or renamed there, before anything else is done with that name.

// Teller is a peer that can be told what happened to a repository as a whole.
type Teller interface {
	// Tell returns nil when the peer has done so, or had nothing to do. The error
	// wraps ErrForeign when it cannot be told such things, ErrUnreachable when it cannot be reached.
	Tell(ctx context.Context, op repos.Op, say io.Writer) error
}

// createMark is in a peer's refusal of a push to a repository that we may create.
const createMark = "(mirror-create)"

// createWanted reports whether a push was refused because the peer would have us
// create the repository.
func (r *syncRun) createWanted(err error) bool {
	return r.head != nil && r.head.data != nil && !r.created && err != nil && !errors.Is(err, ErrUnreachable) && strings.Contains(err.Error(), createMark)
}

// create makes the repository on the peer, with HEAD and everything else in place.
func (r *syncRun) create(ctx context.Context) error {
	r.created = true
	format, err := r.src.Repo.ObjectFormat(ctx)
	if err != nil {
		return err
	}
	d := *r.head.data
	d.Format, d.Head = format, r.head.target
	if head, err := r.src.Repo.Head(ctx); err == nil && strings.HasPrefix(head, "refs/heads/") {
		d.Head = head // also where there is no branch yet
	}
	fmt.Fprintf(r.say, "   creating %s on %s\n", r.src.Config.Name, r.name)
	answer, err := r.tell(ctx, "mirror-create", &d)
	if err != nil {
		return err
	}
	// Whatever is on record is of another repository.
	if err := forgetHeadIn(r.log, format); err != nil {
		return err
	}
	return r.head.taken(answer)
}

// tellOps tells a peer what it is still to be told about a name. It stops at the first
// that fails: the order is what keeps the names apart. What a foreign peer has to be
// told by hand is returned: its renamings, which the push after it proves. One process at a
// time tells a peer: else one that is late would rename what has been made since.
func (p *Peers) tellOps(ctx context.Context, opened Peer, job Job, say io.Writer) (ops, byHand []repos.Op, err error) {
	release, err := repos.Telling(ctx, p.Server, job.Peer)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	if ops, err = repos.Untold(ctx, p.Server, job.Peer, job.Repository); err != nil {
		return nil, nil, err
	}
	teller, able := opened.(Teller)
	for _, op := range ops {
		err := fmt.Errorf("%s: %w", job.Peer, ErrForeign)
		if able {
			err = teller.Tell(ctx, op, say)
		}
		if errors.Is(err, ErrForeign) {
			if op.Kind == repos.Renamed {
				byHand = append(byHand, op)
				continue
			}
			return ops, byHand, fmt.Errorf("%w: %s was deleted here, and %s does not take that: delete it there by hand, then run mirror-shell forget %s", ErrHeld, op.Name, job.Peer, op.Name)
		}
		if err != nil {
			return ops, byHand, err
		}
		if err := repos.Told(ctx, p.Server, job.Peer, op); err != nil {
			return ops, byHand, err
		}
	}
	return ops, byHand, nil
}

// settle tells the peer, if there is anything, and then goes on with then. A renaming
// that has to be done by hand counts as done once the peer takes what is pushed to the new name.
func (p *Peers) settle(ctx context.Context, job Job, say io.Writer, then func() (Outcome, error)) (Outcome, error) {
	ops, err := repos.Untold(ctx, p.Server, job.Peer, job.Repository)
	if err != nil || len(ops) == 0 {
		return orElse(err, then)
	}
	opened, err := p.Open(job.Peer)
	if err != nil {
		return Outcome{}, err
	}
	ops, byHand, err := p.tellOps(ctx, opened, job, say)
	if err != nil {
		return Outcome{}, err
	}
	if n := len(ops); n > 0 && ops[n-1].Kind == repos.Deleted {
		if _, _, err := p.Server.Find(job.Repository); errors.Is(err, mirrorcfg.ErrNoRepo) {
			return Outcome{Note: "deleted here, and not on " + job.Peer + " any more"}, nil
		}
	}
	out, err := then()
	for _, op := range byHand {
		if err != nil {
			return out, fmt.Errorf("%w: it may still be called %s there: rename it to %s by hand", err, op.Name, op.To)
		}
		if err := repos.Told(ctx, p.Server, job.Peer, op); err != nil {
			return out, err
		}
	}
	return out, err
}

func orElse(err error, then func() (Outcome, error)) (Outcome, error) {
	if err != nil {
		return Outcome{}, err
	}
	return then()
}

// gone says what to do about a job for a repository that is not here: what was renamed is
// made equal by its new name, and what was deleted needs nothing any more.
func (p *Peers) gone(ctx context.Context, job Job, cause error, say io.Writer) (Outcome, error) {
	if now := repos.NewName(p.Server, job.Repository); now != "" {
		renamed := job
		renamed.Repository = now
		switch _, err := p.Sync(ctx, renamed, say); {
		case errors.Is(err, ErrDropped):
			return Outcome{}, fmt.Errorf("%w: %s is called %s now: %w", ErrRenamed, job.Repository, now, err)
		case err != nil:
			return Outcome{}, fmt.Errorf("%s, which was %s: %w", now, job.Repository, err)
		}
		return Outcome{}, fmt.Errorf("%w: %s is called %s now, and is equal", ErrRenamed, job.Repository, now)
	}
	if e, ok, err := repos.InTrash(p.Server, job.Repository); err == nil && ok {
		return Outcome{}, fmt.Errorf("%w: %s was deleted here (%s in the trash)", ErrDropped, job.Repository, e.ID)
	}
	return Outcome{}, fmt.Errorf("%w: put it back, or run: mirror-shell forget %s", cause, job.Repository)
}

// Tell implements Teller.
func (p *sshPeer) Tell(ctx context.Context, op repos.Op, say io.Writer) error {
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	r := &syncRun{sshPeer: p, say: &oneAtATime{w: say}, pulse: pulse}
	err := r.tellOp(ctx, op)
	if err == nil {
		return nil
	}
	if err = r.explain(ctx, err); errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
		return err
	}
	if p.lacks(ctx, "mirror-"+string(op.Kind)) {
		return fmt.Errorf("%s: %w", p.name, ErrForeign)
	}
	return err
}

func (r *syncRun) tellOp(ctx context.Context, op repos.Op) error {
	if err := r.identify(ctx); err != nil {
		return err
	}
	command := fmt.Sprintf("mirror-%s '%s'", op.Kind, op.Name)
	if op.Kind == repos.Renamed {
		command += " '" + op.To + "'"
	}
	conn, err := r.open(ctx, command, r.say)
	if err != nil {
		return err
	}
	defer conn.cancel()
	text, err := r.exchange(conn, func(w io.Writer) error {
		if op.Kind != repos.Deleted {
			return nil
		}
		return json.NewEncoder(w).Encode(map[string]any{"version": 1, "id": op.ID})
	})
	if err != nil {
		return err
	}
	var done struct {
		Version int    `json:"version"`
		Done    string `json:"done"`
	}
	if json.Unmarshal(text, &done) != nil || done.Version != 1 || done.Done == "" {
		return fmt.Errorf("%s: %s: the peer answers %.120q", r.name, command, text)
	}
	return nil
}

// NewMeta reports whether a copy is to be told of the metadata with that hash, or, where
// nobody can see its HEAD, of HEAD, which points to head; the directory is the repository's.
// A backup has files of its own way.
func (p *Peers) NewMeta(repoDir, name, hash, head string) bool {
	if p.Kind(name) == KindBackup {
		return false
	}
	known := meta.Known(repoDir, name)
	return known.New(hash) || known.Due(head)
}

func printable(s string) string { return proc.OneLine(s, 120) }
