// Command post-receive is the git hook of that name; see package hooks.
package main

import "mirror-shell/hooks"

func main() { hooks.Main((*hooks.Hook).PostReceive) }
