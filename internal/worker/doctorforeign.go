package worker

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"

	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// greetedUser is the first line of what mirror-shell answers to a user's info.
var greetedUser = regexp.MustCompile(`^Hello (\S{1,256}), I am (\S{1,256})\.(?:\n|$)`)

// judgeUser judges a peer with mirror-shell that knows our key as a user's, by its answer to
// info. A push there is a user's then, which a slave takes from nobody.
func judgeUser(hostname, peer, text string) (Finding, bool) {
	m := greetedUser.FindStringSubmatch(text)
	if m == nil || m[2] != peer || mirrorcfg.CheckUser(m[1]) != nil { // it stands in a command for people to type
		return Finding{}, false
	}
	user := m[1]
	return Finding{"peer " + peer, fail, fmt.Sprintf("%s → %s: it takes us for the user %s", hostname, peer, user),
		fmt.Sprintf("on %s: mirror-shell remove-user %s, then mirror-shell add-peer %s.pub with our key", peer, user, hostname)}, true
}

// plainGit reports what a peer is that did not understand info: an account with a shell
// and git, or one whose shell is git's own. err is how info ended there.
func (c *command) plainGit(ctx context.Context, peer string, err error) (string, bool) {
	switch {
	case strings.Contains(err.Error(), "fatal: unrecognized command 'info'"):
		return "git-shell", true
	case proc.ExitCode(err) != 127: // the shell's, for a command that is not there
		return "", false
	}
	// What is not there may also be the mirror-shell of a forced command: that answers the
	// same to this.
	text, err := c.ask(ctx, peer, "git --version")
	version, ok := strings.CutPrefix(text, "git version ")
	return "git " + proc.OneLine(version, 40), ok && err == nil
}

// examineCommands looks for the programs that the configuration names: without them nobody
// may push, or nobody is told.
func (c *command) examineCommands() []Finding {
	var findings []Finding
	for _, named := range []struct {
		key     string
		command []string
	}{
		{"users.authorize", c.server.Users.Authorize}, {"users.exec", c.server.Users.Exec},
		{"accept.created", c.server.Accept.Created}, {"notify.command", c.server.Notify.Command},
	} {
		if len(named.command) == 0 {
			continue
		}
		if _, err := exec.LookPath(named.command[0]); err != nil {
			findings = append(findings, Finding{"configuration", fail, named.key + ": " + proc.OneLine(err.Error(), 300),
				"make it a program that this user can run, or correct " + c.server.File})
		}
	}
	return findings
}
