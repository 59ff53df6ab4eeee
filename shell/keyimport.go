package shell

// Lines of gitolite's in authorized_keys that let a server in, as ours would.

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// ForeignPeer is a key that gitolite's own mirroring lets in as a server's.
type ForeignPeer struct {
	Name        string // the server
	Line        int    // in authorized_keys, from 1
	Fingerprint string
	Ours        bool // an earlier line lets the same key in as our peer of that name

	key ssh.PublicKey
}

// ForeignPeers lists them: gitolite 3 has command="…/gitolite-shell server-sam",
// gitolite 2 command="…/gl-mirror-shell sam". A name that is none of a peer's, or a key that
// is not accepted here, is an error after the others.
func (a AuthorizedKeys) ForeignPeers() ([]ForeignPeer, error) {
	lines, err := a.read()
	if err != nil {
		return nil, err
	}
	return foreignPeers(lines)
}

func foreignPeers(lines []keyLine) (peers []ForeignPeer, err error) {
	ours := map[string]bool{} // name, and the key
	for i, l := range lines {
		if e, ok := l.entry(); ok && e.Kind == KeyPeer {
			ours[e.Name+" "+string(l.blob)] = true
		}
		name, ok := l.foreignPeer()
		if !ok {
			continue
		}
		key, keyErr := ssh.ParsePublicKey(l.blob)
		if keyErr == nil {
			keyErr = checkKeyType(key)
		}
		if _, nameErr := keyFileName(KeyPeer, name+".pub"); nameErr != nil {
			keyErr = nameErr
		}
		if keyErr != nil {
			err = fmt.Errorf("line %d of authorized_keys, server %.80q: %w", i+1, name, keyErr)
			continue
		}
		peers = append(peers, ForeignPeer{Name: name, Line: i + 1, Fingerprint: ssh.FingerprintSHA256(key), Ours: ours[name+" "+string(l.blob)], key: key})
	}
	return peers, err
}

// foreignPeer is the server that a line of gitolite's lets in.
func (l keyLine) foreignPeer() (name string, ok bool) {
	command, _ := l.option("command")
	words := strings.Fields(command.value)
	if l.blob == nil || l.refused || len(words) < 2 {
		return "", false
	}
	switch path.Base(words[0]) {
	case "gitolite-shell":
		return strings.CutPrefix(words[1], "server-")
	case "gl-mirror-shell":
		return words[1], true
	}
	return "", false
}

// Import lets the key in as our peer, by a line in front of gitolite's: sshd takes the
// first. Gitolite's line stays where it is, and gitolite keeps ours, which is outside its
// block, when it writes its own anew.
func (a AuthorizedKeys) Import(p ForeignPeer) (e KeyEntry, changed bool, err error) {
	e = KeyEntry{Kind: KeyPeer, Name: p.Name, File: p.Name + ".pub", Type: p.key.Type(), Fingerprint: p.Fingerprint}
	changed, err = a.edit(false, func(lines []keyLine) ([]keyLine, error) {
		return importKeyLine(lines, e, a.Command, p.key)
	})
	if err != nil {
		return e, false, fmt.Errorf("add peer %q to %s: %w", p.Name, a.Path, err)
	}
	return e, changed, nil
}

func importKeyLine(lines []keyLine, e KeyEntry, command []string, key ssh.PublicKey) ([]keyLine, error) {
	foreign := func(l keyLine) bool {
		name, ok := l.foreignPeer()
		return ok && name == e.Name && string(l.blob) == string(key.Marshal())
	}
	rest := slices.DeleteFunc(slices.Clone(lines), foreign)
	added, n, err := addKeyLine(rest, e, command, key)
	if err != nil {
		return nil, err
	}
	line := added[n-1]
	if line.end == "" {
		line.end = "\n"
	}
	kept := slices.DeleteFunc(slices.Clone(lines), func(l keyLine) bool {
		o, ok := l.entry()
		return ok && o.Kind == e.Kind && o.File == e.File
	})
	at := slices.IndexFunc(kept, func(l keyLine) bool { return foreign(l) || gitoliteStart(l) })
	if at < 0 {
		at = len(kept)
	}
	return slices.Insert(kept, at, line), nil
}

// gitoliteStart is the first line of what gitolite writes anew.
func gitoliteStart(l keyLine) bool {
	return strings.HasPrefix(l.text, "# gito") && strings.HasSuffix(strings.TrimSpace(l.text), "start")
}
