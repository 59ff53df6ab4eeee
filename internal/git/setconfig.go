package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"mirror-shell/internal/proc"
)

// ConfigFile is the repository's own config file, which SetConfig changes.
func (r Repo) ConfigFile() string { return filepath.Join(r.Dir, "config") }

// SetConfig gives a key one value in the repository's own config file; others
// that it had there are replaced.
func (r Repo) SetConfig(ctx context.Context, key, value string) error {
	_, err := r.run(ctx, nil, nil, "config", "--file", r.ConfigFile(), "--replace-all", key, value)
	return err
}

// UnsetConfig removes a key with all its values from the repository's own config
// file. One that is not there is no error.
func (r Repo) UnsetConfig(ctx context.Context, key string) error {
	_, err := r.run(ctx, nil, nil, "config", "--file", r.ConfigFile(), "--unset-all", key)
	if proc.ExitCode(err) == 5 { // git's way to say that it is not there
		return nil
	}
	return err
}

// Tree is the files below one directory of a commit, by their paths relative to
// it. It has plain files only: a symbolic link or a submodule is not in it.
type Tree struct {
	repo  Repo
	ctx   context.Context // of Tree: whoever reads the files knows no git
	max   int64
	blobs map[string]string // path → object id
}

// Tree lists the files of HEAD's commit below dir (slash-separated, "." for all).
// Files of more than max bytes are listed, and not read. A repository without a
// commit is fs.ErrNotExist.
func (r Repo) Tree(ctx context.Context, dir string, max int64) (*Tree, error) {
	commit, err := r.headCommit(ctx)
	if err != nil {
		return nil, err
	}
	listing, err := r.listTree(ctx, "-r", "-z", "--full-tree", commit)
	if err != nil {
		return nil, err
	}
	t := &Tree{repo: r, ctx: ctx, max: max, blobs: map[string]string{}}
	for item := range strings.SplitSeq(listing, "\x00") {
		about, name, ok := strings.Cut(item, "\t") // MODE SP TYPE SP OID TAB PATH
		fields := strings.Fields(about)
		if !ok || len(fields) != 3 || !strings.HasPrefix(fields[0], "100") {
			continue
		}
		if dir != "." {
			if name, ok = strings.CutPrefix(name, dir+"/"); !ok {
				continue
			}
		}
		t.blobs[name] = fields[2]
	}
	return t, nil
}

// maxListing bounds what is listed of a commit, in bytes: half a million files. A tree that
// names another one many times, and so on, would be listed until memory ends.
var maxListing int64 = 64 << 20

func (r Repo) listTree(ctx context.Context, args ...string) (string, error) {
	out := &limitedBuffer{max: maxListing}
	if _, err := r.run(ctx, nil, out, append([]string{"ls-tree"}, args...)...); err != nil {
		if out.over { // git was ended by that, and does not know why
			err = errors.New("the commit has too many files")
		}
		return "", err
	}
	return out.buf.String(), nil
}

// ErrNoCommit is a repository whose HEAD names no commit yet. It is fs.ErrNotExist, too.
var ErrNoCommit = fmt.Errorf("HEAD has no commit: %w", fs.ErrNotExist)

func (r Repo) headCommit(ctx context.Context) (string, error) {
	var out bytes.Buffer
	_, err := r.run(ctx, nil, &out, "rev-parse", "-q", "--verify", "HEAD^{commit}")
	if proc.ExitCode(err) == 1 {
		return "", fmt.Errorf("%s: %w", r.Dir, ErrNoCommit)
	}
	return strings.TrimSpace(out.String()), err
}

var errTooLong = errors.New("the file is too long")

// limitedBuffer is a buffer that takes no more than max bytes. It embeds none:
// that one's ReadFrom would be found by io.Copy, and know no limit.
type limitedBuffer struct {
	buf  bytes.Buffer
	max  int64
	over bool
}

func (b *limitedBuffer) Write(data []byte) (int, error) {
	if b.over = b.over || int64(b.buf.Len()+len(data)) > b.max; b.over {
		return 0, errTooLong
	}
	return b.buf.Write(data)
}

// Has reports whether there is a plain file of that path.
func (t *Tree) Has(name string) bool {
	_, ok := t.blobs[name]
	return ok
}

// ReadFile returns a file's content, and fs.ErrNotExist when there is none of
// that path.
func (t *Tree) ReadFile(name string) ([]byte, error) {
	oid, ok := t.blobs[name]
	if !ok {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	out := &limitedBuffer{max: t.max}
	if _, err := t.repo.run(t.ctx, nil, out, "cat-file", "blob", oid); err != nil {
		if out.over { // git was ended by that, and does not know why
			err = errTooLong
		}
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return out.buf.Bytes(), nil
}

// Glob returns the paths that match a pattern of path.Match, sorted.
func (t *Tree) Glob(pattern string) ([]string, error) {
	var names []string
	for name := range t.blobs {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return nil, err
		}
		if ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// HasConfig reports whether text stands in the repository's own config file,
// without a process: false says that git need not be asked.
func (r Repo) HasConfig(text string) (bool, error) {
	data, err := os.ReadFile(r.ConfigFile())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return bytes.Contains(bytes.ToLower(data), []byte(strings.ToLower(text))), err
}
