package cli

import (
	"fmt"
	"slices"

	"mirror-shell/shell"
)

// names prints what can be typed at a place of a command line, one per line, sorted.
// What cannot be read is left out where something else can be named: who presses
// the tabulator wants no message.
func (p *Program) names() error {
	server, err := p.Server()
	if err != nil {
		return err
	}
	var names []string
	if p.Names.Kind == "repositories" {
		names, err = server.Repositories()
	} else {
		kind := shell.KeyKind(p.Names.Kind[:len(p.Names.Kind)-1])
		if names, err = p.keyNames(kind); kind == shell.KeyPeer {
			for name := range server.Peers {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		fmt.Fprintln(p.Stdout, name)
	}
	return err
}

// keyNames are the peers or users who have a key here.
func (p *Program) keyNames(kind shell.KeyKind) ([]string, error) {
	keys, err := p.keys("~/.ssh/authorized_keys")
	if err != nil {
		return nil, err
	}
	entries, err := keys.List()
	var names []string
	for _, e := range entries {
		if e.Kind == kind {
			names = append(names, e.Name)
		}
	}
	return names, err
}
