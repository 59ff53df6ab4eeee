package peer

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestRenote(t *testing.T) {
	for _, c := range []struct {
		note, says, want string
		exact            bool
	}{
		{"", "", "", false},
		{"HEAD was not sent", "", "", false},
		{"", "bad map", "sam: bad map", true},
		{"sam: bad map", "bad map", "sam: bad map", true},
		{"sam: bad map", "worse", "sam: worse", true},
		{"sam: bad map", "", "", true},
		{"rescued x; sam: bad map", "", "rescued x", true},
		{"rescued x", "bad; sam: map", "rescued x; sam: bad; sam: map", true},
		{"rescued x; sam: bad; sam: map", "", "rescued x", true},
		{"", "two\nlines\x1b[31m \u202e", "sam: two lines [31m", true},
	} {
		if got, exact := (Standing{Says: c.says}).Renote(c.note, "sam"); got != c.want || exact != c.exact {
			t.Errorf("%q, which says %q: %q, %v; want %q, %v", c.note, c.says, got, exact, c.want, c.exact)
		}
	}
	if got, exact := (Standing{Note: "no hook"}).Renote("other; sam: bad map", "sam"); got != "no hook" || !exact {
		t.Errorf("a note of the comparison's own: %q, %v", got, exact)
	}
	if got, _ := (Standing{Says: strings.Repeat("x", 5000)}).Renote("", "sam"); len(got) > maxPeerNote+20 {
		t.Errorf("%d bytes", len(got))
	}
}

func TestKeepPeerNote(t *testing.T) {
	for _, c := range []struct{ own, before, want string }{
		{"", "", ""}, {"HEAD was not sent", "rescued x", "HEAD was not sent"},
		{"", "rescued x; sam: bad map", "sam: bad map"}, {"HEAD was not sent", "sam: bad map", "HEAD was not sent; sam: bad map"},
		{"sam says: no; sam: x", "sam says: no; sam: x", "sam says: no; sam: x"},
		{"sam says: no; sam: x", "sam says: no; sam: x; sam: bad map", "sam says: no; sam: x; sam: bad map"},
	} {
		if got := keepPeerNote(c.own, c.before, "sam"); got != c.want {
			t.Errorf("%q after %q: %q", c.own, c.before, got)
		}
	}
}

// A push by git's own protocol is told in a line among others.
func TestNoteLine(t *testing.T) {
	var shown bytes.Buffer
	lines := prefixed(&shown)
	fmt.Fprintf(lines, "mirror-shell: note: a glob matches nothing\nmirror-shell: note for status: bad map\x1b[2J in %s\nmore", strings.Repeat("x", 900))
	lines.end()
	if !strings.HasPrefix(lines.note, "bad map [2J in xxx") || len(lines.note) > maxPeerNote+3 {
		t.Errorf("%d bytes: %q", len(lines.note), lines.note)
	}
}
