// Command mirror-shell is what sshd and administrators run; see package cli.
package main

import (
	"os"

	"mirror-shell/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], cli.Light)) }
