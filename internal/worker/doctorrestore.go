package worker

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"mirror-shell/internal/proc"
	"mirror-shell/peer/snapshot"
)

// leftByRestores names what killed restores left beside the repositories. It may be the only place of what was
// pushed before, in a directory that no listing shows.
func (c *command) leftByRestores(names []string) (findings []Finding) {
	parents := map[string]bool{c.server.RepoBase: true}
	for _, name := range names {
		parents[filepath.Dir(filepath.Join(c.server.RepoBase, name))] = true
	}
	for _, parent := range slices.Sorted(maps.Keys(parents)) {
		all, err := snapshot.LeftIn(parent)
		if err != nil {
			continue // told of already
		}
		for _, l := range all {
			f := Finding{"restore", warn, fmt.Sprintf("a restore to %s was killed, and what it had made is left", proc.OneLine(l.Target, 300)), "restore it again, or remove " + proc.OneLine(l.Dir, 300)}
			if l.Replaced {
				f.Detail = fmt.Sprintf("a restore was killed when it had replaced %s: what was there before is in %s, what was pushed meanwhile only there", proc.OneLine(l.Target, 300), proc.OneLine(l.Dir, 300))
				f.Do = "restore it again, which gives that its name, or fetch from there what is missing and remove it"
			}
			findings = append(findings, f)
		}
	}
	return findings
}
