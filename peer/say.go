package peer

import (
	"bytes"
	"io"
	"sync"

	"mirror-shell/internal/proc"
)

// prefixed passes on what a peer says, line by line, as "remote: …" and without
// the control characters by which it could write over what we say ourselves.
func prefixed(w io.Writer) io.Writer { return &remoteLines{w: w} }

type remoteLines struct {
	w    io.Writer
	line []byte
}

// maxLine bounds what is kept of a line that does not end.
const maxLine = 4096

func (r *remoteLines) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexAny(p, "\r\n")
		if end < 0 {
			r.line = append(r.line, p[:min(len(p), maxLine-min(maxLine, len(r.line)))]...)
			return n, nil
		}
		r.line = append(r.line, p[:end]...)
		p = p[end+1:]
		if text := proc.OneLine(string(r.line), maxLine); text != "" {
			if _, err := io.WriteString(r.w, "remote: "+text+"\n"); err != nil {
				return n, err
			}
		}
		r.line = r.line[:0]
	}
	return n, nil
}

// oneAtATime lets what ssh, the peer and we ourselves say share a writer.
type oneAtATime struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneAtATime) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(p)
}
