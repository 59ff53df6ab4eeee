package worker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/cli"
	"mirror-shell/mirrorcfg"
)

// Doctor as root leaves nothing that the account whose server it is could not use: with a jobs' database of root's it would stand still.
func TestDoctorAsRootLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	server := &mirrorcfg.Server{Hostname: "frodo", RepoBase: filepath.Join(dir, "repositories"), StateDir: filepath.Join(dir, "state"), File: filepath.Join(dir, "config.toml")}
	server.Worker.Jobs = 1
	for _, sub := range []string{server.RepoBase, server.StateDir} {
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(sub, 54321, 54321); err != nil {
			t.Fatal(err)
		}
	}
	c := &command{Program: &cli.Program{}, server: server}
	var said int
	for _, f := range c.examine(t.Context()) {
		if f.Level == fail && strings.Contains(f.Detail, "belongs to uid 54321") {
			said++
		}
	}
	if said != 2 {
		t.Errorf("it is said %d times whose the directories are", said)
	}
	for _, sub := range []string{server.RepoBase, server.StateDir} {
		if left, err := os.ReadDir(sub); err != nil || len(left) > 0 {
			t.Errorf("left is %v, %v", left, err)
		}
	}
}
