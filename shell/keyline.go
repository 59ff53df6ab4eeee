package shell

// The grammar of one line of authorized_keys, as sshd reads it.
//
// A line of ours is
//
//	command="/usr/bin/mirror-shell peer sam",restrict ssh-ed25519 AAAA… mirror-shell:peer:sam.pub #
//
// The word after the key is the mark: mirror-shell:KIND:FILE, where KIND is peer or user
// and FILE is the name of the key file it was added from. The mark is how the
// line of one key file is found again, so it is compared whole: the line of
// sam2.pub is never taken for that of sam.pub. A line is ours only when the mark
// and the forced command name the same peer or user; a line that has the mark
// and another command was changed by hand, and is left to that hand.
//
// A user's line that was not added by hand but from the mirror map's repository
// has a second word in its comment, map:PATH, with the path of the key file below
// the directory of keys there; its last element is FILE:
//
//	command="…",restrict ssh-ed25519 AAAA… mirror-shell:user:alice.pub map:laptops/alice.pub #
//
// sshd is followed where it differs from what one would guess: inside a quoted
// value only \" is an escape (a backslash before anything else stands for
// itself), option names ignore case, a line with an option that sshd does not
// know is skipped as a whole, an empty option (a stray comma) is not, and a NUL
// byte ends the line. TestKeyLineInSSHD holds our reading against a real sshd.

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"

	"mirror-shell/internal/lazyregexp"
)

// keyMarkPrefix opens the comment of every line of ours.
const keyMarkPrefix = "mirror-shell:"

// keyMarkEnd follows the mark. gitolite 3 takes a first line of authorized_keys that ends
// in .pub for the name of a file, and then fails at every change of its keys.
const keyMarkEnd = " #"

// keySourcePrefix opens the second word of a comment.
const keySourcePrefix = "map:"

// keyLine is one line of authorized_keys. text + end are its bytes, whatever
// they are, so that joining all lines gives the file back.
type keyLine struct {
	text string // without end
	end  string // "\n", "\r\n", or "" on a last line that has no newline

	// What sshd sees in text; all empty when there is no key in it.
	options []keyOption
	refused bool   // sshd skips the line: an option is malformed, repeated or unknown
	typ     string // such as ssh-ed25519
	blob    []byte // the key in the wire format of RFC 4253
	comment string
}

// keyOption is one option of a line: restrict, or command="…".
type keyOption struct {
	name  string // lower case
	value string // unescaped
	text  string // as written
}

// splitKeyLines cuts the contents of authorized_keys into parsed lines.
func splitKeyLines(data []byte) []keyLine {
	var lines []keyLine
	for text := range strings.Lines(string(data)) {
		end := ""
		for _, e := range []string{"\r\n", "\n"} {
			if strings.HasSuffix(text, e) {
				end = e
				break
			}
		}
		l := parseKeyLine(strings.TrimSuffix(text, end))
		l.end = end
		lines = append(lines, l)
	}
	return lines
}

// joinKeyLines is the inverse of splitKeyLines.
func joinKeyLines(lines []keyLine) []byte {
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l.text)
		b.WriteString(l.end)
	}
	return b.Bytes()
}

// parseKeyLine reads one line without its newline. It never fails: what sshd
// would skip (blank, a comment, garbage) is a keyLine without a blob.
func parseKeyLine(text string) keyLine {
	l := keyLine{text: text}
	s, _, _ := strings.Cut(text, "\x00")
	s = strings.Trim(s, " \t\r")
	if s == "" || s[0] == '#' {
		return l
	}
	if l.readKey(s) {
		return l
	}
	n := keyOptionsEnd(s)
	if n < 0 || !l.readKey(strings.TrimLeft(s[n:], " \t")) {
		return l
	}
	var ok bool
	l.options, ok = parseKeyOptions(s[:n])
	l.refused = !ok
	return l
}

// readKey reads TYPE BASE64 [COMMENT]. The type must be the one inside the key,
// which is also how a key is told from an option that happens to stand first.
func (l *keyLine) readKey(s string) bool {
	typ, rest, _ := keyCutSpace(s)
	b64, comment, _ := keyCutSpace(rest)
	blob, err := base64.StdEncoding.DecodeString(b64)
	if err != nil || len(blob) < 4 {
		return false
	}
	n := binary.BigEndian.Uint32(blob)
	if uint64(n) > uint64(len(blob)-4) || n == 0 || string(blob[4:4+n]) != typ {
		return false
	}
	l.typ, l.blob, l.comment = typ, blob, comment
	return true
}

// keyCutSpace cuts s around its first run of spaces and tabs.
func keyCutSpace(s string) (before, after string, found bool) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, "", false
	}
	return s[:i], strings.TrimLeft(s[i:], " \t"), true
}

// keyOptionsEnd gives the length of the option list that s starts with, or -1
// when a quote is left open.
func keyOptionsEnd(s string) int {
	quoted := false
	i := 0
	for ; i < len(s) && (quoted || s[i] != ' ' && s[i] != '\t'); i++ {
		switch {
		case strings.HasPrefix(s[i:], `\"`):
			i++
		case s[i] == '"':
			quoted = !quoted
		}
	}
	if quoted {
		return -1
	}
	return i
}

// What sshd(8) knows, OpenSSH 9 and 10. Flags take no value; most can be negated.
var (
	keyFlags = []string{
		"restrict", "cert-authority", "verify-required", "no-touch-required",
		"port-forwarding", "agent-forwarding", "x11-forwarding", "pty", "user-rc",
		"no-port-forwarding", "no-agent-forwarding", "no-x11-forwarding", "no-pty", "no-user-rc",
	}
	keyValues = []string{
		"command", "environment", "expiry-time", "from", "permitlisten", "permitopen", "principals", "tunnel",
	}
	keyRepeatable = []string{"environment", "permitlisten", "permitopen", "expiry-time", "tunnel"}
)

// parseKeyOptions reads a comma-separated option list; ok is false where sshd
// would skip the line. Values are judged only where they matter to us (command
// by entry, expiry-time by admits).
func parseKeyOptions(s string) (opts []keyOption, ok bool) {
	opts = []keyOption{}
	for {
		s = strings.TrimLeft(s, ",")
		if s == "" {
			return opts, true
		}
		o, rest, ok := parseKeyOption(s)
		if !ok || rest != "" && rest[0] != ',' {
			return nil, false
		}
		hasValue := len(o.text) > len(o.name)
		seen := slices.ContainsFunc(opts, func(p keyOption) bool { return p.name == o.name })
		if seen && hasValue && !slices.Contains(keyRepeatable, o.name) {
			return nil, false
		}
		opts = append(opts, o)
		s = rest
	}
}

// parseKeyOption reads the first option of s.
func parseKeyOption(s string) (o keyOption, rest string, ok bool) {
	n := strings.IndexAny(s, `,="`)
	if n < 0 {
		n = len(s)
	}
	o = keyOption{name: strings.ToLower(s[:n]), text: s[:n]}
	rest = s[n:]
	if !strings.HasPrefix(rest, `="`) {
		return o, rest, slices.Contains(keyFlags, o.name)
	}
	var v strings.Builder
	for i := 2; i < len(rest); i++ {
		switch {
		case strings.HasPrefix(rest[i:], `\"`):
			i++
			v.WriteByte('"')
		case rest[i] == '"':
			o.value = v.String()
			o.text += rest[:i+1]
			return o, rest[i+1:], slices.Contains(keyValues, o.name)
		default:
			v.WriteByte(rest[i])
		}
	}
	return o, "", false // the quote is left open
}

// option finds an option by its name in lower case.
func (l keyLine) option(name string) (keyOption, bool) {
	i := slices.IndexFunc(l.options, func(o keyOption) bool { return o.name == name })
	if i < 0 {
		return keyOption{}, false
	}
	return l.options[i], true
}

// mark gives the kind and key file that the line's comment names, be the line
// ours or not.
func (l keyLine) mark() (KeyKind, string, bool) {
	word, _, _ := keyCutSpace(l.comment)
	rest, ok := strings.CutPrefix(word, keyMarkPrefix)
	kind, file, ok2 := strings.Cut(rest, ":")
	return KeyKind(kind), file, ok && ok2
}

// source gives the path that the comment's second word names, "" for none.
func (l keyLine) source() string {
	_, rest, _ := keyCutSpace(l.comment)
	word, _, _ := keyCutSpace(rest)
	source, _ := strings.CutPrefix(word, keySourcePrefix)
	if source == word {
		return ""
	}
	return source
}

// entry says whose line it is; false when it is not one of ours. Line is left 0.
func (l keyLine) entry() (KeyEntry, bool) {
	kind, file, ok := l.mark()
	if !ok || l.refused {
		return KeyEntry{}, false
	}
	name, err := keyFileName(kind, file)
	if err != nil {
		return KeyEntry{}, false
	}
	command, _ := l.option("command")
	words, ok := splitKeyCommand(command.value)
	if !ok || len(words) < 3 || !slices.Equal(words[len(words)-2:], []string{string(kind), name}) {
		return KeyEntry{}, false
	}
	if _, isCA := l.option("cert-authority"); isCA {
		return KeyEntry{}, false
	}
	key, err := ssh.ParsePublicKey(l.blob)
	if err != nil || checkKeyType(key) != nil {
		return KeyEntry{}, false
	}
	source := l.source()
	if source != "" && (kind != KeyUser || path.Base(source) != file) {
		return KeyEntry{}, false
	}
	return KeyEntry{Kind: kind, Name: name, File: file, Source: source, Type: l.typ, Fingerprint: ssh.FingerprintSHA256(key)}, true
}

// admits tells whether the options let the key in at all, as far as they can be
// judged without the client's address: a line that limits it (from=) or asks
// for more than the key does not count. Only the built-in server asks.
func (l keyLine) admits(now time.Time) bool {
	for _, o := range l.options {
		switch o.name {
		case "from", "principals", "cert-authority", "verify-required":
			return false
		case "expiry-time":
			t, ok := parseKeyExpiry(o.value)
			if !ok || t.Before(now) {
				return false
			}
		}
	}
	return !l.refused
}

// parseKeyExpiry reads sshd's YYYYMMDD[HHMM[SS]][Z], in local time without the Z.
func parseKeyExpiry(s string) (time.Time, bool) {
	loc := time.Local
	if t, ok := strings.CutSuffix(strings.ToUpper(s), "Z"); ok {
		s, loc = t, time.UTC
	}
	layout, ok := map[int]string{8: "20060102", 12: "200601021504", 14: "20060102150405"}[len(s)]
	if !ok {
		return time.Time{}, false
	}
	t, err := time.ParseInLocation(layout, s, loc)
	return t, err == nil
}

// renderKeyLine writes the line of ours for e. Options that an administrator
// gave the old line (from=, expiry-time=) stay, in their order: running add-peer
// again, or with a new key, must not open what was closed.
func renderKeyLine(old keyLine, e KeyEntry, command []string, key ssh.PublicKey) (keyLine, error) {
	value, err := joinKeyCommand(append(slices.Clone(command), string(e.Kind), e.Name))
	if err != nil {
		return keyLine{}, err
	}
	opts := []string{`command="` + strings.ReplaceAll(value, `"`, `\"`) + `"`}
	if _, ok := old.option("restrict"); !ok {
		opts = append(opts, "restrict")
	}
	for _, o := range old.options {
		if o.name != "command" {
			opts = append(opts, o.text)
		}
	}
	text := strings.Join(opts, ",") + " " +
		strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " +
		keyMarkPrefix + string(e.Kind) + ":" + e.File
	if e.Source != "" {
		text += " " + keySourcePrefix + e.Source
	}
	text += keyMarkEnd
	l := parseKeyLine(text)
	l.end = old.end
	return l, nil
}

// keyBareWord is what every login shell passes on unchanged. '=' is missing
// since a first word with it would be an assignment.
var keyBareWord = lazyregexp.New(`^[0-9A-Za-z_./@%+,:-]+$`)

// joinKeyCommand writes words as one command line for the login shell, which is
// how sshd runs a forced command. Words that are not plain are single-quoted.
func joinKeyCommand(words []string) (string, error) {
	quoted := make([]string, len(words))
	for i, w := range words {
		if !utf8.ValidString(w) || strings.ContainsFunc(w, unicode.IsControl) {
			return "", fmt.Errorf("the forced command cannot hold %q: it has a control character or is not UTF-8; use another path", w)
		}
		quoted[i] = w
		if !keyBareWord.MatchString(w) {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " "), nil
}

// splitKeyCommand reads what joinKeyCommand writes; ok is false for anything
// that a shell might read otherwise.
func splitKeyCommand(s string) (words []string, ok bool) {
	for _, w := range splitKeyWords(s) {
		var word strings.Builder
		for w != "" {
			switch {
			case w[0] == '\'':
				in, rest, closed := strings.Cut(w[1:], "'")
				if !closed {
					return nil, false
				}
				word.WriteString(in)
				w = rest
			case strings.HasPrefix(w, `\'`):
				word.WriteByte('\'')
				w = w[2:]
			case keyBareWord.MatchString(w[:1]):
				word.WriteByte(w[0])
				w = w[1:]
			default:
				return nil, false
			}
		}
		words = append(words, word.String())
	}
	return words, true
}

// splitKeyWords cuts at runs of spaces outside single quotes and leaves the
// quoting in place.
func splitKeyWords(s string) (words []string) {
	start, quoted := -1, false
	for i := 0; i < len(s); i++ {
		if s[i] == ' ' && !quoted {
			if start >= 0 {
				words = append(words, s[start:i])
			}
			start = -1
			continue
		}
		if start < 0 {
			start = i
		}
		switch {
		case s[i] == '\'':
			quoted = !quoted
		case s[i] == '\\' && !quoted:
			i++
		}
	}
	if start >= 0 {
		words = append(words, s[start:])
	}
	return words
}
