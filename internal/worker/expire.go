package worker

import (
	"context"
	"fmt"
	"time"

	"mirror-shell/internal/rescue"
)

// expireRescued drops rescued refs that are older than guard.keep_rescued, once in
// each sync of everything. The log says what, so that it can be had back until gc.
func (c *command) expireRescued(ctx context.Context) {
	dropped, err := rescue.Expire(ctx, c.server, time.Now())
	log := c.fileLog()
	for _, e := range dropped {
		log.Warn("rescued ref dropped, older than guard.keep_rescued", "repository", e.Repository, "ref", e.Name, "oid", e.OID)
	}
	if err != nil {
		log.Error("rescued refs cannot be looked through", "error", err)
		fmt.Fprintf(c.Stderr, "mirror-shell: %v\n", err)
	}
}
