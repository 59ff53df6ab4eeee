package mirrorcfg

import (
	"fmt"
	"strings"
)

// refPatterns is the value of gitolite.mirror.refs: a ref is mirrored when one
// of the patterns without "!" matches it, or there is none, and none of those
// with "!" does.
type refPatterns struct{ include, exclude []string }

// parseRefPatterns reads patterns separated by spaces. A "*" stands for any
// text, slashes included, as in a refspec; a trailing slash for everything below.
func parseRefPatterns(value string) (refPatterns, error) {
	var p refPatterns
	for _, word := range strings.Fields(value) {
		pattern, not := strings.CutPrefix(word, "!")
		if !strings.HasPrefix(pattern, "refs/") || strings.ContainsAny(pattern, "?[\\~^: \x7f") {
			return p, fmt.Errorf("pattern %q: write a full ref name or one with *, such as refs/heads/* or !refs/heads/tmp/*", word)
		}
		if strings.HasSuffix(pattern, "/") {
			pattern += "*"
		}
		if not {
			p.exclude = append(p.exclude, pattern)
		} else {
			p.include = append(p.include, pattern)
		}
	}
	return p, nil
}

func (p refPatterns) match(name string) bool {
	return (len(p.include) == 0 || matchAny(p.include, name)) && !matchAny(p.exclude, name)
}

func matchAny(patterns []string, name string) bool {
	for _, pattern := range patterns {
		if matchStar(pattern, name) {
			return true
		}
	}
	return false
}

// matchStar matches with "*" as the only special character, in time linear in
// the product of the lengths whatever the pattern: the part before each star
// is found as early as possible, which never hurts the parts after it.
func matchStar(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	first, last := parts[0], parts[len(parts)-1]
	if !strings.HasPrefix(name, first) || len(name) < len(first)+len(last) || !strings.HasSuffix(name, last) {
		return false
	}
	middle := name[len(first) : len(name)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		at := strings.Index(middle, part)
		if at < 0 {
			return false
		}
		middle = middle[at+len(part):]
	}
	return true
}
