package manual_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/manual"
	"mirror-shell/mirrorcfg"
)

var page = manual.Page{Version: "1.2.3", Date: "2026-11-22"}

func model(t testing.TB) *kong.Application {
	t.Helper()
	app, err := cli.Model()
	if err != nil {
		t.Fatal(err)
	}
	return app
}

func readme(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// lint shows a page to each program that can judge it.
func lint(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "page")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	judges := 0
	for _, argv := range [][]string{{"man", "--warnings", "-l"}, {"mandoc", "-T", "lint", "-W", "warning"}} {
		if _, err := exec.LookPath(argv[0]); err != nil {
			continue
		}
		judges++
		cmd := exec.Command(argv[0], append(argv[1:], file)...)
		cmd.Env = append(os.Environ(), "MANWIDTH=100", "LC_ALL=C.UTF-8", "MAN_KEEP_FORMATTING=")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil || stderr.Len() > 0 || argv[0] == "mandoc" && len(out) > 0 {
			t.Errorf("%q: %v\n%s%s", argv, err, stderr.String(), out)
		}
		if argv[0] == "man" {
			return string(out)
		}
	}
	if judges == 0 {
		t.Log("neither man nor mandoc is here to judge the page")
	}
	return ""
}

// Everything that can be typed is in the page, and nothing that cannot.
func TestCommands(t *testing.T) {
	app := model(t)
	text := manual.Commands(app, page)
	for _, node := range app.Children {
		heading := `.SS "` + manual.Roff(node.Name)
		if found := strings.Contains(text, heading+" ") || strings.Contains(text, heading+`"`); found == node.Hidden {
			t.Errorf("%s: hidden: %t, in the page: %t", node.Name, node.Hidden, found)
		}
		for _, flag := range node.Flags {
			if !node.Hidden && !flag.Hidden && !strings.Contains(text, `\fB`+manual.Roff("--"+flag.Name)) {
				t.Errorf("%s --%s is not in the page", node.Name, flag.Name)
			}
		}
	}
	if shown := lint(t, text); shown != "" && !strings.Contains(shown, "--fg") {
		t.Errorf("%s", shown)
	}
}

// Every key of the configuration is in the README's table, and every key of the table is
// one.
func TestConfiguration(t *testing.T) {
	text, err := manual.Configuration(readme(t), page)
	if err != nil {
		t.Fatal(err)
	}
	lint(t, text)
	keys, err := manual.Keys(readme(t))
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, key := range keys {
		told = append(told, key.Table+"."+key.Name)
		if key.Text == "" || strings.ContainsAny(key.Text, "`") {
			t.Errorf("%s.%s: %q", key.Table, key.Name, key.Text)
		}
	}
	var known []string
	server := reflect.TypeOf(mirrorcfg.Server{})
	for i := range server.NumField() {
		known = append(known, tomlKeys(server.Field(i))...)
	}
	for _, key := range told {
		if !slices.Contains(known, key) {
			t.Errorf("the README explains %s, which is no key", key)
		}
	}
	for _, key := range known {
		table, name, _ := strings.Cut(key, ".")
		if !slices.Contains(told, key) && !strings.Contains(readme(t), "`["+table+"] "+name) {
			t.Errorf("the README does not explain %s", key)
		}
	}
}

// tomlKeys are the keys below a field of the configuration, TABLE.NAME.
func tomlKeys(field reflect.StructField) []string {
	table := field.Tag.Get("toml")
	kind := field.Type
	if kind.Kind() == reflect.Map {
		table, kind = table+".NAME", kind.Elem()
	}
	if table == "-" || table == "" {
		return nil
	}
	if kind.Kind() != reflect.Struct {
		return []string{"." + table}
	}
	var keys []string
	for _, f := range reflect.VisibleFields(kind) { // those of embedded structures, too
		if !f.Anonymous {
			keys = append(keys, table+"."+f.Tag.Get("toml"))
		}
	}
	return keys
}

func TestKeysOfBadReadme(t *testing.T) {
	for _, text := range []string{"", "### Server configuration\nno table", "### Server configuration\n| `a` | b |\n"} {
		if keys, err := manual.Keys(text); err == nil {
			t.Errorf("%q: %v", text, keys)
		}
	}
}

func TestRoff(t *testing.T) {
	for text, want := range map[string]string{
		".so /etc/passwd": `\&.so /etc/passwd`, "'x": `\(aqx`, `a\b`: `a\eb`, "--all": `\-\-all`, "a\n.b": "a\n\\&.b", "~/x": `\(ti/x`,
	} {
		if got := manual.Roff(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzRoff(f *testing.F) {
	f.Add(".de x\n..\n\\*[x]")
	f.Fuzz(func(t *testing.T, text string) {
		for line := range strings.SplitSeq(manual.Roff(text), "\n") {
			if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
				t.Errorf("%q begins a request: %q", text, line)
			}
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add("### Server configuration\n| `[a] b`, `c` | `x`, `y` | z [l](k) |\n")
	f.Fuzz(func(t *testing.T, text string) {
		if keys, err := manual.Keys(text); err == nil && len(keys) == 0 {
			t.Error("no keys, and no error")
		}
	})
}

// completer asks the completion in a real bash, with a mirror-shell beside it that
// knows some names.
type completer struct {
	t   *testing.T
	dir string
}

func newCompleter(t *testing.T) completer {
	c := completer{t, t.TempDir()}
	c.write("mirror-shell.bash", manual.Bash(model(t)), 0o600)
	c.write("mirror-shell", `#!/bin/sh
echo "$*" >> asked
case "$*" in
*"names repositories") printf 'ip1\nprojects/a\n$(touch evil)\n' ;;
*"names peers") printf 'sam\ngollum\n' ;;
*"names users") printf 'alice\n' ;;
*) exit 2 ;;
esac
`, 0o700)
	c.write("sam.pub", "", 0o600)
	return c
}

func (c completer) write(name, text string, mode os.FileMode) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), mode); err != nil {
		c.t.Fatal(err)
	}
}

// complete returns what the last of the words can become.
func (c completer) complete(words ...string) []string {
	c.t.Helper()
	const script = `set -eu
source ./mirror-shell.bash
COMP_WORDS=(mirror-shell "$@")
COMP_CWORD=$#
_mirror_shell
if ((${#COMPREPLY[@]})); then printf '%s\n' "${COMPREPLY[@]}"; fi`
	cmd := exec.Command("bash", append([]string{"--norc", "--noprofile", "-c", script, "bash"}, words...)...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "PATH="+c.dir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%q: %v\n%s", words, err, out)
	}
	return strings.Fields(string(out))
}

func TestBash(t *testing.T) {
	c := newCompleter(t)
	for _, test := range []struct {
		line string // words; "_" is an empty one
		want string
	}{
		{"remove", "remove-peer remove-user"},
		{"--config x forg", "forget"},
		{"sync --p", "--pull-from"},
		{"sync --pull-from s", "sam"},
		{"sync --pull-from = s", "sam"},
		{"sync --pull-from =", "sam gollum"},
		{"sync -n --json pro", "projects/a"},
		{"sync ip1 ip", "ip1"},
		{"--config c.toml sync ip", "ip1"},
		{"request-push i", "ip1"},
		{"request-push ip1 g", "gollum"},
		{"request-push ip1 gollum s", "sam"},
		{"approve ip1 _", "sam gollum"},
		{"approve ip1 sam _", ""},
		{"remove-user _", "alice"},
		{"remove-peer _", "sam gollum"},
		{"add-peer s", "sam.pub"},
		{"restore ip1 --into s", "sam.pub"},
		{"rename i", "ip1"},
		{"doctor _", ""},
		{"peer _", ""}, // hidden commands are none
		{"nonsense --", ""},
	} {
		words := strings.Fields(test.line)
		for i := range words {
			words[i] = strings.TrimPrefix(words[i], "_")
		}
		if got := strings.Join(c.complete(words...), " "); got != test.want {
			t.Errorf("%s: %q, want %q", test.line, got, test.want)
		}
	}
	if got := strings.Join(c.complete("sync", ""), " "); got != "ip1 projects/a $(touch evil)" {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "evil")); err == nil {
		t.Error("a repository's name was run as a command")
	}
	if asked, _ := os.ReadFile(filepath.Join(c.dir, "asked")); !strings.Contains(string(asked), "--config c.toml names repositories\n") {
		t.Errorf("--config is not passed on: %s", asked)
	}
}

// The other shells have at least to be able to read theirs.
func TestOtherShells(t *testing.T) {
	app := model(t)
	for shell, text := range map[string]string{"zsh": manual.Zsh(app), "fish": manual.Fish(app), "bash": manual.Bash(app)} {
		t.Run(shell, func(t *testing.T) {
			for _, want := range []string{"request-push", "names", "pull-from"} {
				if !strings.Contains(text, want) {
					t.Errorf("%s is not in it", want)
				}
			}
			if _, err := exec.LookPath(shell); err != nil {
				t.Skip(shell, " is not here to read it")
			}
			file := filepath.Join(t.TempDir(), "completion")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(shell, "-n", file).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
