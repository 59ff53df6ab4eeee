package snapshot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strings"
	"sync"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// Encodings of stored bytes; see Object.
const (
	encodingZstd = "zstd"
	encodingAge  = "age"
	encodingBoth = "zstd+age"
)

// encode returns a writer of content that writes the stored bytes to w. The content is compressed
// when encoding asks for zstd, and encrypted when the vault has recipients. Close ends both,
// and leaves w open.
func (v *Vault) encode(w io.Writer, encoding string) (io.WriteCloser, error) {
	out := &chain{top: w}
	if len(v.Recipients) > 0 {
		sealed, err := age.Encrypt(w, v.Recipients...)
		if err != nil {
			return nil, fmt.Errorf("encrypt: %w", err)
		}
		out.top, out.closers = sealed, append(out.closers, sealed)
	}
	if strings.HasPrefix(encoding, encodingZstd) {
		packed, err := newCompressor(out.top)
		if err != nil {
			return nil, err
		}
		out.top, out.closers = packed, append(out.closers, packed)
	}
	return out, nil
}

// compressors are encoders that can be used again. Each has megabytes of tables: to make one for every
// file of a few hundred bytes took longer than all else that a small repository needs in this process.
var compressors sync.Pool

// compressor is an encoder on loan.
type compressor struct{ *zstd.Encoder }

func newCompressor(w io.Writer) (*compressor, error) {
	if old, ok := compressors.Get().(*zstd.Encoder); ok {
		old.Reset(w)
		return &compressor{old}, nil
	}
	// One goroutine: what is compressed here is small.
	fresh, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	return &compressor{fresh}, err
}

// Close ends what is compressed. Nothing may be written afterwards.
func (c *compressor) Close() error {
	if c.Encoder == nil {
		return nil
	}
	err := c.Encoder.Close()
	if err == nil {
		c.Reset(nil) // it must not keep what it wrote to
		compressors.Put(c.Encoder)
	}
	c.Encoder = nil
	return err
}

// chain writes to its top and closes from there downwards.
type chain struct {
	top     io.Writer
	closers []io.Closer
}

func (c *chain) Write(p []byte) (int, error) { return c.top.Write(p) }

func (c *chain) Close() error {
	var errs []error
	for i := len(c.closers) - 1; i >= 0; i-- {
		errs = append(errs, c.closers[i].Close())
	}
	return errors.Join(errs...)
}

// encodingFor is what encode makes of content in this vault.
func (v *Vault) encodingFor(compress bool) string {
	switch sealed := len(v.Recipients) > 0; {
	case compress && sealed:
		return encodingBoth
	case sealed:
		return encodingAge
	case compress:
		return encodingZstd
	}
	return ""
}

// decode returns the content of stored bytes. Its Read gives io.EOF only after r did, so that nothing
// can stand behind the content. Bytes that cannot be decoded are ErrDamaged, here or from Read; those that
// are for somebody else's key are ErrKey; what r itself fails with stays as it is.
func (v *Vault) decode(r io.Reader, encoding string) (io.ReadCloser, error) {
	d := &decoder{source: source{r: r}}
	d.from = &d.source
	if strings.HasSuffix(encoding, encodingAge) {
		if len(v.Identities) == 0 {
			return nil, fmt.Errorf("%w: set identity_file of the peer", ErrKey)
		}
		opened, err := age.Decrypt(bufio.NewReader(d.from), v.Identities...)
		var nobody *age.NoIdentityMatchError
		if errors.As(err, &nobody) {
			return nil, ErrKey
		}
		if err != nil {
			return nil, d.blame(err)
		}
		d.from = opened
	}
	if strings.HasPrefix(encoding, encodingZstd) {
		z, err := zstd.NewReader(d.from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxDecoder))
		if err != nil {
			return nil, d.blame(err)
		}
		d.from, d.close = z, z.Close
	}
	return d, nil
}

// maxDecoder bounds the memory that foreign compressed bytes may ask for. Ours need a megabyte.
const maxDecoder = 64 << 20

// source notes what the stored bytes themselves failed with. Neither age nor zstd promises
// to hand on an error of what it reads, and a connection that was lost is no damage.
type source struct {
	r   io.Reader
	err error // not nil after the end, or a failure
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.err = err
	return n, err
}

// decoder reads the content of what source has.
type decoder struct {
	source source
	from   io.Reader
	close  func() // nil: there is nothing to close
}

func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.from.Read(p)
	if err == io.EOF {
		err = d.end()
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, d.blame(err)
}

// end reads the source to its end, where nothing more may be.
func (d *decoder) end() error {
	rest, err := io.Copy(io.Discard, &d.source)
	if err == nil && rest > 0 {
		err = errors.New("something stands behind the content")
	}
	if err != nil {
		return err
	}
	return io.EOF
}

// blame turns what decoding failed with into the source's own failure or, when it has none, ErrDamaged.
func (d *decoder) blame(err error) error {
	if d.source.err != nil && d.source.err != io.EOF {
		return d.source.err
	}
	if errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

func (d *decoder) Close() error {
	if d.close != nil {
		d.close()
	}
	return nil
}

// errGone: the store says that it has no such blob.
var errGone = fmt.Errorf("%w: it is gone", ErrDamaged)

// open returns the content of an object. Its Read ends with ErrDamaged in place of io.EOF when size or
// SHA-256, of the stored bytes or of the content, are not those that the manifest says: a reader
// that has seen io.EOF has the right bytes. Errors name the key.
func (v *Vault) open(ctx context.Context, o Object) (io.ReadCloser, error) {
	stored, err := v.Store.Get(ctx, o.Key, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", o.Key, errGone)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Key, err)
	}
	size, sum := o.Stored()
	outer := &checked{from: stored, hash: sha256.New(), left: size, sum: sum}
	if o.Encoding == "" {
		return &object{o.Key, outer, []io.Closer{stored}}, nil
	}
	content, err := v.decode(outer, o.Encoding)
	if errors.Is(err, ErrKey) && len(v.Identities) > 0 {
		// A damaged header looks like one for somebody else. The rest tells.
		if _, damaged := io.Copy(io.Discard, outer); damaged != nil {
			err = damaged
		}
	}
	if err != nil {
		stored.Close()
		return nil, fmt.Errorf("%s: %w", o.Key, err)
	}
	inner := &checked{from: content, hash: sha256.New(), left: o.Size, sum: o.SHA256}
	return &object{o.Key, inner, []io.Closer{content, stored}}, nil
}

// object is the content of what is stored under a key.
type object struct {
	key     string
	content io.Reader
	closers []io.Closer
}

func (o *object) Read(p []byte) (int, error) {
	n, err := o.content.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", o.key, err)
	}
	return n, err
}

func (o *object) Close() error {
	var errs []error
	for _, c := range o.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// checked reads exactly so many bytes with that SHA-256.
type checked struct {
	from io.Reader
	hash hash.Hash
	left int64
	sum  string
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.left -= int64(n)
	c.hash.Write(p[:n])
	switch {
	case c.left < 0:
		return 0, fmt.Errorf("%w: it is longer than it was", ErrDamaged)
	case err == io.EOF && c.left > 0:
		return n, fmt.Errorf("%w: %d bytes are missing", ErrDamaged, c.left)
	case err == io.EOF && hex.EncodeToString(c.hash.Sum(nil)) != c.sum:
		return n, fmt.Errorf("%w: its SHA-256 is another than it was", ErrDamaged)
	}
	return n, err
}
