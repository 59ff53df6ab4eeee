package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mirror-shell/internal/proc"
	"mirror-shell/peer"
	"mirror-shell/peer/snapshot"
	"mirror-shell/peer/store"
)

// vault opens the vault of the backup peer that a command names with --from, or of the only one.
func (c *command) vault(ctx context.Context, named string) (name string, v *snapshot.Vault, err error) {
	if name, err = c.backupPeer("--from", named); err != nil {
		return "", nil, err
	}
	v, err = (&peer.Peers{Server: c.server, Program: program()}).Vault(ctx, name)
	return name, v, err
}

// examineVault asks a vault for a snapshot, and reads it where it is encrypted and we have a key.
func (c *command) examineVault(ctx context.Context, name string) Finding {
	check := "peer " + name
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, v, err := c.vault(ctx, name)
	if err != nil {
		return Finding{check, fail, proc.OneLine(err.Error(), 300), "mend what it says, or correct [peer." + name + "] in " + c.server.File}
	}
	began := time.Now()
	var first snapshot.Name
	for s, err := range v.Snapshots(ctx, "") {
		if err != nil {
			return Finding{check, fail, proc.OneLine(err.Error(), 300), "see that the place of the backups can be reached and read: url and credentials of [peer." + name + "] in " + c.server.File}
		}
		first = s
		break
	}
	took := time.Since(began).Milliseconds()
	sealed := "not encrypted"
	switch {
	case len(v.Recipients) > 0 && len(v.Identities) == 0:
		sealed = "encrypted; without identity_file this server can only write"
	case len(v.Recipients) > 0:
		sealed = "encrypted"
	}
	if first.Sealed && len(v.Identities) > 0 {
		if _, err := v.Load(ctx, first); err != nil {
			return Finding{check, fail, proc.OneLine(err.Error(), 300), "give [peer." + name + "] in " + c.server.File + " the identity_file that belongs to recipients, or none"}
		}
	}
	detail := fmt.Sprintf("vault answers in %d ms, %s", took, sealed)
	if first.Sum == "" {
		detail += ", and is empty"
	}
	if problem, do, level := scarce(v.Store); level != ok {
		return Finding{check, level, problem, do}
	}
	return Finding{check, ok, detail, ""}
}

// Room in bytes: so little is none, as only the smallest backups would go on; and so much is enough on a disk of any size.
const (
	scarceRoom = 1 << 20
	enoughRoom = 10e9
)

// scarce says that a store takes nothing, or is full, or will be soon: a warning below a twentieth of its size. What is on a network
// may not tell its size.
func scarce(s store.Store) (problem, do, level string) {
	place, is := s.(store.Roomer)
	if !is {
		return "", "", ok
	}
	do = "make room there, or remove old snapshots by mirror-shell prune, which needs some kB itself; what could not be backed up is tried again by itself"
	free, blobs, size, err := place.Room()
	switch {
	case errors.Is(err, store.ErrDenied):
		return proc.OneLine(err.Error(), 300), "see that the directory is this account's, and that its disk is not mounted read-only: one with errors may be", fail
	case err != nil:
		return proc.OneLine(err.Error(), 300), "look at the disk", warn
	case size == 0:
		return "", "", ok
	case free < scarceRoom || blobs == 0:
		return fmt.Sprintf("its disk is full: %d kB and %d files are free", free/1000, blobs), do, fail
	case free < min(size/20, enoughRoom):
		return fmt.Sprintf("its disk is nearly full: %d of %d MB are free", free/1e6, size/1e6), do, warn
	}
	return "", "", ok
}

// examineLock says what it costs to retain backups without knowing which of them prune keeps.
func (c *command) examineLock(name string) []Finding {
	p := c.server.Peers[name]
	if p.Lock == 0 || peer.KeepPolicy(p.Backup).Check() == nil {
		return nil
	}
	return []Finding{{"peer " + name, warn, fmt.Sprintf("lock = %q without any keep_…: it is not known here what prune keeps, so small packs are put together only when there are 500", time.Duration(p.Lock)),
		"write the keep_… by which the vault is pruned into [peer." + name + "] in " + c.server.File + ", also when another server prunes; nothing, if nobody does"}}
}

// latestKnown is the Sum of the latest snapshot that this server knows of, "" for none.
func (c *command) latestKnown(repository, peerName string) string {
	return snapshot.Remembered(c.backupMemory(repository, peerName), repository)
}

// backupMemory is where this server remembers what it knows of a repository in a vault, "" when it does not have it.
func (c *command) backupMemory(repository, peerName string) string {
	_, repo, err := c.server.Find(repository)
	if err != nil {
		return ""
	}
	return peer.BackupMemory(repo.Dir, peerName, c.server.Peers[peerName].URL)
}

// stopped is why a command ends early, as people want to read it; nil: it goes on.
func stopped(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("stopped: %w", context.Cause(ctx))
}
