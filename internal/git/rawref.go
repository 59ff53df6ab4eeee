package git

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// RawRef is a ref as it stands in the repository: a symbolic one is not followed.
type RawRef struct {
	OID    string // "" for a symbolic ref, and for one that cannot be read
	Target string // of a symbolic ref, else ""
}

// RawRefs looks refs up without a process of git: it costs a hook an open of a
// file for each. Names must be well-formed full ref names. Refs that are not there are
// left out; a ref that stands in packed-refs alone is, too, unless packed is given. Where
// refs are kept in another format git is asked, and symbolic refs to nowhere are
// not seen.
func (r Repo) RawRefs(ctx context.Context, names []string, packed bool) (map[string]RawRef, error) {
	if _, err := os.Stat(filepath.Join(r.Dir, "reftable")); err == nil {
		return r.askRawRefs(ctx, names)
	}
	found := make(map[string]RawRef, len(names))
	for _, name := range names {
		ref, err := r.looseRef(name)
		switch {
		case err == nil:
			found[name] = ref
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("read ref %s: %w", name, err)
		}
	}
	if packed && len(found) < len(names) {
		return found, r.packedRefs(names, found)
	}
	return found, nil
}

// maxLooseRef bounds what is read of a loose ref: a symbolic one is the longest.
const maxLooseRef = 8 << 10

func (r Repo) looseRef(name string) (RawRef, error) {
	path := filepath.Join(r.Dir, name)
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, syscall.ELOOP) { // the old form of a symbolic ref
		target, err := os.Readlink(path)
		return RawRef{Target: target}, err
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return RawRef{}, fs.ErrNotExist
	}
	if err != nil {
		return RawRef{}, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxLooseRef))
	if errors.Is(err, syscall.EISDIR) {
		return RawRef{}, fs.ErrNotExist
	}
	if err != nil {
		return RawRef{}, err
	}
	text := strings.TrimSpace(string(data))
	if target, symbolic := strings.CutPrefix(text, "ref:"); symbolic {
		return RawRef{Target: strings.TrimSpace(target)}, nil
	}
	if len(text) != 40 && len(text) != 64 {
		text = ""
	}
	return RawRef{OID: text}, nil
}

// packedRefs adds those of the names that stand in packed-refs and not in found.
func (r Repo) packedRefs(names []string, found map[string]RawRef) error {
	file, err := os.Open(filepath.Join(r.Dir, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	missing := map[string]bool{}
	for _, name := range names {
		if _, ok := found[name]; !ok {
			missing[name] = true
		}
	}
	scan := bufio.NewScanner(file)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		oid, name, ok := bytes.Cut(scan.Bytes(), []byte{' '})
		if ok && missing[string(name)] {
			found[string(name)] = RawRef{OID: string(oid)}
		}
	}
	return scan.Err()
}

func (r Repo) askRawRefs(ctx context.Context, names []string) (map[string]RawRef, error) {
	var out bytes.Buffer
	if _, err := r.run(ctx, nil, &out, "for-each-ref", "--format=%(objectname) %(refname) %(symref)"); err != nil {
		return nil, fmt.Errorf("read refs: %w", err)
	}
	all := map[string]RawRef{}
	for line := range strings.Lines(out.String()) {
		fields := strings.Fields(line)
		switch len(fields) {
		case 2:
			all[fields[1]] = RawRef{OID: fields[0]}
		case 3:
			all[fields[1]] = RawRef{Target: fields[2]}
		}
	}
	found := map[string]RawRef{}
	for _, name := range names {
		if ref, ok := all[name]; ok {
			found[name] = ref
		}
	}
	return found, nil
}

// MayHaveRefsBelow reports whether there may be refs below prefix
// ("refs/mirror/rescued"), without a process of git: false is certain.
func (r Repo) MayHaveRefsBelow(prefix string) (bool, error) {
	for _, other := range []string{"reftable", "commondir"} {
		if _, err := os.Lstat(filepath.Join(r.Dir, other)); err == nil {
			return true, nil
		}
	}
	if _, err := os.Lstat(filepath.Join(r.Dir, prefix)); !errors.Is(err, fs.ErrNotExist) {
		return true, err
	}
	file, err := os.Open(filepath.Join(r.Dir, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	defer file.Close()
	word := []byte(" " + prefix + "/")
	scan := bufio.NewScanner(file)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		if bytes.Contains(scan.Bytes(), word) {
			return true, nil
		}
	}
	return scan.Err() != nil, scan.Err()
}
