package peer

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode"

	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
)

// prefixed passes on what a peer says, line by line, as "remote: …" and without
// the control characters by which it could write over what we say ourselves.
func prefixed(w io.Writer) *remoteLines { return &remoteLines{w: w} }

type remoteLines struct {
	w      io.Writer
	line   []byte
	errors []string // lines that tell of one, the first of them
	note   string   // what the peer wants to have noted, "" for nothing
}

// maxErrors is how many lines of errors are kept.
const maxErrors = 50

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
		if len(r.errors) < maxErrors && (strings.HasPrefix(text, "error: ") || strings.HasPrefix(text, "fatal: ")) {
			r.errors = append(r.errors, text)
		}
		if note, ok := strings.CutPrefix(text, refset.NotePrefix); ok {
			r.note = proc.OneLine(note, maxPeerNote)
		}
	}
	r.line = r.line[:0]
}

// reason picks from what the peer has said why it refused refs: an error that
// names one of them as git does, else the first that ends everything, a hook's
// for example, else a lock of all refs, of which git names none: a machine that dies
// leaves packed-refs.lock behind. "" is none.
func (r *remoteLines) reason(refs []string) string {
	for _, line := range r.errors {
		for _, ref := range refs {
			if text, ok := strings.CutPrefix(line, "error: "); ok && strings.Contains(text, "'"+ref+"'") {
				return text
			}
		}
	}
	for _, line := range r.errors {
		if text, ok := strings.CutPrefix(line, "fatal: "); ok {
			return text
		}
	}
	for _, line := range r.errors {
		if text, ok := strings.CutPrefix(line, "error: "); ok && strings.HasPrefix(text, "Unable to create '") {
			return text
		}
	}
	return ""
}

// complaint picks what a peer has said about objects that it did not store: the first
// error, which names the object, else the first that ends everything.
func (r *remoteLines) complaint() string {
	for _, line := range r.errors {
		if text, ok := strings.CutPrefix(line, "error: "); ok {
			return text
		}
	}
	return r.reason(nil)
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
		fmt.Fprintln(t.say, visible(text))
	}
}

// visible makes what a ref's name may contain harmless for terminals.
func visible(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return '?'
	}, text)
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
