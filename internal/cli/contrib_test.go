package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// execStart is the command of a unit of systemd.
var execStart = regexp.MustCompile(`(?m)^ExecStart=(.*)$`)

// cronLine is a line of /etc/cron.d, commented out or not: five fields, the account and its command.
var cronLine = regexp.MustCompile(`(?m)^#?((?:[0-9*/]+ +){5})git +(.*?)(?: >/dev/null 2>&1)?$`)

// What timers and cron start is understood by our grammar: nobody looks at their mistakes.
func TestCommandsInContrib(t *testing.T) {
	units, err := filepath.Glob("../../contrib/systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatalf("%q, %v", units, err)
	}
	var commands []string
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		found := execStart.FindAllStringSubmatch(string(text), -1)
		if len(found) != 1 {
			t.Fatalf("%s has %d commands", unit, len(found))
		}
		commands = append(commands, found[0][1])
	}
	cron, err := os.ReadFile("../../contrib/cron/mirror-shell")
	if err != nil {
		t.Fatal(err)
	}
	lines := cronLine.FindAllStringSubmatch(string(cron), -1)
	if want := strings.Count(string(cron), "/bin/mirror-shell "); len(lines) != want {
		t.Errorf("%d of %d lines of the crontab are understood", len(lines), want)
	}
	for _, line := range lines {
		commands = append(commands, line[2])
	}
	for _, command := range commands {
		words := strings.Fields(command)
		if words[0] != "/usr/local/bin/mirror-shell" {
			t.Errorf("%q starts another program", command)
		}
		parser, err := newParser(&Grammar{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(words[1:]); err != nil {
			t.Errorf("%q: %v", command, err)
		}
	}
}
