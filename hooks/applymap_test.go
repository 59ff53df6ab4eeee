package hooks

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// The master learns what became of its map, also where apply could not tell: it could not be started, or was killed.
func TestMasterTold(t *testing.T) {
	const note = "mirror-shell: note for status: "
	for name, c := range map[string]struct{ peer, apply, want string }{
		"applied":          {"frodo", "rm -f $NOTE", ""},
		"wrong":            {"frodo", "echo it is wrong > $NOTE; exit 1", note + "it is wrong\n"},
		"killed":           {"frodo", ": > $NOTE; kill -9 $$", note + "mirror map not applied: signal: killed\n"},
		"cannot start":     {"frodo", "", note + "mirror map not applied: fork/exec "},
		"a user's push":    {"", "echo it is wrong > $NOTE; exit 1", ""},
		"applied, missing": {"frodo", "echo a is not there > $NOTE", note + "a is not there\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, programs := t.TempDir(), t.TempDir()
			file := filepath.Join(refset.Dir(dir), "map.note")
			if err := os.Mkdir(refset.Dir(dir), 0o700); err != nil {
				t.Fatal(err)
			}
			if c.apply != "" {
				script := "#!/bin/sh\nNOTE='" + file + "'\n" + c.apply + "\n"
				if err := os.WriteFile(filepath.Join(programs, "mirror-shell"), []byte(script), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			var said bytes.Buffer
			h := &Hook{Dir: dir, Programs: programs, Peer: c.peer, Stderr: &said}
			server := &mirrorcfg.Server{Hostname: "sam", StateDir: t.TempDir(), Map: mirrorcfg.MapConfig{Repository: "admin"}}
			if status := h.applyMap(t.Context(), server, &mirrorcfg.Repo{Name: "admin"}); status != 0 {
				t.Errorf("status %d: the push is stored", status)
			}
			_, told, _ := strings.Cut(said.String(), note)
			if told != "" {
				told = note + told
			}
			if !strings.HasPrefix(told, c.want) || c.want == "" && told != "" {
				t.Errorf("told %q, not %q", said.String(), c.want)
			}
			if noted := refset.MapNote(dir, time.Now()); (noted == "") != (name == "applied") {
				t.Errorf("noted %q", noted)
			}
		})
	}
}
