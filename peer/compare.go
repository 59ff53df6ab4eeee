package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// Standing is what a peer says of one repository of which we are the master.
type Standing struct {
	Digest string // of its mirrored refs, 64 hex digits; "" when Reason is set
	Head   string // what HEAD points to; "" when it is detached or missing
	Reason string // why the repository could not be read there
	NoHead bool   // HEAD cannot be seen there
	Note   string // what is not there although all that is compared is equal; for status
	Says   string // what the peer could not make of it, in one line; see Renote
}

// Comparer is a peer that can tell how all our repositories stand with it in
// one round trip.
type Comparer interface {
	// Compare returns the standing of every repository that the peer takes us
	// to be the master of, by name. The error wraps ErrForeign when the peer
	// cannot do that, ErrUnreachable when it cannot be reached.
	Compare(ctx context.Context) (map[string]Standing, error)
}

// Looker is a peer that shows the refs of one copy without changing anything: how
// those are compared that are no Comparer.
type Looker interface {
	// Look returns the standing of the copy, of which HEAD is not known. Errors
	// are those of Sync.
	Look(ctx context.Context, cfg *mirrorcfg.Repo) (Standing, error)
}

// Look asks a peer how one copy stands there; see Looker. A peer of a kind that
// cannot tell is ErrForeign.
func (p *Peers) Look(ctx context.Context, name string, cfg *mirrorcfg.Repo) (Standing, error) {
	opened, err := p.Open(name)
	if err != nil {
		return Standing{}, err
	}
	if l, ok := opened.(Looker); ok {
		return l.Look(ctx, cfg)
	}
	return Standing{}, fmt.Errorf("%s: %w", name, ErrForeign)
}

// Look implements Looker: it begins a push, and pushes nothing.
func (p *sshPeer) Look(ctx context.Context, cfg *mirrorcfg.Repo) (Standing, error) {
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	r := &syncRun{sshPeer: p, src: Source{Config: cfg}, say: io.Discard, pulse: pulse}
	conn, err := r.receivePack(ctx)
	if err != nil {
		return Standing{}, r.explain(ctx, err)
	}
	defer conn.cancel()
	_ = sendpack.End(conn) // when it fails, how the far side ends says more
	if err := r.ended(conn, nil); err != nil {
		return Standing{}, r.explain(ctx, err)
	}
	return Standing{Digest: digest.Of(r.theirs), NoHead: true}, nil
}

// ErrForeign: the peer does not have the verb that was sent.
var ErrForeign = errors.New("is no mirror-shell server, or an older one")

// DigestVerb is the command that Compare sends.
const DigestVerb = "mirror-digest"

// WriteStanding writes the line of one repository:
//
//	DIGEST SP HEAD SP REPO LF
//	! REASON SP HEAD SP REPO LF
//
// HEAD is "-" when there is none. REASON may contain spaces, and nothing else may.
func WriteStanding(w io.Writer, repo string, s Standing) error {
	first, head := s.Digest, s.Head
	if s.Reason != "" {
		first = "! " + proc.OneLine(s.Reason, 300)
	}
	if head == "" {
		head = "-"
	}
	_, err := fmt.Fprintf(w, "%s %s %s\n", first, head, repo)
	return err
}

// WriteEnd ends a stream of count lines from the server of that hostname. A stream without it
// is a failure.
func WriteEnd(w io.Writer, count int, hostname string) error {
	_, err := fmt.Fprintf(w, "END %d %s\n", count, hostname)
	return err
}

// maxStanding bounds a line of the stream.
const maxStanding = 8 << 10

// maxStandings bounds what a peer can have us keep: ten times the largest servers that are known.
const maxStandings = 1 << 18

// WriteNote writes, after the END, what is to be noted of a repository that was in the stream:
//
//	NOTE REPO SP TEXT LF
//
// A master of before there were notes does not read on after the END.
func WriteNote(w io.Writer, repo, text string) error {
	_, err := fmt.Fprintf(w, "NOTE %s %s\n", repo, proc.OneLine(text, maxPeerNote))
	return err
}

// maxNotes bounds the lines after the END that are read: few repositories can have a note.
const maxNotes = 10

// readNotes reads what stands after the END. Lines that make no sense are no reason to disbelieve what stood
// before, nor is a stream that breaks off.
func readNotes(lines *bufio.Scanner, standings map[string]Standing) {
	for range maxNotes {
		if !lines.Scan() {
			return
		}
		about, note := strings.CutPrefix(lines.Text(), "NOTE ")
		repo, text, _ := strings.Cut(about, " ")
		if s, ok := standings[repo]; ok && note && s.Says == "" {
			s.Says = proc.OneLine(text, maxPeerNote)
			standings[repo] = s
		}
	}
}

// ReadStandings reads a stream to its END, which says whose it is, and the notes after that.
func ReadStandings(r io.Reader) (standings map[string]Standing, hostname string, err error) {
	return readStandings(r, func() {})
}

// readStandings is ReadStandings, and calls ended at the END.
func readStandings(r io.Reader, ended func()) (standings map[string]Standing, hostname string, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxStanding)
	standings = map[string]Standing{}
	for lines.Scan() {
		line := lines.Text()
		if end, ok := strings.CutPrefix(line, "END "); ok {
			count, hostname, _ := strings.Cut(end, " ")
			if n, err := strconv.Atoi(count); err != nil || n != len(standings) || mirrorcfg.CheckHost(hostname) != nil {
				return nil, "", fmt.Errorf("the peer's digests end with %.120q after %d lines", line, len(standings))
			}
			ended()
			readNotes(lines, standings)
			return standings, hostname, nil
		}
		repo, s, err := parseStanding(line)
		if err != nil && !lines.Scan() {
			break // the last line, which may have been cut
		}
		if err != nil {
			return nil, "", err
		}
		if len(standings) == maxStandings {
			return nil, "", fmt.Errorf("the peer's digests name more than %d repositories", maxStandings)
		}
		if _, twice := standings[repo]; twice {
			return nil, "", fmt.Errorf("the peer's digests name %s twice", repo)
		}
		standings[repo] = s
	}
	if err := lines.Err(); err != nil {
		return nil, "", fmt.Errorf("read the peer's digests: %w", err)
	}
	return nil, "", fmt.Errorf("read the peer's digests: %w", io.ErrUnexpectedEOF)
}

// parseStanding takes a line apart from its end, where nothing has spaces.
func parseStanding(line string) (repo string, s Standing, err error) {
	bad := func() (string, Standing, error) {
		return "", Standing{}, fmt.Errorf("the peer's digests have a line %.120q", line)
	}
	at := strings.LastIndexByte(line, ' ')
	if at < 0 {
		return bad()
	}
	repo, line = line[at+1:], line[:at]
	if at = strings.LastIndexByte(line, ' '); at < 0 {
		return bad()
	}
	first, head := line[:at], line[at+1:]
	if clean, err := mirrorcfg.CleanRepo(repo); err != nil || clean != repo || head == "" {
		return bad()
	}
	if head != "-" {
		s.Head = head
	}
	reason, unreadable := strings.CutPrefix(first, "! ")
	switch {
	case unreadable && reason != "":
		s.Reason = proc.OneLine(reason, 300)
	case len(first) == 64 && strings.Trim(first, "0123456789abcdef") == "":
		s.Digest = first
	default:
		return bad()
	}
	return repo, s, nil
}

// Compare implements Comparer.
func (p *sshPeer) Compare(ctx context.Context) (map[string]Standing, error) {
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	// A sync waits for all peers; one that gives a byte now and then shall not hold up the others for ever.
	atMost := maxWorking * p.stall
	ctx, done := context.WithTimeoutCause(ctx, atMost, fmt.Errorf("%w: its digests did not end for %s", errStalled, atMost))
	defer done()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	raw, err := p.transport.Open(asking, p.name, DigestVerb, io.Discard)
	if err != nil {
		return nil, err
	}
	stream := beating{raw, pulse}
	stream.CloseWrite()
	standings, hostname, readErr := readStandings(stream, pulse.last)
	if readErr != nil && !errors.Is(readErr, io.ErrUnexpectedEOF) && ctx.Err() == nil { // else it is a line that was cut
		stop() // the rest of a stream that makes no sense is not waited for
		stream.Wait()
		return nil, fmt.Errorf("%s: %w", p.name, readErr)
	}
	end := stream.Wait()
	switch cause := context.Cause(ctx); {
	case end == nil && readErr == nil:
		return standings, p.is(hostname)
	case errors.Is(cause, errStalled):
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, p.name, cause)
	case cause != nil:
		return nil, fmt.Errorf("%s: %w", p.name, cause)
	case errors.Is(end, ErrUnreachable):
		return nil, fmt.Errorf("%s: %w", p.name, end)
	case len(standings) == 0 && p.lacks(ctx, DigestVerb):
		return nil, fmt.Errorf("%s %w", p.name, ErrForeign)
	}
	return nil, fmt.Errorf("%s: %w", p.name, errors.Join(end, readErr))
}
