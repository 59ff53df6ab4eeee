package shell

// authorized_keys: who may come in, and as whom.
//
// This file decides what changes; keyline.go knows the format of a line and
// its mark, keyfile.go the public key files, keywrite.go the disk, and
// keysync.go keeps users' lines equal to a directory of key files. Every line
// that is not the very one asked for keeps its bytes and its place: comments,
// blank and malformed lines, other people's keys, CRLF.

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// KeyKind says whether a key belongs to a server or to a person.
type KeyKind string

const (
	KeyPeer KeyKind = "peer"
	KeyUser KeyKind = "user"
)

// KeyEntry is one line of ours in authorized_keys.
type KeyEntry struct {
	Kind        KeyKind `json:"kind"`        // peer or user
	Name        string  `json:"name"`        // sam, alice
	File        string  `json:"file"`        // sam.pub, alice@laptop.pub: one line each
	Type        string  `json:"type"`        // ssh-ed25519, …
	Fingerprint string  `json:"fingerprint"` // SHA256:…, as ssh-keygen -l prints it
	Line        int     `json:"line"`        // in authorized_keys, from 1
	// Source is the path of the key file in the mirror map's repository, below its
	// directory of keys; "" for a line that was added by hand.
	Source string `json:"source,omitempty"`
}

// AuthorizedKeys edits and reads one authorized_keys file.
//
// The methods may be called from several processes at once: edits take a lock
// on Path.lock (beside the target, where Path is a symlink), and readers see the
// file before or after an edit, never between. A missing file is an empty one.
type AuthorizedKeys struct {
	Path string // usually ~/.ssh/authorized_keys, already expanded

	// Command is the absolute path of mirror-shell and what else goes before
	// "peer NAME": {"/usr/bin/mirror-shell"} or {…, "--config", "/etc/x.toml"}.
	// Only Add uses it.
	Command []string
}

// Add lets the key in pubFile in, as the peer or user that the file is named
// after. It replaces the line that an earlier file of the same name and kind
// made, or appends one; changed is false when the file already said so.
//
// It fails, and changes nothing, when pubFile is not exactly one acceptable
// public key, when its name is not valid, when the key already stands in another
// line (sshd takes the first match), or when the line was changed by hand.
func (a AuthorizedKeys) Add(kind KeyKind, pubFile string) (e KeyEntry, changed bool, err error) {
	if len(a.Command) == 0 || !strings.HasPrefix(a.Command[0], "/") {
		return KeyEntry{}, false, fmt.Errorf("the forced command %q does not start with an absolute path; install mirror-shell and name its full path", a.Command)
	}
	e, key, err := readKeyFile(kind, pubFile)
	if err != nil {
		return KeyEntry{}, false, fmt.Errorf("add %s: %w", kind, err)
	}
	changed, err = a.edit(true, func(lines []keyLine) ([]keyLine, error) {
		lines, e.Line, err = addKeyLine(lines, e, a.Command, key)
		return lines, err
	})
	if err != nil {
		return KeyEntry{}, false, fmt.Errorf("add %s %q to %s: %w", kind, e.File, a.Path, err)
	}
	return e, changed, nil
}

// Remove takes out the lines of a peer or user and returns them, with the line
// numbers they had. For a user, alice means every key of alice and alice@laptop
// only that one. It is an error when there is no such line; the error names
// those there are.
func (a AuthorizedKeys) Remove(kind KeyKind, name string) ([]KeyEntry, error) {
	name = strings.TrimSuffix(name, ".pub")
	if _, err := keyFileName(kind, name+".pub"); err != nil {
		return nil, fmt.Errorf("remove %s: %w", kind, err)
	}
	var removed []KeyEntry
	_, err := a.edit(false, func(lines []keyLine) (kept []keyLine, err error) {
		kept, removed, err = removeKeyLines(lines, kind, name)
		return kept, err
	})
	if err != nil {
		return nil, fmt.Errorf("remove %s %q from %s: %w", kind, name, a.Path, err)
	}
	return removed, nil
}

// List gives our lines in the order of the file.
func (a AuthorizedKeys) List() ([]KeyEntry, error) {
	lines, err := a.read()
	if err != nil {
		return nil, err
	}
	return listKeyLines(lines), nil
}

// Lookup finds whose key it is, for the built-in server. Only our lines count,
// the first match wins, and what sshd would not let in (expired, malformed) is
// passed over; so is a line with from=, verify-required or principals=, which
// only sshd can judge.
func (a AuthorizedKeys) Lookup(key ssh.PublicKey) (KeyEntry, bool, error) {
	lines, err := a.read()
	if err != nil {
		return KeyEntry{}, false, err
	}
	e, ok := findKeyLine(lines, key, time.Now())
	return e, ok, nil
}

// listKeyLines gives our lines with their numbers.
func listKeyLines(lines []keyLine) []KeyEntry {
	var entries []KeyEntry
	for i, l := range lines {
		if e, ok := l.entry(); ok {
			e.Line = i + 1
			entries = append(entries, e)
		}
	}
	return entries
}

// findKeyLine is Lookup without the disk and the clock.
func findKeyLine(lines []keyLine, key ssh.PublicKey, now time.Time) (KeyEntry, bool) {
	blob := key.Marshal()
	for i, l := range lines {
		if !bytes.Equal(l.blob, blob) || !l.admits(now) {
			continue
		}
		if e, ok := l.entry(); ok {
			e.Line = i + 1
			return e, true
		}
	}
	return KeyEntry{}, false
}

// addKeyLine gives the lines with e's line in place, and its number. Where the
// mark stands in several lines (copied by hand), the first is replaced and the
// others go: a replaced key must not live on in one of them.
func addKeyLine(lines []keyLine, e KeyEntry, command []string, key ssh.PublicKey) ([]keyLine, int, error) {
	ours := func(l keyLine) bool {
		o, ok := l.entry()
		return ok && o.Kind == e.Kind && o.File == e.File && o.Source == e.Source
	}
	if err := checkKeyMarks(lines, func(kind KeyKind, file string) bool { return kind == e.Kind && file == e.File }); err != nil {
		return nil, 0, err
	}
	for i, l := range lines {
		if bytes.Equal(l.blob, key.Marshal()) && !ours(l) {
			return nil, 0, fmt.Errorf("the same key is already in line %d (%s), and sshd takes the first match; remove that line, or give %s a key of its own",
				i+1, describeKeyLine(l), e.Name)
		}
	}
	first := slices.IndexFunc(lines, ours)
	if first < 0 {
		l, err := renderKeyLine(keyLine{end: "\n"}, e, command, key)
		lines = slices.Clone(lines)
		if n := len(lines); n > 0 && lines[n-1].end == "" {
			lines[n-1].end = "\n"
		}
		return append(lines, l), len(lines) + 1, err
	}
	l, err := renderKeyLine(lines[first], e, command, key)
	kept := append(slices.Clone(lines[:first]), l)
	for _, o := range lines[first+1:] {
		if !ours(o) {
			kept = append(kept, o)
		}
	}
	return kept, first + 1, err
}

// removeKeyLines gives the lines without those of one name (alice) or, for
// users, of one key file (alice@laptop), and the entries taken out.
func removeKeyLines(lines []keyLine, kind KeyKind, name string) (kept []keyLine, removed []KeyEntry, err error) {
	meant := func(k KeyKind, file string) bool {
		n, err := keyFileName(k, file)
		return err == nil && k == kind && (n == name || file == name+".pub")
	}
	if err := checkKeyMarks(lines, meant); err != nil {
		return nil, nil, err
	}
	for i, l := range lines {
		e, ok := l.entry()
		if !ok || !meant(e.Kind, e.File) {
			kept = append(kept, l)
			continue
		}
		e.Line = i + 1
		removed = append(removed, e)
	}
	if len(removed) == 0 {
		return nil, nil, fmt.Errorf("no such key; there %s", describeKeys(listKeyLines(lines)))
	}
	return kept, removed, nil
}

// checkKeyMarks refuses to go on where a line has a mark that is meant but is
// not ours in the rest. To pass over it would leave a key alive that the
// administrator believes replaced or removed.
func checkKeyMarks(lines []keyLine, meant func(KeyKind, string) bool) error {
	for i, l := range lines {
		kind, file, ok := l.mark()
		if !ok || !meant(kind, file) {
			continue
		}
		if _, ok := l.entry(); !ok {
			return fmt.Errorf("line %d has the mark of %s %s but was changed by hand, and its options or key are not ours any more; delete that line and try again", i+1, kind, file)
		}
	}
	return nil
}

// describeKeyLine names a line in a message.
func describeKeyLine(l keyLine) string {
	if e, ok := l.entry(); ok && e.Source != "" {
		return fmt.Sprintf("%s %s, from %s in the mirror map's repository", e.Kind, e.Name, e.Source)
	} else if ok {
		return fmt.Sprintf("%s %s, from %s", e.Kind, e.Name, e.File)
	}
	if l.comment != "" {
		return fmt.Sprintf("%q, not one of ours", l.comment)
	}
	return "not one of ours"
}

// describeKeys completes "there …" with the names that could have been meant.
func describeKeys(entries []KeyEntry) string {
	if len(entries) == 0 {
		return "are no peers and no users in this file"
	}
	var names []string
	for _, e := range entries {
		names = append(names, string(e.Kind)+" "+strings.TrimSuffix(e.File, ".pub"))
	}
	return "is " + strings.Join(names, ", ")
}
