package sendpack

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// The verb mirror-push, between mirror-shell servers: a mirror push without the
// list of every ref that receive-pack begins with, which for 50,000 refs is four
// megabytes and a tenth of a second to make, for each push of one commit. The
// master names the old values as it has them on record; the slave applies all or
// nothing, and answers with the digest of what it has then. What does not come out
// right is done again with git-receive-pack, which shows the truth.
//
// The request, followed by a pack unless every command is a deletion:
//
//	push 1 FORMAT HEAD PEER LF  HEAD is "-" when it is detached or no matter; PEER is the
//	                            hostname of the server that is meant
//	OLD SP NEW SP REF LF …    zeros for absent; deletions first
//	end COUNT LF
//
// The answer, after any number of lines "." that say the slave is still at work:
//
//	note TEXT LF              before done, at most one: what went wrong there afterwards. A master of before this
//	                          line was goes on with git-receive-pack, and finds everything done
//	done DIGEST SP HEAD LF    all was applied; HEAD is "-" when it is detached
//	stock REASON LF           use git-receive-pack; not all was applied, or nothing

// QuickVerb is the command that a quick push sends, with the repository's name.
const QuickVerb = "mirror-push"

// QuickRequest is what comes before the pack.
type QuickRequest struct {
	Format   string // object format, "sha1" or "sha256"
	Head     string // what HEAD should point to; "" to leave it alone
	Peer     string // the server that is meant, by its hostname
	Commands []Command
}

// quickVersion is the version of the verb that is spoken here.
const quickVersion = "1"

// maxQuickCommands bounds a request: whoever changes more refs than that can
// afford to see the peer's.
const maxQuickCommands = 100_000

// WriteQuickRequest writes a request.
func WriteQuickRequest(w io.Writer, q QuickRequest) error {
	head := q.Head
	if head == "" {
		head = "-"
	}
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "push %s %s %s %s\n", quickVersion, q.Format, head, q.Peer)
	for _, c := range q.Commands {
		fmt.Fprintf(out, "%s %s %s\n", c.Old, c.New, c.Ref)
	}
	fmt.Fprintf(out, "end %d\n", len(q.Commands))
	return out.Flush()
}

// maxQuickRequest bounds the text of a request, in bytes: all of it is held in
// memory, and the longest names would make seven gigabytes of the commands. It is
// enough for that many with names of 500 bytes.
const maxQuickRequest = 64 << 20

// ReadQuickRequest reads a request to its end and not further. The commands are
// well-formed and name each ref once; whether they may be done is not looked at.
func ReadQuickRequest(r *bufio.Reader) (QuickRequest, error) {
	var q QuickRequest
	line, err := quickLine(r)
	if err != nil {
		return q, err
	}
	words := strings.Split(line, " ")
	if len(words) != 5 || words[4] == "" || words[0] != "push" || words[1] != quickVersion {
		return q, fmt.Errorf("mirror-push: %.80q is no request of version %s", line, quickVersion)
	}
	digits, known := oidLen(words[2])
	if q.Format = words[2]; !known {
		return q, fmt.Errorf("mirror-push: object format %.20q is unknown", q.Format)
	}
	q.Peer = words[4]
	if words[3] != "-" {
		q.Head = words[3]
	}
	seen := map[string]bool{}
	size := 0
	for {
		line, err := quickLine(r)
		if err != nil {
			return q, err
		}
		if size += len(line); size > maxQuickRequest {
			return q, fmt.Errorf("mirror-push: more than %d bytes of commands", maxQuickRequest)
		}
		if count, ok := strings.CutPrefix(line, "end "); ok {
			if n, err := strconv.Atoi(count); err != nil || n != len(q.Commands) {
				return q, fmt.Errorf("mirror-push: %.40q after %d commands", line, len(q.Commands))
			}
			return q, nil
		}
		c, ok := parseQuickCommand(line, digits)
		switch {
		case !ok:
			return q, fmt.Errorf("mirror-push: %.120q is no command", line)
		case seen[c.Ref]:
			return q, fmt.Errorf("mirror-push: %.120q is named twice", c.Ref)
		case len(q.Commands) == maxQuickCommands:
			return q, fmt.Errorf("mirror-push: more than %d commands", maxQuickCommands)
		}
		seen[c.Ref] = true
		q.Commands = append(q.Commands, c)
	}
}

func parseQuickCommand(line string, digits int) (c Command, ok bool) {
	words := strings.Split(line, " ")
	if len(words) != 3 || !validOID(words[0], digits) || !validOID(words[1], digits) || words[0] == words[1] {
		return c, false
	}
	c = Command{Old: words[0], New: words[1], Ref: words[2]}
	private := c.Ref == "refs/mirror" || strings.HasPrefix(c.Ref, "refs/mirror/")
	return c, ValidRef(c.Ref) && strings.HasPrefix(c.Ref, "refs/") && !private
}

// maxQuickLine is above the longest ref name that git's protocol can carry.
const maxQuickLine = 68 << 10

// quickLine reads one line without its end.
func quickLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return string(line[:len(line)-1]), nil
		case len(line) > maxQuickLine:
			return "", errors.New("mirror-push: a line is too long")
		case errors.Is(err, io.EOF):
			return "", io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		}
	}
}

// QuickAnswer is how a quick push ended.
type QuickAnswer struct {
	Digest string // of the slave's mirrored refs; "" when Stock is set
	Head   string // what its HEAD points to; "" when it is detached
	Stock  string // why git-receive-pack has to be used instead
	Note   string // what a person should know although all was applied; "" when Stock is set
}

// maxQuickNote bounds a note, in bytes.
const maxQuickNote = 300

// WriteWorking tells the master that the slave is still at work.
func WriteWorking(w io.Writer) error {
	_, err := io.WriteString(w, ".\n")
	return err
}

// WriteQuickAnswer writes the answer.
func WriteQuickAnswer(w io.Writer, a QuickAnswer) error {
	if a.Stock != "" {
		_, err := fmt.Fprintf(w, "stock %s\n", printable(a.Stock, 300))
		return err
	}
	head := a.Head
	if head == "" {
		head = "-"
	}
	note := ""
	if text := strings.TrimSpace(printable(a.Note, maxQuickNote)); text != "" {
		note = "note " + text + "\n"
	}
	_, err := fmt.Fprintf(w, "%sdone %s %s\n", note, a.Digest, head)
	return err
}

// ReadQuickAnswer reads the answer. A stream that ends without one is
// io.ErrUnexpectedEOF.
func ReadQuickAnswer(r *bufio.Reader) (QuickAnswer, error) {
	note := ""
	for {
		line, err := quickLine(r)
		if err != nil {
			return QuickAnswer{}, err
		}
		if line == "." {
			continue
		}
		if reason, ok := strings.CutPrefix(line, "stock "); ok && strings.TrimSpace(reason) != "" {
			return QuickAnswer{Stock: printable(reason, 300)}, nil
		}
		if text, ok := strings.CutPrefix(line, "note "); ok && note == "" && strings.TrimSpace(text) != "" {
			note = strings.TrimSpace(printable(text, maxQuickNote))
			continue
		}
		words := strings.Split(line, " ")
		if len(words) != 3 || words[0] != "done" || !validOID(words[1], sha256.Size*2) || words[2] == "" {
			return QuickAnswer{}, fmt.Errorf("mirror-push: the peer answers %.120q", line)
		}
		a := QuickAnswer{Digest: words[1], Head: words[2], Note: note}
		if a.Head == "-" {
			a.Head = ""
		}
		return a, nil
	}
}
