package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
)

// sshPeer is another server, or anything else that runs git-receive-pack over
// ssh. A sync is one connection: receive-pack shows its refs, we compare them
// with ours, decide what may be changed, write down what we are about to send,
// send it with the old values that we saw (so that a change in between is
// refused and not overwritten), and judge by the report and the exit status. A
// second connection is needed only when HEAD or the metadata has changed (meta.go), or when
// objects turn out to be unreadable here (objects.go).
type sshPeer struct {
	name       string
	hostname   string // ours
	stall      time.Duration
	transport  Transport
	stock      *stockMemory
	identities *identities
	packs      *packs // nil: packs are not shared
	stateDir   string // where a shared pack may stand
	maxDelete  int    // percent of the peer's refs that may be deleted in one sync
	maxPart    int    // refs that a gitolite gets in one session
}

// syncRun is the state of one Sync.
type syncRun struct {
	*sshPeer
	src     Source
	say     io.Writer
	pulse   *pulse
	log     *refset.Log
	ours    map[string]string       // our mirrored refs
	adv     *sendpack.Advertisement // of the latest connection, nil before
	empty   bool                    // the peer had no refs when this Sync saw it first
	format  string                  // the peer's object format, "" before it is known
	theirs  map[string]string       // the peer's mirrored refs, kept up to date
	shown   map[string]string       // every ref that the peer showed, or that is on record
	zero    string
	note    string
	says    string // the peer, for status; see withPeerNote
	heardIt bool   // what it says: it took a push
	head    *metaSync
	created bool // the repository, by this Sync
	headErr error
	digest  func() string // of ours
	early   *earlyConn    // nil: there is no quick way
	heard   atomic.Bool   // the peer has said something to a quick push
}

// Sync implements Peer.
func (p *sshPeer) Sync(ctx context.Context, src Source, say io.Writer) (Outcome, error) {
	log, err := refset.Open(refset.Path(src.Repo.Dir, p.name))
	if err != nil {
		return Outcome{}, fmt.Errorf("what is known of %s: %w", p.name, err)
	}
	defer log.Close()
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	run := &syncRun{sshPeer: p, src: src, say: &oneAtATime{w: say}, pulse: pulse, log: log}
	run.openEarly(ctx)
	defer run.dropEarly()
	local := pulse.pause()
	refs, err := src.Repo.ReadRefs(ctx)
	local()
	if err != nil {
		return Outcome{}, err
	}
	run.ours = src.Config.MirroredRefs(refs)
	run.digest = sync.OnceValue(func() string { return digest.Of(run.ours) })
	err = run.sync(ctx)
	out := Outcome{Sent: pulse.sent.Load(), Phases: map[string]time.Duration{"own": time.Duration(pulse.own.Load())}}
	if err != nil {
		return out, run.explain(ctx, err)
	}
	run.addNote(run.head.note())
	out.Digest, out.Note = run.digest(), withPeerNote(run.note, p.name, run.says)
	if !run.heardIt {
		out.Renote = func(before string) string { return keepPeerNote(run.note, before, p.name) }
	}
	return out, clearRestored(src.Repo.Dir, p.name)
}

// explain says why the context ended, instead of or before what came of it. A
// peer that went silent before it showed its refs is as good as unreachable.
func (r *syncRun) explain(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	switch {
	case cause == nil || errors.Is(err, cause):
		return err
	case errors.Is(cause, errStalled) && r.adv == nil && !r.heard.Load():
		return fmt.Errorf("%s: %w: %w", r.name, ErrUnreachable, cause)
	case errors.Is(cause, errStalled):
		return fmt.Errorf("%s: %w", r.name, cause)
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// sync tries the quick way, and else sends HEAD and the refs. What is wrong with
// HEAD alone is told, and does not keep the refs back.
func (r *syncRun) sync(ctx context.Context) error {
	r.head = &metaSync{syncRun: r}
	r.headErr = r.head.look(ctx)
	if r.headErr == nil {
		if done, err := r.quick(ctx, r.head.target); done {
			if err == nil {
				err = r.head.rest(ctx)
			}
			return err
		}
	}
	r.dropEarly()
	err := r.sendRefs(ctx)
	if r.headErr == nil {
		r.headErr = r.head.after(ctx, err)
	}
	return also(err, r.headErr)
}

// sendRefs pushes, and again when git could not make the pack, without the refs that are
// to blame: one bad ref must not stop the others. Of a push in parts each part may have
// some. That ends, since each further attempt leaves out more.
func (r *syncRun) sendRefs(ctx context.Context) error {
	how := attempt{skip: map[string]bool{}}
	for {
		err := r.push(ctx, how)
		var failed *packFailure
		if !errors.As(err, &failed) {
			return also(err, r.unreadable(how.skip))
		}
		bad, have, lookErr := r.diagnose(ctx, failed)
		if lookErr != nil || len(bad) == 0 && (how.careful || slices.Equal(have, failed.have)) {
			return also(err, lookErr, r.unreadable(how.skip))
		}
		for _, ref := range bad {
			how.skip[ref] = true
		}
		how.careful = true
	}
}

// unreadable is the error about refs that were left out, nil where there are none.
func (r *syncRun) unreadable(skip map[string]bool) error {
	if len(skip) == 0 {
		return nil
	}
	return fmt.Errorf("cannot be read here, and was not sent: %s: run git fsck in %s", list(slices.Sorted(maps.Keys(skip))), r.src.Repo.Dir)
}

// attempt says how a push is to be done.
type attempt struct {
	skip    map[string]bool // refs to leave alone
	careful bool            // look every object up before it is named to git
}

// push is one connection, or several where the peer gets many refs in parts.
func (r *syncRun) push(ctx context.Context, how attempt) error {
	conn, err := r.receivePack(ctx)
	if err != nil {
		return err
	}
	defer conn.cancel()
	local := r.pulse.pause() // the peer has nothing to say while we think
	todo, err := r.plan(ctx, how.skip)
	groups, careful := r.groups(ctx, todo.commands), how.careful || len(todo.rescued) > 0
	var have []string
	if err == nil && len(todo.commands) > 0 {
		if have, err = r.haves(ctx, groups[0], careful); err == nil {
			err = r.record(groups[0])
		}
	}
	local()
	if err == nil && r.headErr == nil { // the guard has let it through
		r.headErr = r.head.before(ctx)
		if errors.Is(r.headErr, ErrUnreachable) || ctx.Err() != nil {
			conn.cancel()
			_ = r.ended(conn, nil) // which is our doing, and says nothing
			return r.headErr
		}
	}
	if err != nil || len(todo.commands) == 0 {
		// No matter when it fails: how the far side ends says more.
		_ = sendpack.End(conn)
		return also(err, r.ended(conn, nil), r.leftovers(todo), r.confirm(nil))
	}
	return also(r.sendGroups(ctx, conn, todo, groups, have, careful), r.leftovers(todo))
}

// receivePack begins a push: the peer shows its refs. A repository that is not
// there is made, where the peer lets us.
func (r *syncRun) receivePack(ctx context.Context) (*conn, error) {
	if err := r.identify(ctx); err != nil {
		return nil, err
	}
	if err := r.wildFirst(ctx); err != nil {
		return nil, err
	}
	conn, err := r.showRefs(ctx)
	if r.createWanted(err) {
		if err := r.create(ctx); err != nil {
			return nil, err
		}
		return r.showRefs(ctx)
	}
	if err != nil {
		return r.wildLast(ctx, err)
	}
	return conn, nil
}

func (r *syncRun) showRefs(ctx context.Context) (*conn, error) {
	conn, err := r.open(ctx, "git-receive-pack '"+r.src.Config.Name+"'", r.say)
	if err != nil {
		return nil, err
	}
	adv, err := sendpack.ReadAdvertisement(conn)
	if err != nil {
		defer conn.cancel()
		return nil, r.ended(conn, err)
	}
	if r.adv == nil {
		r.empty = len(adv.Refs) == 0
	}
	r.adv, r.format, r.shown, r.theirs = adv, adv.ObjectFormat, adv.Refs, maps.Clone(r.src.Config.MirroredRefs(adv.Refs))
	return conn, nil
}

// conn is one command on the peer.
type conn struct {
	Stream                    // counted as signs of life
	in     *bufio.Reader      // what Stream gives, in fewer system calls
	cancel context.CancelFunc // ends the command
	stderr *remoteLines
}

func (c *conn) Read(p []byte) (int, error) { return c.in.Read(p) }

// wholeConn tells when everything has been written to a peer.
type wholeConn struct {
	*conn
	whole func()
}

func (c wholeConn) CloseWrite() error {
	c.whole()
	return c.conn.CloseWrite()
}

// open starts command on the peer; what it writes to its standard error is said.
func (r *syncRun) open(ctx context.Context, command string, say io.Writer) (*conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	lines := prefixed(say)
	stream, err := r.transport.Open(ctx, r.name, command, lines)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("%s: %w", r.name, err)
	}
	stream = beating{stream, r.pulse}
	return &conn{stream, bufio.NewReaderSize(stream, 64<<10), cancel, lines}, nil
}

// maxRest is how much of what a peer still says is waited for when nothing
// more is expected of it, in bytes.
const maxRest = 16 << 20

// ended finishes the connection and returns the better explanation of err: how
// the far side ended usually says more than that reading from it failed. It
// reads past conn's buffer, which a push that failed may still be reading.
func (r *syncRun) ended(c *conn, err error) error {
	_ = c.CloseWrite() // fails when the peer is gone already
	if n, _ := io.CopyN(io.Discard, c.Stream, maxRest); n == maxRest {
		c.cancel()
		_, _ = io.Copy(io.Discard, c.Stream)
	}
	end := c.Wait()
	c.stderr.end()
	if end != nil && r.adv == nil && errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if err = also(end, err); err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	return nil
}

// plan compares the peer's refs with ours.
func (r *syncRun) plan(ctx context.Context, skip map[string]bool) (plan, error) {
	if ours := objectFormat(r.ours); len(r.ours) > 0 && ours != r.format {
		return plan{}, fmt.Errorf("%s is a %s repository on %s and %s here: make it anew there with git init --bare --object-format=%s",
			r.src.Config.Name, r.format, r.name, ours, ours)
	}
	r.zero = strings.Repeat("0", oidLength(r.format))
	diff := differences(r.ours, r.theirs, r.zero)
	diff = slices.DeleteFunc(diff, func(c sendpack.Command) bool { return skip[c.Ref] })
	k, err := r.know(ctx, diff)
	if err != nil {
		return plan{}, err
	}
	return r.guarded(ctx, decide(diff, r.zero, k))
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

// leftovers is the error for what a plan does not do, nil when it does all.
func (r *syncRun) leftovers(p plan) error {
	r.noteRescued(p)
	if len(p.divergent) == 0 {
		return r.useUp(p)
	}
	told := teller{say: r.say}
	for _, c := range p.divergent {
		told.line(describe(c, r.zero, "held: "+c.Old[:10]+" on "+r.name+" is not from here"))
	}
	told.end()
	reason := fmt.Sprintf("%s on %s has commits that are not from %s (at %s) and could not be fetched", refList(p.divergent), r.name, r.hostname, p.divergent[0].Old[:10])
	return also(fmt.Errorf("%w: %s: save them by hand, and run mirror-shell approve %s %s", ErrHeld, reason, r.src.Config.Name, r.name), r.noteHeld([]string{reason}))
}

// record writes down what is about to be sent.
func (r *syncRun) record(commands []sendpack.Command) error {
	entries := make([]refset.Entry, 0, len(commands))
	for _, c := range commands {
		entries = append(entries, refset.Entry{Ref: c.Ref, OID: c.New})
	}
	if err := r.log.Sending(entries); err != nil {
		return fmt.Errorf("nothing was sent to %s: %w", r.name, err)
	}
	return nil
}

// packFailure is git's failure to make the pack of a push. The peer has changed
// nothing then.
type packFailure struct {
	err      error
	commands []sendpack.Command
	have     []string
}

func (e *packFailure) Error() string { return "nothing was sent: " + e.err.Error() }
func (e *packFailure) Unwrap() error { return e.err }

// packOut is where a pack goes. Until its first byte git counts and compresses,
// which may take hours and is no sign of a dead connection.
type packOut struct {
	w      io.Writer
	begun  func()
	broken atomic.Bool
}

func (o *packOut) Write(p []byte) (int, error) {
	o.begun()
	n, err := o.w.Write(p)
	if err != nil {
		o.broken.Store(true)
	}
	return n, err
}

// send pushes, confirms and judges.
func (r *syncRun) send(ctx context.Context, conn *conn, todo plan, have []string) error {
	ctx, stopPacking := context.WithCancel(ctx)
	defer stopPacking()
	want := wanted(todo.commands, r.zero)
	options := git.PackOptions{Thick: r.adv.Caps.Has("no-thin"), NoOffsets: !r.adv.Caps.Has("ofs-delta")}
	failed := make(chan error, 1)
	pack := func(w io.Writer) error {
		out := &packOut{w: w, begun: r.pulse.pause()}
		defer out.begun()
		err := r.pack(ctx, out, want, have, options)
		if proc.ExitCode(err) > 0 && !out.broken.Load() { // neither by our signal nor for want of a reader
			failed <- err
		}
		return err
	}
	said := prefixed(r.say)
	sent := wholeConn{conn, func() { r.pulse.busy(len(todo.commands)) }}
	report, err := sendpack.Push(conn, sent, r.adv, todo.commands, pack, sendpack.Options{
		ObjectFormat: objectFormat(r.ours), Progress: said, Agent: "mirror-shell", Stop: stopPacking,
	})
	r.pulse.busy(0)
	end := r.ended(conn, err)
	said.end()
	if err == nil {
		r.says, r.heardIt = said.note, true
		return also(r.judge(todo, report, said), end)
	}
	select {
	case err := <-failed:
		if ctx.Err() == nil {
			return &packFailure{err, todo.commands, have}
		}
	default:
	}
	return end // nothing is confirmed: the peer may have done any of it, which the record remembers
}

// pack writes the pack of a push, which other pushes may share.
func (r *syncRun) pack(ctx context.Context, w io.Writer, want, have []string, o git.PackOptions) error {
	if r.packs == nil || !r.src.Several || len(have) == 0 { // a first push may be as large as the repository
		return r.src.Repo.Pack(ctx, w, want, have, o)
	}
	return r.packs.write(ctx, w, r.stateDir, r.src.Repo, want, have, o)
}
