package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// ErrUnusual: the refs are better read by git itself.
var ErrUnusual = errors.New("left to git")

// maxLoose is up to how many loose refs reading them here is faster than a
// process of git.
const maxLoose = 200

// ReadRefs returns what Refs does, and reads it in this process where there is
// nothing unusual: for 50,000 refs in 10 ms instead of 100, for a few in 0.1 instead of 3.
func (r Repo) ReadRefs(ctx context.Context) (map[string]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if refs, err := r.PlainRefs(); err == nil {
		return refs, nil
	}
	return r.Refs(ctx) // it fails with git's own words where something is wrong
}

// PlainRefs reads the refs of a repository that has nothing unusual about it, such
// as another format of objects or refs, symbolic refs, thousands of loose ones, or anything
// that git would complain of; else the error wraps ErrUnusual, or is that of a file.
//
// The loose refs are read first, and win: git moves a ref to packed-refs before it
// removes the loose one.
func (r Repo) PlainRefs() (map[string]string, error) {
	loose, err := looseRefs(r.Dir)
	if err != nil {
		return nil, err
	}
	if err := plain(r.Dir); err != nil {
		return nil, err
	}
	packed, err := os.ReadFile(filepath.Join(r.Dir, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return loose, nil
	}
	if err != nil {
		return nil, err
	}
	if err := checkPacked(packed); err != nil {
		return nil, err
	}
	text := string(packed) // one copy, which all names and ids are parts of
	refs := make(map[string]string, strings.Count(text, "\n"))
	for line := range strings.Lines(text) {
		if line[0] != '#' && line[0] != '^' {
			refs[line[41:len(line)-1]] = line[:40]
		}
	}
	maps.Copy(refs, loose)
	return refs, nil
}

// plain reports as ErrUnusual other formats of objects or refs.
func plain(dir string) error {
	for _, unusual := range []string{"reftable", "commondir", "config.worktree"} {
		if _, err := os.Lstat(filepath.Join(dir, unusual)); !errors.Is(err, fs.ErrNotExist) {
			return ErrUnusual
		}
	}
	config, err := os.ReadFile(filepath.Join(dir, "config"))
	if err != nil || strings.Contains(strings.ToLower(string(config)), "[extensions") {
		return ErrUnusual
	}
	return nil
}

// checkPacked reports as ErrUnusual what git would complain of in packed-refs.
func checkPacked(text []byte) error {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return ErrUnusual // cut off
	}
	for i := 0; len(text) > 0; i++ {
		end := bytes.IndexByte(text, '\n')
		line := text[:end]
		text = text[end+1:]
		switch {
		case i == 0 && bytes.HasPrefix(line, []byte("# pack-refs with:")):
		case len(line) == 41 && line[0] == '^' && isOID(line[1:]):
		case len(line) > 46 && isOID(line[:40]) && bytes.HasPrefix(line[40:], []byte(" refs/")):
		default:
			return ErrUnusual
		}
	}
	return nil
}

// isOID reports whether text is a sha1 object id that is not all zeros.
func isOID(text []byte) bool {
	zero := true
	for _, c := range text {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
		zero = zero && c == '0'
	}
	return len(text) == 40 && !zero
}

// looseRefs reads the files below refs/: each must hold exactly one object id.
func looseRefs(dir string) (map[string]string, error) {
	refs := map[string]string{}
	err := filepath.WalkDir(filepath.Join(dir, "refs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		name := path[len(dir)+1:]
		if !d.Type().IsRegular() || strings.HasSuffix(name, ".lock") || len(refs) >= maxLoose {
			return ErrUnusual
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		oid, ok := strings.CutSuffix(string(data), "\n")
		if !ok || !isOID([]byte(oid)) {
			return ErrUnusual
		}
		refs[name] = oid
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loose refs: %w", err)
	}
	return refs, nil
}
