package peer

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/rescue"
	"mirror-shell/internal/sendpack"
)

// What becomes of a value that the peer has and we know nothing of. A
// mirror-shell slave remembers what its master has set: it tells us which of
// the two it is, our own former value, which means that we were rolled back, or
// the work of somebody over there, which it keeps as a rescued ref itself when we
// push over it. From any other peer the commits are fetched first, to a rescued ref
// here that has the peer's name in it (package rescue), once for each ref and value. A
// value that is kept here already may be overwritten anywhere.

// divergence is what is divergent, by what can be done about it.
type divergence struct {
	kept     []sendpack.Command // the value is kept here as a rescued ref
	received []sendpack.Command // the peer had it from us
	foreign  []sendpack.Command // the peer will rescue it
	unasked  []sendpack.Command // the peer can do neither
}

// KnownVerb asks a slave whether it had values from its master:
//
//	mirror-known 'REPO'
//
// Standard input is a line OID SP REF LF for each; standard output a line
// "received" or "foreign" for each in the same order, then END COUNT LF.
const KnownVerb = "mirror-known"

// sortDivergent finds out about divergent values.
func (r *syncRun) sortDivergent(ctx context.Context, divergent []sendpack.Command) (d divergence, err error) {
	if len(divergent) == 0 {
		return d, nil
	}
	kept, err := keptHere(ctx, r.src.Repo)
	if err != nil {
		return d, err
	}
	var ask []sendpack.Command
	for _, c := range divergent {
		if kept[rescue.Value{Ref: c.Ref, OID: c.Old}] != "" {
			d.kept = append(d.kept, c)
		} else {
			ask = append(ask, c)
		}
	}
	if len(ask) == 0 {
		return d, nil
	}
	received, err := r.askKnown(ctx, r.src.Config.Name, ask)
	if errors.Is(err, ErrForeign) {
		d.unasked = ask
		return d, nil
	}
	for i, c := range ask {
		switch {
		case err != nil:
			return d, fmt.Errorf("%s has values that are not known here, and whose they are could not be asked: %w", refList(ask), err)
		case received[i]:
			d.received = append(d.received, c)
		default:
			d.foreign = append(d.foreign, c)
		}
	}
	return d, nil
}

// askKnown asks the peer which of the values it had from its master.
func (p *sshPeer) askKnown(ctx context.Context, repo string, values []sendpack.Command) ([]bool, error) {
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	raw, err := p.transport.Open(asking, p.name, KnownVerb+" '"+repo+"'", io.Discard)
	if err != nil {
		return nil, err
	}
	stream := beating{raw, pulse}
	written := make(chan struct{})
	go func() {
		defer close(written)
		writeKnown(stream, values)
	}()
	received, readErr := readKnown(stream, len(values))
	if readErr != nil && !errors.Is(readErr, io.ErrUnexpectedEOF) {
		stop() // the rest of a stream that makes no sense is not waited for
	}
	_, _ = io.Copy(io.Discard, stream)
	end := stream.Wait()
	stop()
	<-written
	switch cause := context.Cause(ctx); {
	case end == nil && readErr == nil:
		return received, nil
	case errors.Is(cause, errStalled):
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, p.name, cause)
	case cause != nil:
		return nil, fmt.Errorf("%s: %w", p.name, cause)
	case errors.Is(end, ErrUnreachable):
		return nil, fmt.Errorf("%s: %w", p.name, end)
	case p.lacks(ctx, KnownVerb):
		return nil, fmt.Errorf("%s %w", p.name, ErrForeign)
	}
	return nil, fmt.Errorf("%s: %w", p.name, errors.Join(end, readErr))
}

// writeKnown writes the question. A peer that does not read it gives no answer.
func writeKnown(to Stream, values []sendpack.Command) {
	out := bufio.NewWriter(to)
	for _, c := range values {
		fmt.Fprintf(out, "%s %s\n", c.Old, c.Ref)
	}
	out.Flush()
	to.CloseWrite()
}

// readKnown reads the answer to n values.
func readKnown(in io.Reader, n int) ([]bool, error) {
	lines := bufio.NewScanner(in)
	received := make([]bool, 0, n)
	for lines.Scan() {
		line := lines.Text()
		count, isEnd := strings.CutPrefix(line, "END ")
		switch {
		case isEnd:
			if c, err := strconv.Atoi(count); err != nil || c != n || len(received) != n {
				return nil, fmt.Errorf("%s: %.40q after %d answers, %d were asked for", KnownVerb, line, len(received), n)
			}
			return received, nil
		case line != "received" && line != "foreign" || len(received) == n:
			return nil, fmt.Errorf("%s: the peer answers %.120q", KnownVerb, line)
		}
		received = append(received, line == "received")
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", KnownVerb, err)
	}
	return nil, fmt.Errorf("%s: %w", KnownVerb, io.ErrUnexpectedEOF)
}

// settle decides about what is divergent after the guard has let the sync pass.
func (r *syncRun) settle(ctx context.Context, p *plan, d divergence) error {
	if len(p.divergent) == 0 {
		return nil
	}
	p.divergent = nil
	for _, c := range d.foreign {
		p.rescued = append(p.rescued, overwritten{Command: c, where: "on " + r.name})
	}
	p.commands = append(p.commands, d.foreign...)
	if len(d.unasked) > 0 {
		rescued, stuck, err := r.fetchRescued(ctx, d.unasked)
		if err != nil {
			return err
		}
		for _, c := range rescued {
			p.rescued = append(p.rescued, overwritten{Command: c, where: "here, from " + r.name})
		}
		p.commands, p.divergent = append(p.commands, rescued...), stuck
	}
	if p.approved { // somebody has looked at it, and wants it overwritten
		p.commands = append(append(p.commands, d.received...), p.divergent...)
		p.divergent = nil
	}
	slices.SortFunc(p.commands, func(a, b sendpack.Command) int { return cmp.Compare(a.Ref, b.Ref) })
	return nil
}

// maxSingle is how many values are fetched one by one when they could not be
// fetched together.
const maxSingle = 20

// fetchRescued keeps the peer's values here. Those that the peer does not give
// away (it may hide the refs from those who fetch, or be no server for that) are stuck.
func (r *syncRun) fetchRescued(ctx context.Context, commands []sendpack.Command) (rescued, stuck []sendpack.Command, err error) {
	now := time.Now()
	fetch := func(some []sendpack.Command) error {
		var refspecs []string
		for _, c := range some {
			refspecs = append(refspecs, c.Old+":"+rescuedRef(r.name, now, c.Ref, c.Old))
		}
		return r.fetch(ctx, r.src.Repo, r.src.Config.Name, refspecs, io.Discard)
	}
	if err := fetch(commands); err == nil {
		return commands, nil, nil
	} else if fatal(ctx, err) {
		return nil, nil, err
	}
	for i, c := range commands {
		var err error
		if i < maxSingle && len(commands) > 1 {
			err = fetch(commands[i : i+1])
		}
		switch {
		case fatal(ctx, err):
			return nil, nil, err
		case err != nil || i >= maxSingle || len(commands) == 1:
			stuck = append(stuck, c)
		default:
			rescued = append(rescued, c)
		}
	}
	return rescued, stuck, nil
}

// fatal: no use to try anything else.
func fatal(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, ErrUnreachable) || errors.Is(err, errStalled)
}

// fetch fetches from the peer's repository of that name; see git.Repo.Fetch.
func (p *sshPeer) fetch(ctx context.Context, repo git.Repo, name string, refspecs []string, say io.Writer) error {
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	running, stop := context.WithCancel(ctx)
	defer stop()
	told := prefixed(say)
	raw, err := p.transport.Open(running, p.name, "git-upload-pack '"+name+"'", told)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	conn := &fetchConn{beating: beating{raw, pulse}}
	err = repo.Fetch(ctx, conn, refspecs)
	if err != nil {
		stop()
	}
	_, _ = io.Copy(io.Discard, raw)
	end := raw.Wait()
	told.end()
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%s: %w", p.name, cause)
	}
	switch {
	case err == nil: // git has all that it wanted, however the far side ended
		return nil
	case end != nil && !errors.Is(end, context.Canceled):
		return fmt.Errorf("%s: %w", p.name, also(end, err))
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// fetchConn stops the clock when the peer has said everything: what git then
// does with a large pack takes its time and no bytes.
type fetchConn struct{ beating }

func (f *fetchConn) Read(p []byte) (int, error) {
	n, err := f.beating.Read(p)
	if err != nil {
		f.pulse.pause()
	}
	return n, err
}

// rescuedRef is where a value of a peer's is kept here.
func rescuedRef(peer string, when time.Time, ref, oid string) string {
	return rescue.NewName(refElement(peer), when, oid, ref).Full()
}

// refElement makes one element of a ref name of a peer's name. The few names that
// git does not take are written with _ for their dots.
func refElement(peer string) string {
	if strings.Contains(peer, "..") || strings.HasSuffix(peer, ".") || strings.HasSuffix(peer, ".lock") {
		return strings.ReplaceAll(peer, ".", "_")
	}
	return peer
}

// keptHere returns the rescued values of a repository, and where they are kept.
func keptHere(ctx context.Context, repo git.Repo) (map[rescue.Value]string, error) {
	entries, err := rescue.List(ctx, repo)
	if err != nil {
		return nil, err
	}
	kept := make(map[rescue.Value]string, len(entries))
	for _, e := range entries {
		kept[rescue.Value{Ref: e.Ref, OID: e.OID}] = rescue.Prefix + "/" + e.Name
	}
	return kept, nil
}

// overwritten is a value that was not ours, and is kept somewhere.
type overwritten struct {
	sendpack.Command
	where string
}

// noteRescued tells of rescued values what the peer has come to lack.
func (r *syncRun) noteRescued(p plan) {
	told := teller{say: r.say}
	var done []string
	for _, c := range p.rescued {
		if now, ok := r.theirs[c.Ref]; ok && now == c.Old {
			continue // it was not overwritten
		}
		text := fmt.Sprintf("rescued %s: %s at %s", c.where, c.Ref, c.Old[:10])
		told.line("   " + text)
		done = append(done, text)
	}
	told.end()
	r.addNote(list(done))
}

// addNote adds to what is told of a sync that did not fail.
func (r *syncRun) addNote(note string) {
	switch {
	case note == "" || strings.Contains(r.note, note):
	case r.note == "":
		r.note = note
	default:
		r.note += "; " + note
	}
}
