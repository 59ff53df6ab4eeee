package cli

import (
	"errors"
	"fmt"
	"strings"

	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
)

// maxNote bounds what the master is told, in bytes: it is a cell of a table there.
const maxNote = 280

// noting has the master of the map's repository told how its map fares here, whoever applies it. end is
// to be called with what theMap returned. A note that cannot be written stops nothing.
func (a *applying) noting() (end func(error)) {
	_, repo, err := a.server.Find(a.server.Map.Repository)
	if err != nil || a.result.DryRun || !a.Apply.FromRepository {
		return func(error) {} // theMap says that it is not there
	}
	tell := func(err error) {
		if err != nil {
			fmt.Fprintf(a.Stderr, "mirror-shell: the map's master is not told how it fares here: %s\n", proc.OneLine(err.Error(), maxLine))
		}
	}
	tell(refset.BeginMap(repo.Dir))
	return func(err error) { tell(refset.EndMap(repo.Dir, a.note(err))) }
}

// note says in one line what of the map, or of the keys that belong to it, is not as it is to be here; ""
// for nothing. err is what theMap returned.
func (a *applying) note(err error) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	var exit Exit
	if err != nil && !errors.As(err, &exit) {
		add("mirror map not applied: %s", strings.TrimPrefix(err.Error(), nothingChanged))
	}
	var failed []AppliedRepository
	for _, r := range a.result.Repositories {
		if r.Error != "" {
			failed = append(failed, r)
		}
	}
	if len(failed) > 0 {
		add("mirror map not applied to %s%s: %s", failed[0].Repository, andMore(len(failed)-1), failed[0].Error)
	}
	if names := a.result.Missing; len(names) > 0 {
		first := names[:min(len(names), 3)]
		add("mirror map names what is not there: %s%s", strings.Join(first, ", "), andMore(len(names)-len(first)))
	}
	parts = append(parts, a.trouble...)
	return proc.OneLine(strings.Join(append(parts, a.keysNote()...), "; "), maxNote)
}

func (a *applying) keysNote() (parts []string) {
	keys := a.result.Keys
	switch {
	case a.keysErr != nil:
		return []string{"users' keys not changed: " + a.keysErr.Error()}
	case keys == nil:
		return nil
	case keys.Held != "":
		parts = append(parts, "users' keys held: "+keys.Held)
	}
	if n := len(keys.Problems); n > 0 {
		parts = append(parts, fmt.Sprintf("users' keys: %s%s", keys.Problems[0], andMore(n-1)))
	}
	return parts
}

// andMore is for what is left out of a list, "" when nothing is.
func andMore(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}
