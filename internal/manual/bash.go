package manual

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

// bashFrame has the parts that do not depend on the grammar. Names are compared in a
// loop and not given to compgen -W, which would expand what stands in them.
const bashFrame = `# bash completion for mirror-shell. Made by contrib/manual from the program's grammar.

_mirror_shell_names() { # CURRENT KIND [--config FILE]
  local current=$1 kind=$2 name
  shift 2
  while IFS= read -r name; do
    if [[ $name == "$current"* ]]; then COMPREPLY+=("$name"); fi
  done < <(mirror-shell "$@" names "$kind" 2>/dev/null)
}

_mirror_shell() {
  local cur=${COMP_WORDS[COMP_CWORD]} command='' expect='' kind='' words='' word i count=0
  local -a config=()
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if [[ $word == = ]]; then continue; fi # readline takes --flag=value apart
    if [[ $expect ]]; then
      if [[ $expect == --config ]]; then config=(--config "$word"); fi
      expect=''
      continue
    fi
    case $word in
      -*) case "$command $word" in
%[1]s
        esac ;;
      *) if [[ $command ]]; then count=$((count + 1)); else command=$word; fi ;;
    esac
  done
  if [[ $cur == = ]]; then cur=''; fi
  if [[ $expect ]]; then
    case "$command $expect" in
%[2]s
    esac
  elif [[ $cur == -* ]]; then
    case $command in
%[3]s
    esac
  elif [[ ! $command ]]; then
    words='%[4]s'
  else
    case "$command $count" in
%[5]s
    esac
  fi
  case $kind in
    file)
      compopt -o filenames 2>/dev/null || :
      while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$cur") ;;
    ?*) _mirror_shell_names "$cur" "$kind" "${config[@]}" ;;
    *) while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -W "$words" -- "$cur") ;;
  esac
}

complete -F _mirror_shell mirror-shell
`

// Bash is the completion for bash, with or without the package bash-completion.
func Bash(app *kong.Application) string {
	b := bash{global: flags(app.Node)}
	b.flagsOf("*", b.global)
	b.options = append(b.options, fmt.Sprintf("      '') words='%s' ;;", options(b.global)))
	var names []string
	for _, node := range commands(app) {
		names = append(names, node.Name)
		b.command(node)
	}
	join := func(lines []string) string { return strings.Join(lines, "\n") }
	return fmt.Sprintf(bashFrame, join(b.expects), join(b.values), join(b.options), strings.Join(names, " "), join(b.arguments))
}

// bash collects the lines of the cases.
type bash struct {
	global                              []*kong.Flag
	expects, values, options, arguments []string
}

func (b *bash) command(node *kong.Node) {
	own := flags(node)
	b.flagsOf(node.Name, own)
	b.options = append(b.options, fmt.Sprintf("      %s) words='%s' ;;", node.Name, options(append(own, b.global...))))
	kinds, anyNumber := arguments(node)
	for i, kind := range kinds {
		place := fmt.Sprintf("'%s %d'", node.Name, i)
		if anyNumber && i == len(kinds)-1 {
			place = fmt.Sprintf("'%s '*", node.Name)
		}
		if kind != kindNothing {
			b.arguments = append(b.arguments, fmt.Sprintf("      %s) kind=%s ;;", place, kind))
		}
	}
}

// flagsOf notes which flags of a command ("*": of all) are followed by a value.
func (b *bash) flagsOf(command string, list []*kong.Flag) {
	for _, flag := range list {
		if !takesValue(flag) {
			continue
		}
		var patterns []string
		for _, word := range words(flag) {
			if command == "*" {
				patterns = append(patterns, fmt.Sprintf("*' %s'", word))
			} else {
				patterns = append(patterns, fmt.Sprintf("'%s %s'", command, word))
			}
		}
		pattern := strings.Join(patterns, " | ")
		b.expects = append(b.expects, fmt.Sprintf("        %s) expect=$word ;;", pattern))
		if kind := flagKind(flag); kind != kindNothing {
			b.values = append(b.values, fmt.Sprintf("      %s) kind=%s ;;", pattern, kind))
		}
	}
}

// options are the words that stand for flags, help among them.
func options(list []*kong.Flag) string {
	var all []string
	for _, flag := range list {
		all = append(all, words(flag)...)
	}
	return strings.Join(all, " ")
}
