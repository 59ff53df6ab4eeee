package gitolite

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mirror-shell/internal/proc"
)

// compiled is what gitolite makes of its configuration, below AdminBase: what decides who
// may do what.
const compiled = "conf/gitolite.conf-compiled.pm"

// stale names a file of the configuration that gitolite has not compiled, "" for none. A push
// to gitolite-admin is checked out and compiled by gitolite's post-update hook. When
// that fails the push stands, and the old rules and keys stay in force; who pushed reads
// why, but of a push that comes from the master nobody does.
func (rc *RC) stale() (string, error) {
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

// neverCheckedOut reports whether there is a gitolite-admin from which gitolite has never made its configuration: git
// leaves an index in a repository that is checked out, and no backup has that.
func neverCheckedOut(admin string) bool {
	_, err := os.Stat(filepath.Join(admin, "HEAD"))
	_, index := os.Stat(filepath.Join(admin, "index"))
	return err == nil && errors.Is(index, fs.ErrNotExist)
}

// AdminRepo is the repository that has gitolite's configuration.
const AdminRepo = "gitolite-admin"

// askTime is how long gitolite may take to tell where it is: a comparison of all repositories waits for it.
const askTime = 20 * time.Second

// NotCompiled says that a push to gitolite-admin that has just ended was not compiled, "" when it was: the master's
// administrator, who made the change, reads nothing of what gitolite says here.
func NotCompiled(ctx context.Context) string {
	if !Available() {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	base, err := query(ctx, "GL_ADMIN_BASE")
	stale := ""
	if err == nil {
		stale, err = (&RC{AdminBase: strings.Join(base, "\n")}).stale()
	}
	switch {
	case err != nil:
		return "whether gitolite there has compiled it is not known: " + proc.OneLine(err.Error(), 200)
	case stale != "":
		return "gitolite there has not compiled it, and the old rules and keys are in force: gitolite setup says what is wrong"
	}
	return ""
}

// newer reports whether a file was written after a time; one that is gone was not.
func newer(d fs.DirEntry, than time.Time) bool {
	info, err := d.Info()
	return err == nil && info.ModTime().After(than)
}
