package peer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/sendpack"
)

// A push in parts. gitolite's update hook starts perl for every ref, a tenth of a second and more
// of each, and nothing is heard of the peer until it has done them all. A first push of 50,000
// refs would be one session of hours: silent for longer than anybody waits for a peer, and with no
// record of what it has done until its end. A gitolite gets so many refs in parts, a session
// for each, and what one part has done is on record before the next begins.

// maxPart is how many refs a gitolite gets in one session.
const maxPart = 1000

// parts divides the commands of a push into groups of up to size. New and changed refs go
// first, so that commits that only change their name are never without one; deletions go last,
// but for those that are in the way of a name: x of x/y, or the other way around.
func parts(commands []sendpack.Command, zero string, size int) [][]sendpack.Command {
	if len(commands) <= size {
		return [][]sendpack.Command{commands}
	}
	inTheWay := obstacles(commands, zero)
	rank := func(c sendpack.Command) int {
		switch {
		case c.New != zero:
			return 1
		case inTheWay[c.Ref]:
			return 0
		}
		return 2
	}
	sorted := slices.Clone(commands)
	slices.SortStableFunc(sorted, func(a, b sendpack.Command) int { return rank(a) - rank(b) })
	return slices.Collect(slices.Chunk(sorted, size))
}

// obstacles are the refs to be deleted whose names exclude a name to be created.
func obstacles(commands []sendpack.Command, zero string) map[string]bool {
	created, above := map[string]bool{}, map[string]bool{}
	for _, c := range commands {
		if c.Old == zero {
			created[c.Ref] = true
			for dir := range parents(c.Ref) {
				above[dir] = true
			}
		}
	}
	found := map[string]bool{}
	for _, c := range commands {
		if c.New != zero {
			continue
		}
		if above[c.Ref] {
			found[c.Ref] = true
		}
		for dir := range parents(c.Ref) {
			if created[dir] {
				found[c.Ref] = true
			}
		}
	}
	return found
}

// parents yields the names that a ref's name makes impossible: of refs/a/b, refs/a and refs.
func parents(ref string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for {
			at := strings.LastIndexByte(ref, '/')
			if at < 0 {
				return
			}
			if ref = ref[:at]; !yield(ref) {
				return
			}
		}
	}
}

// refusedRefs is a push that the peer took, but for some refs.
type refusedRefs struct {
	peer string
	refs []string // each with what the peer says of it
	of   int      // so many were sent
	why  string   // what is to be done, or what the peer has said
}

func (e *refusedRefs) Error() string {
	return fmt.Sprintf("%s refused %d of %d refs: %s: %s", e.peer, len(e.refs), e.of, list(e.refs), e.why)
}

// with adds what was refused of a further part, after which so many refs were sent. Of
// no refusal both are nil.
func (e *refusedRefs) with(part *refusedRefs, sent int) *refusedRefs {
	switch {
	case e == nil && part == nil:
		return nil
	case e == nil:
		e = part
	case part != nil:
		e.refs = append(e.refs, part.refs...)
	}
	e.of = sent
	return e
}

// and is the error for the refusals, if there are any, and another one, if there is one.
func (e *refusedRefs) and(err error) error {
	if e == nil {
		return err
	}
	return also(e, err)
}

// groups divides the commands of a push for this peer.
func (r *syncRun) groups(ctx context.Context, commands []sendpack.Command) [][]sendpack.Command {
	size := len(commands)
	if size > r.maxPart && r.gitolite(ctx) {
		size = r.maxPart
	}
	return parts(commands, r.zero, size)
}

// sendGroups sends the first group over the connection that the plan was made for, and each of
// the others over one of its own. Refused refs do not keep back what comes later; anything else
// that goes wrong does.
func (r *syncRun) sendGroups(ctx context.Context, conn *conn, todo plan, groups [][]sendpack.Command, have []string, careful bool) error {
	var refused *refusedRefs
	sent, all, approved := 0, len(todo.commands), ""
	for i, group := range groups {
		todo.commands = group
		var err error
		if i == 0 {
			err = r.send(ctx, conn, todo, have)
		} else {
			err = r.sendNext(ctx, todo, approved, careful)
		}
		part, only := err.(*refusedRefs)
		if err != nil && !only {
			return refused.and(err)
		}
		sent += len(group)
		refused = refused.with(part, sent)
		if len(groups) > 1 {
			fmt.Fprintf(r.say, "   %d of %d refs\n", sent, all)
		}
		if todo.approved && sent < all {
			if approved, err = r.carry(); err != nil {
				return refused.and(err)
			}
		}
	}
	return refused.and(nil)
}

// sendNext sends a further part of a plan that the guard has let through. What the peer has
// changed meanwhile, it refuses. A plan that a person has let through goes no further when the
// peer's refs are not, by their digest, what the part before has left. What has come about by
// itself, where a ref is only another name of one in a part before, is left out.
func (r *syncRun) sendNext(ctx context.Context, part plan, approved string, careful bool) error {
	conn, err := r.showRefs(ctx)
	if err != nil {
		return err
	}
	defer conn.cancel()
	local := r.pulse.pause()
	if approved != "" && digest.Of(r.theirs) != approved {
		err = fmt.Errorf("refs on %s have changed since the part before was sent, and are not what was approved", r.name)
	}
	part.commands = slices.DeleteFunc(slices.Clone(part.commands), func(c sendpack.Command) bool { return cmp.Or(r.theirs[c.Ref], r.zero) == c.New })
	var have []string
	if err == nil {
		have, err = r.haves(ctx, part.commands, careful)
	}
	if err == nil {
		err = r.record(part.commands)
	}
	local()
	if err != nil || len(part.commands) == 0 {
		_ = sendpack.End(conn)
		return also(err, r.ended(conn, nil), r.confirm(nil))
	}
	return r.send(ctx, conn, part, have)
}
