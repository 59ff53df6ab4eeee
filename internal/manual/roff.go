package manual

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

// Roff escapes text for a manual page: nothing in it is a request, an escape, or
// the typographical sign that groff makes of some letters.
func Roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, "\r", "").Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// argument quotes text as one argument of a macro.
func argument(text string) string { return `"` + strings.ReplaceAll(Roff(text), `"`, `\(dq`) + `"` }

// page writes macros.
type page struct{ strings.Builder }

func newPage(name string, section int, about string, p Page) *page {
	w := &page{}
	w.line(`.\" Made by contrib/manual; changes belong into the grammar, or the README.`)
	// The date as it is: mandoc does not know one with escapes.
	w.line(fmt.Sprintf(`.TH %s %d "%s" %s "mirror-shell"`, argument(strings.ToUpper(name)), section, p.Date, argument("mirror-shell "+p.Version)))
	w.section("NAME")
	w.line(Roff(name) + ` \- ` + Roff(about))
	return w
}

func (w *page) line(text string) { w.WriteString(text + "\n") }

func (w *page) macro(name string, arguments ...string) {
	line := "." + name
	for _, a := range arguments {
		line += " " + argument(a)
	}
	w.line(line)
}

func (w *page) section(name string) { w.macro("SH", name) }

// text is filled by the reader's program; its lines are short for who reads the
// source.
func (w *page) text(text string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+len(word) > 70 {
			w.line(Roff(line))
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	w.line(Roff(line))
}

// item is a term with its explanation.
func (w *page) item(term, text string) {
	w.line(".TP")
	w.line(`\fB` + Roff(term) + `\fR`)
	w.text(text)
}

// Commands is mirror-shell(1), made from the grammar.
func Commands(app *kong.Application, p Page) string {
	w := newPage("mirror-shell", 1, "git mirroring and backup: every repository in more than one place", p)
	w.section("SYNOPSIS")
	w.line(`\fBmirror\-shell\fR [\fIflags\fR] \fIcommand\fR …`)
	w.section("DESCRIPTION")
	w.text(app.Help)
	w.line(".PP")
	w.text("Every repository has one master server, where users push. The master pushes to its slaves at once and in the background, and tries again until they are equal. Which repository goes where is plain git config; see the README, which is installed with the program, for how servers are set up.")
	w.section("COMMANDS")
	for _, node := range commands(app) {
		w.command(node)
	}
	w.section("FLAGS OF ALL COMMANDS")
	w.flags(flags(app.Node))
	w.section("EXIT STATUS")
	w.item("0", "done")
	w.item("1", "refused, failed or not equal; request-push: nobody to push to")
	w.item("2", "wrong usage")
	w.section("ENVIRONMENT")
	w.item("MIRROR_SHELL_CONFIG", "the server configuration to use, unless --config names one")
	w.section("FILES")
	w.item("~/.config/mirror-shell/config.toml, /etc/mirror-shell/config.toml", "the server configuration, mirror-shell.toml(5)")
	w.item("~/.local/state/mirror-shell/", "queue, memory, locks and logs; state_dir in the configuration")
	w.item("~/.ssh/authorized_keys", "who may come in, with the forced commands that add-peer and add-user write")
	w.section("SEE ALSO")
	w.line(`\fBmirror\-shell.toml\fR(5), \fBgit\-config\fR(1), \fBsshd\fR(8)`)
	return w.String()
}

func (w *page) command(node *kong.Node) {
	w.macro("SS", usage(node))
	w.text(node.Help)
	for _, argument := range node.Positional {
		if argument.Help != "" {
			w.item(strings.ToUpper(argument.Name), argument.Help)
		}
	}
	w.flags(flags(node))
}

func (w *page) flags(list []*kong.Flag) {
	for _, flag := range list {
		term := strings.Join(words(flag), ", ")
		if takesValue(flag) {
			term += " " + placeholder(flag)
		}
		w.item(term, flag.Help)
	}
}
