package mirrorcfg

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"mirror-shell/internal/git"
)

// MapRecordKey is where a repository remembers, in its own config, what a map has
// written there: one line KEY SP VALUE LF for each key, KEY in lower case and
// without gitolite.mirror. before it. A key has several lines while it is
// being changed: whichever of them is found after a crash was not written by hand.
// What is on record is removed when the map no longer mentions it; what was
// written or changed by hand is not.
const MapRecordKey = "gitolite.mirror-map.written"

// Value is what git config has for a key: nothing at all, when it is not Set.
type Value struct {
	Text string
	Set  bool
}

func (v Value) String() string {
	switch {
	case !v.Set:
		return "(not set)"
	case v.Text == "":
		return "(empty)"
	}
	return v.Text
}

// MapChange is a key whose value in a repository's own config is going to be
// another one.
type MapChange struct {
	Key      string
	Old, New Value
	ByHand   bool // the old value was not written by a map
}

func (c MapChange) String() string {
	text := fmt.Sprintf("%s: %s → %s", c.Key, c.Old, c.New)
	if c.ByHand {
		text += " (the old value was written by hand; the map wins)"
	}
	return text
}

// ConfigWrite sets a key of a repository's own config, or removes it.
type ConfigWrite struct {
	Key string
	New Value
}

// MapPlan is what a map changes in one repository.
type MapPlan struct {
	Changes  []MapChange
	Writes   []ConfigWrite // in this order; what is interrupted is completed by the next plan
	Master   string        // before it; "" for none and for local
	Config   *Repo         // as it will be
	Warnings []string      // what may lose data, or has no effect
	Notes    []string
}

// PlanMap compares a repository's effective config with what the map wants of it
// (nil: nothing). entries and files are git.Repo.ConfigOrigins, ownFile the
// repository's own config file, which alone is changed. An error is a mistake in
// the config that would come of it: it is not to be written.
func PlanMap(hostname, name string, entries []git.ConfigEntry, files []string, ownFile string, want Settings) (*MapPlan, error) {
	c := newCurrent(entries, files, ownFile)
	p := &MapPlan{Master: c.master}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		p.set(key, want[key], c)
	}
	for _, key := range slices.Sorted(maps.Keys(c.record)) {
		if _, wanted := want[key]; !wanted {
			p.unset(key, c)
		}
	}
	if err := p.check(hostname, name, want, c); err != nil {
		return nil, err
	}
	p.order(hostname)
	p.writes(want, c)
	return p, nil
}

// current is a repository's config before the map is applied.
type current struct {
	entries []git.ConfigEntry
	own     []bool
	values  map[string]Value    // in the own file, by key without prefix
	later   map[string]string   // key → a file that is read after the own one and sets it
	record  map[string][]string // key → values that a map may have written
	written Value               // the record as it stands
	master  string              // effective; "" for none and for local
}

func newCurrent(entries []git.ConfigEntry, files []string, ownFile string) *current {
	c := &current{entries: entries, values: map[string]Value{}, later: map[string]string{}, record: map[string][]string{}}
	for i := range entries {
		c.own = append(c.own, files[i] == ownFile)
	}
	first := slices.Index(c.own, true)
	for i, e := range entries {
		if c.own[i] && e.Key == MapRecordKey {
			c.written = Value{e.Value, true}
		}
		key, ours := listKey(e.Key)
		switch {
		case !ours:
			continue
		case c.own[i]:
			c.values[key] = Value{strings.TrimSpace(e.Value), true}
			delete(c.later, key)
		case first >= 0 && i > first:
			c.later[key] = files[i]
		}
		if key == "master" {
			c.master = strings.TrimSpace(e.Value)
		}
	}
	if c.master == "local" {
		c.master = ""
	}
	for line := range strings.Lines(c.written.Text) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " "); ok {
			c.record[key] = append(c.record[key], value)
		}
	}
	return c
}

// byHand reports whether the value that a key has was not written by a map.
func (c *current) byHand(key string) bool {
	value := c.values[key]
	return value.Set && !slices.Contains(c.record[key], value.Text)
}

func (p *MapPlan) set(key string, want Setting, c *current) {
	old := c.values[key]
	if old != (Value{want.Value, true}) {
		p.Changes = append(p.Changes, MapChange{want.Key, old, Value{want.Value, true}, c.byHand(key)})
	}
	if file, ok := c.later[key]; ok {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s is set in %s, too, and of two values git takes the one that it reads last: take it out there", want.Key, file))
	}
}

func (p *MapPlan) unset(key string, c *current) {
	old := c.values[key]
	switch {
	case !old.Set: // somebody has removed it
	case c.byHand(key):
		p.Notes = append(p.Notes, fmt.Sprintf("%s: %s stays: it was changed by hand since the map set it", spell(key), old))
	default:
		p.Changes = append(p.Changes, MapChange{Key: spell(key), Old: old})
	}
}

// check reads the config that would come of it.
func (p *MapPlan) check(hostname, name string, want Settings, c *current) (err error) {
	changed := map[string]bool{}
	for _, change := range p.Changes {
		changed[strings.ToLower(change.Key)] = true
	}
	var after []git.ConfigEntry
	for i, e := range c.entries {
		if !c.own[i] || !changed[strings.ToLower(e.Key)] {
			after = append(after, e)
		}
	}
	for _, change := range p.Changes {
		if _, hidden := c.later[strings.ToLower(change.Key[len(keyPrefix):])]; change.New.Set && !hidden {
			after = append(after, git.ConfigEntry{Key: change.Key, Value: change.New.Text})
		}
	}
	if p.Config, err = ParseRepo(name, after); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if !reserved[key] {
			if _, err := p.Config.Expand(hostname, want[key].Key); err != nil {
				return fmt.Errorf("%s: %w", want[key].File, err)
			}
		}
	}
	if old, now := c.master, p.Config.Master; old != "" && old != now {
		p.Warnings = append(p.Warnings, masterWarning(hostname, old, now))
	}
	return nil
}

// masterWarning says what a change of a repository's master needs, which no
// server can see to alone.
func masterWarning(hostname, old, now string) string {
	switch {
	case now == "":
		return fmt.Sprintf("it had the master %s and is not mirrored any more: users may push to %s", old, hostname)
	case old == hostname:
		return fmt.Sprintf("its master changes from this server to %s: what is not yet on the copies goes nowhere from here: "+
			"make them equal first, and let %s become the master last", now, now)
	case now == hostname:
		return fmt.Sprintf("this server becomes its master in place of %s: that must have stopped taking pushes first", old)
	}
	return fmt.Sprintf("its master changes from %s to %s: %s must know of it first, and %s last", old, now, old, now)
}

// order puts the master where two servers would take themselves for it the
// shortest: first when it is another server, and last when it is this one, whose
// slaves are right then.
func (p *MapPlan) order(hostname string) {
	rank := func(c MapChange) int {
		switch {
		case !strings.EqualFold(c.Key, keyPrefix+"master"):
			return 1
		case c.New.Set && c.New.Text != hostname && c.New.Text != "local":
			return 0
		}
		return 2
	}
	slices.SortStableFunc(p.Changes, func(a, b MapChange) int { return rank(a) - rank(b) })
}

// writes puts the record around the changes.
func (p *MapPlan) writes(want Settings, c *current) {
	final := map[string][]string{}
	for key, setting := range want {
		final[key] = []string{setting.Value}
	}
	during := maps.Clone(final)
	if len(p.Changes) > 0 {
		for key, values := range c.record {
			for _, value := range values {
				if !slices.Contains(during[key], value) {
					during[key] = append(slices.Clone(during[key]), value)
				}
			}
		}
	}
	written := c.written
	record := func(lines map[string][]string) {
		text := recordText(lines)
		if now := (Value{text, text != ""}); now != written {
			p.Writes = append(p.Writes, ConfigWrite{MapRecordKey, now})
			written = now
		}
	}
	record(during)
	for _, change := range p.Changes {
		p.Writes = append(p.Writes, ConfigWrite{change.Key, change.New})
	}
	record(final)
}

func recordText(lines map[string][]string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(lines)) {
		for _, value := range lines[key] {
			b.WriteString(key + " " + value + "\n")
		}
	}
	return b.String()
}
