// Command manual writes the manual pages and shell completions of mirror-shell; see
// package manual of this module. From the root of the source tree:
//
//	go run ./contrib/manual DIRECTORY [YYYY-MM-DD]
//
// The date is that of the pages; a build that must be repeatable gives the commit's.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/manual"
	"mirror-shell/shell"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "manual: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return errors.New("usage: go run ./contrib/manual DIRECTORY [YYYY-MM-DD]")
	}
	page := manual.Page{Version: shell.ProgramVersion(), Date: time.Now().UTC().Format(time.DateOnly)}
	if len(args) == 2 {
		page.Date = args[1]
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		return fmt.Errorf("%w: run it in the root of the source tree", err)
	}
	app, err := cli.Model()
	if err != nil {
		return err
	}
	configuration, err := manual.Configuration(string(readme), page)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(args[0], 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"mirror-shell.1": manual.Commands(app, page), "mirror-shell.toml.5": configuration,
		"mirror-shell.bash": manual.Bash(app), "_mirror-shell": manual.Zsh(app), "mirror-shell.fish": manual.Fish(app),
	} {
		if err := os.WriteFile(filepath.Join(args[0], name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
