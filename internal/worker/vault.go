package worker

import (
	"context"
	"fmt"
	"time"

	"mirror-shell/internal/proc"
	"mirror-shell/peer"
	"mirror-shell/peer/snapshot"
)

// vault opens the vault of the backup peer that a command names with --from, or of the only one.
func (c *command) vault(ctx context.Context, named string) (name string, v *snapshot.Vault, err error) {
	if name, err = c.backupPeer("--from", named); err != nil {
		return "", nil, err
	}
	v, err = (&peer.Peers{Server: c.server, Program: program()}).Vault(ctx, name)
	return name, v, err
}

// examineVault asks a vault for one key.
func (c *command) examineVault(ctx context.Context, name string) Finding {
	check := "peer " + name
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	_, v, err := c.vault(ctx, name)
	if err != nil {
		return Finding{check, fail, proc.OneLine(err.Error(), 300), "correct [peer." + name + "] in " + c.server.File}
	}
	began := time.Now()
	for _, err := range v.Store.List(ctx, "snapshots/", "", 1) {
		if err != nil {
			return Finding{check, fail, proc.OneLine(err.Error(), 300), "see that the place of the backups can be reached and read: url and credentials of [peer." + name + "] in " + c.server.File}
		}
	}
	sealed := "not encrypted"
	if len(v.Recipients) > 0 {
		sealed = "encrypted"
	}
	return Finding{check, ok, fmt.Sprintf("vault answers in %d ms, %s", time.Since(began).Milliseconds(), sealed), ""}
}

// latestKnown is the Sum of the latest snapshot that this server knows of, "" for none.
func (c *command) latestKnown(repository, peerName string) string {
	_, repo, err := c.server.Find(repository)
	if err != nil {
		return ""
	}
	return snapshot.Remembered(peer.BackupMemory(repo.Dir, peerName))
}
