package manual

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

const fishFrame = `# fish completion for mirror-shell. Made by contrib/manual from the program's grammar.

function __mirror_shell_names
    mirror-shell names $argv 2>/dev/null
end

complete -c mirror-shell -f
`

// fishText is text within single quotes.
func fishText(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + "'"
}

// Fish is the completion for fish.
func Fish(app *kong.Application) string {
	var b strings.Builder
	b.WriteString(fishFrame)
	for _, flag := range flags(app.Node) {
		fishFlag(&b, "", flag)
	}
	for _, node := range commands(app) {
		fmt.Fprintf(&b, "complete -c mirror-shell -n __fish_use_subcommand -a %s -d %s\n", node.Name, fishText(node.Help))
		condition := fmt.Sprintf(" -n '__fish_seen_subcommand_from %s'", node.Name)
		for _, flag := range flags(node) {
			fishFlag(&b, condition, flag)
		}
		kinds, _ := arguments(node)
		slices.Sort(kinds)
		for _, kind := range slices.Compact(kinds) { // fish does not count arguments
			if kind != kindNothing {
				fmt.Fprintf(&b, "complete -c mirror-shell%s%s\n", condition, fishAction(kind))
			}
		}
	}
	return b.String()
}

func fishFlag(b *strings.Builder, condition string, flag *kong.Flag) {
	fmt.Fprintf(b, "complete -c mirror-shell%s -l %s", condition, flag.Name)
	if flag.Short != 0 {
		fmt.Fprintf(b, " -s %c", flag.Short)
	}
	if takesValue(flag) {
		need := " -x" // a value, and no file
		if flagKind(flag) == kindFile {
			need = " -r"
		}
		b.WriteString(need + fishAction(flagKind(flag)))
	}
	fmt.Fprintf(b, " -d %s\n", fishText(flag.Help))
}

func fishAction(kind string) string {
	switch kind {
	case kindNothing:
		return ""
	case kindFile:
		return " -F"
	}
	return fmt.Sprintf(" -a '(__mirror_shell_names %s)'", kind)
}
