package digest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"mirror-shell/internal/git"
)

// errDoubt: the refs are better read by git itself.
var errDoubt = errors.New("left to git")

// maxLoose is up to how many loose refs reading them here is faster than a
// process of git.
const maxLoose = 200

// readRefs returns every ref of the repository with its value, HEAD not included.
// Packed refs are read in this process, three to ten times faster than git
// starts; whatever is unusual is read by git, whose warnings are errors.
func readRefs(ctx context.Context, repo git.Repo) (map[string]string, error) {
	refs, err := readPlain(repo.Dir)
	if err == nil {
		return refs, nil
	}
	return repo.Refs(ctx) // it fails with git's own words where something is wrong
}

// readPlain reads the refs of a repository that has nothing unusual about it.
func readPlain(dir string) (map[string]string, error) {
	loose, err := looseRefs(dir)
	if err != nil {
		return nil, err
	}
	if err := plain(dir); err != nil {
		return nil, err
	}
	storage := filesystem.NewStorage(osfs.New(dir, osfs.WithBoundOS()), cache.NewObjectLRU(0))
	iter, err := storage.IterReferences()
	if err != nil {
		return nil, err
	}
	defer iter.Close()
	refs := map[string]string{}
	err = iter.ForEach(func(ref *plumbing.Reference) error {
		name := ref.Name().String()
		switch {
		case name == "HEAD":
			return nil
		case ref.Type() != plumbing.HashReference || ref.Hash().IsZero() || !strings.HasPrefix(name, "refs/"):
			return errDoubt
		}
		refs[name] = ref.Hash().String()
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The library reads "garbage" in a loose ref as some object id: its word is
	// taken only where ours is the same.
	for name, oid := range loose {
		if refs[name] != oid {
			return nil, errDoubt
		}
	}
	return refs, nil
}

// plain reports as an error what the library does not support or what would
// make its answer differ from git's: other formats of objects or refs, and
// objects borrowed from elsewhere.
func plain(dir string) error {
	for _, unusual := range []string{"reftable", "commondir", "config.worktree", "objects/info/alternates"} {
		if _, err := os.Lstat(filepath.Join(dir, unusual)); !errors.Is(err, fs.ErrNotExist) {
			return errDoubt
		}
	}
	config, err := os.ReadFile(filepath.Join(dir, "config"))
	if err != nil || strings.Contains(strings.ToLower(string(config)), "[extensions") {
		return errDoubt
	}
	packed, err := os.ReadFile(filepath.Join(dir, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return packedRefs(packed)
}

// packedRefs reports as errDoubt what git would complain of in packed-refs, and
// the library would not.
func packedRefs(text []byte) error {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return errDoubt // cut off
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
			return errDoubt
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
			return errDoubt
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		oid, ok := strings.CutSuffix(string(data), "\n")
		if !ok || !isOID([]byte(oid)) {
			return errDoubt
		}
		refs[name] = oid
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loose refs: %w", err)
	}
	return refs, nil
}
