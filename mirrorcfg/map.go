package mirrorcfg

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"mirror-shell/internal/lazyregexp"
)

// A mirror map says for many repositories at once what their git config shall be,
// in TOML:
//
//	include = ["sites/*.toml", "HOSTNAME.toml"]   # read after this file
//	subconf = ["HOSTNAME.toml"]                   # the same, limited to the group of that file's name
//
//	[group]
//	internal = ["ip*", "admin"]
//	sam      = ["sam/**", "@internal"]
//
//	[[repo]]
//	match       = ["os1", "projects/**", "@sam"]  # names, globs, and groups with an @
//	master      = "frodo"
//	slaves      = ["sam"]
//	sync        = ["vault"]
//	refs        = ["refs/heads/*", "refs/tags/*"]
//	meta_keys   = ["gitweb.owner"]
//	lists       = { hourly = ["sam", "legolas"] }
//	redirect_ok = true
//
// All [[repo]] tables that match a repository count, and of one key the last: the
// tables of a file first, then those of the files that it includes, in order. An
// empty list is a value: it means none, whatever the account's git config says.
// @all is every repository.
//
// The word HOSTNAME, with no letter, digit or underscore beside it, stands in
// include and subconf for the name of the server that reads the map. So one map,
// mirrored to all servers, is another one on each.
//
// What a subconf names may touch only the repositories of the group that is
// called like the file (sam for sites/sam.toml), and what it includes no more
// than itself. That group is defined outside the file; groups defined inside
// are seen there alone.
type Map struct {
	rules []mapRule
	// Notes say what is probably no mistake, such as no file for this server.
	Notes []string
}

// MapFiles is where the files of a map are: names are slash-separated and
// relative to the map's directory, and nothing outside of it can be named.
type MapFiles interface {
	// ReadFile returns a file; one that is absent is fs.ErrNotExist.
	ReadFile(name string) ([]byte, error)
	// Glob returns, sorted, the files that match a pattern of path.Match.
	Glob(pattern string) ([]string, error)
}

// The bounds of a map. Who may write a part of it must not be able to occupy the
// server with it.
const (
	maxMapFiles = 1000
	maxMapRules = 10000 // [[repo]] tables
	maxMapDeep  = 4     // "**" in one glob: each costs a factor
)

// MaxMapFile is how long a file of a map may be, in bytes.
const MaxMapFile = 1 << 20

// mapFile is one file as it is written.
type mapFile struct {
	Include []string            `toml:"include"`
	Subconf []string            `toml:"subconf"`
	Group   map[string][]string `toml:"group"`
	Repo    []mapTable          `toml:"repo"`
}

// mapTable is one [[repo]]. What is not written is nil.
type mapTable struct {
	Match    []string            `toml:"match"`
	Master   *string             `toml:"master"`
	Slaves   []string            `toml:"slaves"`
	Sync     []string            `toml:"sync"`
	Refs     []string            `toml:"refs"`
	MetaKeys []string            `toml:"meta_keys"`
	Lists    map[string][]string `toml:"lists"`
	Redirect *redirectOK         `toml:"redirect_ok"`
}

// redirectOK is true, false or a list of hosts; it keeps the config's value.
type redirectOK struct {
	value string
	hosts []string
}

// UnmarshalTOML takes what the TOML library has read.
func (r *redirectOK) UnmarshalTOML(v any) error {
	switch v := v.(type) {
	case bool:
		if v {
			r.value = "true"
		}
		return nil
	case []any:
		for _, item := range v {
			host, ok := item.(string)
			if !ok {
				return errRedirect
			}
			r.hosts = append(r.hosts, host)
		}
		r.value = strings.Join(r.hosts, " ")
		return nil
	}
	return errRedirect
}

var errRedirect = errors.New(`redirect_ok: write true, false or a list of hosts, such as ["sam"]`)

// LoadMap reads the map in file, and what that includes, for the server of that
// hostname. An error names the file, the key and what would be right.
func LoadMap(files MapFiles, file, hostname string) (*Map, error) {
	l := mapLoader{files: files, hostname: hostname, seen: map[string]string{}, texts: map[string][]byte{}}
	top := &mapScope{groups: map[string]mapGroup{}}
	if err := l.load(file, top, nil); err != nil {
		return nil, err
	}
	for _, scope := range l.scopes {
		if err := scope.checkUnique(); err != nil {
			return nil, err
		}
	}
	if err := top.checkUnique(); err != nil {
		return nil, err
	}
	m := &Map{Notes: l.notes}
	for _, r := range l.rules {
		rule, err := r.compile()
		if err != nil {
			return nil, err
		}
		m.rules = append(m.rules, rule)
	}
	return m, nil
}

// mapLoader is the state of one LoadMap.
type mapLoader struct {
	files    MapFiles
	hostname string
	path     []string          // files being read, outermost first
	seen     map[string]string // file → the limits it was read with
	texts    map[string][]byte // files that were read to see whether they are there
	scopes   []*mapScope
	rules    []rawRule
	notes    []string
}

// rawRule is a [[repo]] whose groups may not have been read yet.
type rawRule struct {
	file   string
	match  []string
	set    Settings
	scope  *mapScope
	limits []mapLimit
}

// mapLimit is what a subconf lays upon a file: only the repositories of a group,
// which is looked up where the subconf stands.
type mapLimit struct {
	group string
	file  string // the subconf'd file
	by    string // the file in which subconf stands
	scope *mapScope
}

// load reads one file and all below it.
func (l *mapLoader) load(file string, scope *mapScope, limits []mapLimit) error {
	if at := slices.Index(l.path, file); at >= 0 {
		return fmt.Errorf("the files include each other without end: %s: take one include out", strings.Join(append(l.path[at:], file), " → "))
	}
	// A file under two different limits would be free of one of them.
	kind := limitNames(limits)
	if before, ok := l.seen[file]; ok {
		if before == kind {
			return nil
		}
		return fmt.Errorf("%s: %s is read twice, %s and %s: name it once, in include or in subconf", l.path[len(l.path)-1], file, before, kind)
	}
	if len(l.seen) == maxMapFiles {
		return fmt.Errorf("%s: more than %d files: include fewer", file, maxMapFiles)
	}
	l.seen[file] = kind
	f, err := l.read(file)
	if err != nil {
		return err
	}
	for name, members := range f.Group {
		if err := scope.define(file, name, members); err != nil {
			return err
		}
	}
	for i, table := range f.Repo {
		set, err := table.settings(file)
		if err != nil {
			return fmt.Errorf("%s: [[repo]] number %d: %w", file, i+1, err)
		}
		l.rules = append(l.rules, rawRule{file, table.Match, set, scope, limits})
	}
	if len(l.rules) > maxMapRules {
		return fmt.Errorf("%s: more than %d [[repo]] tables in all: use groups and globs", file, maxMapRules)
	}
	l.path = append(l.path, file)
	defer func() { l.path = l.path[:len(l.path)-1] }()
	return l.includes(file, f, scope, limits)
}

func limitNames(limits []mapLimit) string {
	if len(limits) == 0 {
		return "without limit"
	}
	names := make([]string, len(limits))
	for i, limit := range limits {
		names[i] = limit.by + " limits it to @" + limit.group
	}
	return strings.Join(names, ", ")
}

func (l *mapLoader) includes(file string, f *mapFile, scope *mapScope, limits []mapLimit) error {
	for _, pattern := range f.Include {
		names, err := l.expand(file, "include", pattern)
		for _, name := range names {
			if err == nil {
				err = l.load(name, scope, limits)
			}
		}
		if err != nil {
			return err
		}
	}
	for _, pattern := range f.Subconf {
		names, err := l.expand(file, "subconf", pattern)
		for _, name := range names {
			if err == nil {
				group := strings.TrimSuffix(path.Base(name), ".toml")
				own := &mapScope{parent: scope, groups: map[string]mapGroup{}}
				l.scopes = append(l.scopes, own)
				err = l.load(name, own, append(slices.Clone(limits), mapLimit{group, name, file, scope}))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hostnameWord is the word that is replaced: \b is between [0-9A-Za-z_] and
// anything else.
var hostnameWord = lazyregexp.New(`\bHOSTNAME\b`)

// expand returns the files that an include or subconf names, relative to the
// map's directory.
func (l *mapLoader) expand(file, key, pattern string) ([]string, error) {
	bad := func(what string) error { return fmt.Errorf("%s: %s: %.200q: %s", file, key, pattern, what) }
	named := hostnameWord.Get().ReplaceAllLiteralString(pattern, l.hostname)
	full := path.Join(path.Dir(file), named)
	if !strings.HasSuffix(named, ".toml") || strings.ContainsAny(named, "\\\x00") {
		return nil, bad("write the name of a .toml file, relative to this one")
	}
	if path.IsAbs(named) || !fs.ValidPath(full) {
		return nil, bad("this leaves the map's directory: keep what is included below it")
	}
	if !strings.ContainsAny(named, "*?[") {
		return l.one(file, pattern, full, named != pattern)
	}
	if slices.Contains(strings.Split(named, "/"), "..") {
		return nil, bad("write a glob without ..")
	}
	names, err := l.files.Glob(full)
	if err != nil {
		return nil, bad(err.Error())
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == file })
	if len(names) == 0 {
		l.notes = append(l.notes, fmt.Sprintf("%s: %s %q matches no file", file, key, pattern))
	}
	return names, nil
}

// one returns a file that is named and no glob. A server with nothing of its own
// needs no HOSTNAME.toml; any other file that is missing is a mistake.
func (l *mapLoader) one(file, pattern, name string, own bool) ([]string, error) {
	text, err := l.files.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && own:
		l.notes = append(l.notes, fmt.Sprintf("%s: there is no %s for %q", file, name, pattern))
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%s: %q: %w", file, pattern, err)
	}
	l.texts[name] = text
	return []string{name}, nil
}

// read decodes one file.
func (l *mapLoader) read(file string) (*mapFile, error) {
	text, ok := l.texts[file]
	if !ok {
		var err error
		if text, err = l.files.ReadFile(file); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	if len(text) > MaxMapFile {
		return nil, fmt.Errorf("%s: %d bytes: at most %d are read", file, len(text), MaxMapFile)
	}
	f := &mapFile{}
	md, err := toml.Decode(string(text), f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if unknown := md.Undecoded(); len(unknown) > 0 {
		keys := "include, subconf, and the tables [group] and [[repo]]"
		if unknown[0][0] == "repo" {
			keys = "match, master, slaves, sync, refs, meta_keys, lists, redirect_ok"
		}
		return nil, fmt.Errorf("%s: unknown key %s: the keys are %s", file, unknown[0], keys)
	}
	return f, nil
}
