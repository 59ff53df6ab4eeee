package snapshot

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
)

// checkHistory makes sure that every object can be read and is the one that its id says, and
// that all that refs reach is there.
//
// Git unpacks the objects, and we hash them and look up what they name, both at the same time. That is
// twice as fast as git index-pack --verify beside git rev-list --objects: those unpack three times
// between them, and git's SHA-1, which looks for forged collisions, takes longer than
// unpacking. When all that any object names is there, then so is what refs reach. Packs
// may hold the remains of history that was pruned; only then git walks from the refs.
func (b *build) checkHistory(ctx context.Context) error {
	if len(b.m.Packs) == 0 { // and so no refs
		return nil
	}
	ids, err := b.openIndexes()
	if err != nil {
		return err
	}
	defer ids.close()
	parts, err := b.parts(ids)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	loose := false
	err = each(ctx, runtime.NumCPU(), parts, func(ctx context.Context, p part) error {
		open, err := b.readPart(ctx, p, ids.another())
		mu.Lock()
		defer mu.Unlock()
		loose = loose || open
		if err != nil && ctx.Err() == nil && (errors.Is(err, errObject) || errors.Is(err, git.ErrMissing) || proc.ExitCode(err) > 0) {
			return fmt.Errorf("%w: %s: %w", ErrIncomplete, p.pack.Pack.Key, err)
		}
		return err
	})
	if err != nil || !loose {
		return err
	}
	err = git.Repo{Dir: b.dir}.Complete(ctx, nil, b.m.tips())
	if errors.Is(err, git.ErrMissing) {
		return fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return err
}

// openIndexes maps the indexes of all packs, in their order.
func (b *build) openIndexes() (*idSet, error) {
	ids := newIDSet(hashOf(b.m.ObjectFormat)().Size())
	for _, p := range b.m.Packs {
		f, err := b.root.Open("objects/pack/" + p.Name + ".idx")
		if err == nil {
			err = errors.Join(ids.add(f), f.Close())
		}
		if err != nil {
			ids.close()
			return nil, err
		}
	}
	return ids, nil
}

// errObject: an object is not what its id says.
var errObject = errors.New("object")

// readPart reads the objects of a part. open says that one of them names an object that is in no pack, or
// has a form that only git can judge.
func (b *build) readPart(ctx context.Context, p part, ids *idSet) (open bool, err error) {
	objects, err := b.alone(p.pack.Name)
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(objects)
	r := &objectReader{hash: hashOf(b.m.ObjectFormat)(), ids: ids}
	var chosen io.Reader // all
	if p.order != nil {
		lines := newIDReader([]iter.Seq2[string, error]{p.ids()})
		defer lines.close()
		chosen = lines
	}
	n, err := git.Repo{Dir: b.dir}.PackedObjects(ctx, objects, chosen, r.read)
	if err == nil && n != p.count {
		err = fmt.Errorf("%w: %d of the pack can be read, of %d", errObject, n, p.count)
	}
	return r.open, err
}

// alone makes a directory of objects with one pack, so that git reads that one and not the same
// objects in another.
func (b *build) alone(pack string) (string, error) {
	objects, err := os.MkdirTemp(b.dir, ".mirror-shell-pack-*")
	if err != nil {
		return "", err
	}
	err = os.Mkdir(filepath.Join(objects, "pack"), 0o700)
	for _, ext := range []string{".pack", ".idx"} {
		if err == nil {
			err = os.Symlink(filepath.Join(b.dir, "objects", "pack", pack+ext), filepath.Join(objects, "pack", pack+ext))
		}
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(objects))
	}
	return objects, nil
}

func packCount(file string, width int) (int, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, _, err := packEnds(f, width)
	return int(n), err
}

// objectReader compares objects with their ids, and looks up what they name.
type objectReader struct {
	hash hash.Hash
	ids  *idSet
	buf  bytes.Buffer
	part [64 << 10]byte // of a blob; what io.Copy makes for each object costs as much as a fifth of the hashing
	head []byte
	sum  []byte
	open bool
}

func (r *objectReader) read(oid, kind string, size int64, content io.Reader) error {
	r.hash.Reset()
	r.head = strconv.AppendInt(append(append(r.head[:0], kind...), ' '), size, 10)
	r.hash.Write(append(r.head, 0))
	switch {
	case kind == "blob":
		if _, err := io.CopyBuffer(r.hash, content, r.part[:]); err != nil {
			return err
		}
	case size > maxObject:
		r.open = true
		if _, err := io.CopyBuffer(r.hash, content, r.part[:]); err != nil {
			return err
		}
	default:
		r.buf.Reset()
		if n, err := r.buf.ReadFrom(content); err != nil || n != size {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		r.hash.Write(r.buf.Bytes())
		ok := links(kind, r.buf.Bytes(), r.ids.width, func(to []byte) { r.open = r.open || !r.ids.has(to) })
		r.open = r.open || !ok
	}
	r.sum = r.hash.Sum(r.sum[:0])
	if hex.EncodeToString(r.sum) != oid {
		return fmt.Errorf("%w %s (%s) has other content than its id says", errObject, oid, kind)
	}
	return nil
}
