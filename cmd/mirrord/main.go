// Command mirrord is the worker, and everything too heavy for mirror-shell,
// which runs it; see package worker.
package main

import (
	"os"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/worker"
)

func main() { os.Exit(cli.Main(os.Args[1:], worker.Run)) }
