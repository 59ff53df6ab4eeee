package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What root would leave in another account's place that account could not use. Doctor says so among all else.
func TestRootIsRefusedInAnothersPlace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("hostname = \"frodo\"\nrepo_base = %q\nstate_dir = %q\n", dir+"/repositories", dir+"/state")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(command string) error {
		p := &Program{Command: command}
		p.Config = config
		server, err := p.Server()
		if (server == nil) != (err != nil) {
			t.Errorf("%s: %v and %v", command, server, err)
		}
		return err
	}
	if err := load("restore"); err != nil { // nothing is there
		t.Error(err)
	}
	for _, sub := range []string{"/repositories", "/state"} {
		if err := os.Mkdir(dir+sub, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := load("restore"); err != nil { // root's own
			t.Error(err)
		}
		if err := os.Chown(dir+sub, 54321, 54321); err != nil {
			t.Fatal(err)
		}
		if err := load("restore"); err == nil || !strings.Contains(err.Error(), dir+sub+" belongs to uid 54321, and this is root") {
			t.Errorf("%s: %v", sub, err)
		}
		if err := load("doctor"); err != nil {
			t.Error(err)
		}
		if err := os.Chown(dir+sub, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
}
