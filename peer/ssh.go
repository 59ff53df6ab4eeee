package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
)

// sshPeer is another server, or anything else that runs git-receive-pack over
// ssh. A sync is one connection: receive-pack shows its refs, we compare them
// with ours, decide what may be changed, write down what we are about to send,
// send it with the old values that we saw (so that a change in between is
// refused and not overwritten), and judge by the report and the exit status. A
// second connection is needed only when HEAD has changed.
type sshPeer struct {
	name      string
	hostname  string // ours
	stateDir  string
	stall     time.Duration
	transport Transport
}

// syncRun is the state of one Sync.
type syncRun struct {
	*sshPeer
	src    Source
	say    io.Writer
	pulse  *pulse
	log    *refset.Log
	ours   map[string]string // our mirrored refs
	theirs map[string]string // the peer's mirrored refs, kept up to date
	zero   string
	note   string
}

// Sync implements Peer.
func (p *sshPeer) Sync(ctx context.Context, src Source, say io.Writer) (Outcome, error) {
	refs, err := src.Repo.Refs(ctx)
	if err != nil {
		return Outcome{}, err
	}
	log, err := refset.Open(refset.Path(p.stateDir, src.Config.Name, p.name))
	if err != nil {
		return Outcome{}, fmt.Errorf("what is known of %s: %w", p.name, err)
	}
	defer log.Close()
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	run := &syncRun{sshPeer: p, src: src, say: &oneAtATime{w: say}, pulse: pulse, log: log, ours: src.Config.MirroredRefs(refs)}
	if err := run.sync(ctx); err != nil {
		return Outcome{}, run.explain(ctx, err)
	}
	return Outcome{Digest: digest.Of(run.ours), Note: run.note}, nil
}

// explain adds why the context ended. A peer that went silent before it showed
// its refs is as good as unreachable.
func (r *syncRun) explain(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	switch {
	case cause == nil || errors.Is(err, cause):
		return err
	case errors.Is(cause, errStalled) && r.theirs == nil && !errors.Is(err, ErrUnreachable):
		return fmt.Errorf("%w: %w: %w", ErrUnreachable, cause, err)
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// sync pushes, and pushes once more without the refs whose history turned out
// to be incomplete here: one bad ref must not stop the others.
func (r *syncRun) sync(ctx context.Context) error {
	if err := r.sendHead(ctx); err != nil {
		return err
	}
	bad, err := r.push(ctx, nil)
	if err == nil && len(bad) > 0 {
		if _, err = r.push(ctx, bad); err == nil {
			err = fmt.Errorf("cannot be read here, and was not sent: %s: run git fsck in %s", list(slices.Sorted(maps.Keys(bad))), r.src.Repo.Dir)
		}
	}
	return err
}

// push is one connection. Refs in skip are left alone. The refs it returns
// could not be packed, and nothing was sent on their account.
func (r *syncRun) push(ctx context.Context, skip map[string]bool) (bad map[string]bool, err error) {
	command := "git-receive-pack '" + r.src.Config.Name + "'"
	raw, err := r.transport.Open(ctx, r.name, command, prefixed(r.say))
	if err != nil {
		return nil, err
	}
	stream := beating{raw, r.pulse}
	adv, err := sendpack.ReadAdvertisement(stream)
	if err != nil {
		return nil, r.ended(stream, err)
	}
	todo, err := r.plan(ctx, adv, skip)
	if err != nil || len(todo.commands) == 0 {
		sendpack.End(stream) // ended reports when that failed
		err = errors.Join(err, r.ended(stream, nil), r.leftovers(todo))
		return nil, errors.Join(err, r.confirm(nil))
	}
	bad, err = r.send(ctx, stream, adv, todo)
	if err != nil || bad != nil {
		return bad, err
	}
	return nil, r.leftovers(todo)
}

// ended finishes the stream and returns the better explanation of err: how the
// far side ended usually says more than that reading from it failed.
func (r *syncRun) ended(stream Stream, err error) error {
	stream.CloseWrite()
	io.Copy(io.Discard, stream)
	if end := stream.Wait(); end != nil {
		return fmt.Errorf("%s: %w", r.name, errors.Join(end, err))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	return nil
}

// plan compares the advertised refs with ours.
func (r *syncRun) plan(ctx context.Context, adv *sendpack.Advertisement, skip map[string]bool) (plan, error) {
	r.theirs = r.src.Config.MirroredRefs(adv.Refs)
	if len(r.ours) == 0 && len(r.theirs) > 0 {
		return plan{}, fmt.Errorf("%w: %s is empty here and has %d refs on %s: if that is right, delete them there by hand",
			ErrHeld, r.src.Config.Name, len(r.theirs), r.name)
	}
	if ours := objectFormat(r.ours); len(r.ours) > 0 && ours != adv.ObjectFormat {
		return plan{}, fmt.Errorf("%s is a %s repository on %s and %s here: make it anew there with git init --bare --object-format=%s",
			r.src.Config.Name, adv.ObjectFormat, r.name, ours, ours)
	}
	r.zero = strings.Repeat("0", oidLength(adv.ObjectFormat))
	diff := slices.DeleteFunc(differences(r.ours, r.theirs, r.zero), func(c sendpack.Command) bool { return skip[c.Ref] })
	k, err := r.know(ctx, diff)
	if err != nil {
		return plan{}, err
	}
	return decide(diff, r.zero, k), nil
}

func oidLength(format string) int {
	if format == sendpack.SHA256 {
		return 64
	}
	return 40
}

// objectFormat tells by the length of ids what a repository's format is.
func objectFormat(refs map[string]string) string {
	for _, oid := range refs {
		if len(oid) == oidLength(sendpack.SHA256) {
			return sendpack.SHA256
		}
		break
	}
	return sendpack.SHA1
}

// know looks up, in one go, what decide will ask. When every old value is one
// of ours, which is the usual case, that is a single question to git.
func (r *syncRun) know(ctx context.Context, diff []sendpack.Command) (knowledge, error) {
	var ask, unknown []string
	for _, c := range diff {
		if c.New != r.zero {
			ask = append(ask, c.New)
		}
		if c.Old != r.zero && !r.log.Ours(c.Ref, c.Old) {
			unknown = append(unknown, c.Old)
		}
	}
	exists, err := r.src.Repo.Existing(ctx, append(ask, unknown...))
	if err != nil {
		return knowledge{}, err
	}
	unknown = slices.DeleteFunc(unknown, func(oid string) bool { return !exists[oid] })
	contained := map[string]bool{}
	if len(unknown) > 0 {
		if contained, err = r.contained(ctx, unknown); err != nil {
			return knowledge{}, err
		}
	}
	return knowledge{
		ours:      r.log.Ours,
		contained: func(oid string) bool { return contained[oid] },
		exists:    func(oid string) bool { return exists[oid] },
	}, nil
}

// contained returns which of the objects our mirrored refs reach.
func (r *syncRun) contained(ctx context.Context, oids []string) (map[string]bool, error) {
	tips := slices.Sorted(maps.Values(r.ours))
	tips = slices.Compact(tips)
	readable, err := r.src.Repo.Existing(ctx, tips)
	if err != nil {
		return nil, err
	}
	tips = slices.DeleteFunc(tips, func(oid string) bool { return !readable[oid] })
	outside, err := r.src.Repo.Unreachable(ctx, oids, tips)
	if err != nil {
		return nil, err
	}
	contained := map[string]bool{}
	for _, oid := range oids {
		contained[oid] = !outside[oid]
	}
	return contained, nil
}

// leftovers is the error for what a plan does not do, nil when it does all.
func (r *syncRun) leftovers(p plan) error {
	var errs []error
	for _, c := range p.divergent {
		fmt.Fprintln(r.say, describe(c, r.zero, "held: "+c.Old[:10]+" on "+r.name+" is not from here"))
	}
	if n := len(p.divergent); n > 0 {
		errs = append(errs, fmt.Errorf("%w: %s on %s has commits that are not from %s (at %s): fetch them from there, or delete the ref there",
			ErrHeld, refList(p.divergent), r.name, r.hostname, p.divergent[0].Old[:10]))
	}
	if len(p.missing) > 0 {
		errs = append(errs, fmt.Errorf("cannot be read here, and was not sent: %s: run git fsck in %s", list(p.missing), r.src.Repo.Dir))
	}
	return errors.Join(errs...)
}

// send records, pushes, confirms and judges.
func (r *syncRun) send(ctx context.Context, stream Stream, adv *sendpack.Advertisement, todo plan) (bad map[string]bool, err error) {
	var entries []refset.Entry
	for _, c := range todo.commands {
		entries = append(entries, refset.Entry{Ref: c.Ref, OID: c.New})
	}
	if err := r.log.Sending(entries); err != nil {
		sendpack.End(stream)
		return nil, errors.Join(fmt.Errorf("nothing was sent: %w", err), r.ended(stream, nil))
	}
	want, have, err := r.objects(ctx, adv, todo)
	if err != nil {
		sendpack.End(stream)
		return nil, errors.Join(err, r.ended(stream, nil))
	}
	packing, stopPacking := context.WithCancel(ctx)
	defer stopPacking()
	packFailed := false
	pack := func(w io.Writer) error {
		err := r.src.Repo.Pack(packing, w, beatWriter{r.pulse}, want, have)
		packFailed = err != nil && packing.Err() == nil
		return err
	}
	report, err := sendpack.Push(stream, stream, adv, todo.commands, pack, sendpack.Options{
		ObjectFormat: objectFormat(r.ours), Progress: prefixed(r.say), Agent: "mirror-shell", Stop: stopPacking,
	})
	end := r.ended(stream, err)
	if packFailed {
		bad, err := r.unreadable(ctx, todo, have)
		if err != nil || len(bad) > 0 {
			return bad, err
		}
	}
	return nil, errors.Join(r.judge(todo, report, err == nil), end)
}

// objects returns what the pack must reach, and what the peer has of it. Only
// what is here can be named to git as a have.
func (r *syncRun) objects(ctx context.Context, adv *sendpack.Advertisement, todo plan) (want, have []string, err error) {
	for _, c := range todo.commands {
		if c.New != r.zero {
			want = append(want, c.New)
		}
	}
	if len(want) == 0 {
		return nil, nil, nil
	}
	for _, oid := range adv.Refs {
		have = append(have, oid)
	}
	have = append(have, adv.Haves...)
	slices.Sort(have)
	have = slices.Compact(have)
	exists, err := r.src.Repo.Existing(ctx, have)
	return want, slices.DeleteFunc(have, func(oid string) bool { return !exists[oid] }), err
}

// unreadable finds the refs whose history is incomplete here, one by one: it is
// asked only after a pack of all of them failed.
func (r *syncRun) unreadable(ctx context.Context, todo plan, have []string) (map[string]bool, error) {
	bad := map[string]bool{}
	for _, c := range todo.commands {
		if c.New == r.zero {
			continue
		}
		ok, err := r.src.Repo.Complete(ctx, c.New, have)
		if err != nil {
			return nil, err
		}
		r.pulse.beat()
		if !ok {
			bad[c.Ref] = true
		}
	}
	return bad, nil
}

// judge confirms what the peer accepted and returns an error when that is not
// everything. Without a report nothing is confirmed: the peer may have done
// any of it, and the set being sent remembers that.
func (r *syncRun) judge(todo plan, report sendpack.Report, reported bool) error {
	if !reported {
		return nil // the caller has the error
	}
	var accepted []refset.Entry
	var refused []sendpack.Command
	reason := ""
	for _, c := range todo.commands {
		failure, ok := report.Refs[c.Ref]
		if !ok {
			failure = "no answer from peer"
		}
		failure = proc.OneLine(failure, 200)
		fmt.Fprintln(r.say, describe(c, r.zero, failure))
		if failure != "" {
			refused = append(refused, c)
			reason = failure
			continue
		}
		if c.New == r.zero {
			delete(r.theirs, c.Ref)
		} else {
			r.theirs[c.Ref] = c.New
		}
		accepted = append(accepted, refset.Entry{Ref: c.Ref, OID: c.New})
	}
	if err := r.confirm(accepted); err != nil {
		return err
	}
	if report.Unpack != "" {
		return fmt.Errorf("%s could not store the objects: %s", r.name, proc.OneLine(report.Unpack, 200))
	}
	if len(refused) > 0 {
		return fmt.Errorf("%s refused %d of %d refs: %s: %s", r.name, len(refused), len(todo.commands), refList(refused), reason)
	}
	return nil
}

// confirm records what the peer accepted, and the refs that are equal without
// us having done anything.
func (r *syncRun) confirm(accepted []refset.Entry) error {
	for ref, oid := range r.theirs {
		if r.ours[ref] == oid {
			accepted = append(accepted, refset.Entry{Ref: ref, OID: oid})
		}
	}
	return r.log.Confirm(accepted)
}

// sendHead tells the peer where HEAD points, when that is not what it was told
// before. It goes ahead of the refs, because a default branch that was renamed
// cannot be deleted while HEAD points to it.
func (r *syncRun) sendHead(ctx context.Context) error {
	head, err := r.src.Repo.Head(ctx)
	if err != nil {
		return err
	}
	if head == "" {
		r.note = "HEAD is detached here and was not sent"
		return nil
	}
	if len(r.ours) == 0 {
		return nil
	}
	switch known, _ := r.log.Confirmed("HEAD"); known {
	case "ref:" + head:
		return nil
	case "!ref:" + head:
		r.note = "HEAD was not sent: " + r.name + " does not take it"
		return nil
	}
	value := "ref:" + head
	if err := r.meta(ctx, head); err != nil {
		if errors.Is(err, ErrUnreachable) || !r.foreign(ctx) {
			return err
		}
		value = "!ref:" + head
		r.note = "HEAD was not sent: " + r.name + " does not take it"
	}
	return r.log.Confirm([]refset.Entry{{Ref: "HEAD", OID: value}})
}

// meta sends the metadata of the repository with the verb mirror-meta.
func (r *syncRun) meta(ctx context.Context, head string) error {
	stream, err := r.transport.Open(ctx, r.name, "mirror-meta '"+r.src.Config.Name+"'", io.Discard)
	if err != nil {
		return err
	}
	err = json.NewEncoder(stream).Encode(map[string]string{"head": head})
	return r.ended(beating{stream, r.pulse}, err)
}

// foreign reports whether the peer is no mirror-shell server, which is one that
// does not answer `info --json`.
func (r *syncRun) foreign(ctx context.Context) bool {
	stream, err := r.transport.Open(ctx, r.name, "info --json", io.Discard)
	if err != nil {
		return false
	}
	var reply struct {
		Verbs []string `json:"verbs"`
	}
	err = json.NewDecoder(io.LimitReader(stream, 1<<20)).Decode(&reply)
	if end := r.ended(beating{stream, r.pulse}, nil); errors.Is(end, ErrUnreachable) {
		return false
	}
	return err != nil || !slices.Contains(reply.Verbs, "mirror-meta")
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
