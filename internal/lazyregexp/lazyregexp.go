// Package lazyregexp has regular expressions for package variables of the programs
// that stand in somebody's way: each is compiled when it is first used.
//
// A variable made by regexp.MustCompile is compiled at every start, needed or not. The
// hooks run twice in each push and a session of mirror-shell once for each connection, and
// use hardly any of the expressions that they link. Compiling all of them was a
// quarter of a hook's own processor time, more than reading both configurations.
package lazyregexp

import (
	"regexp"
	"sync"
)

// Regexp is a regular expression that may not have been compiled yet. Any number
// of goroutines may use it.
type Regexp struct {
	text     string
	once     sync.Once
	compiled *regexp.Regexp
}

// New returns the expression of that text, in the syntax of package regexp. A mistake in
// it is a panic at the first use; a test of this package finds it before.
func New(text string) *Regexp { return &Regexp{text: text} }

// Get compiles the expression, unless that has been done.
func (r *Regexp) Get() *regexp.Regexp {
	r.once.Do(func() { r.compiled = regexp.MustCompile(r.text) })
	return r.compiled
}

// MatchString is that of package regexp.
func (r *Regexp) MatchString(s string) bool { return r.Get().MatchString(s) }

// FindStringSubmatch is that of package regexp.
func (r *Regexp) FindStringSubmatch(s string) []string { return r.Get().FindStringSubmatch(s) }
