package peer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"mirror-shell/internal/durable"
)

// A vault in a directory is on a disk that may not be mounted, and then its directory, or the one above it, is there and
// empty. A backup would begin anew there, on the wrong disk, and be called a success. So it is
// noted in state_dir, as an empty file per peer and place, that this server has seen a vault there; an
// empty place is refused from then on. When forget has removed everything the first of vaultSigns is made again.

// vaultSigns are the topmost directories of a vault; one that has data has one of them.
var vaultSigns = []string{"snapshots", "data", "marks", "checks"}

// localDir is the directory that a URL names, "" when it names none.
func localDir(place string) string {
	if u, err := url.Parse(place); err == nil && u.Scheme == "file" {
		place = u.Path
	}
	if !filepath.IsAbs(place) {
		return ""
	}
	return place
}

func (p *Peers) seenFile(name string) string {
	place := sha256.Sum256([]byte(p.Server.Peers[name].URL))
	return filepath.Join(p.Server.StateDir, "vaults", name+"-"+hex.EncodeToString(place[:8]))
}

// checkPlace refuses a directory in which there was a vault and is none.
func (p *Peers) checkPlace(name string) error {
	dir := localDir(p.Server.Peers[name].URL)
	if dir == "" {
		return nil
	}
	_, seen := os.Lstat(p.seenFile(name))
	for _, sign := range vaultSigns {
		_, err := os.Lstat(filepath.Join(dir, sign))
		if err == nil && seen != nil {
			p.notePlace(name)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil // what is wrong with it, opening it tells
		}
	}
	if seen != nil {
		return nil
	}
	return fmt.Errorf("there is no vault in %s any more: is its disk mounted? To begin a new one there: mkdir -p %s", dir, filepath.Join(dir, vaultSigns[0]))
}

// notePlace notes that there is a vault. If that cannot be written, the next time does it.
func (p *Peers) notePlace(name string) {
	file := p.seenFile(name)
	if localDir(p.Server.Peers[name].URL) == "" || durable.MakeDirs(filepath.Dir(file)) != nil {
		return
	}
	if f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o600); err == nil {
		f.Close()
	}
}

// KeepPlace has the vault of a backup peer stay one when all that was in it has been removed on purpose.
func (p *Peers) KeepPlace(name string) error {
	dir := localDir(p.Server.Peers[name].URL)
	if dir == "" {
		return nil
	}
	err := os.Mkdir(filepath.Join(dir, vaultSigns[0]), 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}
