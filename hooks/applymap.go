package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// applyLimit bounds how long a push of the mirror map waits for it to be applied.
// What is left then is done by the next apply.
const applyLimit = 10 * time.Minute

// applyShown is of how many repositories the pusher sees the changes.
const applyShown = "50"

// applyMap applies the server's mirror map when it was just pushed, by a user or
// by the master. Whatever goes wrong is told to who pushed: the push is stored.
//
// The map may give new slaves to repositories, its own among them: apply queues
// a push to these, so that nobody has to push once more for them.
func (h *Hook) applyMap(ctx context.Context, server *mirrorcfg.Server, cfg *mirrorcfg.Repo) int {
	if cfg.Name != server.Map.Repository {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, applyLimit)
	defer cancel()
	cmd := proc.Command(ctx, proc.Env(), filepath.Join(h.Programs, "mirror-shell"), "--config", server.File, "apply", "--from-repository", "--most", applyShown)
	// On a slave it is a server that pushes: what is wrong has to be in the log, too.
	var said proc.Tail
	cmd.Stdout, cmd.Stderr = h.Stderr, io.MultiWriter(h.Stderr, &said)
	err := cmd.Run()
	if err != nil {
		logError(server, "mirror map", err, "repository", cfg.Name, "peer", h.Peer, "said", said.String())
		fmt.Fprintf(h.Stderr, "mirror-shell: the push is stored, but its mirror map is not applied on %s, or not all of it: %v: "+
			"correct it and push again, or run there: mirror-shell apply --from-repository\n", server.Hostname, err)
	}
	h.tellMaster(server, err)
	return 0
}

// tellMaster tells the master what to note of the map that it has pushed. Who pushed by the verb mirror-push learns it
// from its answer, who compares from that of mirror-digest; a push by git's own protocol can only be told like this.
func (h *Hook) tellMaster(server *mirrorcfg.Server, failed error) {
	text := refset.MapNote(h.Dir, time.Now())
	if failed != nil && text == "" { // apply was killed, or could not be started
		text = "mirror map not applied: " + proc.OneLine(failed.Error(), 200)
		if err := refset.EndMap(h.Dir, text); err != nil {
			h.warn(server, "the mirror map", err)
		}
	}
	if text != "" && h.Peer != "" {
		fmt.Fprintf(h.Stderr, "%s%s\n", refset.NotePrefix, text)
	}
}

// PushedTo are the peers that a user's push goes to from here.
func PushedTo(server *mirrorcfg.Server, cfg *mirrorcfg.Repo) []string {
	if cfg.Role(server.Hostname) != mirrorcfg.Master {
		return nil
	}
	slaves, badSlaves := cfg.Expand(server.Hostname, mirrorcfg.SlavesKey)
	synchronous, badSync := cfg.Expand(server.Hostname, mirrorcfg.SyncKey)
	if errors.Join(badSlaves, badSync) != nil {
		return nil // post-receive says so
	}
	return append(slaves, synchronous...)
}
