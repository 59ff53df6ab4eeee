package peer

import (
	"sort"
	"strings"

	"mirror-shell/internal/sendpack"
)

// A plan says what has to happen to a peer's refs, and what must not.
type plan struct {
	commands  []sendpack.Command
	divergent []sendpack.Command // what we would do, had the peer's value been known
	rescued   []overwritten      // of commands, those that overwrite what is kept elsewhere
	approved  bool               // by a person
}

// differences lists what separates the peer's refs from ours as commands from
// the peer's value to ours, sorted by ref.
func differences(ours, theirs map[string]string, zero string) []sendpack.Command {
	var diff []sendpack.Command
	for ref, oid := range ours {
		if have, ok := theirs[ref]; !ok {
			diff = append(diff, sendpack.Command{Ref: ref, Old: zero, New: oid})
		} else if have != oid {
			diff = append(diff, sendpack.Command{Ref: ref, Old: have, New: oid})
		}
	}
	for ref, have := range theirs {
		if _, ok := ours[ref]; !ok {
			diff = append(diff, sendpack.Command{Ref: ref, Old: have, New: zero})
		}
	}
	sort.Slice(diff, func(i, j int) bool { return diff[i].Ref < diff[j].Ref })
	return diff
}

// knowledge answers what decide asks about values.
type knowledge struct {
	// ours: this value of the ref at the peer is one that we confirmed or sent.
	ours func(ref, oid string) bool
	// contained: our refs contain this object.
	contained func(oid string) bool
}

// decide sorts differences into what to do and what to leave. A value at the
// peer that is not from us and not contained in our refs is somebody's work
// that exists nowhere else: it is divergent and stays.
func decide(diff []sendpack.Command, zero string, k knowledge) plan {
	var p plan
	for _, c := range diff {
		if c.Old != zero && !k.ours(c.Ref, c.Old) && !k.contained(c.Old) {
			p.divergent = append(p.divergent, c)
		} else {
			p.commands = append(p.commands, c)
		}
	}
	return p
}

// describe is one line about a command for people, in the form of git push.
func describe(c sendpack.Command, zero, failure string) string {
	name := c.Ref
	for _, prefix := range []string{"refs/heads/", "refs/tags/", "refs/"} {
		if short, ok := strings.CutPrefix(c.Ref, prefix); ok {
			name = short
			break
		}
	}
	switch {
	case failure != "":
		return " ! [rejected]         " + name + " (" + failure + ")"
	case c.New == zero:
		return " - [deleted]          " + name
	case c.Old == zero:
		return " * [new]              " + name
	}
	return "   " + c.Old[:10] + ".." + c.New[:10] + " " + name
}
