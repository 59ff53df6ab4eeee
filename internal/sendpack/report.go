package sendpack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Report is what the peer says became of a push. Reasons are one printable line
// of at most 1000 bytes.
type Report struct {
	Unpack string            // "": the pack was taken; else why not, and then no ref was changed
	Refs   map[string]string // full ref name → "": changed as asked; else why not
}

// noAnswer is the reason of a ref that a complete report does not name.
const noAnswer = "no answer from peer"

type reportParser struct {
	v2     bool
	sent   []Command
	report Report

	pending  map[string]bool // refs sent
	unpacked bool            // the unpack line was read
	named    bool            // an ok or ng line was read: options may follow
}

// read reads a report up to its flush. On an error p.report is what was read before it.
func (p *reportParser) read(pkts *pktReader) error {
	p.report.Refs = make(map[string]string, len(p.sent))
	p.pending = make(map[string]bool, len(p.sent))
	for _, c := range p.sent {
		p.pending[c.Ref] = true
	}
	for {
		payload, flush, err := pkts.next()
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("peer ended the conversation %s: %w", p.where(), io.ErrUnexpectedEOF)
		case err != nil:
			return fmt.Errorf("read the peer's report: %w", err)
		case flush:
			return p.finish()
		}
		if err := peerError(payload); err != nil {
			return err
		}
		line := string(bytes.TrimSuffix(payload, []byte("\n")))
		if err := p.line(line); err != nil {
			return fmt.Errorf("peer's report: %w", err)
		}
	}
}

func (p *reportParser) where() string {
	if !p.unpacked {
		return "before its report"
	}
	return fmt.Sprintf("within its report (%d of %d refs named)", len(p.report.Refs), len(p.sent))
}

func (p *reportParser) finish() error {
	if !p.unpacked {
		return errors.New("peer's report is empty")
	}
	for _, c := range p.sent {
		if _, ok := p.report.Refs[c.Ref]; !ok {
			p.report.Refs[c.Ref] = noAnswer
		}
	}
	return nil
}

func (p *reportParser) line(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	switch {
	case !p.unpacked && word == "unpack":
		p.unpacked = true
		if rest != "ok" {
			p.report.Unpack = reason(rest)
		}
		return nil
	case !p.unpacked:
		return fmt.Errorf("want unpack, got %q", printable(line, 200))
	case word == "ok":
		return p.ref(rest, "")
	case word == "ng":
		name, why, _ := strings.Cut(rest, " ")
		return p.ref(name, reason(why))
	case word == "option" && p.v2 && p.named:
		return nil // how a proc-receive hook changed the command; what counts is the advertisement of the next push
	}
	return fmt.Errorf("unknown line %q", printable(line, 200))
}

func (p *reportParser) ref(name, result string) error {
	if !p.pending[name] {
		return fmt.Errorf("it names %q, which was not sent", printable(name, 200))
	}
	// A proc-receive hook may say ok several times for one ref, with different options.
	if before, ok := p.report.Refs[name]; ok && before != result {
		return fmt.Errorf("it contradicts itself about %s: %q, then %q", name, before, result)
	}
	p.named = true
	p.report.Refs[name] = result
	return nil
}

func reason(text string) string {
	if text = printable(text, maxText); text == "" {
		return "refused without a reason"
	}
	return text
}
