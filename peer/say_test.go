package peer

import (
	"io"
	"strings"
	"testing"
)

func TestRefusalReason(t *testing.T) {
	for _, c := range []struct {
		said string
		refs string
		want string
	}{
		{"error: cannot lock ref 'refs/heads/two': Unable to create 'two.lock': File exists.\n\nAnother git process\n", "refs/heads/one refs/heads/two", "cannot lock ref 'refs/heads/two': Unable to create 'two.lock': File exists."},
		{"error: cannot lock ref 'refs/heads/two/x': no\n", "refs/heads/two", ""},
		{"error: something\nfatal: push refused: by a hook\nfatal: later\n", "refs/heads/two", "push refused: by a hook"},
		{"sam: rescued refs/heads/two\nerror: hook declined", "refs/heads/two", ""},
		{strings.Repeat("error: x\n", 100) + "fatal: far too late\n", "refs/heads/two", ""},
		{"error: Unable to create 'ip1.git/./packed-refs.lock': File exists.\n\nAnother git process\n", "refs/heads/two", "Unable to create 'ip1.git/./packed-refs.lock': File exists."},
		{"", "", ""},
	} {
		said := prefixed(io.Discard)
		io.WriteString(said, c.said)
		said.end()
		if got := said.reason(strings.Fields(c.refs)); got != c.want {
			t.Errorf("%.80q: %q, want %q", c.said, got, c.want)
		}
	}
}
