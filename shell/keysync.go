package shell

// Keeping users' lines equal to a directory of key files, which comes from the
// mirror map's repository: whoever may push there decides whose keys come in, as
// users, and nothing else in authorized_keys.

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"mirror-shell/internal/lazyregexp"
)

// The bounds of a directory of key files.
const (
	MaxUserKeys    = 10000
	MaxUserKeyFile = maxKeyFile // bytes
	maxKeyPath     = 255        // bytes
)

// UserKeyFile is one file of such a directory. Its base name says whose key it is, as that
// of a file for Add does; what directories it is in says nothing, so that a user may
// have alice.pub and laptops/alice.pub.
type UserKeyFile struct {
	Path string // below the directory, slash-separated
	Data []byte
	Err  error // why it could not be read
}

// UserKeys is what authorized_keys is to have of its source.
type UserKeys struct {
	Files  []UserKeyFile
	Absent bool // there is no such directory at all
	// RemoveAll lets through what would otherwise be held.
	RemoveAll bool
}

// KeyChange is a line that SyncUsers has changed.
type KeyChange struct {
	What     string `json:"what"` // added, replaced, removed; rewritten: the same key with another command
	KeyEntry        // after it; of a removed line, before
}

// KeySync is what SyncUsers did, or would do.
type KeySync struct {
	Changes  []KeyChange `json:"changes"`
	Problems []string    `json:"problems"` // files that are not used, and what becomes of the lines they had made
	Notes    []string    `json:"notes"`
	Held     string      `json:"held,omitempty"` // why nothing is changed at all
}

// SyncUsers makes the lines that came from the mirror map's repository those of the key files:
// it adds, replaces and removes them, in one edit. Every other line keeps its
// bytes: peers', those that add-user wrote, and those that are not ours.
//
// A file that is no good is told of, and changes nothing: the line that it made when
// it was good stays until the file is mended or removed, and the others go on. A key
// that another line has already is not added a second time, be it a peer's or
// somebody else's. When the directory is absent, or no user's key would be left,
// nothing is changed and Held says so. With dry nothing is changed, either.
func (a AuthorizedKeys) SyncUsers(keys UserKeys, dry bool) (s KeySync, err error) {
	if len(a.Command) == 0 || !strings.HasPrefix(a.Command[0], "/") {
		return s, fmt.Errorf("the forced command %q does not start with an absolute path; install mirror-shell and name its full path", a.Command)
	}
	if len(keys.Files) > MaxUserKeys {
		return s, fmt.Errorf("more than %d key files", MaxUserKeys)
	}
	if dry {
		lines, err := a.read()
		if err == nil {
			_, s, err = planUserKeys(lines, keys, a.Command)
		}
		return s, err
	}
	_, err = a.edit(len(keys.Files) > 0, func(lines []keyLine) (edited []keyLine, err error) {
		edited, s, err = planUserKeys(lines, keys, a.Command)
		return edited, err
	})
	if err != nil {
		return s, fmt.Errorf("users' keys in %s: %w", a.Path, err)
	}
	return s, nil
}

// wantedKey is a good key file.
type wantedKey struct {
	entry KeyEntry
	key   ssh.PublicKey
}

// userKeyPlan is the state of one planUserKeys.
type userKeyPlan struct {
	KeySync
	lines []keyLine
	want  map[string]wantedKey // by path
	stays map[string]bool      // paths of bad files: the line that one had stays
	have  map[string]int       // path → its first line
}

// planUserKeys is SyncUsers without the disk.
func planUserKeys(lines []keyLine, keys UserKeys, command []string) ([]keyLine, KeySync, error) {
	p := &userKeyPlan{lines: lines, want: map[string]wantedKey{}, stays: map[string]bool{}, have: map[string]int{},
		KeySync: KeySync{Changes: []KeyChange{}, Problems: []string{}, Notes: []string{}}}
	for i, l := range lines {
		if e, ok := l.entry(); ok && e.Source != "" {
			if _, twice := p.have[e.Source]; !twice {
				p.have[e.Source] = i
			}
		} else if l.source() != "" && strings.HasPrefix(l.comment, keyMarkPrefix) {
			p.problem("line %d of authorized_keys has the mark of %s, but was changed by hand and stays: delete that line", i+1, l.source())
		}
	}
	for _, f := range slices.SortedFunc(slices.Values(keys.Files), func(a, b UserKeyFile) int { return strings.Compare(a.Path, b.Path) }) {
		p.read(f)
	}
	p.dropKnown()
	p.dropDoubles()
	edited, err := p.edit(command)
	if err != nil {
		return nil, KeySync{}, err
	}
	if p.Held = p.held(edited, keys); p.Held != "" {
		p.Changes = []KeyChange{}
		return lines, p.KeySync, nil
	}
	p.leftBehind(edited)
	return edited, p.KeySync, nil
}

func (p *userKeyPlan) problem(format string, args ...any) {
	p.Problems = append(p.Problems, fmt.Sprintf(format, args...))
}

func (p *userKeyPlan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// keyDirName is what a directory of key files may be called. A path stands in a
// comment, as one word.
var keyDirName = lazyregexp.New(`^[0-9A-Za-z][0-9A-Za-z._@+-]*$`)

func checkKeyPath(name string) error {
	if len(name) > maxKeyPath {
		return fmt.Errorf("the path is longer than %d bytes", maxKeyPath)
	}
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	for elem := range strings.SplitSeq(dir, "/") {
		if !keyDirName.MatchString(elem) {
			return fmt.Errorf("the directory %q: use letters, digits and . _ @ + - only, with a letter or digit first", elem)
		}
	}
	return nil
}

// read judges one file.
func (p *userKeyPlan) read(f UserKeyFile) {
	base := path.Base(f.Path)
	if !strings.HasSuffix(base, ".pub") {
		if base[0] != '.' && !strings.HasPrefix(base, "README") {
			p.note("%.300q: not used: a key file is called NAME.pub", f.Path)
		}
		return
	}
	e, key, err := parseUserKey(f)
	if err == nil {
		p.want[f.Path] = wantedKey{e, key}
		return
	}
	if _, had := p.have[f.Path]; had {
		p.stays[f.Path] = true
		p.problem("%.300q: not used: %v; the key that it had before stays: mend the file, or remove it to take the key out", f.Path, err)
		return
	}
	p.problem("%.300q: not used: %v", f.Path, err)
}

func parseUserKey(f UserKeyFile) (e KeyEntry, key ssh.PublicKey, err error) {
	if f.Err != nil {
		return e, nil, f.Err
	}
	if err := checkKeyPath(f.Path); err != nil {
		return e, nil, err
	}
	file := path.Base(f.Path)
	name, err := keyFileName(KeyUser, file)
	switch {
	case err != nil:
		return e, nil, err
	case len(f.Data) > maxKeyFile:
		return e, nil, fmt.Errorf("longer than %d KiB", maxKeyFile>>10)
	case keyFileIsPrivate(f.Data):
		return e, nil, errors.New("this is a private key, and everybody who can read the repository has it now: make a new one, and give its public half")
	}
	if key, err = parseKeyFile(f.Data); err != nil {
		return e, nil, err
	}
	return KeyEntry{Kind: KeyUser, Name: name, File: file, Source: f.Path, Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key)}, key, nil
}

// fromSource gives the path of a line that came from the directory.
func fromSource(l keyLine) (string, bool) {
	e, ok := l.entry()
	return e.Source, ok && e.Source != ""
}

// dropKnown takes out the keys that stand in a line which is not ours to change.
// sshd takes the first match: a second line would have no effect, or, before the
// other one, turn a peer into a user.
func (p *userKeyPlan) dropKnown() {
	other := map[string]int{}
	for i, l := range p.lines {
		source, ours := fromSource(l)
		if l.blob != nil && (!ours || p.stays[source]) {
			if _, twice := other[string(l.blob)]; !twice {
				other[string(l.blob)] = i
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.want)) {
		w := p.want[name]
		i, known := other[string(w.key.Marshal())]
		if !known {
			continue
		}
		delete(p.want, name)
		if e, ok := p.lines[i].entry(); ok && e.Kind == KeyUser && e.Name == w.entry.Name && e.Source == "" {
			p.note("%s: the key is that of line %d, which was added by hand and stays whatever becomes of the file; to have it follow the file, run mirror-shell remove-user %s, then apply",
				name, i+1, strings.TrimSuffix(e.File, ".pub"))
			continue
		}
		p.problem("%s: not used: the same key is already in line %d of authorized_keys (%s)", name, i+1, describeKeyLine(p.lines[i]))
	}
}

// dropDoubles sees to it that a key stands for one person. Of several files with the same
// key, the one whose line has it already keeps it; where none has, and they are not
// of one user, none gets it: nobody becomes somebody else by copying a file.
func (p *userKeyPlan) dropDoubles() {
	claims := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(p.want)) {
		blob := string(p.want[name].key.Marshal())
		claims[blob] = append(claims[blob], name)
	}
	for _, blob := range slices.Sorted(maps.Keys(claims)) {
		names := claims[blob]
		if len(names) == 1 {
			continue
		}
		keep := slices.IndexFunc(names, func(name string) bool {
			i, had := p.have[name]
			return had && string(p.lines[i].blob) == blob
		})
		if keep < 0 && !slices.ContainsFunc(names, func(name string) bool { return p.want[name].entry.Name != p.want[names[0]].entry.Name }) {
			keep = 0
		}
		for i, name := range names {
			if i != keep {
				delete(p.want, name)
				p.problem("%s: not used: %s hold the same key: give each a key of its own", name, strings.Join(names[:min(len(names), 5)], ", "))
			}
		}
	}
}

// edit makes the new lines and the list of changes.
func (p *userKeyPlan) edit(command []string) ([]keyLine, error) {
	var edited []keyLine
	for i, l := range p.lines {
		source, ours := fromSource(l)
		w, wanted := p.want[source]
		first := p.have[source] == i
		switch {
		case !ours, p.stays[source] && first:
			edited = append(edited, l)
			continue
		case !wanted || !first:
			e, _ := l.entry()
			p.change("removed", e)
			continue
		}
		now, err := renderKeyLine(l, w.entry, command, w.key)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(now.blob, l.blob) {
			p.change("replaced", w.entry)
		} else if now.text != l.text {
			p.change("rewritten", w.entry)
		}
		edited = append(edited, now)
	}
	for _, name := range slices.Sorted(maps.Keys(p.want)) {
		if _, had := p.have[name]; had {
			continue
		}
		w := p.want[name]
		l, err := renderKeyLine(keyLine{end: "\n"}, w.entry, command, w.key)
		if err != nil {
			return nil, err
		}
		if n := len(edited); n > 0 && edited[n-1].end == "" {
			edited[n-1].end = "\n"
		}
		edited = append(edited, l)
		p.change("added", w.entry)
	}
	return edited, nil
}

func (p *userKeyPlan) change(what string, e KeyEntry) {
	e.Line = 0
	p.Changes = append(p.Changes, KeyChange{what, e})
}

// held says why an edit must not be made, "" when it may.
func (p *userKeyPlan) held(edited []keyLine, keys UserKeys) string {
	removes := slices.ContainsFunc(p.Changes, func(c KeyChange) bool { return c.What == "removed" })
	left := slices.ContainsFunc(listKeyLines(edited), func(e KeyEntry) bool { return e.Kind == KeyUser })
	switch {
	case keys.RemoveAll || !removes:
		return ""
	case keys.Absent:
		return fmt.Sprintf("there is no such directory, and %d keys came from it: they stay", len(p.have))
	case !left:
		return fmt.Sprintf("no user could come in any more: %d keys stay", len(p.have))
	}
	return ""
}

// leftBehind tells of users whose key was removed, and who still come in by
// one that was added by hand.
func (p *userKeyPlan) leftBehind(edited []keyLine) {
	told := map[string]bool{}
	for _, c := range p.Changes {
		if c.What != "removed" || told[c.Name] {
			continue
		}
		told[c.Name] = true
		for _, e := range listKeyLines(edited) {
			if e.Kind == KeyUser && e.Name == c.Name && e.Source == "" {
				p.note("%s still comes in by the key in line %d, which was added by hand: mirror-shell remove-user %s",
					c.Name, e.Line, strings.TrimSuffix(e.File, ".pub"))
			}
		}
	}
}
