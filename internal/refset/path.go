package refset

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
)

// Path is where the log of a repository at a peer is kept.
func Path(stateDir, repository, peer string) string {
	return filepath.Join(stateDir, "peers", element(peer), fileName(repository))
}

// Received is where a slave keeps the log of what the master has set in a
// repository.
func Received(stateDir, repository string) string {
	return filepath.Join(stateDir, "received", fileName(repository))
}

func fileName(repository string) string { return element(repository) + ".refs" }

// maxElement is how long an escaped name may be, in bytes: file systems allow
// 255, and ".refs.tmp" is to come behind it.
const maxElement = 200

// element makes one file name of any name, different ones of different names.
// Names too long are replaced by their hash, behind a % that no escaping yields.
func element(name string) string {
	escaped := url.PathEscape(name)
	switch {
	case name == "" || name == "." || name == "..":
		return "%" + name // escaping leaves dots alone, and joining would swallow these
	case len(escaped) > maxElement:
		sum := sha256.Sum256([]byte(name))
		return "%sha256-" + hex.EncodeToString(sum[:])
	}
	return escaped
}

// Remove forgets a repository at all peers. Having nothing to forget is no error.
func Remove(stateDir, repository string) error {
	peers := filepath.Join(stateDir, "peers")
	dirs, err := os.ReadDir(peers)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget refs of %q at its peers: %w", repository, err)
	}
	var errs []error
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		path := filepath.Join(peers, d.Name(), fileName(repository))
		for _, p := range []string{path, path + tmpSuffix} {
			if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("forget refs of %q: %w", repository, err))
			}
		}
	}
	return errors.Join(errs...)
}
