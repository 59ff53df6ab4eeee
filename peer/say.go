package peer

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"mirror-shell/internal/proc"
)

// prefixed passes on what a peer says, line by line, as "remote: …" and without
// the control characters by which it could write over what we say ourselves.
func prefixed(w io.Writer) *remoteLines { return &remoteLines{w: w} }

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
		r.line = append(r.line, p[:min(end, maxLine-min(maxLine, len(r.line)))]...)
		p = p[end+1:]
		r.end()
	}
	return n, nil
}

// end passes on a last line that has no end.
func (r *remoteLines) end() {
	if text := proc.OneLine(string(r.line), maxLine); text != "" {
		fmt.Fprintf(r.w, "remote: %s\n", text)
	}
	r.line = r.line[:0]
}

// maxTold is how many lines about single refs are said.
const maxTold = 100

// teller says one line per ref, and of very many only how many more there are.
type teller struct {
	say   io.Writer
	lines int
}

func (t *teller) line(text string) {
	if t.lines++; t.lines <= maxTold {
		fmt.Fprintln(t.say, text)
	}
}

func (t *teller) end() {
	if t.lines > maxTold {
		fmt.Fprintf(t.say, "   … and %d refs more\n", t.lines-maxTold)
	}
}

// oneAtATime lets what ssh, the peer and we ourselves say share a writer. It
// never fails: that nobody listens any more is no reason to give up a push.
type oneAtATime struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneAtATime) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = o.w.Write(p)
	return len(p), nil
}

// also joins errors on one line; nil ones do not count.
func also(errs ...error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	return &severalErrors{errs}
}

type severalErrors struct{ errs []error }

func (s *severalErrors) Error() string {
	var texts []string
	for _, err := range s.errs {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (s *severalErrors) Unwrap() []error { return s.errs }
