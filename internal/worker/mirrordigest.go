package worker

import (
	"bufio"
	"context"
	"fmt"

	"mirror-shell/internal/git"
	"mirror-shell/internal/refcache"
	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/shell"
)

// mirrorDigest tells a peer how every repository stands of which it is the
// master. A repository whose configuration cannot be read is left out and logged:
// whose it is, and so who may hear of it, cannot be told.
func (c *command) mirrorDigest(ctx context.Context) error {
	asking := c.MirrorDigest.Name
	if err := mirrorcfg.CheckHost(asking); err != nil {
		return err
	}
	log := c.fileLog()
	names, err := c.server.Repositories()
	if err != nil {
		// What is left out counts as different for the peer, which then looks at it
		// by itself; where it is, is none of the peer's business.
		log.Error("part of repo_base cannot be read", "error", err)
		if len(names) == 0 {
			return fmt.Errorf("%s cannot read its repositories", c.server.Hostname)
		}
	}
	cache := refcache.OpenCache(c.server.StateDir)
	out := bufio.NewWriter(c.Stdout)
	count := 0
	notes := map[string]git.Repo{} // repositories that may have one
	err = cache.LoadAll(ctx, c.server, names, func(name string, s refcache.State, err error) error {
		if s.Config == nil {
			log.Error("left out of digests", "repository", name, "error", err)
			return nil
		}
		if s.Config.Master != asking || s.Config.Role(c.server.Hostname) != mirrorcfg.Slave {
			return nil
		}
		count++
		if shell.HasNote(c.server, name) {
			notes[name] = git.Repo{Dir: s.Dir}
		}
		standing := peer.Standing{Digest: s.Digest, Head: s.Head}
		if err != nil {
			log.Error("refs cannot be read", "repository", name, "error", err)
			standing = peer.Standing{Reason: err.Error()}
		}
		return peer.WriteStanding(out, name, standing)
	})
	if err != nil {
		return err
	}
	if err := peer.WriteEnd(out, count, c.server.Hostname); err != nil {
		return err
	}
	for name, repo := range notes {
		if text := shell.Note(ctx, c.server, name, repo); text != "" {
			if err := peer.WriteNote(out, name, text); err != nil {
				return err
			}
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	cache.Gone(names)
	return cache.Save()
}
