// Package meta is what travels with a repository beside its refs: HEAD, the
// description, gitolite's gl-creator and gl-perms, and the config keys that
// gitolite.mirror.metaKeys names.
//
// # On the wire
//
// The verbs mirror-meta and mirror-create carry one JSON object of at most 1 MiB:
//
//	{"version": 1,
//	 "head": "refs/heads/main",      what HEAD points to; left out: HEAD stays as it is
//	 "description": "…",             content of the file description
//	 "gl-creator": "alice",          of gl-creator, and
//	 "gl-perms": "WRITERS bob\n",    of gl-perms, as they stand there
//	 "config": {"gitweb.owner": "…"},  canonical keys with their last value
//	 "object-format": "sha1"}        or "sha256"; with mirror-create alone
//
// A member that is left out is left alone by the slave. One that is empty, or a
// config key that is not there any more, takes away what the master had sent earlier,
// and nothing that somebody has written on the slave since. Member names are exact,
// others are errors, and so is another version.
//
// The slave answers with one line of JSON: what it did not take.
//
//	{"version": 1, "not_taken": ["core.pager"]}
//
// # What is remembered
//
// The master keeps, for each repository and peer, a hash of what the peer has
// confirmed (PEER.refs.meta beside the record of its refs; see Record): a sync of
// what has not changed sends nothing. Of a gitolite it also has which HEAD and description that was
// given by commands of its own, and why it did not take them. The slave keeps what it got last, in
// mirror-shell/received.meta, the object itself without HEAD.
package meta

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"mirror-shell/internal/git"
	"mirror-shell/internal/lazyregexp"
	"mirror-shell/mirrorcfg"
)

// Version is the version of the object that is written and understood here.
const Version = 1

// Data is the object. A nil pointer or map is a member that is left out.
type Data struct {
	Version     int               `json:"version,omitzero"`
	Head        string            `json:"head,omitempty"`
	Description *string           `json:"description,omitempty"`
	Creator     *string           `json:"gl-creator,omitempty"`
	Perms       *string           `json:"gl-perms,omitempty"`
	Config      map[string]string `json:"config,omitzero"`
	// Format is the object format of a repository to be made: for mirror-create alone.
	Format string `json:"object-format,omitempty"`
}

// Answer is what the slave says.
type Answer struct {
	Version  int      `json:"version"`
	NotTaken []string `json:"not_taken"` // config keys
}

// The bounds of an object, in bytes and in keys. Each key that changes costs
// the slave a process.
const (
	maxObject = 1 << 20
	maxText   = 64 << 10
	maxValue  = 4 << 10
	maxKey    = 256
	maxKeys   = 50
)

// member is one of the files, and where the object has it.
type member struct {
	file  string
	text  func(*Data) **string
	check func(string) error
}

var members = []member{
	{"description", func(d *Data) **string { return &d.Description }, checkText},
	{"gl-creator", func(d *Data) **string { return &d.Creator }, checkCreator},
	{"gl-perms", func(d *Data) **string { return &d.Perms }, checkText},
}

func checkText(text string) error {
	switch {
	case len(text) > maxText:
		return fmt.Errorf("has more than %d bytes", maxText)
	case !utf8.ValidString(text):
		return errors.New("is not UTF-8")
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' }):
		return errors.New("contains control characters")
	}
	return nil
}

// checkCreator admits a user's name, as gitolite writes it with or without an end of line. A
// group is none, although gitolite reads it as one: with @all in gl-creator everybody has the
// creator's rights.
func checkCreator(text string) error {
	if text == "" {
		return nil
	}
	name := strings.TrimSuffix(text, "\n")
	if strings.HasPrefix(name, "@") {
		return fmt.Errorf("names a group, %.80q, and no user", name)
	}
	return mirrorcfg.CheckUser(name)
}

func checkValue(value string) error {
	if len(value) > maxValue || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl) {
		return fmt.Errorf("is longer than %d bytes, or not plain text", maxValue)
	}
	return nil
}

// branch is a name that git's check-ref-format accepts below refs/heads/, by our
// own reading: git itself looks no further than at the "refs/" before 2.38.
var (
	branch    = lazyregexp.New(`^refs/heads(/[^\x00-\x20\x7f~^:?*\[\\/]+)+$`)
	notBranch = lazyregexp.New(`\.\.|@\{|/\.|\.$|\.lock(/|$)`)
)

// Check reports what is wrong with an object.
func (d *Data) Check() error {
	if d.Version != 0 && d.Version != Version { // older masters sent none
		return fmt.Errorf("version %d is not known here, only %d", d.Version, Version)
	}
	if d.Format != "" && d.Format != "sha1" && d.Format != "sha256" {
		return fmt.Errorf("object format %.20q is unknown", d.Format)
	}
	if d.Head != "" && (!branch.MatchString(d.Head) || notBranch.MatchString(d.Head)) {
		return fmt.Errorf("HEAD cannot point to %.80q", d.Head)
	}
	for _, m := range members {
		if text := *m.text(d); text != nil {
			if err := m.check(*text); err != nil {
				return fmt.Errorf("%s: %w", m.file, err)
			}
		}
	}
	if len(d.Config) > maxKeys {
		return fmt.Errorf("config: more than %d keys", maxKeys)
	}
	for key, value := range d.Config {
		if len(key) > maxKey || checkText(key) != nil {
			return fmt.Errorf("config: %.80q is no key", key)
		}
		if err := checkValue(value); err != nil {
			return fmt.Errorf("config: the value of %.80q %w", key, err)
		}
	}
	return nil
}

// Parse reads one object to the end of input, and checks it.
func Parse(r io.Reader) (*Data, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxObject+1))
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if len(text) > maxObject {
		return nil, fmt.Errorf("metadata: more than %d bytes", maxObject)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("{")) { // null would pass for an empty object
		return nil, errors.New("metadata: not a JSON object")
	}
	var d Data
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("metadata: there is more after the object")
	}
	if err := d.Check(); err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return &d, nil
}

// Write writes the object as Parse reads it.
func (d *Data) Write(w io.Writer) error {
	d.Version = Version
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // six bytes for each < and > would take what is allowed over maxObject
	return enc.Encode(d)
}

// unnamed begins the description that git gives a new repository, which says nothing.
const unnamed = "Unnamed repository; edit this file"

// Read returns what a repository has, without Head, and in words what of it
// cannot travel. It starts no process.
func Read(repo git.Repo, cfg *mirrorcfg.Repo) (d *Data, notes []string, err error) {
	d = &Data{Config: map[string]string{}}
	for _, m := range members {
		text, err := readText(filepath.Join(repo.Dir, m.file))
		var bad unfit
		switch {
		case errors.As(err, &bad):
			notes = append(notes, m.file+" was not sent: it "+bad.Error())
			continue
		case err != nil:
			return nil, nil, err
		}
		if err := m.check(text); err != nil {
			notes = append(notes, fmt.Sprintf("%s was not sent: it %v", m.file, err))
			continue
		}
		if strings.HasPrefix(text, unnamed) {
			text = ""
		}
		*m.text(d) = &text
	}
	for _, word := range cfg.Never {
		notes = append(notes, fmt.Sprintf("config %.80s was not sent: settings of git itself never travel", word))
	}
	for _, key := range slices.Sorted(maps.Keys(cfg.Carried)) {
		value := cfg.Carried[key]
		switch {
		case len(d.Config) == maxKeys:
			return d, append(notes, fmt.Sprintf("only the first %d config keys were sent", maxKeys)), nil
		case len(key) > maxKey || checkText(key) != nil || checkValue(value) != nil:
			problem := checkValue(value)
			if problem == nil {
				problem = errors.New("has a key that is too long, or not plain text")
			}
			notes = append(notes, fmt.Sprintf("config %.80q was not sent: its value %v", key, problem))
		default:
			d.Config[key] = value
		}
	}
	return d, notes, nil
}

// unfit is a file that is not what it should be.
type unfit string

func (u unfit) Error() string { return string(u) }

// readText returns a file's content, "" when there is none. A link is not
// followed: it might lead anywhere.
func readText(path string) (string, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", unfit("is not a plain file")
	case info.Size() > maxText:
		return "", unfit(fmt.Sprintf("has more than %d bytes", maxText))
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}

// Empty reports whether there is nothing to tell but HEAD.
func (d *Data) Empty() bool {
	for _, m := range members {
		if text := *m.text(d); text != nil && *text != "" {
			return false
		}
	}
	return len(d.Config) == 0
}

// Names says what an object has, apart from Head, for a message.
func (d *Data) Names() []string {
	var names []string
	for _, m := range members {
		if text := *m.text(d); text != nil && *text != "" {
			names = append(names, m.file)
		}
	}
	if len(d.Config) > 0 {
		names = append(names, "config")
	}
	return names
}

// Hash identifies an object, Head apart; "" stands for an empty one.
func (d *Data) Hash() string {
	if d.Empty() {
		return ""
	}
	c := *d
	c.Version, c.Head, c.Format = Version, "", ""
	text, _ := json.Marshal(c) // strings and a map of them: maps are sorted
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// Files are the files that Read looks at, whose time stamps tell whether
// anything has changed.
func Files(repo git.Repo) []string {
	var paths []string
	for _, m := range members {
		paths = append(paths, filepath.Join(repo.Dir, m.file))
	}
	return paths
}
