package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"

	"mirror-shell/internal/refset"
)

// attempt remembers what a backup put into an encrypted vault, until its manifest is published. What is encrypted twice
// is not the same bytes, so the next attempt could not tell from the store that its content is there: one
// that fails at the same place each quarter of an hour would upload everything each time.
//
// It is a file "attempt" in a memoryDir: JSON, a line for each blob. Lines that cannot be read are left out.
type attempt struct {
	path  string
	mu    sync.Mutex
	there map[string]attempted // by the key that the content would have had
}

// attempted is one blob that was put.
type attempted struct {
	As        string `json:"as"` // the key that the content would have had
	SealedFor string `json:"sealed_for"`
	Object    Object `json:"object"`
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
	lines := bufio.NewScanner(bytes.NewReader(m.read("attempt")))
	for lines.Scan() {
		var one attempted
		if json.Unmarshal(lines.Bytes(), &one) == nil && one.As != "" {
			a.there[one.As] = one
		}
	}
	return a
}

// note remembers a blob. A note that is lost costs an upload.
func (a *attempt) note(one attempted) {
	if a == nil {
		return
	}
	line, err := json.Marshal(one)
	if err != nil || refset.MakeDirs(filepath.Dir(a.path)) != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f, err := os.OpenFile(a.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	_, _ = f.Write(append(line, '\n'))
	_ = f.Close()
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
	*o = was.Object
	return true, p.retain(ctx, o.Key)
}
