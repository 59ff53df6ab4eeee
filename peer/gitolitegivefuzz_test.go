package peer

import (
	"strings"
	"testing"
)

// Branches and descriptions come from users: what gitolite, or a shell, might read as more
// than words is not sent.
func FuzzGiven(f *testing.F) {
	for _, seed := range []string{"refs/heads/main", "One of 10%", "a;b", "$(id)", "a'b", "../x", "0", " a", "a  b", "a\nb", "a b ", ""} {
		f.Add("group/project", seed)
	}
	f.Add("a'b", "x")
	f.Add("@all", "x")
	f.Fuzz(func(t *testing.T, repo, value string) {
		if checkGiven(repo, value) != nil {
			return
		}
		if strings.ContainsAny(repo+value, "\n\r\t`~#$&()|;<>'\"\\*?[]{}!^") || strings.Contains(repo+value, "../") {
			t.Errorf("sent: %q %q", repo, value)
		}
		if strings.Join(strings.Fields(value), " ") != value || value == "" || len(strings.Fields(repo)) != 1 {
			t.Errorf("would not arrive as it is: %q %q", repo, value)
		}
	})
}
