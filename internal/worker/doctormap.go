package worker

import (
	"context"
	"errors"
	"fmt"

	"mirror-shell/hooks"
	"mirror-shell/internal/cli"
	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// examineMap looks at the mirror map that [map] in the configuration names: whether its
// pushes arrive here, whether it can be applied, and whether it is.
func (c *command) examineMap(ctx context.Context) []Finding {
	m := c.server.Map
	if m.Repository == "" {
		return nil
	}
	cfg, repo, err := c.server.OpenRepo(ctx, m.Repository)
	if err != nil {
		return []Finding{{"map", fail, proc.OneLine(fmt.Sprintf("repository %s: %v", m.Repository, err), 300),
			"make the repository, or correct [map] in " + c.server.File}}
	}
	var findings []Finding
	// Where it is not mirrored nobody else would miss them.
	if installed, err := hooks.Installed(ctx, repo); err != nil || !installed {
		findings = append(findings, Finding{"map", fail, "the hooks are not installed in " + m.Repository + ": a push there applies nothing", "mirror-shell install-hooks " + m.Repository})
	}
	result, mapErr, keysErr := c.MapState(ctx, c.server)
	if errors.Is(mapErr, git.ErrNoCommit) {
		return append(findings, Finding{"map", warn, m.Repository + " has no commit yet: nothing is applied", "push the map" + toMaster(cfg, c.server)})
	}
	findings = append(findings, mapFindings(m, result, mapErr)...)
	if m.Keys != "" {
		findings = append(findings, keyFindings(m, result, keysErr)...)
	}
	return findings
}

func toMaster(cfg *mirrorcfg.Repo, server *mirrorcfg.Server) string {
	if cfg.Role(server.Hostname) == mirrorcfg.Slave {
		return " to " + cfg.Master
	}
	return ""
}

const applyIt = "mirror-shell apply --from-repository"

func mapFindings(m mirrorcfg.MapConfig, result cli.Applied, err error) []Finding {
	if err != nil {
		return []Finding{{"map", fail, proc.OneLine(err.Error(), 300), "correct it in " + m.Repository + " and push"}}
	}
	var findings []Finding
	var differ []string
	for _, r := range result.Repositories {
		switch {
		case r.Error != "":
			findings = append(findings, Finding{"map", fail, proc.OneLine(r.Repository+": cannot be applied: "+r.Error, 300), "correct it, then " + applyIt})
		case len(r.Changes)+len(r.Hooks) > 0:
			differ = append(differ, r.Repository)
		}
		for _, text := range r.Warnings {
			findings = append(findings, Finding{"map", warn, proc.OneLine(r.Repository+": "+text, 300), ""})
		}
	}
	if len(differ) > 0 {
		findings = append(findings, Finding{"map", warn, fmt.Sprintf("%d repositories are not as the map wants them: %s", len(differ), few(differ)), applyIt})
	}
	if len(result.Missing) > 0 {
		findings = append(findings, Finding{"map", warn, "to be on this server, and not there: " + few(result.Missing), "make them, then " + applyIt})
	}
	if len(findings) == 0 {
		return []Finding{{"map", ok, m.File + " of " + m.Repository + " is applied", ""}}
	}
	return findings
}

func keyFindings(m mirrorcfg.MapConfig, result cli.Applied, err error) []Finding {
	if err != nil {
		return []Finding{{"map", fail, proc.OneLine("keys: "+err.Error(), 300), "mend that, then " + applyIt}}
	}
	var findings []Finding
	keys := result.Keys
	if keys.Held != "" {
		findings = append(findings, Finding{"map", fail, "keys: held: " + keys.Held, "correct it and push, or " + applyIt + " --remove-all-keys"})
	}
	for i, text := range keys.Problems {
		if i == 5 {
			findings = append(findings, Finding{"map", fail, fmt.Sprintf("keys: and %d more files are not used", len(keys.Problems)-i), applyIt + " names them"})
			break
		}
		findings = append(findings, Finding{"map", fail, proc.OneLine("keys: "+text, 300), "correct it and push"})
	}
	if len(keys.Changes) > 0 {
		var names []string
		for _, change := range keys.Changes {
			names = append(names, change.Source)
		}
		findings = append(findings, Finding{"map", warn, fmt.Sprintf("keys: authorized_keys differs in %d lines: %s", len(names), few(names)), applyIt})
	}
	if len(findings) == 0 {
		return []Finding{{"map", ok, "users' keys are those of " + m.Keys + " in " + m.Repository, ""}}
	}
	return findings
}
