// Package repos makes repositories, moves them to the trash and gives them other
// names: what concerns a repository as a whole, on a master and on its slaves.
//
// All of it happens by one rename(2), so that nothing half-made or half-gone can be
// seen, pushed to or listed. None of it ever overwrites anything.
//
// # On disk
//
// Below repo_base, where one rename can reach everything and every node of a server
// sees the same, there is a directory that is no repository name:
//
//	.mirror-shell/lock                one process at a time creates, deletes or renames
//	.mirror-shell/created             JSON: how many repositories each master has made or renamed today
//	.mirror-shell/trash/ID/           a deleted repository; ID is its date and eight random digits
//	    about.json                    an Entry
//	    repository/                   the repository as it was
//	.mirror-shell/untold/PEER.json    JSON array of Op: what a peer is still to be told
//	.mirror-shell/untold/PEER.lock    one process at a time tells it
//	.mirror-shell/renamed/HASH.json   a Moved; HASH is the SHA-256 of the old name
//
// A repository that is being made is DIR/.mirror-shell-new-….git, beside where it will be.
//
// # Telling the peers
//
// A directory that merely vanished deletes nothing anywhere: only the commands delete
// and rename write an Op for each peer of the repository's lists. A job (make PEER's
// copy of REPO equal) carries out what the peer is still to be told about that
// name, in the order in which it happened here, before anything else. An Op stays
// until the peer has confirmed it, so it survives that the peer is down for a month,
// and a lost jobs table.
package repos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/git"
	"mirror-shell/internal/meta"
	"mirror-shell/mirrorcfg"
)

// ErrExists is wrapped when a repository is not made because there is one.
var ErrExists = fmt.Errorf("there is such a repository already: %w", fs.ErrExist)

// Creation describes a repository that a master may have made here: that the
// server accepts it, the caller has decided (see Accepts).
type Creation struct {
	Name   string     // in its clean form
	Master string     // the authenticated peer, which becomes gitolite.mirror.master
	Format string     // "sha1" or "sha256"; "" for sha1
	Meta   *meta.Data // HEAD and the rest, checked; nil for nothing
	// InstallHooks puts our hooks into it.
	InstallHooks func(context.Context, git.Repo) error
}

// Accepts reports whether a name matches one of the globs of [accept] create or delete.
func Accepts(globs []string, name string) bool {
	for _, glob := range globs {
		if mirrorcfg.MatchGlob(glob, name) {
			return true
		}
	}
	return false
}

// Create makes a repository, with its hooks, its metadata and its master in
// place before anybody can see it. The answer says what of the metadata was not
// taken. Errors: ErrExists; mirrorcfg.ErrName for a name that cannot be here; why it failed.
func Create(ctx context.Context, server *mirrorcfg.Server, c Creation) (git.Repo, *meta.Answer, error) {
	if c.Format == "" {
		c.Format = "sha1"
	}
	if clean, err := mirrorcfg.CleanRepo(c.Name); err != nil || clean != c.Name {
		return git.Repo{}, nil, errors.Join(err, fmt.Errorf("%w: %.80q", mirrorcfg.ErrName, c.Name))
	}
	if err := mirrorcfg.CheckHost(c.Master); err != nil {
		return git.Repo{}, nil, err
	}
	if c.Format != "sha1" && c.Format != "sha256" {
		return git.Repo{}, nil, fmt.Errorf("object format %.20q is unknown here", c.Format)
	}
	p, err := open(ctx, server)
	if err != nil {
		return git.Repo{}, nil, err
	}
	defer p.close()
	final, err := p.vacant(c.Name)
	if err != nil {
		return git.Repo{}, nil, err
	}
	if err := p.countCreation(c.Master, server.Accept.CreatePerDay); err != nil {
		return git.Repo{}, nil, err
	}
	if err := p.makeParents(final); err != nil {
		return git.Repo{}, nil, err
	}
	temp, err := p.tempBeside(final)
	if err != nil {
		return git.Repo{}, nil, err
	}
	defer os.RemoveAll(temp) // not there any more when all went well
	answer, err := c.fill(ctx, server, temp)
	if err != nil {
		return git.Repo{}, nil, fmt.Errorf("create %s: %w", c.Name, err)
	}
	if err := syncNew(temp); err != nil {
		return git.Repo{}, nil, fmt.Errorf("create %s: %w", c.Name, err)
	}
	if err := p.move(temp, final); err != nil {
		return git.Repo{}, nil, fmt.Errorf("create %s: %w", c.Name, err)
	}
	return git.Repo{Dir: final}, answer, p.forgetMoved(c.Name)
}

// fill makes the repository in a directory that nobody looks at.
func (c Creation) fill(ctx context.Context, server *mirrorcfg.Server, dir string) (*meta.Answer, error) {
	repo, err := git.Init(ctx, dir, c.Format)
	if err != nil {
		return nil, err
	}
	if err := repo.SetConfig(ctx, "gitolite.mirror.master", c.Master); err != nil {
		return nil, err
	}
	if c.InstallHooks != nil {
		if err := c.InstallHooks(ctx, repo); err != nil {
			return nil, fmt.Errorf("hooks: %w", err)
		}
	}
	answer := &meta.Answer{Version: meta.Version, NotTaken: []string{}}
	if c.Meta != nil {
		if answer, err = meta.Apply(ctx, repo, server.Accept, c.Meta); err != nil {
			return nil, err
		}
	}
	cfg, err := mirrorcfg.LoadRepo(ctx, c.Name, repo)
	if err != nil {
		return nil, err
	}
	if cfg.Master != c.Master { // an include of this server's git configuration has the last word
		return nil, fmt.Errorf("gitolite.mirror.master would be %q, by the git configuration of this server, and not %s", cfg.Master, c.Master)
	}
	return answer, nil
}

// syncNew has the files on disk that say whose the repository is, before it has its
// name: after a power cut an empty config would make it local, and anybody's to push to.
func syncNew(dir string) error {
	for _, name := range []string{"config", "HEAD"} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return durable.SyncDir(dir)
}

// place is repo_base, locked.
type place struct {
	base string // symlinks resolved
	lock *flock.Flock
}

// lockWait bounds the wait for others; making a repository takes a fraction of a second.
const lockWait = time.Minute

func open(ctx context.Context, server *mirrorcfg.Server) (*place, error) {
	return lock(ctx, server, (*flock.Flock).TryLockContext)
}

// Hold keeps repositories from being made, deleted and renamed while do runs. Others
// may hold them as well; do must be short, and use nothing else of this package.
func Hold(ctx context.Context, server *mirrorcfg.Server, do func() error) error {
	p, err := lock(ctx, server, (*flock.Flock).TryRLockContext)
	if err != nil {
		return err
	}
	defer p.close()
	return do()
}

func lock(ctx context.Context, server *mirrorcfg.Server, how func(*flock.Flock, context.Context, time.Duration) (bool, error)) (*place, error) {
	base, err := server.Base()
	if err != nil {
		return nil, err
	}
	p := &place{base: base}
	if err := durable.MakeDirs(p.private()); err != nil {
		return nil, err
	}
	p.lock = flock.New(p.private("lock"), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	if _, err := how(p.lock, ctx, 10*time.Millisecond); err != nil {
		return nil, fmt.Errorf("lock %s: %w", p.private("lock"), err)
	}
	return p, nil
}

func (p *place) close() { p.lock.Close() }

func (p *place) private(elements ...string) string {
	return filepath.Join(append([]string{p.base, mirrorcfg.PrivateDir}, elements...)...)
}

// vacant returns where a repository of that name has its directory. Every directory
// above that is there must be a real one, and no repository: a link may lead
// anywhere, and who owns a repository has no say about what is below it.
func (p *place) vacant(name string) (dir string, err error) {
	elements := strings.Split(name, "/")
	dir = p.base
	for i, element := range elements[:len(elements)-1] {
		dir = filepath.Join(dir, element)
		info, err := os.Lstat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist): // and so are all below it
		case err != nil:
			return "", err
		case !info.IsDir():
			return "", fmt.Errorf("%w: %s here is a link or a file, and nothing is made below it", mirrorcfg.ErrName, strings.Join(elements[:i+1], "/"))
		case git.IsRepository(dir):
			return "", fmt.Errorf("%w: %s here is itself a repository, and nothing is made inside it", mirrorcfg.ErrName, strings.Join(elements[:i+1], "/"))
		}
	}
	dir = filepath.Join(dir, elements[len(elements)-1]+".git")
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return "", errors.Join(err, fmt.Errorf("%s: %w", name, ErrExists))
	}
	return dir, nil
}

// makeParents makes the directories above a repository, and has them on disk. Only what
// is counted makes any: a name may have two hundred of them.
func (p *place) makeParents(dir string) error {
	above := filepath.Dir(dir)
	if above == p.base || isDir(above) {
		return nil
	}
	if err := p.makeParents(above); err != nil {
		return err
	}
	if err := os.Mkdir(above, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return durable.SyncDir(filepath.Dir(above))
}

// tempPrefix begins what is being made; the end is .git, so that walks do not
// go inside. No element of a repository's name may begin like that, see mirrorcfg.CleanRepo:
// who could rename a repository to such a name would have it removed by the next creation.
const tempPrefix = mirrorcfg.PrivateDir + "-new-"

// tempBeside makes an empty directory on the file system of final. What a process
// that was killed left there is removed: the lock says that nobody is at work.
func (p *place) tempBeside(final string) (string, error) {
	dir := filepath.Dir(final)
	left, err := filepath.Glob(filepath.Join(globEscape(dir), tempPrefix+"*.git"))
	if err != nil {
		return "", err
	}
	for _, old := range left {
		if err := os.RemoveAll(old); err != nil {
			return "", err
		}
	}
	temp, err := os.MkdirTemp(dir, tempPrefix+"*.git")
	if err != nil {
		return "", err
	}
	// MkdirTemp's 0700 would keep others out whom git lets in; git init changes nothing
	// about a directory that is there.
	return temp, os.Remove(temp)
}

func globEscape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

// move renames a directory to a name that nothing has.
func (p *place) move(from, to string) error {
	if err := durable.RenameNew(from, to); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return ErrExists
		}
		return err
	}
	return errors.Join(durable.SyncDir(filepath.Dir(from)), durable.SyncDir(filepath.Dir(to)))
}

// creations is how many repositories each master has made on a day.
type creations struct {
	Day   string         `json:"day"` // 2006-01-02, UTC
	Count map[string]int `json:"count"`
}

// countCreation refuses more than most a day: a master's key must not fill the disk.
// What failed counts, too, and so does a new name, which makes directories as well.
func (p *place) countCreation(master string, most int) error {
	var c creations
	today := time.Now().UTC().Format(time.DateOnly)
	if text, err := os.ReadFile(p.private("created")); err != nil || json.Unmarshal(text, &c) != nil || c.Day != today || c.Count == nil {
		c = creations{today, map[string]int{}}
	}
	if c.Count[master] >= most {
		return fmt.Errorf("%s has made or renamed %d repositories here today, and may do no more until tomorrow (create_per_day under [accept])", master, c.Count[master])
	}
	c.Count[master]++
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return durable.Replace(p.private("created"), text)
}
