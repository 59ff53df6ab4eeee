package sendpack

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// go-git's pktline scanner is not used: it takes any line that begins with "ERR "
// for an error, also within a report, and drops the bytes that turned out
// not to be a length, which are what a person needs to see.

const (
	flushPkt   = "0000"
	lenDigits  = 4
	maxPayload = 65516 // bytes of one pkt-line without its length
)

// errNotPkt says that the stream holds something else than pkt-lines.
var errNotPkt = errors.New("not a pkt-line")

// pktReader takes a stream apart into pkt-lines. It reads no byte beyond the line asked for.
type pktReader struct {
	r   io.Reader
	raw []byte // of the current line, its length included, as far as it came
	buf []byte
}

func newPktReader(r io.Reader) *pktReader {
	return &pktReader{r: r, buf: make([]byte, lenDigits+maxPayload)}
}

// next returns the next line's payload, valid until the next call, or flush.
// The error is io.EOF only where a line would begin.
func (p *pktReader) next() (payload []byte, flush bool, err error) {
	n, err := io.ReadFull(p.r, p.buf[:lenDigits])
	p.raw = p.buf[:n]
	if err != nil {
		return nil, false, err
	}
	size, ok := pktLen(p.raw)
	switch {
	case !ok:
		return nil, false, fmt.Errorf("%w: it begins with %q", errNotPkt, p.raw)
	case size == 0:
		return nil, true, nil
	case size < lenDigits || size > len(p.buf):
		return nil, false, fmt.Errorf("%w: length %q is not allowed here", errNotPkt, p.raw)
	}
	n, err = io.ReadFull(p.r, p.buf[lenDigits:size])
	p.raw = p.buf[:lenDigits+n]
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return p.raw[lenDigits:], false, err
}

// pktLen is the value of four hex digits.
func pktLen(digits []byte) (n int, ok bool) {
	for _, c := range digits {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | int(c)
	}
	return n, true
}

// writePkt writes one line of at most maxPayload bytes.
func writePkt(w io.Writer, payload string) error {
	_, err := fmt.Fprintf(w, "%04x%s", lenDigits+len(payload), payload)
	return err
}

// peerError recognises an ERR packet, which may stand wherever a line may.
func peerError(payload []byte) error {
	text, ok := strings.CutPrefix(string(payload[:min(len(payload), 4+maxText)]), "ERR ")
	if !ok {
		return nil
	}
	return &PeerError{Text: printable(text, maxText)}
}

// maxText bounds each text of the peer's that ends in an error or a report, in bytes.
const maxText = 1000

func isPrint(r rune) bool { return r != utf8.RuneError && unicode.IsPrint(r) }
