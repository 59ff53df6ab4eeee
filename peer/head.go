package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"mirror-shell/internal/refset"
)

// headSync takes HEAD to a peer. A push cannot: it takes the verb mirror-meta,
// which only mirror-shell servers have, and a connection of its own. So it is
// done when HEAD is not what the peer was told before, and ahead of the refs,
// because a default branch that was renamed cannot be deleted while HEAD points
// to it.
type headSync struct {
	*syncRun
	target  string // "" when there is nothing to send
	sent    bool   // by this Sync
	foreign bool   // the peer was found not to take it, by this Sync
}

// look finds out what there is to send.
func (h *headSync) look(ctx context.Context) error {
	target, err := h.src.Repo.Head(ctx)
	switch {
	case err != nil:
		return err
	case target == "":
		h.note = "HEAD is detached here and was not sent"
		return nil
	case !strings.HasPrefix(target, "refs/heads/"):
		h.note = "HEAD was not sent: " + target + " is no branch"
		return nil
	case len(h.ours) == 0:
		return nil
	}
	h.target = target
	return nil
}

// before sends HEAD where that is news.
func (h *headSync) before(ctx context.Context) error {
	if h.target == "" {
		return nil
	}
	switch known, _ := h.log.Confirmed("HEAD"); known {
	case "ref:" + h.target:
		return nil
	case "!ref:" + h.target:
		h.noteForeign()
		return nil
	}
	return h.send(ctx)
}

// after finishes what before could not know. A peer that turned out to be empty
// may have been made anew, and its HEAD with it. And that a peer takes no HEAD
// is believed, and remembered until HEAD changes, only of one that takes refs:
// a server in trouble answers no verb at all.
func (h *headSync) after(ctx context.Context, refsErr error) error {
	if h.adv == nil || h.target == "" {
		return nil
	}
	if len(h.adv.Refs) == 0 && !h.sent && !h.foreign {
		zero := strings.Repeat("0", oidLength(h.adv.ObjectFormat))
		if err := h.log.Confirm([]refset.Entry{{Ref: "HEAD", OID: zero}}); err != nil || refsErr != nil {
			return err
		}
		h.note = ""
		if err := h.send(ctx); err != nil {
			return err
		}
	}
	if h.foreign {
		return h.log.Confirm([]refset.Entry{{Ref: "HEAD", OID: "!ref:" + h.target}})
	}
	return nil
}

func (h *headSync) noteForeign() {
	h.note = "HEAD was not sent: " + h.name + " does not take it"
}

func (h *headSync) send(ctx context.Context) error {
	err := h.meta(ctx, h.target)
	if err == nil {
		h.sent = true
		return h.log.Confirm([]refset.Entry{{Ref: "HEAD", OID: "ref:" + h.target}})
	}
	if errors.Is(err, ErrUnreachable) || ctx.Err() != nil || !h.lacks(ctx, "mirror-meta") {
		return fmt.Errorf("HEAD: %w", err)
	}
	h.foreign = true
	h.noteForeign()
	return nil
}

// meta sends the metadata of the repository with the verb mirror-meta.
func (h *headSync) meta(ctx context.Context, head string) error {
	conn, err := h.open(ctx, "mirror-meta '"+h.src.Config.Name+"'", io.Discard)
	if err != nil {
		return err
	}
	defer conn.cancel()
	err = json.NewEncoder(conn).Encode(map[string]string{"head": head})
	if end := h.ended(conn, nil); end != nil {
		return end // and why nobody read what was written
	}
	return err
}
