package sendpack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Caps are the capabilities a peer advertised, in its order, as NAME or NAME=VALUE.
type Caps []string

// Has reports whether the capability is there, with or without a value.
func (c Caps) Has(name string) bool {
	_, ok := c.Get(name)
	return ok
}

// Get returns the value of the first capability of that name, "" for one without a value.
func (c Caps) Get(name string) (value string, ok bool) {
	for _, entry := range c {
		if key, value, _ := strings.Cut(entry, "="); key == name {
			return value, true
		}
	}
	return "", false
}

// Advertisement is what a peer said of its repository at the start.
type Advertisement struct {
	Refs         map[string]string // full ref name → object id; hidden refs are not among them
	Haves        []string          // ids of objects the peer has besides, through its alternates
	Caps         Caps
	ObjectFormat string // SHA1 or SHA256
}

// limits bound the memory that a peer can make us use.
type limits struct {
	refs  int   // refs and haves together
	bytes int64 // of their lines
}

var defaultLimits = limits{refs: 10_000_000, bytes: 1 << 30}

// ReadAdvertisement reads what receive-pack says first, up to and including its flush and
// not a byte further, in two small reads per ref: give it (and Push after it) a
// bufio.Reader where a read is a system call.
//
// Errors: a *PeerError for a refusal in git's form; text that is not git's protocol
// is quoted; anything malformed, doubled or beyond 10 million refs or 1 GiB
// fails the whole, since half an advertisement looks like deletions.
func ReadAdvertisement(r io.Reader) (*Advertisement, error) {
	return readAdvertisement(r, defaultLimits)
}

func readAdvertisement(r io.Reader, lim limits) (*Advertisement, error) {
	p := &advertParser{pkts: newPktReader(r), lim: lim}
	p.adv = &Advertisement{Refs: map[string]string{}, ObjectFormat: SHA1}
	for {
		payload, flush, err := p.pkts.next()
		switch {
		case err != nil:
			return nil, p.readError(err)
		case flush:
			return p.adv, nil
		}
		if err := p.line(payload); err != nil {
			return nil, fmt.Errorf("peer's advertisement, line %d: %w", p.lines, err)
		}
	}
}

type advertParser struct {
	pkts  *pktReader
	adv   *Advertisement
	lim   limits
	lines int
	refs  bool // the first ref line, which carries the capabilities, has been read
	count int
	bytes int64
	oid   int // hex digits of an object id
}

func (p *advertParser) line(payload []byte) error {
	p.lines++
	if err := peerError(payload); err != nil {
		return err
	}
	payload = bytes.TrimSuffix(payload, []byte("\n"))
	if p.lines == 1 {
		switch v, ok := strings.CutPrefix(string(payload), "version "); {
		case ok && v == "1":
			return nil
		case ok:
			return fmt.Errorf("peer speaks protocol version %s, pushing needs 0 or 1: do not send GIT_PROTOCOL to it", printable(v, 20))
		}
	}
	if oid, ok := bytes.CutPrefix(payload, []byte("shallow ")); ok {
		return p.shallow(string(oid))
	}
	first := !p.refs
	if first {
		p.refs = true
		ref, caps, _ := bytes.Cut(payload, []byte{0})
		if err := p.capabilities(string(caps)); err != nil {
			return err
		}
		payload = ref
	}
	return p.ref(string(payload), first)
}

func (p *advertParser) capabilities(list string) error {
	p.adv.Caps = strings.Fields(list)
	if format, ok := p.adv.Caps.Get("object-format"); ok {
		p.adv.ObjectFormat = format
	}
	n, ok := oidLen(p.adv.ObjectFormat)
	if !ok {
		return fmt.Errorf("object format %q is unknown here", printable(p.adv.ObjectFormat, 40))
	}
	p.oid = n
	return nil
}

// shallow tolerates the boundary of a shallow peer. It may even come before the
// refs, when the length of ids is not known yet.
func (p *advertParser) shallow(oid string) error {
	if !validOID(oid, 40) && !validOID(oid, 64) {
		return fmt.Errorf("malformed shallow line %q", printable(oid, 80))
	}
	return p.grow(len(oid))
}

// grow counts against the limits.
func (p *advertParser) grow(n int) error {
	p.count++
	p.bytes += int64(n)
	if p.count > p.lim.refs || p.bytes > p.lim.bytes {
		return fmt.Errorf("the peer advertises more than %d refs or %d bytes: that is beyond what can be mirrored", p.lim.refs, p.lim.bytes)
	}
	return nil
}

func (p *advertParser) ref(line string, first bool) error {
	oid, name, ok := strings.Cut(line, " ")
	if !ok || !validOID(oid, p.oid) {
		return fmt.Errorf("want an object id of %d digits (%s), a space and a ref name, got %q", p.oid, p.adv.ObjectFormat, printable(line, 200))
	}
	if err := p.grow(len(line)); err != nil {
		return err
	}
	switch {
	case first && name == "capabilities^{}" && isZero(oid):
		return nil // an empty repository has no ref to hang the capabilities on
	case isZero(oid):
		return fmt.Errorf("ref %q has the id that means no ref: it is broken there", printable(name, 200))
	case name == ".have":
		p.adv.Haves = append(p.adv.Haves, oid)
		return nil
	case name == "HEAD":
		return nil // some servers show it; no push can name it
	}
	if base, peeled := strings.CutSuffix(name, "^{}"); peeled && p.adv.Refs[base] != "" {
		return nil // what a tag points to, as in a fetch's advertisement
	}
	if !ValidRef(name) {
		return fmt.Errorf("%q is not a valid ref name", printable(name, 200))
	}
	if _, twice := p.adv.Refs[name]; twice {
		return fmt.Errorf("ref %q is advertised twice", name)
	}
	p.adv.Refs[name] = oid
	return nil
}

// readError says what went wrong between two lines. A login shell's greeting or
// a forced command's refusal stands where the first line should be: quoting it
// saves whoever set up the peer an hour.
func (p *advertParser) readError(err error) error {
	said := string(p.pkts.raw)
	if p.lines == 0 && errors.Is(err, errNotPkt) {
		said += readBanner(p.pkts.r, said)
	}
	switch ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); {
	case p.lines == 0 && err == io.EOF:
		return fmt.Errorf("peer closed the connection without a word: %w", io.ErrUnexpectedEOF)
	case p.lines == 0 && (ended || errors.Is(err, errNotPkt)):
		return fmt.Errorf("peer does not speak the git protocol: it said %q", printable(said, maxBanner))
	case ended:
		return fmt.Errorf("peer's advertisement broke off after line %d: %w", p.lines, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("read peer's advertisement after line %d: %w", p.lines, err)
}

const maxBanner = 200 // bytes quoted of a peer that does not speak git

// readBanner reads the rest of the line that begins with start, or as much as
// is worth quoting.
func readBanner(r io.Reader, start string) string {
	var rest []byte
	buf := make([]byte, maxBanner)
	for len(rest) < maxBanner && !strings.Contains(start, "\n") && !bytes.Contains(rest, []byte("\n")) {
		n, err := r.Read(buf)
		rest = append(rest, buf[:n]...)
		if err != nil {
			break
		}
	}
	return string(rest)
}
