package worker

import (
	"context"
	"fmt"
	"strings"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/proc"
	"mirror-shell/peer"
)

// examineGitolite looks at the gitolite that manages the repositories, if one does.
func (c *command) examineGitolite(ctx context.Context) []Finding {
	problems, here, err := cli.GitoliteProblems(ctx, c.server, c.Programs)
	if err != nil {
		return []Finding{{"gitolite", fail, proc.OneLine(err.Error(), 300), "make `gitolite query-rc -a` work as this user, or take [gitolite] out of " + c.server.File}}
	}
	if !here {
		return nil
	}
	var findings []Finding
	for _, p := range problems {
		level := fail
		if p.Warning {
			level = warn
		}
		findings = append(findings, Finding{"gitolite", level, p.Detail, p.Do})
	}
	if len(findings) == 0 {
		findings = append(findings, Finding{"gitolite", ok, "its users, hooks and triggers work with mirror-shell", ""})
	}
	return findings
}

// gitoliteGreeting finds in an answer to info the name by which a gitolite 3 knows our key,
// and its version.
var gitoliteGreeting = peer.GitoliteGreeting // a name that is free where a peer is called peer

// judgeGitolite judges a peer that has gitolite and no mirror-shell. Its name for our key
// decides what a push is there: a mirror's, or that of a user with rights of its own; its
// answer to help, what else it takes.
func judgeGitolite(hostname, peer, user, version, help string) Finding {
	says := fmt.Sprintf("%s → %s: gitolite %s, without mirror-shell: ", hostname, peer, proc.OneLine(version, 40))
	if want := "server-" + hostname; user != want {
		return Finding{"peer " + peer, warn, says + "it takes us for the user " + proc.OneLine(user, 80),
			fmt.Sprintf("nothing, if that user may do all there that a push needs; to be a master with its option mirror.master, our key is to be keydir/%s.pub there, and no other", want)}
	}
	return Finding{"peer " + peer, ok, says + "it knows us as " + user + "; refs travel to it, and creator and permissions of wild repositories; " + givenThere(user, help), ""}
}

// givenThere says how far HEAD, description and config travel to a gitolite, by its answer to help.
func givenThere(user, help string) string {
	rule := "`RW = " + user + "`"
	needs := func(what, command, rules string) string {
		return fmt.Sprintf("%s does not: for it '%s' has to be in ENABLE of ~/.gitolite.rc there, and %s in its gitolite.conf", what, command, rules)
	}
	head, description := "HEAD where its gitolite.conf has "+rule, "the description where it also has `option writer-is-owner = 1`"
	if !enabledThere(help, "symbolic-ref") {
		head, description = needs("HEAD", "symbolic-ref", rule), "the description where that has "+rule+" and `option writer-is-owner = 1`"
	}
	if !enabledThere(help, "desc") {
		description = needs("the description", "desc", rule+" and `option writer-is-owner = 1`")
	}
	return head + ", " + description + "; config is for its gitolite.conf to set"
}

// enabledThere finds a command in gitolite's list of those that may be sent.
func enabledThere(help, command string) bool {
	for line := range strings.Lines(help) {
		if strings.TrimSpace(line) == command {
			return true
		}
	}
	return false
}
