// Package peer makes copies of repositories equal to the master's.
//
// A peer is anything a repository can be mirrored to, by name. Peers.Sync is the one
// entrance: it takes the lock for (repository, peer), reads the repository's
// configuration again, because a job may have waited, and hands over to the
// kind of peer that the name stands for (Open). Kinds share nothing but the Peer
// interface and the errors below; how an ssh peer works is told in ssh.go.
//
// A peer's copy is the truth about itself: what we remember of it (the sets of
// refs that were confirmed, and those that are being sent) only decides whether
// a value over there may be overwritten.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
	"mirror-shell/internal/meta"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// A failed Sync wraps one of these where the caller can do better than try
// again later.
var (
	// ErrUnreachable: nobody answered, or we were not let in. It concerns
	// every repository of that peer.
	ErrUnreachable = errors.New("cannot be reached")
	// ErrHeld: going on might destroy something; a person has to look.
	ErrHeld = errors.New("held")
	// ErrDropped: the job has no reason any more.
	ErrDropped = errors.New("dropped")
	// ErrRenamed is ErrDropped of a name that the repository does not have any more: under its new
	// one the peer is equal, or not wanted.
	ErrRenamed = fmt.Errorf("%w", ErrDropped)
)

// Source is the repository to make equal, as it is configured now.
type Source struct {
	Config *mirrorcfg.Repo
	Repo   git.Repo
	// ID of the run over all repositories that this is part of, or "": for kinds that keep it.
	ID string
	// Progress, when not nil, is told how far a backup is; see snapshot.Source.
	Progress func(stage string, done, total int64)
	// Several is true when other peers get the same, perhaps at the same time.
	Several bool
}

// Outcome is what a Sync that did not fail has to tell.
type Outcome struct {
	Digest string // of our mirrored refs, which the peer's now equal
	Note   string // what did not travel although nothing failed, one line
	// Renote, where it is not nil, makes the note of what it was before: the peer was not asked for its part.
	Renote func(before string) string
	// Phases and Sent are also set when the Sync failed, as far as it came.
	Phases map[string]time.Duration // how long each took
	Sent   int64                    // bytes of content
}

// Peer is one kind of destination.
type Peer interface {
	// Sync makes the peer's copy equal to src and returns nil only when it
	// is. While it works it tells people what happens through say, in lines.
	// The caller holds the lock for (src, peer).
	Sync(ctx context.Context, src Source, say io.Writer) (Outcome, error)
}

// Peers are all that this server can push to.
type Peers struct {
	Server *mirrorcfg.Server
	// Transport reaches ssh peers.
	Transport Transport
	// Program is this program and its version, for the records in backups.
	Program string

	stock  stockMemory
	packs  packs
	known  identities
	vaults vaults
}

// Open returns the peer of that name.
func (p *Peers) Open(name string) (Peer, error) {
	if err := mirrorcfg.CheckHost(name); err != nil {
		return nil, err
	}
	switch kind := p.Kind(name); kind {
	case KindSSH:
		return &sshPeer{
			name: name, hostname: p.Server.Hostname,
			stall: time.Duration(p.Server.Worker.StallTimeout), transport: p.Transport, stock: &p.stock, identities: &p.known,
			packs: &p.packs, stateDir: p.Server.StateDir,
			maxDelete: p.Server.Guard.MaxDeletePercent, maxPart: maxPart,
		}, nil
	case KindBackup:
		return &backupPeer{name, p}, nil
	default:
		return nil, fmt.Errorf("peer %s: kind %q is not available in this version: take [peer.%s] out of %s", name, kind, name, p.Server.File)
	}
}

// Compare asks a peer how our repositories stand there; see Comparer. A peer of
// a kind that cannot tell is ErrForeign.
func (p *Peers) Compare(ctx context.Context, name string) (map[string]Standing, error) {
	opened, err := p.Open(name)
	if err != nil {
		return nil, err
	}
	if c, ok := opened.(Comparer); ok {
		return c.Compare(ctx)
	}
	return nil, fmt.Errorf("%s: %w", name, ErrForeign)
}

// Knows reports whether anything is remembered of the copy.
func (p *Peers) Knows(repository, name string) bool {
	if p.Kind(name) == KindBackup {
		return true // nothing has to be: the vault tells
	}
	_, repo, err := p.Server.Find(repository)
	if err != nil {
		return false
	}
	_, err = os.Stat(refset.Path(repo.Dir, name))
	return err == nil
}

// Confirm remembers that the copy is equal, after a comparison by digest found it
// so: without that, a branch that is rewritten here later would look on the peer
// like somebody else's. Head is what the peer's HEAD points to, "" when it is not
// known. When ours have changed since, nothing is done.
func (p *Peers) Confirm(ctx context.Context, repository, name, equalAt, head string) error {
	if p.Kind(name) == KindBackup {
		return nil
	}
	repo, unlock, err := p.lock(ctx, repository, name)
	if err != nil {
		return err
	}
	defer unlock()
	cfg, err := mirrorcfg.LoadRepo(ctx, repository, repo)
	if err != nil {
		return err
	}
	refs, err := repo.ReadRefs(ctx)
	if err != nil {
		return err
	}
	refs = cfg.MirroredRefs(refs)
	if digest.Of(refs) != equalAt {
		return nil // a push came in between, and will be confirmed itself
	}
	if head != "" { // which only our own servers tell
		if err := meta.ForgetGiven(repo.Dir, name); err != nil {
			return err
		}
	}
	log, err := refset.Open(refset.Path(repo.Dir, name))
	if err != nil {
		return err
	}
	entries := make([]refset.Entry, 0, len(refs)+1)
	if head != "" {
		entries = append(entries, refset.Entry{Ref: "HEAD", OID: "ref:" + head})
	}
	for ref, oid := range refs {
		if !log.Ours(ref, oid) { // what is on record may still be being sent
			entries = append(entries, refset.Entry{Ref: ref, OID: oid})
		}
	}
	return errors.Join(log.Confirm(entries), log.Close(), clearRestored(repo.Dir, name),
		removeIfThere(heldFile(repo.Dir, name)), removeIfThere(approvedFile(repo.Dir, name)))
}

// SetKnownHead corrects what we remember of a peer's HEAD ("" for none), after
// the peer itself has told otherwise: the next Sync will then send ours.
func (p *Peers) SetKnownHead(ctx context.Context, repository, name, head string) error {
	if p.Kind(name) == KindBackup {
		return nil
	}
	repo, unlock, err := p.lock(ctx, repository, name)
	if err != nil {
		return err
	}
	defer unlock()
	if head == "" {
		return forgetHead(repo, name)
	}
	log, err := refset.Open(refset.Path(repo.Dir, name))
	if err != nil {
		return err
	}
	return errors.Join(log.Confirm([]refset.Entry{{Ref: "HEAD", OID: "ref:" + head}}), log.Close(), meta.ForgetGiven(repo.Dir, name))
}

// Job says which copy to make equal.
type Job struct {
	Repository, Peer string
	// Listed is true when the job exists because a list names the peer: it is
	// dropped when no list does any more.
	Listed bool
	// See Source.
	ID       string
	Progress func(stage string, done, total int64)
}

// Sync makes job.Peer's copy of job.Repository equal, alone among this server's
// processes. Errors may wrap the sentinels above, mirrorcfg.ErrNoRepo, or a
// context's error.
func (p *Peers) Sync(ctx context.Context, job Job, say io.Writer) (Outcome, error) {
	name, err := mirrorcfg.CleanRepo(job.Repository) // of "ip1" and "ip1.git", one lock
	if err != nil {
		return Outcome{}, err
	}
	job.Repository = name
	return p.settle(ctx, job, say, func() (Outcome, error) {
		out, err := p.syncRefs(ctx, job, say)
		if errors.Is(err, mirrorcfg.ErrNoRepo) {
			return p.gone(ctx, job, err, say)
		}
		return out, err
	})
}

// syncRefs is Sync for a repository about which nothing is left to be told.
func (p *Peers) syncRefs(ctx context.Context, job Job, say io.Writer) (Outcome, error) {
	server := p.Server
	repo, unlock, err := p.lock(ctx, job.Repository, job.Peer)
	if err != nil {
		return Outcome{}, err
	}
	defer unlock()
	cfg, err := mirrorcfg.LoadRepo(ctx, job.Repository, repo)
	if err != nil {
		return Outcome{}, err
	}
	// A backup that somebody asks for is taken of whatever is here: of copies, too.
	anyRole := p.Kind(job.Peer) == KindBackup && !job.Listed
	if role := cfg.Role(server.Hostname); role != mirrorcfg.Master && !anyRole {
		return Outcome{}, fmt.Errorf("%w: %s is not the master of %s (%s here)", ErrDropped, server.Hostname, cfg.Name, role)
	}
	if job.Listed && !cfg.Listed(server.Hostname, job.Peer) {
		return Outcome{}, fmt.Errorf("%w: no list of %s names %s any more", ErrDropped, cfg.Name, job.Peer)
	}
	opened, err := p.Open(job.Peer)
	if err != nil {
		return Outcome{}, err
	}
	slaves, _ := cfg.Expand(server.Hostname, mirrorcfg.SlavesKey, mirrorcfg.SyncKey) // a mistake there is the hook's to tell
	return opened.Sync(ctx, Source{Config: cfg, Repo: repo, ID: job.ID, Progress: job.Progress, Several: len(slaves) > 1}, say)
}

// lock finds a repository, waits for the lock of (repository, peer) and returns
// its release. The lock stands in the repository, so that it counts on every node
// that serves it. The file stays: unlinking it would let two holders in.
func (p *Peers) lock(ctx context.Context, repository, peer string) (git.Repo, func(), error) {
	_, repo, err := p.Server.Find(repository)
	if err != nil {
		return repo, nil, err
	}
	path := refset.Path(repo.Dir, peer) + ".lock"
	if err := refset.MakeCacheDirs(filepath.Dir(path)); err != nil {
		return repo, nil, fmt.Errorf("lock for %s on %s: %w", repository, peer, err)
	}
	l := flock.New(path, flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return repo, nil, fmt.Errorf("lock for %s on %s: %w", repository, peer, err)
	}
	return repo, func() { l.Close() }, nil
}
