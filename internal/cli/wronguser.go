package cli

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"mirror-shell/mirrorcfg"
)

// RefuseRoot refuses to work as root on what is another account's. Root may write there, and what it leaves, such as a repository
// that was restored, or the log of the jobs' database, that account can neither read nor change: users would hear
// that there is no such repository, and the daemon would stand still.
func RefuseRoot(server *mirrorcfg.Server) error {
	if os.Geteuid() != 0 {
		return nil // the system refuses the others
	}
	for _, dir := range []string{server.RepoBase, server.StateDir} {
		info, err := os.Stat(dir)
		if err != nil {
			continue // whoever uses it says so
		}
		if stat, isUnix := info.Sys().(*syscall.Stat_t); isUnix && stat.Uid != 0 {
			owner := accountName(stat.Uid)
			return fmt.Errorf("%s belongs to %s, and this is root, whose files %[2]s could not use: run it as %[2]s (sudo -H -u %[2]s mirror-shell …), or chown the directory", dir, owner)
		}
	}
	return nil
}

func accountName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}
