package gitolite

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// compiled is what gitolite makes of its configuration, below AdminBase: what decides who
// may do what.
const compiled = "conf/gitolite.conf-compiled.pm"

// Stale names a file of the configuration that gitolite has not compiled, "" for none. A push
// to gitolite-admin is checked out and compiled by gitolite's post-update hook. When
// that fails the push stands, and the old rules and keys stay in force; who pushed reads
// why, but of a push that comes from the master nobody does.
func (rc *RC) Stale() (string, error) {
	info, err := os.Stat(filepath.Join(rc.AdminBase, compiled))
	if err != nil {
		return "", err
	}
	stale := ""
	for _, dir := range []string{"conf", "keydir"} {
		err := filepath.WalkDir(filepath.Join(rc.AdminBase, dir), func(path string, d fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil || d.IsDir():
				return err
			case !newer(d, info.ModTime()):
				return nil
			}
			stale = path
			return fs.SkipAll
		})
		if err != nil || stale != "" {
			return stale, err
		}
	}
	return "", nil
}

// newer reports whether a file was written after a time; one that is gone was not.
func newer(d fs.DirEntry, than time.Time) bool {
	info, err := d.Info()
	return err == nil && info.ModTime().After(than)
}
