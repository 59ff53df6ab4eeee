package manual

import (
	"fmt"
	"regexp"
	"strings"
)

// Key is one key of the server configuration, as the README explains it.
type Key struct {
	Table   string // "users"; "" for the file's own keys
	Name    string
	Default string // as it would be written; or "required"
	Text    string // without Markdown
}

// configurationHeading opens the README's section that has the table.
const configurationHeading = "### Server configuration"

var (
	code = regexp.MustCompile("`([^`]*)`")
	link = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// Keys reads the table of keys from the README.
func Keys(readme string) ([]Key, error) {
	_, section, found := strings.Cut(readme, configurationHeading+"\n")
	if !found {
		return nil, fmt.Errorf("the README has no section %q", configurationHeading)
	}
	section, _, _ = strings.Cut(section, "\n### ")
	var keys []Key
	table := ""
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "#### ") { // the table below it is of a backup peer
			table = "peer.NAME"
		}
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.ReplaceAll(strings.Trim(strings.TrimSpace(line), "|"), `\|`, "\x00"), "|")
		if len(cells) != 3 {
			return nil, fmt.Errorf("README, %s: %q has %d cells, not 3", configurationHeading, line, len(cells))
		}
		keys = append(keys, row(table, cells)...)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("README, %s: no table of keys", configurationHeading)
	}
	return keys, nil
}

// row reads one row; several keys of a table may share one, which is named before the first.
func row(table string, cells []string) []Key {
	var keys []Key
	defaults := strings.Split(cells[1], ", ")
	for i, match := range code.FindAllStringSubmatch(cells[0], -1) {
		name := match[1]
		if head, rest, found := strings.Cut(name, "] "); found {
			table, name = strings.TrimPrefix(head, "["), rest
		}
		keys = append(keys, Key{table, name, plain(defaults[min(i, len(defaults)-1)]), plain(cells[2])})
	}
	return keys
}

// plain is a cell without Markdown.
func plain(cell string) string {
	cell = link.ReplaceAllString(cell, "$1")
	cell = code.ReplaceAllString(cell, "$1")
	return strings.TrimSpace(strings.ReplaceAll(cell, "\x00", "|"))
}

// Configuration is mirror-shell.toml(5), made from the README.
func Configuration(readme string, p Page) (string, error) {
	keys, err := Keys(readme)
	if err != nil {
		return "", err
	}
	w := newPage("mirror-shell.toml", 5, "server configuration of mirror-shell", p)
	w.section("DESCRIPTION")
	w.text("A file in TOML. The first of these that exists is read: the one that --config names, the one that the environment variable MIRROR_SHELL_CONFIG names, ~/.config/mirror-shell/config.toml, /etc/mirror-shell/config.toml. Unknown keys and impossible values are errors. With no configuration, or a broken one, mirrored repositories refuse pushes.")
	w.section("KEYS")
	table := ""
	for _, key := range keys {
		if key.Table != table {
			table = key.Table
			w.macro("SS", "["+table+"]")
		}
		text := key.Text
		if key.Default != "" {
			text += "\n(default: " + key.Default + ")"
			if key.Default == "required" {
				text = key.Text + "\n(required)"
			}
		}
		w.item(key.Name, text)
	}
	w.section("EXAMPLE")
	w.line(".nf")
	w.line(Roff("hostname = \"frodo\"\nrepo_base = \"/srv/git/repositories\"\n\n[users]\nauthorize = [\"/usr/local/bin/may-i\"]"))
	w.line(".fi")
	w.section("SEE ALSO")
	w.line(`\fBmirror\-shell\fR(1)`)
	return w.String(), nil
}
