package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"mirror-shell/internal/meta"
	"mirror-shell/mirrorcfg"
)

// A gitolite 3 that is the master of a wild repository, which is one that a user's push
// has created, sends before each of its pushes
//
//	CREATOR=alice perms -c 'REPO'
//
// with its gl-perms on standard input, and pushes whatever we answer: it does not look.
// The copy is created by that, if there is none, with that creator and those permissions.

// maxPerms bounds what is read before it is known to be sound.
const maxPerms = 64 << 10

// parsePerms reads a gl-perms to the end of input.
func parsePerms(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxPerms+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxPerms {
		return "", fmt.Errorf("more than %d bytes", maxPerms)
	}
	return meta.ParsePerms(string(data))
}

// parseWild reads what follows "CREATOR=".
func parseWild(creator, rest string) (Request, error) {
	if err := mirrorcfg.CheckUser(creator); err != nil {
		return Request{}, err
	}
	arg, ok := strings.CutPrefix(rest, "perms -c ")
	if !ok {
		return Request{}, errors.New("only perms -c may name a creator")
	}
	repo, err := parseRepo(arg)
	return Request{Verb: WildPerms, User: creator, Repo: repo}, err
}

// decideWild: as a mirror push, and on [accept] create where the repository is not here.
func decideWild(f Facts, peer Peer, req Request) Decision {
	if f.Repo == nil && f.Create {
		return Decision{Action: TakeWild, Host: peer.name}
	}
	d := decideMirrorPush(f, peer, req)
	if d.Action == Refuse {
		return d
	}
	return Decision{Action: TakeWild, Host: peer.name}
}

// takeWild carries it out.
func (s *Session) takeWild(ctx context.Context, req Request, master Peer, exists bool) error {
	perms, err := parsePerms(s.Stdin)
	if err != nil {
		return fmt.Errorf("%s: gl-perms: %w", s.Server.Hostname, err)
	}
	data := &meta.Data{Creator: &req.User, Perms: &perms}
	if err := data.Check(); err != nil {
		return fmt.Errorf("%s: %w", s.Server.Hostname, err)
	}
	if exists {
		_, err = s.applyMeta(ctx, master, req, data)
	} else {
		_, err = s.createFor(ctx, master.name, req.Repo, data)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.Server.Hostname, err)
	}
	return nil
}
