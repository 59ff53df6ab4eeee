package peer

import (
	"fmt"
	"strings"

	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
)

// judge confirms what the peer accepted and returns an error when that is not
// everything.
func (r *syncRun) judge(todo plan, report sendpack.Report, said *remoteLines) error {
	var accepted []refset.Entry
	var refused, refs []string
	kept := "" // a branch that its HEAD protects
	told := teller{say: r.say}
	for _, c := range todo.commands {
		failure, ok := report.Refs[c.Ref]
		switch {
		case !ok:
			failure = "no answer from peer"
		case failure == "" && report.Unpack != "":
			failure = "the objects were not stored"
		}
		failure = proc.OneLine(failure, 200)
		told.line(describe(c, r.zero, failure))
		if failure != "" {
			refused, refs = append(refused, c.Ref+" ("+failure+")"), append(refs, c.Ref)
			if strings.Contains(failure, "deletion of the current branch") {
				kept = c.Ref
			}
			continue
		}
		if c.New == r.zero {
			delete(r.theirs, c.Ref)
		} else {
			r.theirs[c.Ref] = c.New
		}
		accepted = append(accepted, refset.Entry{Ref: c.Ref, OID: c.New})
	}
	told.end()
	if err := r.confirm(accepted); err != nil {
		return err
	}
	if report.Unpack != "" {
		return fmt.Errorf("%s could not store the objects: %s: %s", r.name, proc.OneLine(report.Unpack, 200), notStored(r.name, said.complaint()))
	}
	if advice := r.head.stuck(kept); len(refused) > 0 && advice != "" {
		return &refusedRefs{r.name, refused, len(todo.commands), advice}
	}
	if len(refused) > 0 {
		return &refusedRefs{r.name, refused, len(todo.commands), refusal(r.name, said.reason(refs))}
	}
	return nil
}

// refusal says what to do about a refusal: git reports "failed to update ref" for whatever
// is wrong, and what that is, it only says.
func refusal(peer, reason string) string {
	if reason == "" {
		return "look at its hooks and receive.* settings"
	}
	return peer + " says: " + proc.OneLine(reason, 300)
}

// notStored says why objects were not stored: in git's report that is never more than the name
// of a program which ended. A disk without room, or an object that fsck does not let in, is
// what the program said before.
func notStored(peer, reason string) string {
	if reason == "" {
		return "look at its disk space and run git fsck there"
	}
	return peer + " says: " + proc.OneLine(reason, 300)
}

// confirm records what the peer accepted, and the refs that are equal without
// our having done anything. Of a value that is on record already nothing more
// is said: an earlier push may still be at work over there, and what it sends
// must stay known.
func (r *syncRun) confirm(accepted []refset.Entry) error {
	for ref, oid := range r.theirs {
		if r.ours[ref] == oid && !r.log.Ours(ref, oid) {
			accepted = append(accepted, refset.Entry{Ref: ref, OID: oid})
		}
	}
	return also(r.log.Confirm(accepted), r.log.Seen(r.seen()))
}

// seen are the refs that the peer does not have as the record would guess, of
// values that are ours: a push that was refused, or cut off. What was being sent stays known.
func (r *syncRun) seen() []refset.Entry {
	guess, settled := r.log.Guess()
	if settled {
		return nil
	}
	var seen []refset.Entry
	for ref, oid := range guess {
		if now := r.theirs[ref]; now != oid && r.src.Config.MirrorsRef(ref) {
			if now == "" {
				now = r.zero
			}
			if r.log.Ours(ref, now) || now == r.zero {
				seen = append(seen, refset.Entry{Ref: ref, OID: now})
			}
		}
	}
	for ref, now := range r.theirs {
		if guess[ref] == "" && r.log.Ours(ref, now) {
			seen = append(seen, refset.Entry{Ref: ref, OID: now})
		}
	}
	return seen
}

// refList names up to three refs.
func refList(commands []sendpack.Command) string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Ref)
	}
	return list(names)
}

func list(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}
