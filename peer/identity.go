package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// greeting is what a mirror-shell server says of itself (info --json), or a gitolite 3,
// which has an info of that name, too.
type greeting struct {
	Hostname string   `json:"hostname"`
	Verbs    []string `json:"verbs"`
	Gitolite string   `json:"gitolite_version"`
	User     string   `json:"GL_USER"` // whom a gitolite takes us for
}

// make says of what kind the server is that has greeted so; ok as greet returned it.
func (g greeting) make(ok bool) serverIdentity {
	switch {
	case ok && g.Gitolite != "":
		return serverIdentity{make: gitolite, user: g.User}
	case ok && g.Hostname != "":
		return serverIdentity{make: mirrorShell}
	}
	return serverIdentity{make: foreign}
}

// maxGreeting bounds a greeting, in bytes.
const maxGreeting = 1 << 20

// greet asks the peer who it is. ok is false when it answers something else, as
// foreign peers do; an error means that nothing was found out.
func (p *sshPeer) greet(ctx context.Context) (g greeting, ok bool, err error) {
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	raw, err := p.transport.Open(asking, p.name, "info --json", io.Discard)
	if err != nil {
		return g, false, err
	}
	stream := beating{raw, pulse}
	stream.CloseWrite()
	err = json.NewDecoder(io.LimitReader(stream, maxGreeting)).Decode(&g)
	if n, _ := io.CopyN(io.Discard, stream, maxGreeting); n == maxGreeting {
		stop() // whoever has that much to say is something else
	}
	end := stream.Wait()
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errStalled):
		return g, false, fmt.Errorf("%w: %w", ErrUnreachable, cause)
	case cause != nil:
		return g, false, cause
	case errors.Is(end, ErrUnreachable) && asking.Err() == nil:
		return g, false, end
	}
	return g, err == nil, nil
}

// lacks reports whether the peer answers, and does not announce the verb.
func (p *sshPeer) lacks(ctx context.Context, verb string) bool {
	g, ok, err := p.greet(ctx)
	return err == nil && (!ok || !slices.Contains(g.Verbs, verb))
}

// identify finds out whether the server that answers is the one that is meant. An
// alias that leads to another server would have its copies changed, and called
// equal, in the name of the first. What was found is believed for a while.
func (p *sshPeer) identify(ctx context.Context) error {
	if p.identities.fresh(p.name) {
		return nil
	}
	g, ok, err := p.greet(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	if kind := g.make(ok); kind.make != mirrorShell {
		p.identities.found(p.name, kind) // a foreign one has no name of its own
		return nil
	}
	return p.is(g.Hostname)
}

// is checks the name that the server which answers calls itself by.
func (p *sshPeer) is(hostname string) error {
	if hostname != p.name {
		return fmt.Errorf("%s: %w: the server that answers calls itself %.100q: correct HostName of %s in ssh_config, or hostname there", p.name, ErrUnreachable, hostname, p.name)
	}
	p.identities.found(p.name, serverIdentity{make: mirrorShell})
	return nil
}

// serverMake is what runs on a server.
type serverMake int

const (
	foreign     serverMake = iota // not ours: git alone, or what has not been found out
	mirrorShell                   // this program
	gitolite                      // gitolite 3 without this program
	gitAlone                      // neither
)

// serverIdentity is what was found out about a server.
type serverIdentity struct {
	make serverMake
	user string // whom a gitolite takes us for
	at   time.Time
}

// identities are the peers that were identified lately.
type identities struct {
	mu   sync.Mutex
	last map[string]serverIdentity
}

// identifyEvery is how long an identity is believed.
const identifyEvery = 10 * time.Minute

func (i *identities) fresh(name string) bool { return time.Since(i.of(name).at) < identifyEvery }

// of returns what was found out last.
func (i *identities) of(name string) serverIdentity {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.last[name]
}

func (i *identities) found(name string, id serverIdentity) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last == nil {
		i.last = map[string]serverIdentity{}
	}
	if id.at.IsZero() {
		id.at = time.Now()
	}
	i.last[name] = id
}
