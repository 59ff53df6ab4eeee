package manual

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

const zshFrame = `#compdef mirror-shell
# zsh completion for mirror-shell. Made by contrib/manual from the program's grammar.

_mirror_shell_names() { # [options of compadd] KIND
  local -a names config
  if (( ${#_mirror_shell_config} )); then config=(--config $_mirror_shell_config); fi
  names=(${(f)"$(mirror-shell $config names $argv[-1] 2>/dev/null)"})
  compadd "${(@)argv[1,-2]}" -a names
}

_mirror_shell() {
  local curcontext=$curcontext state line _mirror_shell_config
  local -a commands
  typeset -A opt_args
  _arguments -C \
%[1]s
    '1:command:->command' \
    '*::argument:->argument'
  _mirror_shell_config=${opt_args[--config]}
  case $state in
  command)
    commands=(
%[2]s
    )
    _describe command commands ;;
  argument)
    case $line[1] in
%[3]s
    esac ;;
  esac
}

_mirror_shell "$@"
`

// zshText is text within single quotes, in a place where brackets and colons mean
// something.
func zshText(text string) string {
	return strings.NewReplacer(`'`, `'\''`, "[", `\[`, "]", `\]`, ":", `\:`, "`", "", "$", `\$`).Replace(text)
}

// Zsh is the completion for zsh: a file of the name _mirror-shell in a directory of
// its fpath.
func Zsh(app *kong.Application) string {
	var global, list, cases []string
	for _, flag := range flags(app.Node) {
		global = append(global, "    "+zshFlag(flag)+` \`)
	}
	for _, node := range commands(app) {
		list = append(list, fmt.Sprintf("      '%s:%s'", node.Name, zshText(node.Help)))
		specs := []string{}
		for _, flag := range flags(node) {
			specs = append(specs, zshFlag(flag))
		}
		kinds, anyNumber := arguments(node)
		for i, kind := range kinds {
			place := fmt.Sprint(i + 1)
			if anyNumber && i == len(kinds)-1 {
				place = "*"
			}
			specs = append(specs, fmt.Sprintf("'%s:%s:%s'", place, zshText(node.Positional[i].Name), zshAction(kind)))
		}
		if len(specs) > 0 {
			cases = append(cases, fmt.Sprintf("    %s) _arguments %s ;;", node.Name, strings.Join(specs, " ")))
		}
	}
	join := func(lines []string) string { return strings.Join(lines, "\n") }
	return fmt.Sprintf(zshFrame, join(global), join(list), join(cases))
}

// zshFlag are the specifications of a flag's forms.
func zshFlag(flag *kong.Flag) string {
	var specs []string
	for _, word := range words(flag) {
		spec := fmt.Sprintf("'%s[%s]'", word, zshText(flag.Help))
		if takesValue(flag) {
			assign := "="
			if !strings.HasPrefix(word, "--") {
				assign = "+"
			}
			spec = fmt.Sprintf("'%s%s[%s]:%s:%s'", word, assign, zshText(flag.Help), zshText(placeholder(flag)), zshAction(flagKind(flag)))
		}
		specs = append(specs, spec)
	}
	return strings.Join(specs, " ")
}

func zshAction(kind string) string {
	switch kind {
	case kindNothing:
		return " "
	case kindFile:
		return "_files"
	}
	return "_mirror_shell_names " + kind
}
