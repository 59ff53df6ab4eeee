// Package manual makes manual pages and shell completions from the command line's
// own grammar, as kong has read it, and from the README's table of configuration keys. Nothing
// is written twice: a flag that is added to the grammar is in all of them.
//
//	mirror-shell.1          every command with its arguments and flags      [Commands]
//	mirror-shell.toml.5     every key of the server configuration           [Configuration]
//	mirror-shell.bash, _mirror-shell, mirror-shell.fish                     [Bash], [Zsh], [Fish]
//
// Manual pages are written in the macros of man(7), which groff and mandoc know. Text is
// escaped ([Roff]): a line that begins with a dot would be a request, a backslash
// an escape.
//
// The completions know commands, flags, files, and names: of repositories, peers and
// users, for which they ask the program (mirror-shell names KIND).
package manual

import (
	"strings"

	"github.com/alecthomas/kong"
)

// Page says what the head and foot of a manual page show.
type Page struct {
	Version string // of the program
	Date    string // of the page, "2026-11-22"
}

// commands are those that people type.
func commands(app *kong.Application) []*kong.Node {
	var nodes []*kong.Node
	for _, node := range app.Children {
		if !node.Hidden {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// flags are those of a command that people type.
func flags(node *kong.Node) []*kong.Flag {
	var list []*kong.Flag
	for _, flag := range node.Flags {
		if !flag.Hidden {
			list = append(list, flag)
		}
	}
	return list
}

// takesValue reports whether a word follows the flag.
func takesValue(flag *kong.Flag) bool { return !flag.IsBool() && !flag.IsCounter() }

// placeholder is what stands for a flag's value.
func placeholder(flag *kong.Flag) string {
	if flag.PlaceHolder != "" {
		return flag.PlaceHolder
	}
	return strings.ToUpper(flag.Name)
}

// Kinds of what can be completed at a place.
const (
	kindNothing      = ""
	kindFile         = "file"
	kindRepositories = "repositories" // from here on as mirror-shell names takes them
	kindPeers        = "peers"
	kindUsers        = "users"
)

// argumentKind says what a command's argument is, by its name in the grammar.
func argumentKind(node *kong.Node, argument *kong.Value) string {
	switch argument.Name {
	case "repo", "repo|glob", "old":
		return kindRepositories
	case "peer", "peer|key":
		return kindPeers
	case "name":
		if node.Name == "remove-user" {
			return kindUsers
		}
		return kindPeers
	case "file.pub", "map.toml", "map":
		return kindFile
	}
	return kindNothing
}

// flagKind says what a flag's value is, by its placeholder.
func flagKind(flag *kong.Flag) string {
	switch placeholder(flag) {
	case "FILE", "DIR", "PATH|URL":
		return kindFile
	case "PEER":
		return kindPeers
	}
	return kindNothing
}

// arguments are the kinds of a command's arguments, in their order; the last one
// stands for all that follow when the command takes any number.
func arguments(node *kong.Node) (kinds []string, anyNumber bool) {
	for _, argument := range node.Positional {
		kinds = append(kinds, argumentKind(node, argument))
		anyNumber = argument.IsSlice()
	}
	return kinds, anyNumber
}

// words are a flag's forms on the command line.
func words(flag *kong.Flag) []string {
	list := []string{"--" + flag.Name}
	if flag.Short != 0 {
		list = append(list, "-"+string(flag.Short))
	}
	return list
}

// usage is a command's line in the manual: its name and arguments.
func usage(node *kong.Node) string {
	line := node.Name
	for _, argument := range node.Positional {
		word := strings.ToUpper(argument.Name)
		if argument.IsSlice() {
			word += " …"
		}
		if !argument.Required {
			word = "[" + word + "]"
		}
		line += " " + word
	}
	return line
}
