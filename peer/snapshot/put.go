package snapshot

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"mirror-shell/peer/store"
)

// content is what putObject stores.
type content struct {
	key  string // in the store; another is taken when what is there cannot be relied on
	size int64  // bytes
	sum  string // its SHA-256 when it is known already, else ""
	// open returns the content from its beginning. Its reader may fail at the end, when the content turns
	// out not to be what it should.
	open     func() (io.ReadCloser, error)
	compress bool
	damage   error // what it means that size or sum is another than given
}

// putter stores the objects of one snapshot.
type putter struct {
	v       *Vault
	scratch string                // a directory
	fresh   bool                  // nothing that is in the store already is to be used
	there   map[string]store.Info // what was there when it was listed; nil: it was not
	attempt *attempt              // what an earlier one put; nil: nothing is known
	sent    atomic.Int64          // bytes of blobs that were written
	moved   func(n int64)         // called as bytes of content pass

	mu   sync.Mutex
	used []string // keys that have to be settled before a manifest names them
}

// uses notes that a manifest is going to name a key.
func (p *putter) uses(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = append(p.used, key)
}

// settle makes all that was put durable, and what was found to be there already: whoever put that may not have come
// that far.
func (p *putter) settle(ctx context.Context) error {
	place, ok := p.v.Store.(store.Deferrer)
	if !ok {
		return nil
	}
	err := place.Settle(ctx, p.used)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errMoved, err)
	}
	return err
}

// sourceError is a failure of what is backed up, not of the store.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// errMoved: the repository changed while it was looked at, so that it has to be looked at again.
var errMoved = errors.New("the repository changed meanwhile")

// putObject stores content and says where it is. What passes is hashed and compared. Errors of
// the content are *sourceError, all others of the store.
func (p *putter) putObject(ctx context.Context, c content) (Object, error) {
	o := Object{Key: c.key, Size: c.size, SHA256: c.sum, Encoding: p.v.encodingFor(c.compress)}
	var err error
	if o.Encoding == "" {
		err = p.putPlain(ctx, c, &o)
	} else {
		err = p.putEncoded(ctx, c, &o)
	}
	if err != nil {
		return Object{}, fmt.Errorf("%s: %w", c.key, err)
	}
	p.uses(o.Key)
	if until := p.v.retainUntil(); !until.IsZero() {
		o.Retained = until
	}
	return o, nil
}

// putPlain stores content as it is, straight from where it lies.
func (p *putter) putPlain(ctx context.Context, c content, o *Object) error {
	pass := &passing{content: c, moved: p.moved}
	used, err := p.put(ctx, o, c.size, pass.Open)
	if err != nil {
		if bad := pass.failed(); bad != nil { // however the store says it
			return bad
		}
		return err
	}
	if used { // perhaps nobody read it to the end
		if err := pass.readAll(); err != nil {
			return err
		}
	}
	o.SHA256 = pass.sum()
	return nil
}

// maxInMemory is up to how many bytes of content are encoded in memory.
const maxInMemory = 1 << 20

// putEncoded compresses or encrypts first: the size of a blob has to be known before it is
// written, and a second attempt has to write the same bytes.
func (p *putter) putEncoded(ctx context.Context, c content, o *Object) error {
	if used, err := p.putBefore(ctx, c, o); used || err != nil {
		return err
	}
	pass := &passing{content: c, moved: p.moved}
	var w io.ReadWriter = &bytes.Buffer{}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(w.(*bytes.Buffer).Bytes())), nil }
	if c.size > maxInMemory {
		f, err := os.CreateTemp(p.scratch, "encoded-")
		if err != nil {
			return p.v.inScratch(err)
		}
		defer os.Remove(f.Name())
		defer f.Close()
		w, open = f, func() (io.ReadCloser, error) { return os.Open(f.Name()) }
	}
	stored := &counting{hash: sha256.New()}
	if err := p.v.encodeAll(io.MultiWriter(w, stored), pass, o.Encoding); err != nil {
		return p.v.inScratch(err)
	}
	o.SHA256, o.StoredSize, o.StoredSHA256 = pass.sum(), stored.n, hex.EncodeToString(stored.hash.Sum(nil))
	_, err := p.put(ctx, o, o.StoredSize, open)
	if err == nil && p.attempt != nil && len(p.v.Recipients) > 0 {
		p.attempt.noteBlob(attempted{As: c.key, SealedFor: p.v.sealedFor(), Object: *o}, open)
	}
	return err
}

func (v *Vault) encodeAll(w io.Writer, pass *passing, encoding string) error {
	r, err := pass.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	out, err := v.encode(w, encoding)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, r); err != nil {
		return err
	}
	return out.Close()
}

// put writes a blob of size bytes under o.Key, or another key that it sets. Used says that what was there is
// used in its place.
func (p *putter) put(ctx context.Context, o *Object, size int64, open func() (io.ReadCloser, error)) (used bool, err error) {
	if info, ok := p.there[o.Key]; ok && p.usable(o, info, size) {
		return true, p.retain(ctx, o.Key)
	}
	base, put := o.Key, p.v.putDeferred()
	for range 5 {
		err := put(ctx, o.Key, store.Blob{Size: size, Open: open, Retain: p.v.retainUntil()})
		if err == nil {
			p.sent.Add(size)
			return false, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return false, err
		}
		if info, err := p.v.stat(ctx, o.Key); err != nil {
			return false, err
		} else if p.usable(o, info, size) {
			return true, p.retain(ctx, o.Key)
		}
		if o.Key, err = otherKey(base); err != nil {
			return false, err
		}
	}
	return false, fmt.Errorf("%w, and so do others that were tried", store.ErrExists)
}

// usable reports whether a blob that is there already is as good as ours: one that is old may be on its
// way to be deleted, and two encryptions of the same content are not the same bytes.
func (p *putter) usable(o *Object, info store.Info, size int64) bool {
	return !p.fresh && p.young(info) && info.Size == size && len(p.v.Recipients) == 0 && o.Key == info.Key
}

// young reports whether a blob may be used again: prune lets it alone for long enough.
func (p *putter) young(info store.Info) bool { return p.v.isYoung(info.Time) }

// isYoung reports whether what is in the store since then is younger than half the grace period. Of what seems to be
// from the future, by more than clocks may differ, that is not known: a machine may have started in 1970.
func (v *Vault) isYoung(stored time.Time) bool {
	age := v.now().Sub(stored)
	return age < v.grace()/2 && age > -v.grace()/4
}

// retain extends the retention of a blob that somebody else wrote to what ours would have had.
func (p *putter) retain(ctx context.Context, key string) error {
	keeper, ok := p.v.Store.(store.Retainer)
	if until := p.v.retainUntil(); ok && !until.IsZero() {
		return keeper.Retain(ctx, key, until)
	}
	return nil
}

// stat looks one key up.
func (v *Vault) stat(ctx context.Context, key string) (store.Info, error) {
	for info, err := range v.Store.List(ctx, key, "", 1) {
		if err != nil {
			return store.Info{}, err
		}
		if info.Key == key {
			return info, nil
		}
	}
	return store.Info{}, nil // it was deleted since: not usable
}

// otherKey returns a key for what would be at base.
func otherKey(base string) (string, error) {
	n, err := rand.Int(rand.Reader, big.NewInt(100_000_000))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s~%08d", base, n), nil
}

// passing hands content out, from its beginning as often as it is asked, and hashes what passes.
type passing struct {
	content
	moved func(int64)
	mu    sync.Mutex
	done  string // SHA-256 of the last reading that came to the end
	bad   error  // what a reading failed with, when that is the content's fault
}

// Open returns a reader that fails at the end unless size and SHA-256 are right.
func (p *passing) Open() (io.ReadCloser, error) {
	r, err := p.content.open()
	if err != nil {
		return nil, p.fail(err)
	}
	return &passingReader{pass: p, r: r, hash: counting{hash: aside(sha256.New(), p.size)}}, nil
}

func (p *passing) fail(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bad = &sourceError{err}
	return p.bad
}

func (p *passing) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bad
}

func (p *passing) sum() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

func (p *passing) readAll() error {
	if p.sum() != "" {
		return nil
	}
	r, err := p.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

type passingReader struct {
	pass *passing
	r    io.ReadCloser
	hash counting
	end  error // what comes after the last byte
}

// Read judges the content before it hands out its last byte: who was told the size may never ask for more.
func (r *passingReader) Read(b []byte) (int, error) {
	if r.end != nil {
		return 0, r.end
	}
	n, err := r.r.Read(b)
	_, _ = r.hash.Write(b[:n])
	if r.hash.n >= r.pass.size && err == nil {
		var extra [1]byte
		m, end := io.ReadFull(r.r, extra[:])
		_, _ = r.hash.Write(extra[:m])
		err = end
		if m > 0 {
			err = io.EOF
		}
	}
	switch {
	case err == io.EOF:
		r.end = r.pass.judge(r.hash)
	case err != nil:
		r.end = r.pass.fail(err)
	}
	if r.end != nil && r.end != io.EOF {
		return 0, r.end
	}
	if r.pass.moved != nil && n > 0 {
		r.pass.moved(int64(n))
	}
	return n, nil
}

// judge returns io.EOF when what was read is the content.
func (p *passing) judge(read counting) error {
	sum := hex.EncodeToString(read.hash.Sum(nil))
	if read.n != p.size || p.content.sum != "" && sum != p.content.sum {
		return p.fail(fmt.Errorf("%w: %d bytes with SHA-256 %s were read, in place of %d", p.damage, read.n, sum, p.size))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = sum
	return io.EOF
}

func (r *passingReader) Close() error { return errors.Join(closeHash(r.hash.hash), r.r.Close()) }

// counting counts and hashes what is written to it.
type counting struct {
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

func (c *counting) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return c.hash.Write(b)
}
