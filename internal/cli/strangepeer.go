package cli

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// checkPeers refuses names that people mistyped. A job for such a name would fail for ever, and status would show it
// until all the repository's jobs are forgotten. What a list or the server's configuration names is a peer, whether it can be reached
// or not; any other name is one if ssh has something to connect to.
func checkPeers(ctx context.Context, server *mirrorcfg.Server, cfg *mirrorcfg.Repo, words []string) error {
	for _, name := range words {
		_, configured := server.Peers[name]
		if mirrorcfg.IsKey(name) || mirrorcfg.CheckHost(name) != nil || configured || cfg.Listed(server.Hostname, name) || leadsSomewhere(ctx, name) {
			continue
		}
		known := "none"
		if names := knownPeers(server, cfg); len(names) > 0 {
			known = strings.Join(names, " ")
		}
		return fmt.Errorf("there is no peer %s: no list of %s, no [peer.%s] in %s and no host alias in ~/.ssh/config names it, and there is no host of that name: correct it (peers known for %s: %s)",
			name, cfg.Name, name, server.File, cfg.Name, known)
	}
	return nil
}

// knownPeers are those that a repository's lists or the server's configuration name, sorted.
func knownPeers(server *mirrorcfg.Server, cfg *mirrorcfg.Repo) []string {
	names := slices.Collect(maps.Keys(server.Peers))
	for _, key := range cfg.Lists() {
		if peers, err := cfg.Expand(server.Hostname, key); err == nil { // a mistake in one list is told where that is used
			names = append(names, peers...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// lookTimeout bounds each of the two questions below.
const lookTimeout = 10 * time.Second

// leadsSomewhere reports whether ssh_config gives a name another host or a way to it, or the name is that of a host. Where that
// cannot be found out the push will tell.
func leadsSomewhere(ctx context.Context, name string) bool {
	argv := proc.SSH(name, "true")
	cmdCtx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	cmd := proc.Command(cmdCtx, proc.Env("LC_ALL=C"), slices.Concat(argv[:1], []string{"-G"}, argv[1:])...)
	var out bytes.Buffer
	cmd.Stdout = &out
	if _, err := proc.Run(cmd); err != nil || aliased(out.String(), name) {
		return true
	}
	lookCtx, cancelLook := context.WithTimeout(ctx, lookTimeout)
	defer cancelLook()
	found, err := net.DefaultResolver.LookupHost(lookCtx, name)
	return err == nil && len(found) > 0
}

// aliased reports whether settings, as ssh -G prints them, lead from a name to another host, or go through a program that may
// know the name.
func aliased(settings, name string) bool {
	for line := range strings.Lines(settings) {
		option, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch strings.ToLower(option) {
		case "hostname":
			if !strings.EqualFold(value, name) {
				return true
			}
		case "proxycommand", "proxyjump":
			if value != "" && value != "none" {
				return true
			}
		}
	}
	return false
}
