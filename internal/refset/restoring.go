package refset

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A restore in place exchanges a repository for another directory. A push that is under way then goes into the
// directory that was moved aside, and who pushed is told that it arrived. So the restore first
// puts a mark into the repository, the file mirror-shell/restoring, which tells the hooks to refuse what comes; its content is one line
// for whoever is refused. The mark counts while the process that put it there holds its flock: nothing has to be compared, no
// pid and no boot, and the mark of a restore that was killed is an ordinary file, which the next push removes.
//
// For a push it costs one open of a file that is not there.

const restoringFile = "restoring"

// Restoring is the mark of a restore that is about to replace a repository.
type Restoring struct {
	dir  *os.Root
	lock *os.File
}

// MarkRestoring has pushes to a repository refused until Release, with the text as the reason. Only one
// restore of a repository may be at work; the mark of one that was killed is replaced.
func MarkRestoring(repoDir, text string) (*Restoring, error) {
	if err := MakeDirs(Dir(repoDir)); err != nil {
		return nil, fmt.Errorf("refuse pushes meanwhile: %w", err)
	}
	dir, err := os.OpenRoot(Dir(repoDir))
	if err != nil {
		return nil, fmt.Errorf("refuse pushes meanwhile: %w", err)
	}
	r := &Restoring{dir: dir}
	if err := r.put(text); err != nil {
		return nil, fmt.Errorf("refuse pushes meanwhile: %w", errors.Join(err, r.Release()))
	}
	return r, nil
}

// put makes the file under another name, so that nobody sees it without its lock.
func (r *Restoring) put(text string) (err error) {
	const made = restoringFile + ".new"
	if r.lock, err = r.dir.OpenFile(made, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return err
	}
	if _, err = r.lock.WriteString(strings.ReplaceAll(text, "\n", " ") + "\n"); err != nil {
		return errors.Join(err, r.dir.Remove(made))
	}
	if err = unix.Flock(int(r.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(err, r.dir.Remove(made))
	}
	return r.dir.Rename(made, restoringFile)
}

// Release lets pushes in again, wherever the repository has been moved to since.
func (r *Restoring) Release() error {
	err := r.dir.Remove(restoringFile)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if r.lock != nil {
		err = errors.Join(err, r.lock.Close())
	}
	return errors.Join(err, r.dir.Close())
}

// RestoringFile is where the mark of a restore stands.
func RestoringFile(repoDir string) string { return filepath.Join(Dir(repoDir), restoringFile) }

// maxRestoring bounds what is read of a mark, in bytes.
const maxRestoring = 1000

// WhyRestoring returns what whoever pushes is to be told while a repository is being replaced by a restore, or
// has been moved aside by one; "" when pushes are welcome. The mark of a restore that was killed is removed.
func WhyRestoring(repoDir string) string {
	if isAside(repoDir) {
		return "this repository was moved aside by a restore while the push was under way: push again"
	}
	text, file := lookRestoring(repoDir)
	if file == nil {
		return ""
	}
	defer file.Close()
	if text == "" { // nobody holds it
		ours, err := file.Stat()
		there, again := os.Lstat(file.Name())
		if err == nil && again == nil && os.SameFile(ours, there) {
			os.Remove(file.Name())
		}
	}
	return text
}

// StaleRestoring reports whether a repository has the mark of a restore that was killed. It changes nothing.
func StaleRestoring(repoDir string) bool {
	text, file := lookRestoring(repoDir)
	if file == nil {
		return false
	}
	file.Close()
	return text == ""
}

// lookRestoring returns the text of a mark, "" for one that nobody holds, and the mark, opened, nil when there is none.
func lookRestoring(repoDir string) (text string, mark *os.File) {
	f, err := os.OpenFile(RestoringFile(repoDir), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", nil
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	}
	if err != unix.EWOULDBLOCK {
		return "", f
	}
	data, _ := io.ReadAll(io.LimitReader(f, maxRestoring))
	text, _, _ = strings.Cut(string(data), "\n")
	if text == "" {
		text = "the repository is being restored: try again in a minute"
	}
	return text, f
}

// beforeRestore and duringRestore are in the names of directories that a restore makes beside a repository.
const (
	beforeRestore = ".before-restore-"
	duringRestore = ".mirror-shell-restore-"
)

// AsideName is the beginning of the name that a restore gives to the repository that it replaced; a time follows.
func AsideName(repoDir string) string { return repoDir + beforeRestore }

// BuildName is the beginning of the name, without its directory, of what a restore makes beside a repository; digits follow. For a moment
// it is also the name of the repository that was replaced.
func BuildName(repoDir string) string { return "." + filepath.Base(repoDir) + duringRestore }

// BuildOf returns which repository something of a name that BuildName makes was made for, by its name beside it.
func BuildOf(name string) (repo string, ok bool) {
	at := strings.LastIndex(name, duringRestore)
	if at < 2 || name[0] != '.' {
		return "", false
	}
	digits := name[at+len(duringRestore):]
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return "", false
	}
	return name[1:at], true
}

// isAside reports whether a directory has such a name: a push in it began before the restore, or somebody
// pushes to what was put away. What ends in ".git" is a repository that somebody called so.
func isAside(repoDir string) bool {
	name := filepath.Base(repoDir)
	if strings.HasSuffix(name, ".git") {
		return false
	}
	return strings.Contains(name, beforeRestore) || name[0] == '.' && strings.Contains(name, duringRestore)
}
