package peer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer/snapshot"
	"mirror-shell/peer/store"
)

// KindBackup and KindSSH are the kinds of peers.
const (
	KindSSH    = "ssh"
	KindBackup = "backup"
)

// Kind returns the kind of a peer, which need not be configured.
func (p *Peers) Kind(name string) string {
	if kind := p.Server.Peers[name].Kind; kind != "" {
		return kind
	}
	return KindSSH
}

// backupPeer takes snapshots into a vault. Nothing is ever overwritten there, so there is nothing to
// hold or to rescue: a repository that was emptied by mistake gives one more snapshot, of
// an empty repository.
type backupPeer struct {
	name  string
	peers *Peers
}

// vaults are the vaults of a process: one for each peer, whose connections, limits and
// rates all jobs share.
type vaults struct {
	mu     sync.Mutex
	opened map[string]openedVault
}

// openedVault is a vault and, where that is a directory, which one it was when it was opened.
type openedVault struct {
	*snapshot.Vault
	dir fs.FileInfo
}

// vaultDir looks at the directory that a URL names; nil: it names none, or there is none.
func vaultDir(place string) fs.FileInfo {
	dir := localDir(place)
	if dir == "" {
		return nil
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil
	}
	return info
}

// current reports whether the directory is still the one at that place: a disk that was mounted over it, or
// a directory that was moved away, would go on to be written to unseen.
func (o openedVault) current(place string) bool {
	return o.Vault != nil && (o.dir == nil || os.SameFile(o.dir, vaultDir(place)))
}

// Vault returns the vault of a backup peer. The error says what is wrong with its configuration.
func (p *Peers) Vault(ctx context.Context, name string) (*snapshot.Vault, error) {
	if p.Kind(name) != KindBackup {
		return nil, fmt.Errorf("%s is no backup: write [peer.%s] with kind = %q and its url into %s", name, name, KindBackup, p.Server.File)
	}
	if err := p.checkPlace(name); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	p.vaults.mu.Lock()
	defer p.vaults.mu.Unlock()
	place := p.Server.Peers[name].URL
	if v := p.vaults.opened[name]; v.current(place) {
		return v.Vault, nil
	}
	v, err := p.openVault(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if p.vaults.opened == nil {
		p.vaults.opened = map[string]openedVault{}
	}
	p.vaults.opened[name] = openedVault{v, vaultDir(place)}
	return v, nil
}

// Sync implements Peer.
func (b *backupPeer) Sync(ctx context.Context, src Source, _ io.Writer) (Outcome, error) {
	vault, err := b.peers.Vault(ctx, b.name)
	if err != nil {
		return Outcome{}, &shut{err}
	}
	source := b.source(src.Config, src.Repo.Dir)
	source.ID, source.Progress = src.ID, src.Progress
	taken, err := vault.Take(ctx, source)
	if err == nil {
		b.peers.notePlace(b.name)
	}
	out := Outcome{Digest: taken.Name.Digest, Note: taken.Note, Phases: phasesOf(taken.Phases), Sent: taken.Uploaded}
	return out, b.explain(err)
}

// shut is why no repository at all can be brought to a vault. It is ErrUnreachable, and says the reason only.
type shut struct{ error }

func (s *shut) Unwrap() []error { return []error{ErrUnreachable, s.error} }

// explain makes an error that concerns the vault as a whole one of the peer. Which repository and blob it
// was met with says nothing then, and would hide the reason in a table.
func (b *backupPeer) explain(err error) error {
	for _, sentinel := range []error{store.ErrUnreachable, store.ErrDenied} {
		if errors.Is(err, sentinel) {
			for next := errors.Unwrap(err); next != nil && next != sentinel && errors.Is(next, sentinel); next = errors.Unwrap(next) {
				err = next
			}
			return &shut{fmt.Errorf("%s: %w", b.name, err)}
		}
	}
	return err
}

// Look implements Looker. The digest of a copy that lacks anything, be it a hook, is "".
func (b *backupPeer) Look(ctx context.Context, cfg *mirrorcfg.Repo) (Standing, error) {
	digest, note, err := b.peers.LookAt(ctx, b.name, cfg, "")
	return Standing{Digest: digest, NoHead: true, Note: note}, err
}

// look finds out whether a repository is as its latest snapshot says. With an ID, an unchanged one
// gets a record that says so. It takes no lock: what it reads may be older than a
// snapshot that is being taken, and is then just not unchanged.
func (b *backupPeer) look(ctx context.Context, cfg *mirrorcfg.Repo, id string) (snapshot.Result, error) {
	vault, err := b.peers.Vault(ctx, b.name)
	if err != nil {
		return snapshot.Result{}, &shut{err}
	}
	_, repo, err := b.peers.Server.Find(cfg.Name)
	if err != nil {
		return snapshot.Result{}, err
	}
	source := b.source(cfg, repo.Dir)
	source.ID, source.Look = id, true
	taken, err := vault.Take(ctx, source)
	return taken, b.explain(err)
}

// source is what a vault has to know of a repository.
func (b *backupPeer) source(cfg *mirrorcfg.Repo, dir string) snapshot.Source {
	return snapshot.Source{
		Repository: cfg.Name, Repo: git.Repo{Dir: dir}, Mirrored: cfg.MirroredRefs, Memory: BackupMemory(dir, b.name, b.peers.Server.Peers[b.name].URL),
	}
}

// BackupMemory is the directory in a repository where the latest manifest at a backup peer is kept. It is a
// cache of what is in the vault: a peer that was moved to another place, by its url, has another one.
func BackupMemory(repoDir, name, url string) string {
	place := sha256.Sum256([]byte(url))
	return filepath.Join(refset.Dir(repoDir), "backup", name, hex.EncodeToString(place[:8]))
}

// LookAt tells how a repository stands in the vault of a backup peer, by one request; with an ID,
// and a second request, an unchanged one is recorded as part of that run. Digest is "" when it has to be backed up; note is what
// the snapshot lacks.
func (p *Peers) LookAt(ctx context.Context, name string, cfg *mirrorcfg.Repo, id string) (digest, note string, err error) {
	taken, err := (&backupPeer{name, p}).look(ctx, cfg, id)
	if err != nil || !taken.Unchanged {
		return "", "", err
	}
	return taken.Name.Digest, taken.Note, nil
}

func phasesOf(p snapshot.Phases) map[string]time.Duration {
	return map[string]time.Duration{"read": p.Read, "pack": p.Pack, "upload": p.Upload, "publish": p.Publish, "check": p.Check}
}

// KeepPolicy is what the configuration of a backup peer says that prune keeps. With nothing set it is one that Check refuses.
func KeepPolicy(c mirrorcfg.Backup) snapshot.Policy {
	return snapshot.Policy{
		Last: c.KeepLast, Hourly: c.KeepHourly, Daily: c.KeepDaily, Weekly: c.KeepWeekly,
		Monthly: c.KeepMonthly, Yearly: c.KeepYearly, Within: time.Duration(c.KeepWithin), Location: time.Local,
	}
}

// openVault opens the vault that a backup peer is configured to be.
func (p *Peers) openVault(ctx context.Context, name string) (*snapshot.Vault, error) {
	server, c := p.Server, p.Server.Peers[name]
	place, err := store.Open(ctx, store.Options{
		URL: c.URL, CredentialsFile: c.CredentialsFile, LockMode: c.LockMode, Concurrency: c.Concurrency,
		BytesPerSecond: int64(c.BytesPerSecond), RequestsPerSecond: float64(c.RequestsPerSecond),
		Stall: time.Duration(server.Worker.StallTimeout),
	})
	if err != nil {
		return nil, err
	}
	v := &snapshot.Vault{
		Store: place, Scratch: filepath.Join(server.StateDir, "scratch"), Include: c.Include, Exclude: c.Exclude,
		Retain: time.Duration(c.Lock), Keep: KeepPolicy(c.Backup), Grace: time.Duration(c.Grace), Server: server.Hostname, Program: p.Program,
	}
	v.ToForget = func(repository string) map[string]bool { return toForget(server.StateDir, name, repository) }
	if v.Recipients, err = snapshot.ParseRecipients(c.Recipients); err != nil {
		return nil, err
	}
	if c.RecipientsFile != "" {
		more, err := snapshot.LoadRecipients(c.RecipientsFile)
		if err != nil {
			return nil, err
		}
		v.Recipients = append(v.Recipients, more...)
	}
	if c.IdentityFile != "" {
		if v.Identities, err = snapshot.LoadIdentities(c.IdentityFile); err != nil {
			return nil, err
		}
	}
	return v, durable.MakeDirs(v.Scratch)
}
