package mirrorcfg

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Expand turns words, each a peer or a list key, into peers: keys are expanded
// in place and recursively, the first occurrence counts, this server's own name
// is skipped. A key that is not set is empty here (cron names it for every
// repository), and an error inside a value.
func (c *Repo) Expand(hostname string, words ...string) ([]string, error) {
	x := expansion{repo: c, seen: map[string]bool{hostname: true}, done: map[string]bool{}}
	for _, word := range words {
		if key, ok := listKey(word); ok && c.values[key] == "" && !reserved[key] {
			continue
		}
		if err := x.add(word); err != nil {
			return nil, fmt.Errorf("mirror list of %s: %w", c.Name, err)
		}
	}
	return x.peers, nil
}

// The bounds of one repository's lists. Who may write its configuration must not
// be able to occupy the server with it: 3,000 keys, each the next one's only
// word, took half a minute to tell that a peer is in none of them.
const (
	maxListKeys = 1000 // of a repository
	maxWords    = 1000 // looked at in one expansion
)

// expansion is the state of one Expand.
type expansion struct {
	repo  *Repo
	words int             // looked at
	path  []string        // keys being expanded, outermost first
	done  map[string]bool // keys expanded in full: a diamond of n keys is not 2^n work
	seen  map[string]bool
	peers []string
}

func (x *expansion) add(word string) error {
	if x.words++; x.words > maxWords {
		return fmt.Errorf("more than %d peers and keys%s: shorten the lists", maxWords, x.where())
	}
	key, isKey := listKey(word)
	if !isKey {
		return x.addPeer(word)
	}
	if reserved[key] {
		return fmt.Errorf("%s is not a list of peers%s: name peers or a list key of your own", keyPrefix+key, x.where())
	}
	if at := slices.Index(x.path, key); at >= 0 {
		return fmt.Errorf("the keys include each other without end: %s: take one of them out", strings.Join(append(x.path[at:], key), " → "))
	}
	if x.done[key] {
		return nil
	}
	value, set := x.repo.values[key]
	if !set {
		return fmt.Errorf("%s is not set%s: set it or take it out", keyPrefix+key, x.where())
	}
	x.path = append(x.path, key)
	for _, w := range strings.Fields(value) {
		if err := x.add(w); err != nil {
			return err
		}
	}
	x.path = x.path[:len(x.path)-1]
	x.done[key] = true
	return nil
}

func (x *expansion) addPeer(name string) error {
	if err := CheckHost(name); err != nil {
		return fmt.Errorf("%w%s", err, x.where())
	}
	if !x.seen[name] {
		x.seen[name] = true
		x.peers = append(x.peers, name)
	}
	return nil
}

// where says which value a word stands in, "" for the command line.
func (x *expansion) where() string {
	if len(x.path) == 0 {
		return ""
	}
	return " (in the value of " + keyPrefix + x.path[len(x.path)-1] + ")"
}

// IsSlave reports whether peer is in the expansion of gitolite.mirror.slaves. A
// list that cannot be expanded has no members: who may do something is never
// decided in favour of the asker by a mistake.
func (c *Repo) IsSlave(hostname, peer string) bool {
	peers, err := c.Expand(hostname, SlavesKey)
	return err == nil && slices.Contains(peers, peer)
}

// Listed reports whether peer is in the expansion of any list of the
// repository, which is what lets it read the repository and keeps a queued job
// for it alive.
func (c *Repo) Listed(hostname, peer string) bool {
	for key := range c.values {
		peers, err := c.Expand(hostname, keyPrefix+key)
		if err == nil && slices.Contains(peers, peer) {
			return true
		}
	}
	return false
}

// Lists returns the list keys that are set, sorted, with their prefix.
func (c *Repo) Lists() []string {
	keys := make([]string, 0, len(c.values))
	for key := range c.values {
		keys = append(keys, keyPrefix+key)
	}
	sort.Strings(keys)
	return keys
}

// IsKey reports whether word is a list key rather than the name of a peer.
func IsKey(word string) bool {
	_, ok := listKey(word)
	return ok
}
