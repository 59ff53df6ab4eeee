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
		// One goroutine: what is compressed here is small.
		packed, err := zstd.NewWriter(out.top, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
		if err != nil {
			return nil, err
		}
		out.top, out.closers = packed, append(out.closers, packed)
	}
	return out, nil
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

// decode returns the content of stored bytes. Bytes that cannot be decoded are ErrDamaged, here
// or from Read; those that are for somebody else's key ErrKey.
func (v *Vault) decode(r io.Reader, encoding string) (io.ReadCloser, error) {
	if strings.HasSuffix(encoding, encodingAge) {
		if len(v.Identities) == 0 {
			return nil, fmt.Errorf("%w: set identity_file of the peer", ErrKey)
		}
		opened, err := age.Decrypt(bufio.NewReader(r), v.Identities...)
		var nobody *age.NoIdentityMatchError
		if errors.As(err, &nobody) {
			return nil, ErrKey
		}
		if err != nil {
			return nil, fmt.Errorf("%w: decrypt: %w", ErrDamaged, err)
		}
		r = opened
	}
	if strings.HasPrefix(encoding, encodingZstd) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return damagedReader{d.IOReadCloser()}, nil
	}
	return damagedReader{io.NopCloser(r)}, nil
}

// damagedReader calls what cannot be decoded damaged. Errors of the store stay what they are.
type damagedReader struct{ io.ReadCloser }

func (d damagedReader) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF && (errors.Is(err, io.ErrUnexpectedEOF) || isZstd(err)) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, err
}

func isZstd(err error) bool {
	for _, e := range []error{zstd.ErrCRCMismatch, zstd.ErrMagicMismatch, zstd.ErrReservedBlockType, zstd.ErrUnexpectedBlockSize, zstd.ErrFrameSizeExceeded, zstd.ErrFrameSizeMismatch, zstd.ErrDecoderSizeExceeded, zstd.ErrWindowSizeExceeded, zstd.ErrCompressedSizeTooBig, zstd.ErrUnknownDictionary} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// open returns the content of an object. Its Read ends with ErrDamaged in place of io.EOF when size or
// SHA-256, of the stored bytes or of the content, are not those that the manifest says: a reader
// that has seen io.EOF has the right bytes.
func (v *Vault) open(ctx context.Context, o Object) (io.ReadCloser, error) {
	stored, err := v.Store.Get(ctx, o.Key, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: it is gone", o.Key, ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Key, err)
	}
	if o.Encoding == "" {
		return &checked{o.Key, stored, stored, sha256.New(), o.Size, o.SHA256}, nil
	}
	size, sum := o.Stored()
	content, err := v.decode(&checked{o.Key, stored, stored, sha256.New(), size, sum}, o.Encoding)
	if err != nil {
		stored.Close()
		return nil, fmt.Errorf("%s: %w", o.Key, err)
	}
	return &checked{o.Key, content, stored, sha256.New(), o.Size, o.SHA256}, nil
}

// checked reads exactly so many bytes with that SHA-256.
type checked struct {
	what   string
	from   io.Reader
	closes io.Closer
	hash   hash.Hash
	left   int64
	sum    string
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.left -= int64(n)
	c.hash.Write(p[:n])
	switch {
	case c.left < 0:
		return 0, fmt.Errorf("%s: %w: it is longer than it was", c.what, ErrDamaged)
	case err == io.EOF && c.left > 0:
		return n, fmt.Errorf("%s: %w: %d bytes are missing", c.what, ErrDamaged, c.left)
	case err == io.EOF && hex.EncodeToString(c.hash.Sum(nil)) != c.sum:
		return n, fmt.Errorf("%s: %w: its SHA-256 is another than it was", c.what, ErrDamaged)
	case err != nil && err != io.EOF && !errors.Is(err, ErrDamaged):
		return n, fmt.Errorf("%s: %w", c.what, err)
	}
	return n, err
}

func (c *checked) Close() error {
	if inner, ok := c.from.(io.Closer); ok && inner != c.closes {
		inner.Close() // a decoder
	}
	return c.closes.Close()
}
