package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
	"mirror-shell/shell"
)

// Finding is one thing that doctor looked at.
type Finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"` // ok, warn or fail
	Detail string `json:"detail"`
	Do     string `json:"do,omitempty"` // what to do about it
}

const (
	ok   = "ok"
	warn = "warn"
	fail = "fail"
)

// doctor looks at this server and at every peer, and exits with 1 when
// something is wrong.
func (c *command) doctor(ctx context.Context) error {
	findings := c.examine(ctx)
	bad := 0
	for _, f := range findings {
		if f.Level == fail {
			bad++
		}
	}
	if c.Doctor.JSON {
		if err := json.NewEncoder(c.Stdout).Encode(findings); err != nil {
			return err
		}
	} else {
		c.tell(findings, bad)
	}
	if bad > 0 {
		return cli.Exit(1)
	}
	return nil
}

func (c *command) tell(findings []Finding, bad int) {
	for _, f := range findings {
		fmt.Fprintf(c.Stdout, "%-4s  %s: %s\n", f.Level, f.Check, f.Detail)
		if f.Do != "" && f.Level != ok {
			fmt.Fprintf(c.Stdout, "      → %s\n", f.Do)
		}
	}
	if bad == 0 {
		fmt.Fprintln(c.Stdout, "all is well")
		return
	}
	fmt.Fprintf(c.Stdout, "%d of %d checks failed\n", bad, len(findings))
}

// examine makes all the findings: of this server first, then of the
// repositories, then of the peers that those and the keys name.
func (c *command) examine(ctx context.Context) []Finding {
	findings := c.examineServer(ctx)
	if cli.RefuseRoot(c.server) != nil {
		return findings // which say so; the rest would be of root's keys, and make root's files
	}
	repositories, peers := c.examineRepositories(ctx)
	findings = append(findings, repositories...)
	findings = append(findings, c.examineGitolite(ctx)...)
	findings = append(findings, c.examineMap(ctx)...)
	keys, keyPeers := c.examineKeys()
	findings = append(findings, keys...)
	maps.Copy(peers, keyPeers)
	for name, p := range c.server.Peers {
		if p.Kind == kindBackup {
			peers[name] = true
		}
	}
	delete(peers, c.server.Hostname)
	findings = append(findings, c.examineWorker(ctx)...)
	findings = append(findings, c.examineSchedules()...)
	return append(findings, c.examinePeers(ctx, slices.Sorted(maps.Keys(peers)))...)
}

// examinePeers asks every peer for its greeting, and to ask us for ours.
func (c *command) examinePeers(ctx context.Context, peers []string) []Finding {
	results := make([][]Finding, len(peers))
	limit := make(chan struct{}, c.server.Worker.Jobs)
	var all sync.WaitGroup
	for i, peer := range peers {
		all.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			results[i] = c.examinePeer(ctx, peer)
		})
	}
	all.Wait()
	if len(peers) == 0 {
		return []Finding{{"peers", warn, "no repository and no key names a peer", "mirror-shell add-peer PEER.pub, and git config gitolite.mirror.slaves in a repository"}}
	}
	return slices.Concat(results...)
}

// examinePeer checks both directions. A peer of another make cannot be asked to
// call back, which is no failure of ours.
func (c *command) examinePeer(ctx context.Context, peer string) []Finding {
	check := "peer " + peer
	if c.server.Peers[peer].Kind == kindBackup {
		return append([]Finding{c.examineVault(ctx, peer)}, c.examineLock(peer)...)
	}
	text, err := c.ask(ctx, peer, "info --json --back")
	var reply shell.InfoReply
	if err != nil || json.Unmarshal([]byte(text), &reply) != nil {
		return c.examineForeign(ctx, peer, err)
	}
	if reply.Hostname != peer {
		return []Finding{{check, fail, fmt.Sprintf("another server answers: %s", proc.OneLine(reply.Hostname, 80)),
			"let the host alias " + peer + " in ~/.ssh/config lead to " + peer + ", or correct hostname there"}}
	}
	findings := []Finding{{check, ok, fmt.Sprintf("%s → %s: answers, version %s", c.server.Hostname, peer, proc.OneLine(reply.Version, 40)), ""}}
	want := shell.Greeting(peer, c.server.Hostname)
	if reply.Back == want {
		return append(findings, Finding{check, ok, fmt.Sprintf("%s → %s: %s", peer, c.server.Hostname, want), ""})
	}
	return append(findings, Finding{check, fail, fmt.Sprintf("%s → %s: %s", peer, c.server.Hostname, proc.OneLine(reply.Back, 300)),
		fmt.Sprintf("on %s, as the hosting user, make `ssh %s info` print %q; here, mirror-shell add-peer %s.pub", peer, c.server.Hostname, want, peer)})
}

// examineForeign is for a peer that did not answer with our JSON: it may be down,
// refuse us, or be gitolite.
func (c *command) examineForeign(ctx context.Context, peer string, err error) []Finding {
	check := "peer " + peer
	do := fmt.Sprintf("make `ssh %s info` work as this user: host alias and key in ~/.ssh/config, host key in ~/.ssh/known_hosts, our key added there", peer)
	if err != nil && proc.ExitCode(err) == 255 {
		return []Finding{{check, fail, fmt.Sprintf("%s → %s: %s", c.server.Hostname, peer, proc.OneLine(err.Error(), 300)), do}}
	}
	text, err := c.ask(ctx, peer, "info")
	if err != nil {
		if what, plain := c.plainGit(ctx, peer, err); plain {
			return []Finding{{check, ok, fmt.Sprintf("%s → %s: %s, without mirror-shell; HEAD and metadata do not travel to it", c.server.Hostname, peer, what), ""}}
		}
		return []Finding{{check, fail, fmt.Sprintf("%s → %s: %s", c.server.Hostname, peer, proc.OneLine(err.Error(), 300)), do}}
	}
	if user, version, ok := gitoliteGreeting(text); ok {
		help, _ := c.ask(ctx, peer, "help") // which may be switched off
		return []Finding{judgeGitolite(c.server.Hostname, peer, user, version, help)}
	}
	if finding, ok := judgeUser(c.server.Hostname, peer, text); ok {
		return []Finding{finding}
	}
	return []Finding{{check, warn, fmt.Sprintf("%s → %s: answers, and is not mirror-shell: %s", c.server.Hostname, peer, proc.OneLine(text, 120)),
		"nothing, if that is so; HEAD and metadata do not travel to it"}}
}

// ask runs a command on a peer and returns its output.
func (c *command) ask(ctx context.Context, peer, command string) (string, error) {
	if err := mirrorcfg.CheckHost(peer); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var out head
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C"), proc.SSH(peer, command)...)
	cmd.Stdout = &out
	_, err := proc.Run(cmd)
	return strings.TrimSpace(string(out)), err
}

// head keeps the first 64 KiB of what is written to it: a gitolite greets, and then lists
// all its repositories.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), 64<<10-len(*h))]...)
	return len(p), nil
}
