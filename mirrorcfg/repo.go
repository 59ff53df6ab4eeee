package mirrorcfg

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"mirror-shell/internal/git"
)

// Role is what this server is for one repository.
type Role int

const (
	Local  Role = iota // no master is set: not mirrored, in no direction
	Master             // users push here, we push to the slaves
	Slave              // only the master pushes here
)

func (r Role) String() string { return [...]string{"local", "master", "slave"}[r] }

// keyPrefix begins every key of ours, and every word in a list that is a key.
const keyPrefix = "gitolite.mirror."

// SlavesKey and SyncKey name the two lists that a push itself uses.
const (
	SlavesKey = keyPrefix + "slaves"
	SyncKey   = keyPrefix + "sync"
)

// hooksPathKey is git's own, and read with ours: it takes no process more.
const hooksPathKey = "core.hookspath"

// reserved are the keys that are no lists.
var reserved = map[string]bool{"master": true, "redirectok": true, "refs": true, "metakeys": true}

// Repo is what one repository's git config says about mirroring.
type Repo struct {
	Name string
	// Master is the hostname of the master server, "" when none is set.
	Master string
	// MetaKeys are the config keys that travel with the repository.
	MetaKeys []string
	// Carried are the values of those keys, by their canonical names; Never are
	// the words of MetaKeys that name nothing that could travel.
	Carried map[string]string
	Never   []string

	// HooksPath is the value of core.hooksPath; "" when it is not set.
	HooksPath string

	// Refs is the value of gitolite.mirror.refs, which decides MirrorsRef.
	Refs string

	redirectOK string
	refs       refPatterns
	values     map[string]string // list key in lower case, without prefix → value
}

// LoadRepo asks git for the repository's effective configuration: one process.
func LoadRepo(ctx context.Context, name string, repo git.Repo) (*Repo, error) {
	return AskRepo(ctx, name, repo)()
}

// AskRepo is LoadRepo for a caller that has something else to do while git reads; the
// function it returns waits for git, and must be called.
func AskRepo(ctx context.Context, name string, repo git.Repo) (answer func() (*Repo, error)) {
	entries := repo.AskConfig(ctx, `.`) // all: which keys travel, one of them says
	return func() (*Repo, error) {
		cfg, err := parseAnswer(name, entries)
		if err != nil {
			return nil, fmt.Errorf("configuration of %s: %w", name, err)
		}
		return cfg, nil
	}
}

func parseAnswer(name string, answer func() ([]git.ConfigEntry, error)) (*Repo, error) {
	entries, err := answer()
	if err != nil {
		return nil, err
	}
	return ParseRepo(name, entries)
}

// ParseRepo makes a Repo of git config entries, of which keys of others are
// ignored. Lists are checked when they are expanded, so that a mistake in one
// of them does not take the others along.
func ParseRepo(name string, entries []git.ConfigEntry) (*Repo, error) {
	cfg := &Repo{Name: name, values: map[string]string{}}
	for _, e := range entries {
		if e.Key == hooksPathKey {
			cfg.HooksPath = e.Value
		}
		key, ours := listKey(e.Key)
		if !ours {
			continue
		}
		if e.Implicit {
			return nil, fmt.Errorf("%s%s has no value: write %s%s = …", keyPrefix, key, keyPrefix, key)
		}
		cfg.values[key] = strings.TrimSpace(e.Value)
	}
	if err := cfg.setReserved(); err != nil {
		return nil, err
	}
	cfg.Carried, cfg.Never = carried(cfg.MetaKeys, entries)
	return cfg, nil
}

// setReserved moves the keys that are no lists to their own fields.
func (c *Repo) setReserved() error {
	if master := c.values["master"]; master != "" && master != "local" {
		if err := CheckHost(master); err != nil {
			return fmt.Errorf("%smaster: %w", keyPrefix, err)
		}
		c.Master = master
	}
	refs, err := parseRefPatterns(c.values["refs"])
	if err != nil {
		return fmt.Errorf("%srefs: %w", keyPrefix, err)
	}
	c.Refs, c.refs, c.redirectOK = c.values["refs"], refs, c.values["redirectok"]
	c.MetaKeys = strings.Fields(c.values["metakeys"])
	for key := range reserved {
		delete(c.values, key)
	}
	if len(c.values) > maxListKeys {
		return fmt.Errorf("%s has %d list keys: at most %d are allowed", keyPrefix+"*", len(c.values), maxListKeys)
	}
	return nil
}

// listKey returns the name behind the prefix in lower case, as git compares
// variable names, and whether word has the prefix at all.
func listKey(word string) (string, bool) {
	if len(word) <= len(keyPrefix) || !strings.EqualFold(word[:len(keyPrefix)], keyPrefix) {
		return "", false
	}
	return strings.ToLower(word[len(keyPrefix):]), true
}

// Role returns what the server of that hostname is for the repository.
func (c *Repo) Role(hostname string) Role {
	switch c.Master {
	case "":
		return Local
	case hostname:
		return Master
	}
	return Slave
}

// MirrorsRef reports whether a ref of that full name is mirrored. Refs below
// refs/mirror/ never are: rescued commits stay where they were rescued.
func (c *Repo) MirrorsRef(name string) bool {
	return !strings.HasPrefix(name, "refs/mirror/") && c.refs.match(name)
}

// MirroredRefs returns the mirrored ones among refs (name → object id); that is
// refs itself, and no copy, when all are.
func (c *Repo) MirroredRefs(refs map[string]string) map[string]string {
	if c.mirrorsAll(refs) {
		return refs
	}
	mirrored := make(map[string]string, len(refs))
	for name, oid := range refs {
		if c.MirrorsRef(name) {
			mirrored[name] = oid
		}
	}
	return mirrored
}

func (c *Repo) mirrorsAll(refs map[string]string) bool {
	for name := range refs {
		if !c.MirrorsRef(name) {
			return false
		}
	}
	return true
}

// MayRedirect reports whether the master (whose hostname is given) accepts
// pushes that slave redirects to it: with redirectOK = true those of every
// member of gitolite.mirror.slaves, else those of the hosts it lists.
func (c *Repo) MayRedirect(hostname, slave string) bool {
	if slave == "" || slave == hostname {
		return false
	}
	if c.redirectOK == "true" {
		return c.IsSlave(hostname, slave)
	}
	return slices.Contains(strings.Fields(c.redirectOK), slave)
}

// Redirects reports whether this server, a slave, redirects users' pushes to
// the master. Both sides are asked; this is the slave's own side.
func (c *Repo) Redirects(hostname string) bool {
	return c.redirectOK == "true" || slices.Contains(strings.Fields(c.redirectOK), hostname)
}

// NotMaster is the sentence for a user who pushes to a slave.
func (c *Repo) NotMaster(hostname string) string {
	return fmt.Sprintf("%s is not the master of %s, please push to %s", hostname, c.Name, c.Master)
}
