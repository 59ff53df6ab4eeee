package worker

import (
	"context"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/proc"
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
