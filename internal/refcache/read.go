package refcache

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"mirror-shell/internal/git"
)

// manyRefs is from how many refs on the library is not asked: it takes 35 ms
// for 50,000.
const manyRefs = 4000

// readRefs returns every ref of the repository with its value, HEAD not included.
// What two servers compare is read twice, by us and by the library, in this process:
// a mistake of either must not pass for equality, or for a deletion. Where they disagree, and
// where anything is unusual, git reads, and its warnings are errors.
func readRefs(ctx context.Context, repo git.Repo) (map[string]string, error) {
	refs, err := repo.PlainRefs()
	if err == nil && len(refs) < manyRefs {
		var theirs map[string]string
		if theirs, err = libraryRefs(repo.Dir); err == nil && !maps.Equal(refs, theirs) {
			err = git.ErrUnusual
		}
	}
	if err != nil {
		return repo.Refs(ctx)
	}
	return refs, nil
}

// libraryRefs has go-git read the refs. It does not see what is wrong with a ref,
// knows neither sha256 nor reftable, and with borrowed objects finds nothing: all
// but the last is found out by PlainRefs.
func libraryRefs(dir string) (map[string]string, error) {
	if _, err := os.Lstat(filepath.Join(dir, "objects/info/alternates")); !errors.Is(err, fs.ErrNotExist) {
		return nil, git.ErrUnusual
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
		case ref.Type() != plumbing.HashReference || !strings.HasPrefix(name, "refs/"):
			return git.ErrUnusual
		}
		refs[name] = ref.Hash().String()
		return nil
	})
	return refs, err
}
