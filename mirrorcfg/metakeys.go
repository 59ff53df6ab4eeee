package mirrorcfg

import (
	"fmt"
	"slices"
	"strings"

	"mirror-shell/internal/git"
	"mirror-shell/internal/lazyregexp"
)

// Config keys that travel with a repository. Both sides have their say: the
// master's gitolite.mirror.metaKeys names what is sent, and the slave's
// [accept] config what is taken. The latter is the one that protects: to set a
// key of git's own is to run a program, one way or another (core.hooksPath,
// include.path, filter.*.clean, uploadpack.packObjectsHook, …), and new ones come
// with each version. So what is taken is a list of what may be, closed by default, and
// the sections that git itself reads cannot be written into it.
//
// A pattern is a key, "gitweb.owner", or all keys below a section or subsection,
// "hooks.*". As in git, section and variable are compared without regard to case.

// displayKeys is what a slave takes when its [accept] config is not set: text for
// people that gitweb and cgit show.
var displayKeys = []string{"gitweb.owner", "gitweb.description", "gitweb.category", "gitweb.url",
	"cgit.owner", "cgit.desc", "cgit.name", "cgit.section", "cgit.homepage"}

// gitSections are what git and its usual helpers read themselves, and gitolite's
// options, which decide who may do what. Nothing in them ever travels.
var gitSections = strings.Fields(`add advice alias am apply attr author blame branch browser bundle checkout clean clone color
	column commit commitgraph committer completion core credential credentialcache credentialstore daemon diff difftool
	diff-tree extensions fastimport feature fetch filter fmt-merge-msg format fsck fsmonitor gc gitcvs gitolite gitolite-options
	gpg grep gui guitool help hook http https i18n imap include includeif index init instaweb interactive lfs log
	lsrefs mailinfo mailmap maintenance man merge mergetool mirror-map multi-pack-index multipackindex notes pack pager pretty
	promisor protocol pull push rebase receive reftable remote remotes repack rerere revert safe scalar sendemail sequence
	showbranch sideband smtp ssh sparse splitindex ssl stash status submodule svn svn-remote tag tar trace2 trailer transfer
	uploadarchive uploadpack url user versionsort web worktree`)

// canonicalKey is SECTION[.SUBSECTION].VARIABLE in git's canonical form. A
// subsection of printable characters is enough for everybody.
var canonicalKey = lazyregexp.New(`^([a-z0-9][a-z0-9-]*)(\.[^\x00-\x20\x7f"\\]+)?\.([a-z][a-z0-9-]*)$`)

// keyPattern is a config key, or a section with ".*".
var keyPattern = lazyregexp.New(`^([A-Za-z0-9][A-Za-z0-9-]*)(\.[^\x00-\x20\x7f"\\*?\[\]]+)?\.([A-Za-z][A-Za-z0-9-]*|\*)$`)

// CheckKeyPattern checks a pattern of [accept] config.
func CheckKeyPattern(pattern string) error {
	m := keyPattern.FindStringSubmatch(pattern)
	if m == nil {
		return fmt.Errorf("%.80q: write a config key such as \"gitweb.owner\", or a section such as \"hooks.*\"", pattern)
	}
	if slices.Contains(gitSections, strings.ToLower(m[1])) {
		return fmt.Errorf("%.80q: %s.* are settings by which a master could run programs here or change who may do what, and never travel", pattern, strings.ToLower(m[1]))
	}
	return nil
}

// matchKey reports whether a canonical key is one that the pattern names.
func matchKey(pattern, key string) bool {
	m := keyPattern.FindStringSubmatch(pattern)
	if m == nil {
		return false
	}
	prefix := strings.ToLower(m[1]) + m[2] + "."
	if m[3] == "*" {
		return strings.HasPrefix(key, prefix)
	}
	return key == prefix+strings.ToLower(m[3])
}

// travels reports whether the master may send the key at all.
func travels(key string) bool {
	m := canonicalKey.FindStringSubmatch(key)
	return m != nil && !slices.Contains(gitSections, m[1])
}

// TakesKey reports whether a master may set this config key (in git's canonical
// form) here.
func (a Accept) TakesKey(key string) bool {
	patterns := displayKeys
	if a.Config != nil {
		patterns = *a.Config
	}
	return travels(key) && slices.ContainsFunc(patterns, func(p string) bool { return matchKey(p, key) })
}

// carried returns the values of the keys that gitolite.mirror.metaKeys names, the
// last of each, and the names in it of which nothing can travel.
func carried(metaKeys []string, entries []git.ConfigEntry) (values map[string]string, never []string) {
	values = map[string]string{}
	for _, pattern := range metaKeys {
		if CheckKeyPattern(pattern) != nil {
			never = append(never, pattern)
		}
	}
	if len(metaKeys) == 0 {
		return values, nil
	}
	for _, e := range entries {
		if !travels(e.Key) || !slices.ContainsFunc(metaKeys, func(p string) bool { return matchKey(p, e.Key) }) {
			continue
		}
		if values[e.Key] = e.Value; e.Implicit {
			values[e.Key] = "true"
		}
	}
	return values, never
}

// Ours returns those of the entries of a whole configuration that ParseRepo
// looks at.
func Ours(entries []git.ConfigEntry) []git.ConfigEntry {
	var metaKeys []string
	for _, e := range entries {
		if e.Key == keyPrefix+"metakeys" {
			metaKeys = strings.Fields(e.Value)
		}
	}
	var ours []git.ConfigEntry
	for _, e := range entries {
		if strings.HasPrefix(e.Key, keyPrefix) || slices.ContainsFunc(metaKeys, func(p string) bool { return matchKey(p, e.Key) }) {
			ours = append(ours, e)
		}
	}
	return ours
}
