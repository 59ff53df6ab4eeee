package git

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// maxAlternates bounds what is read of a list of alternates, in bytes.
const maxAlternates = 1 << 20

// AlternatesFile is where a repository says from which other ones it borrows objects.
func (r Repo) AlternatesFile() string { return filepath.Join(r.Dir, "objects/info/alternates") }

// Alternates returns the objects directories from which the repository itself borrows, absolute, with symbolic links resolved where
// they exist; none for most. What these borrow is not followed.
func (r Repo) Alternates() ([]string, error) {
	f, err := os.OpenFile(r.AlternatesFile(), os.O_RDONLY|syscall.O_NONBLOCK, 0) // somebody may have made a pipe
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var data []byte
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() { // a pipe to which somebody holds the other end has no end
		err = errors.New("it is no file")
	}
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(f, maxAlternates+1))
	}
	if err == nil && len(data) > maxAlternates {
		err = errors.New("it is too long")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.AlternatesFile(), err)
	}
	var dirs []string
	for _, dir := range parseAlternates(string(data)) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(r.Dir, "objects", dir)
		}
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		dirs = append(dirs, filepath.Clean(dir))
	}
	return dirs, nil
}

// parseAlternates returns the paths as they are written: one on each line, in quotes where git had to, "#" before a comment.
func parseAlternates(text string) (paths []string) {
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '"' {
			if plain, err := strconv.Unquote(line); err == nil {
				line = plain
			}
		}
		if line != "" {
			paths = append(paths, line)
		}
	}
	return paths
}
