package meta

import (
	"fmt"
	"strings"

	"mirror-shell/internal/lazyregexp"
)

// permsLine is a role and those who have it, people and groups.
var permsLine = lazyregexp.New(`^[0-9A-Za-z][0-9A-Za-z_-]*([ \t]+@?[0-9A-Za-z][0-9A-Za-z._@+-]*)*$`)

// ParsePerms returns the content of a gl-perms in the form that `perms -c` of every gitolite 3
// takes: one line for each, a role and then those who have it. Comments and blank lines are
// dropped, as are the two signs that gitolite reads over (`@READERS = bob`). Anything that
// gitolite would skip with a warning is an error: its users come to it from outside.
func ParsePerms(text string) (string, error) {
	var perms strings.Builder
	for line := range strings.Lines(text) {
		line = strings.Trim(strings.Replace(line, "=", " ", 1), " \t\r\n")
		if line = strings.TrimPrefix(line, "@"); line == "" || line[0] == '#' { // elsewhere # is a user, who is none
			continue
		}
		if !permsLine.MatchString(line) {
			return "", fmt.Errorf("%.80q is not a role with its users", line)
		}
		perms.WriteString(line + "\n")
	}
	return perms.String(), nil
}
