package hooks

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Displaced returns the names of hooks of a repository's own, in dir, that would be gone when
// each file in common is linked into dir under its name, as gitolite does: a file that is
// there is unlinked. For dir it is assumed that InstallInto has been run for common, and, with
// kept, for dir: own hooks of our two names have their second name then, which is of no use when
// common has a file of that name, too.
func Displaced(common, dir string, kept bool) ([]string, error) {
	linked, err := toBeLinked(common)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, name := range linked {
		if !own(common, dir, name) {
			continue
		}
		safe := kept && slices.Contains(Names, name) && !slices.Contains(linked, name+nextSuffix) && free(dir, name)
		if !safe {
			gone = append(gone, name)
		}
	}
	return gone, nil
}

// toBeLinked are the names of the files in common once InstallInto has been there, sorted.
func toBeLinked(common string) ([]string, error) {
	entries, err := os.ReadDir(common)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names := slices.Clone(Names)
	for _, e := range entries {
		if name := e.Name(); !strings.HasPrefix(name, ".") {
			names = append(names, name)
			if slices.Contains(Names, name) && !isOurs(filepath.Join(common, name)) {
				names = append(names, name+nextSuffix)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// own reports whether dir has something by that name which is neither ours nor a link to common,
// nor one to nothing.
func own(common, dir, name string) bool {
	hook, from := filepath.Join(dir, name), filepath.Join(common, name)
	target, err := os.Readlink(hook)
	if errors.Is(err, fs.ErrNotExist) || err == nil && target == from {
		return false
	}
	if isOurs(hook) {
		return false
	}
	if err != nil {
		return true // no link
	}
	_, err = os.Stat(hook)
	return err == nil && !leadsTo(hook, from)
}

// free reports whether the second name of a hook can be had; see keep.
func free(dir, name string) bool {
	next, err := os.Lstat(filepath.Join(dir, name+nextSuffix))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	hook, err := os.Lstat(filepath.Join(dir, name))
	return err == nil && os.SameFile(hook, next)
}
