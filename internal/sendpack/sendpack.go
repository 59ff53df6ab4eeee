// Package sendpack is the client side of git's receive-pack: it changes refs of
// a repository on the other end of any two byte streams.
//
// # The conversation
//
// receive-pack speaks first. It lists every ref it has (the advertisement), and
// on the first line of that list what it can do (its capabilities). The client
// answers with commands, each saying "REF is OLD, make it NEW", then with a pack
// of the objects the peer lacks. The peer unpacks, tries every command, and
// says what became of each in a report:
//
//	peer    OID REF NUL capabilities          ReadAdvertisement
//	        OID REF …, flush
//	client  OLD NEW REF NUL capabilities      Push (or End: nothing to do)
//	        OLD NEW REF …, flush
//	        PACK…                             only if a command is not a deletion
//	peer    unpack ok                         Report
//	        ok REF
//	        ng REF REASON …, flush
//
// Everything but the pack is framed in pkt-lines: four hex digits that count
// themselves, then the payload; 0000 is a flush. With side-band-64k the peer wraps
// what it says after the commands in further pkt-lines whose first byte is a
// band: 1 carries the report, 2 is text for people (progress, what hooks print), 3 is a
// fatal error. An old value that is no longer true makes that one command fail
// and no other: this compare-and-swap is why a mirror speaks the protocol itself.
//
// # Two directions at once
//
// The peer may talk while it is being sent to, and both directions have finite
// buffers: whoever does not read while it writes can block for ever. Push
// therefore reads in one goroutine and writes in another. Whichever fails first
// ends the other, and what the peer said last is part of the error.
//
// # A pack is all or nothing
//
// The last bytes of a pack are its checksum. They are kept back until the
// function that makes the pack has returned without error, so a pack whose
// making failed, even at its very end, can never be accepted by the peer.
//
// Object ids are lower-case hex strings of 40 (sha1) or 64 (sha256) digits; the id
// of only zeros means "no such ref".
package sendpack

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Object formats, as git names them.
const (
	SHA1   = "sha1"
	SHA256 = "sha256"
)

// Command asks for one ref to be changed from Old to New, both object ids. The
// zero id as Old means that the ref must not exist yet, as New that it is to be deleted.
type Command struct {
	Ref, Old, New string
}

// Options are what a push may be told besides its commands. The zero value works for sha1.
type Options struct {
	// ObjectFormat is that of our repository; empty means SHA1.
	ObjectFormat string
	// Progress receives band 2 byte for byte, as the peer sent it: make it
	// harmless before showing it on a terminal. It must not block for ever; its errors are
	// ignored. It is not used any more after Push has returned.
	Progress io.Writer
	// Quiet asks the peer for no progress.
	Quiet bool
	// Atomic asks for all commands or none; a peer that cannot do that is an error.
	Atomic bool
	// Plain leaves out side-band-64k: what the peer says besides its report comes
	// on its standard error.
	Plain bool
	// Agent names us to the peer, for example "mirror-shell/1.0"; empty: not sent.
	Agent string
	// Stop, when set, is called at most once, when the push has failed and
	// pack may still be at work. It should make pack return soon (cancel
	// the context of its process).
	Stop func()
	// Linger bounds how long, after the push has failed, Push waits for pack
	// to return and for the peer's last words. 0 means 5 s.
	Linger time.Duration
}

const defaultLinger = 5 * time.Second

// settle is how long a sender may take to notice that it is done when the peer has
// already answered: scheduling only, since the answer needs every byte.
const settle = 100 * time.Millisecond

// PeerError is a fatal error in the peer's own words: an ERR packet or a message on band 3.
type PeerError struct {
	Text string // one printable line
}

func (e *PeerError) Error() string { return "peer says: " + e.Text }

// End tells a peer whose advertisement was read that there is nothing to push.
func End(w io.Writer) error {
	if _, err := io.WriteString(w, flushPkt); err != nil {
		return fmt.Errorf("end the conversation with the peer: %w", err)
	}
	return nil
}

// Push sends cmds, and the pack that the function pack writes, to the peer whose
// advertisement adv was read from r, and returns the peer's report.
//
// The commands go out with deletions first, then by name; the peer applies them
// in that order and independently, so x/y can give way to x in one push. With no commands
// Push does what End does. pack is called, in another goroutine, only when some command is not a
// deletion; it must write exactly one pack.
//
// A nil error means that the report is complete and has an entry for every
// command; the caller must still look at Unpack and Refs. With an error the
// report holds what had been read of it, perhaps nothing: refs it names "" for are
// changed, of the others nothing is known.
//
// Of w, CloseWrite is called after the pack if w has it; Close is called (or CloseWrite,
// where w has only that) when the push has failed, to free a write that blocks. When the
// peer ends the conversation while pack is still running, writes to pack's
// writer start failing and opt.Stop is called; a pack that neither writes nor heeds Stop is left
// behind after opt.Linger. So may be the reading of r when sending has failed and
// the peer stays silent: whoever owns the streams closes both after Push, and
// also puts an end to a peer that does nothing (Push has no time limit of its own).
func Push(r io.Reader, w io.Writer, adv *Advertisement, cmds []Command, pack func(io.Writer) error, opt Options) (Report, error) {
	if len(cmds) == 0 {
		return Report{}, End(w)
	}
	p, err := plan(adv, cmds, opt)
	if err != nil {
		return Report{}, err
	}
	return newSession(r, w, p, opt).run(pack)
}

// session is one Push under way.
type session struct {
	plan     *pushPlan
	r        io.Reader
	out      *outlet
	progress *progress
	stop     func()
	linger   time.Duration
}

// heard is what the reading side ended with; err is nil only for a complete report.
type heard struct {
	report Report
	err    error
}

func newSession(r io.Reader, w io.Writer, p *pushPlan, opt Options) *session {
	s := &session{plan: p, r: r, out: &outlet{w: w}, progress: &progress{w: opt.Progress}, stop: opt.Stop, linger: opt.Linger}
	if s.stop == nil {
		s.stop = func() {}
	}
	if s.linger <= 0 {
		s.linger = defaultLinger
	}
	return s
}

func (s *session) run(pack func(io.Writer) error) (Report, error) {
	defer s.progress.close()
	hearing := make(chan heard, 1)
	go func() { hearing <- s.hear() }()
	sending := make(chan error, 1)
	go func() { sending <- s.send(pack) }()

	select {
	case h := <-hearing:
		return verdict(h, s.endSending(sending, h))
	case err := <-sending:
		if err == nil {
			s.out.closeWrite()
			return verdict(<-hearing, nil)
		}
		return verdict(s.lastWords(hearing), err)
	}
}

// endSending is called when the peer has said its last: it lets a sender that
// is done say so and stops one that is not.
func (s *session) endSending(sending <-chan error, h heard) error {
	if h.err == nil {
		if err, ok := within(sending, settle); ok {
			return err
		}
	}
	s.out.fail(errPeerEnded)
	s.stop()
	s.out.abort()
	if err, ok := within(sending, s.linger); ok {
		return err
	}
	return errPackLeft
}

// lastWords is called when sending has failed: the peer gets to see the end of
// its input, and some time to say what was wrong.
func (s *session) lastWords(hearing <-chan heard) heard {
	s.out.fail(errOver)
	s.out.halfClose()
	if h, ok := within(hearing, s.linger); ok {
		return h
	}
	return heard{err: errSilent}
}

func within[T any](c <-chan T, d time.Duration) (v T, ok bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case v = <-c:
		return v, true
	case <-t.C:
		return v, false
	}
}

var (
	errPeerEnded = errors.New("the peer ended the conversation")
	errOver      = errors.New("the push is over")
	errPackLeft  = errors.New("the pack was still being made")
	errSilent    = errors.New("the peer said nothing more")
)

// verdict weighs what both directions ended with. Our own failure to make the
// pack comes first, since all else follows from it; then what the peer said,
// which explains a broken connection better than "broken pipe" does.
func verdict(h heard, sendErr error) (Report, error) {
	var own *packError
	switch {
	case errors.As(sendErr, &own):
		return h.report, sendErr
	case h.err == nil && sendErr == nil:
		return h.report, nil
	case h.err == nil && h.report.Unpack != "":
		return h.report, nil // it refused the pack before reading all of it, and said why
	case h.err == nil:
		return h.report, fmt.Errorf("peer reported before everything was sent: %w", sendErr)
	case sendErr == nil || errors.Is(sendErr, errPeerEnded):
		return h.report, h.err
	case h.err == errSilent:
		return h.report, fmt.Errorf("send to peer: %w", sendErr)
	default:
		return h.report, fmt.Errorf("%w (sending: %w)", h.err, sendErr)
	}
}

// hear reads the peer's side to its end.
func (s *session) hear() heard {
	pkts := newPktReader(s.r)
	p := &reportParser{v2: s.plan.v2, sent: s.plan.cmds}
	if !s.plan.sideband {
		err := p.read(pkts)
		return heard{p.report, s.explain(err)}
	}
	d := &demux{pkts: pkts, progress: s.progress}
	err := p.read(newPktReader(d))
	if err == nil {
		err = d.drain()
	}
	return heard{p.report, s.explain(err)}
}

// explain adds the peer's last words to an error that does not carry them yet.
func (s *session) explain(err error) error {
	var said *PeerError
	if err == nil || errors.As(err, &said) {
		return err
	}
	if words := s.progress.lastWords(); words != "" {
		return fmt.Errorf("%w; the peer's last words: %s", err, words)
	}
	return err
}

// printable makes one line of at most max bytes from a peer's text, safe for
// terminals and logs. It cuts the text's end off.
func printable(text string, max int) string {
	var b strings.Builder
	for _, r := range strings.TrimSpace(text) {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			r = ' '
		case !isPrint(r):
			r = '?'
		}
		if b.Len()+len(string(r)) > max {
			return b.String() + "…"
		}
		b.WriteRune(r)
	}
	return b.String()
}
