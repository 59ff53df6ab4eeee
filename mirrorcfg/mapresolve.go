package mirrorcfg

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// mapScope is where groups are known by their names: the map, or one file of a
// subconf within it.
type mapScope struct {
	parent *mapScope
	groups map[string]mapGroup
}

type mapGroup struct {
	file    string
	members []string
}

// allGroup is every repository, without a definition.
const allGroup = "all"

func (s *mapScope) define(file, name string, members []string) error {
	bad := func(what string) error { return fmt.Errorf("%s: group.%s: %s", file, name, what) }
	if err := CheckHost(name); err != nil || strings.HasPrefix(name, "@") {
		return bad("use letters, digits and . _ + - for the name of a group, with a letter or digit first; the @ is written only where it is used")
	}
	if name == allGroup {
		return bad("@all is every repository, and cannot be another group: rename it")
	}
	if other, ok := s.groups[name]; ok {
		return bad("it is defined in " + other.file + " already: define it once")
	}
	s.groups[name] = mapGroup{file, members}
	return nil
}

// checkUnique refuses a group that would hide one of the scope around it: that
// may be the very one that limits the file.
func (s *mapScope) checkUnique() error {
	for name, group := range s.groups {
		for outer := s.parent; outer != nil; outer = outer.parent {
			if other, ok := outer.groups[name]; ok {
				return fmt.Errorf("%s: group.%s: it is defined in %s already: rename it", group.file, name, other.file)
			}
		}
	}
	return nil
}

// find returns a group and the scope that its own members are looked up in.
func (s *mapScope) find(name string) (mapGroup, *mapScope, bool) {
	for ; s != nil; s = s.parent {
		if group, ok := s.groups[name]; ok {
			return group, s, true
		}
	}
	return mapGroup{}, nil, false
}

// patterns are what a list of names, globs and groups comes to.
type patterns struct {
	names map[string]bool
	globs []string
}

func (p *patterns) match(name string) bool {
	return p.names[name] || slices.ContainsFunc(p.globs, func(glob string) bool { return MatchGlob(glob, name) })
}

// add adds words; file is where they stand, path the groups being expanded and
// done those that were: a diamond of groups is not work without end.
func (p *patterns) add(file string, words []string, scope *mapScope, path []string, done map[string]bool) error {
	for _, word := range words {
		name, isGroup := strings.CutPrefix(word, "@")
		switch {
		case word == "@"+allGroup:
			p.globs = append(p.globs, "**")
		case isGroup:
			if slices.Contains(path, name) {
				return fmt.Errorf("%s: the groups contain each other without end: @%s: take one of them out", file, strings.Join(append(path, name), " → @"))
			}
			group, at, ok := scope.find(name)
			if !ok {
				return fmt.Errorf("%s: there is no group %q: define it under [group], or write the name of a repository without @", file, name)
			}
			if done[name] {
				continue
			}
			if err := p.add(group.file, group.members, at, append(slices.Clone(path), name), done); err != nil {
				return err
			}
			done[name] = true
		case strings.ContainsAny(word, `*?[\`):
			if err := checkMapGlob(word); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			p.globs = append(p.globs, word)
		default:
			clean, err := CleanRepo(word)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			p.names[clean] = true
		}
	}
	return nil
}

func checkMapGlob(glob string) error {
	if err := CheckGlob(glob); err != nil {
		return err
	}
	if len(glob) > maxName || strings.Count(glob, "**") > maxMapDeep {
		return fmt.Errorf("glob %.80q: at most %d bytes, and ** at most %d times", glob, maxName, maxMapDeep)
	}
	return nil
}

func newPatterns(file string, words []string, scope *mapScope) (*patterns, error) {
	p := &patterns{names: map[string]bool{}}
	return p, p.add(file, words, scope, nil, map[string]bool{})
}

// mapRule is a [[repo]], ready to be used.
type mapRule struct {
	file   string
	match  *patterns
	set    Settings
	limits []ruleLimit
}

type ruleLimit struct {
	group string
	*patterns
}

// compile expands the groups, and refuses a name that is outside the limits,
// whether there is such a repository or not.
func (r rawRule) compile() (mapRule, error) {
	match, err := newPatterns(r.file, r.match, r.scope)
	if err != nil {
		return mapRule{}, err
	}
	rule := mapRule{file: r.file, match: match, set: r.set}
	for _, limit := range r.limits {
		if _, _, ok := limit.scope.find(limit.group); !ok {
			return mapRule{}, fmt.Errorf("%s: subconf: %s may touch only the group %s, which is not defined: write it under [group]", limit.by, limit.file, limit.group)
		}
		allowed, err := newPatterns(limit.by, []string{"@" + limit.group}, limit.scope)
		if err != nil {
			return mapRule{}, err
		}
		rule.limits = append(rule.limits, ruleLimit{limit.group, allowed})
	}
	for _, name := range slices.Sorted(maps.Keys(match.names)) {
		if err := rule.allow(name); err != nil {
			return mapRule{}, err
		}
	}
	return rule, nil
}

// allow returns an error for a repository that the rule's file may not touch.
func (r *mapRule) allow(name string) error {
	for _, limit := range r.limits {
		if !limit.match(name) {
			return fmt.Errorf("%s: it may touch only the repositories of the group %s, and names %s, which is none: correct match", r.file, limit.group, name)
		}
	}
	return nil
}

// Resolved is what a map wants of the repositories of one server.
type Resolved struct {
	Want map[string]Settings // by repository; those that the map does not mention are absent
	// Missing are the repositories that the map names, other than by a glob,
	// and that are not here, with what it wants of them.
	Missing map[string]Settings
	Notes   []string // such as globs that match nothing
}

// Resolve applies the map to the repositories of this server. A file that goes
// beyond its limits is an error that names it and the repository: nothing of the
// map is to be used then.
func (m *Map) Resolve(repositories []string) (*Resolved, error) {
	res := &Resolved{Want: map[string]Settings{}, Missing: map[string]Settings{}, Notes: slices.Clone(m.Notes)}
	here := make(map[string]bool, len(repositories))
	for _, name := range repositories {
		here[name] = true
	}
	for _, rule := range m.rules {
		for _, name := range repositories {
			if !rule.match.match(name) {
				continue
			}
			if err := rule.allow(name); err != nil {
				return nil, err
			}
			overlay(res.Want, name, rule.set)
		}
		for name := range rule.match.names {
			if !here[name] {
				res.Missing[name] = nil
			}
		}
		for _, glob := range rule.match.globs {
			if !slices.ContainsFunc(repositories, func(name string) bool { return MatchGlob(glob, name) }) {
				note := fmt.Sprintf("%s: %q matches no repository", rule.file, glob)
				if !slices.Contains(res.Notes, note) {
					res.Notes = append(res.Notes, note)
				}
			}
		}
	}
	for name := range res.Missing {
		for _, rule := range m.rules {
			if rule.match.match(name) && rule.allow(name) == nil {
				overlay(res.Missing, name, rule.set)
			}
		}
	}
	return res, nil
}

// overlay lets set win key by key over what all has for a repository.
func overlay(all map[string]Settings, name string, set Settings) {
	if all[name] == nil {
		all[name] = Settings{}
	}
	maps.Copy(all[name], set)
}

// Involves reports whether a repository with these settings alone is to be on
// the server of that hostname: as its master, or in one of its lists. Where the
// map does not say who the master is, it may be anybody.
func (s Settings) Involves(hostname string) bool {
	if master, set := s["master"]; !set || master.Value == hostname {
		return true
	}
	for key, setting := range s {
		if !reserved[key] && slices.Contains(strings.Fields(setting.Value), hostname) {
			return true
		}
	}
	return false
}
