package mirrorcfg

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"mirror-shell/internal/lazyregexp"
)

// Setting is the value that a map has for one key.
type Setting struct {
	Key   string // as people write it, gitolite.mirror.redirectOK
	Value string // as git config has it, words separated by a space; "" is a value
	File  string // of the map, which says so
}

// Settings are what a map wants of one repository, by key in lower case without
// gitolite.mirror. before it.
type Settings map[string]Setting

// spelled are the keys whose documented form is not all lower case.
var spelled = map[string]string{"redirectok": "redirectOK", "metakeys": "metaKeys"}

func spell(key string) string {
	if s, ok := spelled[key]; ok {
		return keyPrefix + s
	}
	return keyPrefix + key
}

// variable is what git takes as a variable's name.
var variable = lazyregexp.New(`^[A-Za-z][0-9A-Za-z-]*$`)

// configKey is a whole key of git's. Values of others' keys may be secrets or
// programs to run; which of them may travel is decided where they do.
var configKey = lazyregexp.New(`^[A-Za-z][0-9A-Za-z-]*(\.[^\s"\\[:cntrl:]]+)?\.[A-Za-z][0-9A-Za-z-]*$`)

// settings checks one [[repo]] and puts it into git's words.
func (t *mapTable) settings(file string) (Settings, error) {
	if len(t.Match) == 0 {
		return nil, errors.New(`match is not set: write match = ["NAME", "GLOB", "@GROUP"]`)
	}
	set := Settings{}
	put := func(key string, words []string) {
		if words != nil {
			set[strings.ToLower(key)] = Setting{spell(key), strings.Join(words, " "), file}
		}
	}
	if t.Master != nil {
		if err := checkMaster(*t.Master); err != nil {
			return nil, err
		}
		put("master", []string{*t.Master})
	}
	for key, words := range map[string][]string{"slaves": t.Slaves, "sync": t.Sync} {
		if err := checkWords(words); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		put(key, words)
	}
	for key, words := range t.Lists {
		if err := checkList(key, words); err != nil {
			return nil, fmt.Errorf("lists.%s: %w", key, err)
		}
		if _, twice := set[strings.ToLower(key)]; twice {
			return nil, fmt.Errorf("lists.%s: there is another one of that name, which git cannot tell from it: rename one", key)
		}
		put(key, append([]string{}, words...))
	}
	if err := t.others(); err != nil {
		return nil, err
	}
	put("refs", t.Refs)
	put("metakeys", t.MetaKeys)
	if t.Redirect != nil {
		put("redirectok", []string{t.Redirect.value})
	}
	if len(set) == 0 {
		return nil, errors.New("it sets nothing: write master, slaves or another key, or take the table out")
	}
	return set, nil
}

// others checks the keys that are no lists of peers.
func (t *mapTable) others() error {
	for _, word := range t.Refs {
		if len(strings.Fields(word)) != 1 || strings.ContainsFunc(word, unicode.IsControl) {
			return fmt.Errorf("refs: %q: write one pattern in each string", word)
		}
	}
	if _, err := parseRefPatterns(strings.Join(t.Refs, " ")); err != nil {
		return fmt.Errorf("refs: %w", err)
	}
	for _, word := range t.MetaKeys {
		if !configKey.MatchString(word) && !keyPattern.MatchString(word) {
			return fmt.Errorf("meta_keys: %.200q: write the whole key, such as \"gitweb.owner\", or a section such as \"hooks.*\"", word)
		}
	}
	if t.Redirect != nil {
		for _, host := range t.Redirect.hosts {
			if err := checkMapHost(host); err != nil {
				return fmt.Errorf("redirect_ok: %w", err)
			}
		}
	}
	return nil
}

func checkMaster(master string) error {
	if master == "" {
		return errors.New(`master: it is empty: write a hostname, or "local" for a repository that is not mirrored`)
	}
	if err := checkMapHost(master); err != nil {
		return fmt.Errorf("master: %w", err)
	}
	return nil
}

// checkMapHost refuses HOSTNAME, too: were it replaced in values, every server
// would be the master.
func checkMapHost(name string) error {
	if name == "HOSTNAME" {
		return errors.New("HOSTNAME stands for this server in include and subconf only: write a hostname")
	}
	return CheckHost(name)
}

func checkList(name string, words []string) error {
	key := strings.ToLower(name)
	switch {
	case !variable.MatchString(name):
		return errors.New("use letters, digits and - for the name of a list, with a letter first")
	case reserved[key] || keyPrefix+key == SlavesKey || keyPrefix+key == SyncKey:
		return errors.New("it is no list of your own: write it as a key of [[repo]], or choose another name")
	}
	return checkWords(words)
}

// checkWords checks peers and list keys.
func checkWords(words []string) error {
	for _, word := range words {
		key, isKey := listKey(word)
		switch {
		case isKey && reserved[key]:
			return fmt.Errorf("%s is not a list of peers: name peers or a list key", word)
		case isKey && !variable.MatchString(key):
			return fmt.Errorf("%.200q: a list key is %sNAME, of letters, digits and -", word, keyPrefix)
		case !isKey:
			if err := checkMapHost(word); err != nil {
				return fmt.Errorf("%w; each peer is a string of its own", err)
			}
		}
	}
	return nil
}
