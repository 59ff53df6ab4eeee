package store_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"mirror-shell/internal/strace"
	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

const powerCutEnv = "STORE_POWER_CUT"

// TestPowerCutChild is the process that TestPowerCut watches.
func TestPowerCutChild(t *testing.T) {
	dir := os.Getenv(powerCutEnv)
	if dir == "" {
		t.Skip("for TestPowerCut")
	}
	ctx, s := t.Context(), open(t, store.Options{URL: "file://" + dir})
	do := func(what string, err error) {
		if err != nil {
			t.Fatal(what, err)
		}
		_, _ = os.Stdout.WriteString("said: " + what + "\n")
	}
	d := s.(store.Deferrer)
	do("open", nil)
	do("a", d.PutDeferred(ctx, "data/ip1/a", storetest.Bytes([]byte("a"))))
	do("b", d.PutDeferred(ctx, "data/ip1/b", storetest.Bytes([]byte("b"))))
	do("settled", d.Settle(ctx, []string{"data/ip1/a", "data/ip1/b"}))
	do("m", s.Put(ctx, "snapshots/m", storetest.Bytes([]byte("m"))))
	do("c", s.Put(ctx, "data/ip1/c", storetest.Bytes([]byte("c"))))
	// Directories that were removed and made again are not those that were known.
	for _, key := range []string{"data/ip1/a", "data/ip1/b", "data/ip1/c"} {
		if err := s.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	do("deleted", nil)
	do("e", s.Put(ctx, "data/ip1/e", storetest.Bytes([]byte("e"))))
	// A directory that somebody made, perhaps just now.
	if err := os.Mkdir(dir+"2", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"f", "g"} {
		s = open(t, store.Options{URL: "file://" + dir + "2"})
		do("open again", nil)
		do(key, s.Put(ctx, key, storetest.Bytes([]byte(key))))
	}
}

// What a power cut leaves can be told from the order of system calls: the content is on the disk before the name, and
// all names on the way to it before anybody is told that it is there.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	dir := filepath.Join(parent, "vault")
	trace := strace.Child(t, "TestPowerCutChild", powerCutEnv+"="+dir, "write,fsync,linkat,mkdir,mkdirat")
	content := func(key string, dirs ...string) []string {
		return slices.Concat([]string{"fsync TEMP"}, dirs, []string{"link " + key})
	}
	want := slices.Concat(
		[]string{"mkdir vault", "fsync .", "said: open", "mkdir vault/.tmp"},
		content("vault/data/ip1/a", "mkdir vault/data", "mkdir vault/data/ip1"), []string{"said: a"},
		content("vault/data/ip1/b"), []string{"said: b"},
		[]string{"fsync vault/data/ip1", "fsync vault/data", "fsync vault", "said: settled"},
		content("vault/snapshots/m", "mkdir vault/snapshots"), []string{"fsync vault/snapshots", "fsync vault", "said: m"},
		content("vault/data/ip1/c"), []string{"fsync vault/data/ip1", "said: c"},
		[]string{"said: deleted"},
		content("vault/data/ip1/e", "mkdir vault/data", "mkdir vault/data/ip1"),
		[]string{"fsync vault/data/ip1", "fsync vault/data", "fsync vault", "said: e"},
		[]string{"mkdir vault2", "fsync .", "said: open again", "mkdir vault2/.tmp"},
		content("vault2/f"), []string{"fsync vault2", "said: f", "said: open again"},
		content("vault2/g"), []string{"fsync vault2", "said: g"},
	)
	if calls := powerCutCalls(trace, parent); !slices.Equal(calls, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(calls, "\n"), strings.Join(want, "\n"))
	}
}

// powerCutCalls are the calls that succeeded, in their order, with names below parent; of what happens while blobs are deleted
// none.
func powerCutCalls(trace, parent string) (calls []string) {
	succeeded := regexp.MustCompile(`^(\w+)\((.*)\) += \d+`)
	place := regexp.MustCompile(`(?:\d+<([^>]*)>)?(?:, )?(?:"([^"]*)")?`)
	deleting := false
	for line := range strings.Lines(trace) {
		_, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		m := succeeded.FindStringSubmatch(strings.TrimSpace(call))
		if m == nil {
			continue
		}
		if _, said, ok := strings.Cut(m[2], "said: "); ok && m[1] == "write" {
			said, _, _ = strings.Cut(said, `\n`)
			calls, deleting = append(calls, "said: "+said), said == "c"
			continue
		}
		names := []string{}
		for _, p := range place.FindAllStringSubmatch(m[2], -1) {
			if name := filepath.Join(p[1], p[2]); name != "" {
				rel, err := filepath.Rel(parent, name)
				if err != nil || strings.HasPrefix(rel, "..") {
					continue
				}
				if strings.Contains(rel, "/.tmp/") {
					rel = "TEMP"
				}
				names = append(names, rel)
			}
		}
		if m[1] == "write" || len(names) == 0 || deleting {
			continue
		}
		calls = append(calls, strings.TrimSuffix(m[1], "at")+" "+names[len(names)-1])
	}
	return calls
}
