package hooks

import (
	"fmt"
	"time"

	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// behind tells whoever pushes of copies that have gone without this repository
// for long: administrators read logs seldom, and people push every day. It only
// reads what the worker left for it.
func (h *Hook) behind(server *mirrorcfg.Server, repository string, peers []string) {
	lacks, err := inbox.Behind(server.StateDir, repository, peers)
	if err != nil {
		logError(server, "what is behind cannot be read", err, "repository", repository)
	}
	now := time.Now()
	for _, l := range lacks {
		fmt.Fprintf(h.Stderr, "mirror-shell: %s\n", proc.OneLine(l.Text(now), 400))
	}
}
