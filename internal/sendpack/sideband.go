package sendpack

import (
	"fmt"
	"io"
	"sync"
)

// demux is the reader of band 1; what stands on band 2 goes to progress as it
// comes by, band 3 is an error. It ends with io.EOF at the peer's flush only:
// a stream that just stops gives io.ErrUnexpectedEOF.
type demux struct {
	pkts     *pktReader
	progress *progress
	rest     []byte // of the current packet of band 1
	ended    bool
}

func (d *demux) Read(p []byte) (int, error) {
	for len(d.rest) == 0 {
		if d.ended {
			return 0, io.EOF
		}
		if err := d.packet(); err != nil {
			return 0, err
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *demux) packet() error {
	payload, flush, err := d.pkts.next()
	switch {
	case err == io.EOF:
		return fmt.Errorf("connection closed: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return err
	case flush:
		d.ended = true
		return nil
	case len(payload) == 0:
		return fmt.Errorf("%w: a side-band packet without a band", errNotPkt)
	}
	if err := peerError(payload); err != nil {
		return err
	}
	switch band, data := payload[0], payload[1:]; band {
	case 1:
		d.rest = data // empty ones are the peer's way of keeping the connection alive
	case 2:
		d.progress.Write(data)
	case 3:
		return &PeerError{Text: printable(string(data), maxText)}
	default:
		return fmt.Errorf("%w: side-band %d does not exist", errNotPkt, band)
	}
	return nil
}

// drain reads on after the report, while post-receive and gc of the peer talk, to the flush.
func (d *demux) drain() error {
	switch n, err := io.Copy(io.Discard, d); {
	case err != nil:
		return fmt.Errorf("after the peer's report: %w", err)
	case n > 0:
		return fmt.Errorf("peer sent %d bytes more than its report", n)
	}
	return nil
}

// progress hands band 2 on until it is closed, and remembers its end for errors.
type progress struct {
	mu     sync.Mutex
	w      io.Writer
	closed bool
	tail   []byte
}

const maxTail = 300 // bytes of band 2 remembered

// Write hands data on; the writer's troubles are not the push's.
func (p *progress) Write(data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tail = append(p.tail, data[max(0, len(data)-maxTail):]...)
	p.tail = p.tail[max(0, len(p.tail)-maxTail):]
	if p.w != nil && !p.closed {
		_, _ = p.w.Write(data)
	}
}

func (p *progress) lastWords() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return printable(string(p.tail), maxTail)
}

func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}
