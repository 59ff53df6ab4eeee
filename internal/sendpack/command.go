package sendpack

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// pushPlan is a push that was found possible, before a byte is sent.
type pushPlan struct {
	cmds     []Command // in the order of sending
	caps     string    // space-separated
	needPack bool
	sideband bool
	v2       bool // the report is report-status-v2
}

// plan checks the commands against what the peer can do and decides order and capabilities.
func plan(adv *Advertisement, cmds []Command, opt Options) (*pushPlan, error) {
	format := cmp.Or(opt.ObjectFormat, SHA1)
	n, ok := oidLen(format)
	switch {
	case !ok:
		return nil, fmt.Errorf("push: object format %q is unknown", format)
	case format != adv.ObjectFormat:
		return nil, fmt.Errorf("our repository is %s but the peer's is %s: objects cannot be mirrored between them; make the peer's repository anew with git init --bare --object-format=%s",
			format, adv.ObjectFormat, format)
	}
	p := &pushPlan{cmds: slices.Clone(cmds)}
	slices.SortFunc(p.cmds, inOrder)
	deletes := false
	for _, c := range p.cmds {
		if err := checkCommand(c, n); err != nil {
			return nil, err
		}
		deletes = deletes || isZero(c.New)
		p.needPack = p.needPack || !isZero(c.New)
	}
	if name, twice := doubled(p.cmds); twice {
		return nil, fmt.Errorf("push: ref %q is to be changed twice", name)
	}
	if err := p.negotiate(adv.Caps, deletes, format, opt); err != nil {
		return nil, err
	}
	return p, p.fits()
}

// inOrder puts deletions first: x/y must be gone before x can be made.
func inOrder(a, b Command) int {
	if da, db := isZero(a.New), isZero(b.New); da != db {
		if da {
			return -1
		}
		return 1
	}
	return strings.Compare(a.Ref, b.Ref)
}

func checkCommand(c Command, digits int) error {
	switch {
	case !ValidRef(c.Ref):
		return fmt.Errorf("push: %q is not a valid ref name", printable(c.Ref, 200))
	case !validOID(c.Old, digits) || !validOID(c.New, digits):
		return fmt.Errorf("push %s: want object ids of %d digits, got %q and %q", c.Ref, digits, c.Old, c.New)
	case c.Old == c.New:
		return fmt.Errorf("push %s: old and new value are both %s", c.Ref, c.Old)
	}
	return nil
}

func doubled(cmds []Command) (name string, twice bool) {
	seen := make(map[string]bool, len(cmds))
	for _, c := range cmds {
		if seen[c.Ref] {
			return c.Ref, true
		}
		seen[c.Ref] = true
	}
	return "", false
}

// negotiate chooses among the peer's capabilities; what it does not have is not asked for.
func (p *pushPlan) negotiate(has Caps, deletes bool, format string, opt Options) error {
	var ask []string
	switch {
	case has.Has("report-status-v2"):
		p.v2 = true
		ask = append(ask, "report-status-v2")
	case has.Has("report-status"):
		ask = append(ask, "report-status")
	default:
		return errors.New("peer cannot report what became of each ref (no report-status): mirroring to it would be guesswork")
	}
	if deletes && !has.Has("delete-refs") {
		return errors.New("peer does not let refs be deleted (no delete-refs): allow deletions there, or exclude such refs from mirroring")
	}
	if opt.Atomic && !has.Has("atomic") {
		return errors.New("peer cannot apply all commands or none (no atomic)")
	}
	p.sideband = has.Has("side-band-64k") && !opt.Plain
	want := map[string]bool{"side-band-64k": p.sideband, "delete-refs": deletes, "ofs-delta": p.needPack, "quiet": opt.Quiet, "atomic": opt.Atomic}
	for _, name := range []string{"side-band-64k", "delete-refs", "ofs-delta", "quiet", "atomic"} {
		if want[name] && has.Has(name) {
			ask = append(ask, name)
		}
	}
	if format == SHA256 {
		ask = append(ask, "object-format="+format)
	}
	if opt.Agent != "" && has.Has("agent") {
		ask = append(ask, "agent="+strings.Map(agentRune, opt.Agent))
	}
	p.caps = strings.Join(ask, " ")
	return nil
}

// agentRune keeps a capability's value one word of printable ASCII.
func agentRune(r rune) rune {
	if r <= ' ' || r > '~' {
		return '.'
	}
	return r
}

// fits looks for names that are too long for a pkt-line while nothing is sent yet.
func (p *pushPlan) fits() error {
	for i := range p.cmds {
		if len(p.line(i)) > maxPayload {
			return fmt.Errorf("push %s…: the ref's name is too long for git's protocol", p.cmds[i].Ref[:80])
		}
	}
	return nil
}

func (p *pushPlan) line(i int) string {
	c := p.cmds[i]
	line := c.Old + " " + c.New + " " + c.Ref
	if i == 0 {
		line += "\x00 " + p.caps
	}
	return line
}

func (p *pushPlan) writeCommands(w io.Writer) error {
	for i := range p.cmds {
		if err := writePkt(w, p.line(i)); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, flushPkt)
	return err
}
