package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"mirror-shell/internal/refset"
)

// attempt remembers what a backup put into an encrypted vault, until its manifest is published. What is encrypted twice
// is not the same bytes, so the next attempt could not tell from the store that its content is there: one
// that fails at the same place each quarter of an hour would upload everything each time.
//
// It is a file "attempt" in a memoryDir, with a line for each blob: the first 32 hex digits of the SHA-256 of the rest, a space, and
// JSON (attempted). Lines that are not so are left out: a power cut and a disk may have changed them.
type attempt struct {
	path  string
	mu    sync.Mutex
	there map[string]attempted // by the key that the content would have had
}

// attempted is one blob that was put.
type attempted struct {
	As        string `json:"as"` // the key that the content would have had
	SealedFor string `json:"sealed_for"`
	// Head is the SHA-256 of the blob's beginning (headOf). Another encryption of the same content may have
	// the same key and size by now, when this one was deleted; it begins with other random bytes.
	Head   string `json:"head"`
	Object Object `json:"object"`
}

// headSize is how many bytes are a blob's beginning: age begins with a key of its own, encrypted for the first recipient.
const headSize = 1 << 10

// headOf returns the SHA-256 of the beginning of a blob that has so many bytes.
func headOf(r io.Reader, size int64) (string, error) {
	hash := sha256.New()
	_, err := io.CopyN(hash, r, min(size, headSize))
	return hex.EncodeToString(hash.Sum(nil)), err
}

// maxAttempt bounds what is read of the file, in bytes.
const maxAttempt = 64 << 20

// recallAttempt reads what the last attempt left. Without a memory it is nil, which remembers nothing.
func (m memoryDir) recallAttempt() *attempt {
	if m == "" {
		return nil
	}
	a := &attempt{path: filepath.Join(string(m), "attempt"), there: map[string]attempted{}}
	info, err := os.Stat(a.path)
	if err != nil || info.Size() > maxAttempt {
		return a
	}
	for line := range bytes.Lines(m.read("attempt")) {
		if one, ok := parseAttempted(line); ok {
			a.there[one.As] = one
		}
	}
	return a
}

// parseAttempted reads a line.
func parseAttempted(line []byte) (one attempted, ok bool) {
	sum, data, _ := bytes.Cut(bytes.TrimSuffix(line, []byte{'\n'}), []byte{' '})
	if string(sum) != sumOfLine(data) || json.Unmarshal(data, &one) != nil {
		return attempted{}, false
	}
	other, isOther := strings.CutPrefix(one.Object.Key, one.As+"~")
	return one, one.As != "" && (one.Object.Key == one.As || isOther && other != "" && !strings.Contains(other, "/"))
}

func sumOfLine(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// note remembers a blob. A note that is lost costs an upload.
func (a *attempt) note(one attempted) {
	data, err := json.Marshal(one)
	if err != nil || refset.MakeCacheDirs(filepath.Dir(a.path)) != nil {
		return
	}
	line := sumOfLine(data) + " " + string(data) + "\n"
	a.mu.Lock()
	defer a.mu.Unlock()
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteString(line)
	_ = f.Close()
}

// noteBlob notes a blob whose stored bytes open returns.
func (a *attempt) noteBlob(one attempted, open func() (io.ReadCloser, error)) {
	r, err := open()
	if err != nil {
		return
	}
	defer r.Close()
	if one.Head, err = headOf(r, one.Object.StoredSize); err == nil {
		a.note(one)
	}
}

// end forgets all: a manifest names it now, or it is not to be relied on.
func (a *attempt) end() {
	if a != nil {
		_ = os.Remove(a.path)
	}
}

// putBefore sets o to the blob that an earlier attempt put for the same content and the same
// recipients, if it is there still and young enough.
func (p *putter) putBefore(ctx context.Context, c content, o *Object) (used bool, err error) {
	if p.attempt == nil || p.fresh || len(p.v.Recipients) == 0 {
		return false, nil
	}
	was, ok := p.attempt.there[c.key]
	if !ok || was.SealedFor != p.v.sealedFor() || was.Object.Size != c.size || was.Object.Encoding != o.Encoding {
		return false, nil
	}
	pass := &passing{content: c, moved: p.moved}
	if err := pass.readAll(); err != nil {
		return false, err
	}
	if pass.sum() != was.Object.SHA256 {
		return false, nil
	}
	info, err := p.v.stat(ctx, was.Object.Key)
	if err != nil {
		return false, err
	}
	if info.Key != was.Object.Key || info.Size != was.Object.StoredSize || !p.young(info) {
		return false, nil
	}
	if same, err := p.isBlob(ctx, was); !same || err != nil {
		return false, err
	}
	*o = was.Object
	return true, p.retain(ctx, o.Key)
}

// isBlob reports whether what is under the key is what was put there then. Where nothing may be read it is not known, and
// the content is put again.
func (p *putter) isBlob(ctx context.Context, was attempted) (bool, error) {
	r, err := p.v.Store.Get(ctx, was.Object.Key, 0, min(was.Object.StoredSize, headSize))
	if err != nil {
		return false, ctx.Err()
	}
	defer r.Close()
	head, err := headOf(r, was.Object.StoredSize)
	if err != nil {
		return false, ctx.Err()
	}
	return head == was.Head, nil
}
