package shell

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/lazyregexp"
	"mirror-shell/internal/meta"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/repos"
	"mirror-shell/mirrorcfg"
)

// What a master says about a repository as a whole: its metadata, that there
// is to be one, that it is gone, or has another name. Each verb answers with one line of
// JSON: mirror-meta and mirror-create with a meta.Answer, the others with a Done.

// Done is what mirror-delete and mirror-rename answer.
type Done struct {
	Version int    `json:"version"`
	Done    string `json:"done"`         // "deleted", "renamed", "absent", "already"
	ID      string `json:"id,omitempty"` // of what is in the trash
}

// MayCreateMark is in the refusal of a push to a repository that the master may
// create: no other word of it matters to the master.
const MayCreateMark = "(mirror-create)"

// lookFurther finds out what decisions about whole repositories depend on.
func (s *Session) lookFurther(ctx context.Context, req Request, facts *Facts) error {
	wanted := cmp.Or(req.To, req.Repo)
	facts.Governs = s.Server.Governs(wanted)
	facts.Create = repos.Accepts(s.Server.Accept.Create, wanted) && s.InstallHooks != nil && !facts.Governs
	facts.Delete = repos.Accepts(s.Server.Accept.Delete, req.Repo)
	if req.Verb != MirrorRename {
		return nil
	}
	target, _, err := s.Server.OpenRepo(ctx, req.To)
	if errors.Is(err, mirrorcfg.ErrNoRepo) {
		return nil
	}
	facts.Target = target
	return err
}

// missing says what to do about a repository that is not here.
func missing(f Facts, peer Peer, repo string) string {
	if f.Create {
		return fmt.Sprintf("%s does not exist here: %s may create it %s", repo, peer.name, MayCreateMark)
	}
	renamed := ""
	if f.Renamed != "" {
		renamed = " (what was called so is " + f.Renamed + " now)"
	}
	byHand := fmt.Sprintf("%[1]s does not exist here%[3]s: create it, and set gitolite.mirror.master = %[2]s "+
		"(git init --bare %[1]s.git; git -C %[1]s.git config gitolite.mirror.master %[2]s; mirror-shell install-hooks %[1]s)", repo, peer.name, renamed)
	if f.Gitolite {
		byHand = fmt.Sprintf("%s does not exist here%s: create it in gitolite.conf, with config gitolite.mirror.master = %s", repo, renamed, peer.name)
	}
	if f.Governs {
		return byHand + ": it says who may do what on " + f.Hostname + ", and no master may create it"
	}
	return fmt.Sprintf("%s, or let %s do it: in the server configuration of %s, under [accept], create = [%q]", byHand, peer.name, f.Hostname, repo)
}

// decideCreate never gives a repository that is here to anybody.
func decideCreate(f Facts, peer Peer, req Request) Decision {
	reason := ""
	switch {
	case f.Repo != nil && f.role() == mirrorcfg.Slave && f.Repo.Master == peer.name:
		reason = req.Repo + " exists here already, with " + peer.name + " as its master: push to it"
	case f.Repo != nil:
		reason = req.Repo + " exists here already, and is not taken over: if it is meant, set gitolite.mirror.master = " + peer.name + " in it by hand"
	case !f.Create:
		reason = missing(f, peer, req.Repo)
	default:
		return Decision{Action: CreateRepo, Host: peer.name}
	}
	return refuse("%s <==//== %s mirror-create rejected: %s", f.Hostname, peer.name, reason)
}

func decideDelete(f Facts, peer Peer, req Request) Decision {
	if f.Repo == nil {
		return Decision{Action: TellDone, Done: "absent"}
	}
	if d := decideMirrorPush(f, peer, Request{Verb: MirrorMeta, Repo: req.Repo}); d.Action == Refuse {
		return d
	}
	if !f.Delete {
		return refuse("%s <==//== %s mirror-delete rejected: %s is kept here: delete it by hand (mirror-shell delete --here %[3]s), or let %[2]s do it: in the server configuration of %[1]s, under [accept], delete = [\"%[3]s\"]",
			f.Hostname, peer.name, req.Repo)
	}
	return Decision{Action: DeleteRepo, Host: peer.name}
}

// decideRename takes what was done before, and its answer lost, for done.
func decideRename(f Facts, peer Peer, req Request) Decision {
	if f.Repo == nil {
		ours := f.Target != nil && f.Target.Role(f.Hostname) == mirrorcfg.Slave && f.Target.Master == peer.name
		if ours {
			return Decision{Action: TellDone, Done: "already"}
		}
		return Decision{Action: TellDone, Done: "absent"}
	}
	if d := decideMirrorPush(f, peer, Request{Verb: MirrorMeta, Repo: req.Repo}); d.Action == Refuse {
		return d
	}
	switch {
	case f.Target != nil:
		return refuse("%s <==//== %s mirror-rename rejected: %s exists here already: move one of the two away by hand", f.Hostname, peer.name, req.To)
	case f.Governs:
		return refuse("%s <==//== %s mirror-rename rejected: %s says who may do what on %[1]s: rename %s by hand", f.Hostname, peer.name, req.To, req.Repo)
	case !f.Create:
		return refuse("%s <==//== %s mirror-rename rejected: %s may not be made here: rename it by hand (mirror-shell rename --here %[4]s %[3]s), or let %[2]s do it: in the server configuration of %[1]s, under [accept], create = [\"%[3]s\"]",
			f.Hostname, peer.name, req.To, req.Repo)
	}
	return Decision{Action: RenameRepo, Host: peer.name}
}

// setMeta reads metadata and stores what is taken of it.
func (s *Session) setMeta(ctx context.Context, peer Peer, req Request) error {
	data, err := meta.Parse(s.Stdin)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Server.Hostname, err)
	}
	answer, err := s.applyMeta(ctx, peer, req, data)
	if err != nil {
		return fmt.Errorf("%s: metadata: %w", s.Server.Hostname, err)
	}
	return json.NewEncoder(s.Stdout).Encode(answer)
}

// applyMeta decides again, now that all was read, and until it is done the
// repository cannot become another one.
func (s *Session) applyMeta(ctx context.Context, peer Peer, req Request, data *meta.Data) (answer *meta.Answer, err error) {
	err = repos.Hold(ctx, s.Server, func() error {
		repo, err := s.decideAgain(ctx, peer, req)
		if err == nil {
			answer, err = meta.Apply(ctx, repo, s.Server.Accept, data)
		}
		return err
	})
	return answer, err
}

// decideAgain is for after a client has kept us waiting for what it sends: it may
// wait until the repository is deleted and made anew by another master, or becomes ours.
func (s *Session) decideAgain(ctx context.Context, peer Peer, req Request) (git.Repo, error) {
	facts, repo, err := s.look(ctx, req)
	if err != nil {
		return repo, err
	}
	if d := DecidePeer(facts, peer, req); d.Action == Refuse {
		return repo, errors.New(d.Message)
	}
	if facts.Repo == nil {
		return repo, fmt.Errorf("%s: %w any more", req.Repo, mirrorcfg.ErrNoRepo)
	}
	return repo, nil
}

// decisionHolds is how long a decision is relied upon while the directory is still the
// same one. Looking again costs a push a process.
const decisionHolds = time.Second

// still is decideAgain where that is needed.
func (s *Session) still(ctx context.Context, peer Peer, req Request) error {
	if now, err := s.stat(req); err == nil && s.opened != nil && os.SameFile(now, s.opened) && time.Since(s.looked) < decisionHolds {
		return nil
	}
	_, err := s.decideAgain(ctx, peer, req)
	return err
}

// stat identifies the directory that a request is about.
func (s *Session) stat(req Request) (fs.FileInfo, error) {
	return os.Stat(filepath.Join(s.Server.RepoBase, req.Repo+".git"))
}

// create makes the repository that a master may create.
func (s *Session) create(ctx context.Context, master, name string) error {
	data, err := meta.Parse(s.Stdin)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Server.Hostname, err)
	}
	answer, err := s.createFor(ctx, master, name, data)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Server.Hostname, err)
	}
	return json.NewEncoder(s.Stdout).Encode(answer)
}

// createdTimeout bounds the administrator's command after a creation.
const createdTimeout = time.Minute

// createFor makes a repository of which an authenticated peer becomes the
// master. That it may be made here, decideCreate has decided. The command of the
// administrator runs after that; when it fails, the repository stays, and that is told.
func (s *Session) createFor(ctx context.Context, master, name string, data *meta.Data) (*meta.Answer, error) {
	repo, answer, err := repos.Create(ctx, s.Server, repos.Creation{
		Name: name, Master: master, Format: data.Format, Meta: data, InstallHooks: s.InstallHooks,
	})
	if err != nil {
		return nil, err
	}
	s.Log.Warn("repository created", "repository", name, "master", master, "directory", repo.Dir)
	fmt.Fprintf(s.Stderr, "%s <=== (%s created) ==== %s\n", s.Server.Hostname, name, master)
	command := s.Server.Accept.Created
	if len(command) == 0 {
		return answer, nil
	}
	// A master that hangs up does not keep it from running.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createdTimeout)
	defer cancel()
	argv := append(append([]string{}, command...), name)
	if _, err := proc.Run(proc.Command(ctx, proc.Env(mirrorcfg.EnvConfig+"="+s.Server.File), argv...)); err != nil {
		s.Log.Error("the command accept.created failed", "repository", name, "error", err)
		fmt.Fprintf(s.Stderr, "mirror-shell: %s: %s was created, but the command for that (accept.created) failed: see the log there\n", s.Server.Hostname, name)
	}
	return answer, nil
}

// deletion is what mirror-delete reads: an object, or nothing.
type deletion struct {
	Version int    `json:"version"`
	ID      string `json:"id"` // the master's, by which a repetition is recognised
}

// maxDeletion bounds it, in bytes.
const maxDeletion = 1 << 10

var deletionID = lazyregexp.New(`^[0-9A-Za-z-]{0,64}$`)

func parseDeletion(r io.Reader) (d deletion, err error) {
	text, err := io.ReadAll(io.LimitReader(r, maxDeletion+1))
	switch {
	case err != nil || len(text) == 0:
		return d, err
	case len(text) > maxDeletion:
		return d, fmt.Errorf("mirror-delete: more than %d bytes", maxDeletion)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return d, fmt.Errorf("mirror-delete: %w", err)
	}
	if d.Version > 1 || !deletionID.MatchString(d.ID) {
		return d, errors.New("mirror-delete: not a deletion of version 1")
	}
	return d, nil
}

func (s *Session) delete(ctx context.Context, master, name string) error {
	d, err := parseDeletion(s.Stdin)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Server.Hostname, err)
	}
	if before, err := repos.Done(s.Server, master, d.ID); before || err != nil {
		return errors.Join(err, s.done(Done{Done: "already"}))
	}
	e, err := repos.Delete(ctx, s.Server, repos.Deletion{Name: name, By: master, Op: d.ID})
	if err != nil {
		return fmt.Errorf("%s: %w", s.Server.Hostname, err)
	}
	s.Log.Warn("repository deleted", "repository", name, "master", master, "trash", e.ID)
	fmt.Fprintf(s.Stderr, "%s <=== (%s deleted) ==== %s\n", s.Server.Hostname, name, master)
	return s.done(Done{Done: "deleted", ID: e.ID})
}

func (s *Session) rename(ctx context.Context, master string, req Request) error {
	if err := repos.Rename(ctx, s.Server, repos.Renaming{Old: req.Repo, New: req.To, By: master}); err != nil {
		return fmt.Errorf("%s: %w", s.Server.Hostname, err)
	}
	s.Log.Warn("repository renamed", "repository", req.Repo, "to", req.To, "master", master)
	fmt.Fprintf(s.Stderr, "%s <=== (%s renamed to %s) ==== %s\n", s.Server.Hostname, req.Repo, req.To, master)
	return s.done(Done{Done: "renamed"})
}

func (s *Session) done(d Done) error {
	d.Version = 1
	return json.NewEncoder(s.Stdout).Encode(d)
}

// knows reports whether a repository is any of a peer's business: the new name of one that
// is not is nothing to tell.
func (s *Session) knows(ctx context.Context, peer Peer, name string) bool {
	cfg, _, err := s.Server.OpenRepo(ctx, name)
	return err == nil && cfg.Role(s.Server.Hostname) != mirrorcfg.Local && (cfg.Master == peer.name || cfg.Listed(s.Server.Hostname, peer.name))
}

// othersDecide reports whether what users may do is known only to the program that their
// sessions are handed to, such as gitolite-shell.
func (s *Session) othersDecide() bool {
	return len(s.Server.Users.Exec) > 0 && len(s.Server.Users.Authorize) == 0
}

// renamedFor tells a user what a repository is called now, if they may read it.
// Where another program decides about that (users.exec), nothing is told.
func (s *Session) renamedFor(ctx context.Context, user User, req Request, now string) (error, bool) {
	if s.othersDecide() {
		return nil, false
	}
	if s.authorize(ctx, Decision{Access: Read, User: user}, Request{Verb: req.Verb, Repo: now}) != nil {
		return nil, false
	}
	return fmt.Errorf("%s: %s is called %s now: set the new address with git remote set-url", s.Server.Hostname, req.Repo, now), true
}
