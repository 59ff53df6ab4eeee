package inbox

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"mirror-shell/internal/strace"
)

const powerCutEnv = "INBOX_POWER_CUT"

// TestPowerCutChild is the process that TestPowerCut watches.
func TestPowerCutChild(t *testing.T) {
	dir := os.Getenv(powerCutEnv)
	if dir == "" {
		t.Skip("for TestPowerCut")
	}
	b := New(dir)
	for range 2 { // the second finds its directories
		if _, err := b.Put(Event{Repository: "ip1", Peers: []string{"sam"}, Origin: OriginList}); err != nil {
			t.Fatal(err)
		}
		say("acknowledged")
	}
	if n, err := b.Take(func([]Event) error { say("committed"); return nil }); n != 2 || err != nil {
		t.Fatal(n, err)
	}
}

// say shows in the trace as a write.
func say(what string) { _, _ = os.Stdout.WriteString(what + "\n") }

// What a power cut leaves of a push that was acknowledged can be told from the order of system calls: the
// content is on the disk before the name, and the name before anybody is told. It is not removed before it
// has been committed.
func TestPowerCut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	trace := strace.Child(t, "TestPowerCutChild", powerCutEnv+"="+dir,
		"write,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat")
	calls := powerCutCalls(trace, dir)
	first := []string{"mkdir state", "fsync .", "mkdir state/inbox", "fsync state"}
	put := []string{"write TEMP", "fsync TEMP", "rename TEMP EVENT", "fsync state/inbox", "acknowledged"}
	take := []string{"mkdir state/inbox/taken", "fsync state/inbox", "rename EVENT TAKEN", "rename EVENT TAKEN", "committed", "unlink TAKEN", "unlink TAKEN"}
	if want := slices.Concat(first, put, put, take); !slices.Equal(calls, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(calls, "\n"), strings.Join(want, "\n"))
	}
}

// powerCutCalls are the calls that succeeded, in their order, with names below the parent of dir.
func powerCutCalls(trace, dir string) (calls []string) {
	call := regexp.MustCompile(`^\d+ +(\w+)\((.*)\) += 0?\d*(<.*>)?$`)
	quoted := regexp.MustCompile(`"([^"]*)"|\d+<([^>]*)>`)
	shorten := strings.NewReplacer(dir, "state", filepath.Dir(dir), ".")
	event := regexp.MustCompile(`^state/inbox/(taken/)?(\.?)\d{19}-[0-9a-f]{8}\.\w+$`)
	for line := range strings.Lines(trace) {
		m := call.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		var names []string
		for _, q := range quoted.FindAllStringSubmatch(m[2], -1) {
			name := shorten.Replace(q[1] + q[2])
			switch e := event.FindStringSubmatch(name); {
			case e == nil:
			case e[1] != "":
				name = "TAKEN"
			case e[2] != "":
				name = "TEMP"
			default:
				name = "EVENT"
			}
			names = append(names, name)
		}
		what := strings.TrimSuffix(strings.TrimSuffix(m[1], "2"), "at")
		if len(names) > 1 && (names[1] == `acknowledged\n` || names[1] == `committed\n`) {
			calls = append(calls, strings.TrimSuffix(names[1], `\n`))
			continue
		}
		if what == "write" {
			names = slices.DeleteFunc(names, func(name string) bool { return name != "TEMP" })
		}
		names = slices.DeleteFunc(names, func(name string) bool {
			return name != "." && name != strings.ToUpper(name) && !strings.HasPrefix(name, "state")
		})
		if len(names) > 0 {
			calls = append(calls, strings.Replace(what, "fdata", "f", 1)+" "+strings.Join(names, " "))
		}
	}
	return calls
}
