// Package refset remembers, durably, what the refs of a mirroring destination
// were when we last had to do with them.
//
// A master may overwrite on a peer only what it put there itself: a value that
// somebody else pushed to the peer must be kept, not flattened. What a peer
// advertises alone cannot tell the two apart. So two sets are kept for each
// repository and peer:
//
//   - confirmed: the value each ref was last known to have there;
//   - being sent: values that a push was about to set. They are written before the push
//     begins, since a push that is cut off may still have been applied, or be
//     applied later by a peer that is slow to notice.
//
// A peer's value in either set is ours. One in neither is divergent, unless our own
// refs contain it. Both sets are a cache of the truth at the destination: losing
// them costs caution (values look foreign), never data.
//
// # The file
//
// mirror-shell/peers/PEER.refs in the repository, PEER percent-escaped as a URL path segment,
// one append-only text file, so that one ref among 50,000 costs a line and not four megabytes:
//
//	= VALUE REF LF    the peer has this value; all earlier lines of REF are superseded
//	> VALUE REF LF    this value is being sent; adds to what is known of REF
//
// The last of several values that are being sent is the likeliest. VALUE is an object id of 40 or 64 lower-case hex digits, all zeros for "absent"
// (after =) or "being deleted" (after >). REF is a full ref name. The pseudo-ref HEAD
// may also have the value ref:NAME, a symbolic ref to NAME, or !ref:NAME, a target that the
// peer could not be given by us. (To a gitolite there is another way; see package meta.)
//
// A last line without its LF was torn by a crash; it is ignored and cut off before the
// next append. Any other line that does not fit is an error, a *CorruptError: nothing is guessed. The file is
// rewritten (temporary file, fsync, rename, fsync of the directory) when it has more than
// twice the lines it needs and a thousand.
//
// There is no locking: whoever uses a Log holds the lock of (repository, peer).
package refset

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Entry is a ref and its value, in the grammar of the file.
type Entry struct {
	Ref string
	OID string // 40 or 64 hex digits, zeros for absent; for HEAD also ref:NAME or !ref:NAME
}

// CorruptError is a line of the file that cannot be understood. Without the
// file, the peer's values count as not ours until they are confirmed again.
type CorruptError struct {
	Path   string
	Line   int // from 1
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s:%d: %s; move the file away to begin a new record of that peer's refs", e.Path, e.Line, e.Reason)
}

// Log is the memory of one repository at one peer.
type Log struct {
	path  string
	known map[string]known

	f         *os.File // open for writing since the first append, else nil
	size      int64    // bytes of whole lines; the next append begins here
	longer    bool     // the file may be longer than size: a torn line, a failed append
	lines     int      // in the file
	dirSynced bool     // the file's directory entry is durable

	spare        int   // superfluous lines that are not worth a compaction
	compactAfter int   // lines in the file before compaction is tried again
	compactErr   error // of the last attempt
}

// known is what one ref's lines amount to. Neither field set: the ref is not kept at all.
type known struct {
	confirmed string   // "" where absent or never seen
	sending   []string // in order, each once; zero for a deletion
}

// Open loads the log at path. Where there is none, an empty one is created at the first
// append, with its directories. Errors: a *CorruptError for a line that makes no
// sense, or what reading the file gave.
func Open(path string) (*Log, error) {
	l := &Log{path: path, known: map[string]known{}, spare: spareLines}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, fmt.Errorf("open record of peer's refs: %w", err)
	}
	if err := l.load(string(text)); err != nil {
		return nil, err
	}
	return l, nil
}

// load reads the whole text at once: what is kept of 50,000 lines are parts of it.
func (l *Log) load(text string) error {
	l.known = make(map[string]known, strings.Count(text, "\n"))
	for text != "" {
		end := strings.IndexByte(text, '\n')
		if end < 0 {
			l.longer = true
			return nil
		}
		mark, e, ok := parseLine(text[:end])
		if !ok {
			return l.corrupt(fmt.Sprintf("%.200q is not a line of this file", text[:end]))
		}
		l.apply(mark, e)
		l.size += int64(end + 1)
		l.lines++
		text = text[end+1:]
	}
	return nil
}

func (l *Log) corrupt(reason string) error {
	return &CorruptError{Path: l.path, Line: l.lines + 1, Reason: reason}
}

// The two kinds of lines.
const (
	confirmed = '='
	sending   = '>'
)

func parseLine(line string) (mark byte, e Entry, ok bool) {
	if len(line) < 2 || line[0] != confirmed && line[0] != sending || line[1] != ' ' {
		return 0, Entry{}, false
	}
	oid, ref, ok := strings.Cut(line[2:], " ")
	e = Entry{Ref: ref, OID: oid}
	return line[0], e, ok && e.valid()
}

func formatLine(mark byte, e Entry) string {
	return string(mark) + " " + e.OID + " " + e.Ref + "\n"
}

// valid holds for what can be written and read back as the same entry. Whether a ref name
// is one that git allows is for those to check who got it from outside.
func (e Entry) valid() bool {
	if e.Ref != "HEAD" && !strings.HasPrefix(e.Ref, "refs/") || !word(e.Ref) {
		return false
	}
	target, symbolic := strings.CutPrefix(strings.TrimPrefix(e.OID, "!"), "ref:")
	if symbolic {
		return e.Ref == "HEAD" && strings.HasPrefix(target, "refs/") && word(target)
	}
	return isHex(e.OID) && (len(e.OID) == 40 || len(e.OID) == 64)
}

// word holds for names that stay one field of one line and fit a pkt-line.
func word(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return s != "refs/" && len(s) < 1<<16
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// IsZero says that an object name is all zeros, by which git means that there is no ref.
func IsZero(oid string) bool { return strings.Trim(oid, "0") == "" }

// apply makes known what a line says.
func (l *Log) apply(mark byte, e Entry) {
	switch {
	case mark == confirmed && IsZero(e.OID):
		// Absent is forgotten: of thousands of short-lived branches nothing
		// is to remain, and a ref that is not there holds nothing to lose.
		delete(l.known, e.Ref)
	case mark == confirmed:
		l.known[e.Ref] = known{confirmed: e.OID}
	default:
		k := l.known[e.Ref]
		if i := slices.Index(k.sending, e.OID); i >= 0 {
			k.sending = slices.Delete(k.sending, i, i+1)
		}
		k.sending = append(k.sending, e.OID)
		l.known[e.Ref] = k
	}
}

// changes reports whether a line would tell anything new.
func (l *Log) changes(mark byte, e Entry) bool {
	k, ok := l.known[e.Ref]
	switch {
	case !ok:
		return mark == sending || !IsZero(e.OID)
	case mark == confirmed:
		return len(k.sending) > 0 || k.confirmed != e.OID
	}
	if len(k.sending) == 0 {
		return k.confirmed != e.OID
	}
	return k.sending[len(k.sending)-1] != e.OID
}

// Confirmed returns the value the ref was last known to have at the peer. ok is
// false when it was absent then, or nothing is known.
func (l *Log) Confirmed(ref string) (oid string, ok bool) {
	oid = l.known[ref].confirmed
	return oid, oid != ""
}

// Guess returns the refs as they are likely to be at the peer, HEAD not included: as
// confirmed, or as they were sent last. Settled says that nothing is being sent.
func (l *Log) Guess() (refs map[string]string, settled bool) {
	refs, settled = make(map[string]string, len(l.known)), true
	for ref, k := range l.known {
		value := k.confirmed
		if n := len(k.sending); n > 0 {
			value, settled = k.sending[n-1], false
		}
		if ref != "HEAD" && value != "" && !IsZero(value) {
			refs[ref] = value
		}
	}
	return refs, settled
}

// Ours reports whether the ref having this value at the peer is our doing: the
// value is confirmed or being sent. Of a zero oid (the ref is not there) it says
// whether that is as it should be: nothing was confirmed, or a deletion is being sent.
func (l *Log) Ours(ref, oid string) bool {
	k, ok := l.known[ref]
	if !ok {
		return IsZero(oid)
	}
	if k.confirmed == oid || k.confirmed == "" && IsZero(oid) {
		return true
	}
	return slices.Contains(k.sending, oid)
}
