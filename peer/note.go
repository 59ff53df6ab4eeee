package peer

import (
	"strings"

	"mirror-shell/internal/proc"
)

// What a peer wants its master's administrator to know of a copy that is equal, such as that it could not apply the mirror
// map which it got, is the end of the row's note: "OWN; PEER: TEXT". A push learns it from the answer of mirror-push, or from a
// line that post-receive writes; a comparison from the answer of mirror-digest, and there that it is so no more.

// maxPeerNote bounds what is taken of it, in bytes.
const maxPeerNote = 300

// withPeerNote puts a note together. What the peer says comes last: it may contain anything.
func withPeerNote(own, peer, says string) string {
	says = proc.OneLine(says, maxPeerNote)
	switch {
	case says == "":
		return own
	case own == "":
		return peer + ": " + says
	}
	return own + "; " + peer + ": " + says
}

// cutPeerNote takes what withPeerNote has put together apart.
func cutPeerNote(note, peer string) (own, says string) {
	if says, ok := strings.CutPrefix(note, peer+": "); ok {
		return "", says
	}
	own, says, _ = strings.Cut(note, "; "+peer+": ")
	return own, says
}

// keepPeerNote is a note with what the peer has said before: nothing was pushed by git's own protocol, and so nothing
// learned. What is our own may quote the peer, and so look like the place where the two were put together.
func keepPeerNote(own, before, peer string) string {
	if rest, same := strings.CutPrefix(before, own); same && own != "" {
		before = rest
	}
	_, says := cutPeerNote(before, peer)
	return withPeerNote(own, peer, says)
}

// Renote returns the note of a row after a comparison found the copy equal; note is what it was. Where exact is true the
// row is to have it at once, be it "".
func (s Standing) Renote(note, peer string) (now string, exact bool) {
	own, before := cutPeerNote(note, peer)
	if s.Says == "" && before == "" {
		return s.Note, false
	}
	if s.Note != "" {
		own = s.Note
	}
	return withPeerNote(own, peer, s.Says), true
}
