package snapshot

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Names of refs are bytes, and need not be text. JSON is text: what is no UTF-8 would all become the same
// character, two refs one, and the manifest that of another repository than its name says. So a byte that is
// not part of a character is written as \xHH. No ref has a backslash in its name.

// encodeJSON returns the manifest as it is stored.
func (m *Manifest) encodeJSON() ([]byte, error) {
	text := *m
	text.Head = nameText(m.Head)
	text.Refs = renamed(m.Refs, nameText, asIs)
	text.SymRefs = renamed(m.SymRefs, nameText, nameText)
	return json.Marshal(&text)
}

// nameBytes gives the names of refs the bytes that they have, after the manifest was read from JSON.
func (m *Manifest) nameBytes() error {
	var err error
	back := func(text string) string {
		name, bad := parseNameText(text)
		if bad != nil {
			err = bad
		}
		return name
	}
	m.Head = back(m.Head)
	m.Refs = renamed(m.Refs, back, asIs)
	m.SymRefs = renamed(m.SymRefs, back, back)
	return err
}

// renamed is all with other keys and values. Where nothing changes, as in nearly every repository, it is all itself.
func renamed(all map[string]string, key, value func(string) string) map[string]string {
	changes := false
	for k, v := range all {
		changes = changes || key(k) != k || value(v) != v
	}
	if !changes {
		return all
	}
	other := make(map[string]string, len(all))
	for k, v := range all {
		other[key(k)] = value(v)
	}
	return other
}

func asIs(s string) string { return s }

// namesAreBytes reports whether there is such a name.
func (m *Manifest) namesAreBytes() bool {
	if !utf8.ValidString(m.Head) {
		return true
	}
	for name := range m.Refs {
		if !utf8.ValidString(name) {
			return true
		}
	}
	for name, target := range m.SymRefs {
		if !utf8.ValidString(name) || !utf8.ValidString(target) {
			return true
		}
	}
	return false
}

// nameText is a ref's name as text.
func nameText(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	var b strings.Builder
	for len(name) > 0 {
		r, n := utf8.DecodeRuneInString(name)
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, name[0])
		} else {
			b.WriteString(name[:n])
		}
		name = name[n:]
	}
	return b.String()
}

// parseNameText reads what nameText wrote, and nothing else.
func parseNameText(text string) (string, error) {
	if !strings.Contains(text, `\`) {
		return text, nil
	}
	var b strings.Builder
	for rest := text; rest != ""; {
		before, after, found := strings.Cut(rest, `\`)
		b.WriteString(before)
		if !found {
			break
		}
		if len(after) < 3 || after[0] != 'x' || !isHex(after[1:3], 2) {
			return "", fmt.Errorf("%q is not the name of a ref", text)
		}
		var c byte
		fmt.Sscanf(after[1:3], "%02x", &c)
		b.WriteByte(c)
		rest = after[3:]
	}
	if nameText(b.String()) != text { // there is one way to write a name
		return "", fmt.Errorf("%q is not the name of a ref", text)
	}
	return b.String(), nil
}
