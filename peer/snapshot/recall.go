package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"mirror-shell/internal/refset"
)

// memoryDir is a directory of this machine where a vault remembers what it knows of one repository, "" for none.
// All of it can be had again from the store and the repository, so what cannot be read is as if it
// was not there, and what cannot be written is not. Four files:
//
//	manifest   SUM LF SHA-256-OF-THE-REST LF, and the manifest of the last snapshot, JSON in zstd
//	files      JSON: path → fileSum
//	state      JSON: recalled
//	attempt    see there
type memoryDir string

// recalled is what is known about the latest snapshot, as far as it has that Sum.
type recalled struct {
	Sum string `json:"sum"`
	// Repository is what it was called then: what is remembered stays with a repository that gets another name.
	Repository string    `json:"repository,omitempty"`
	Looked     time.Time `json:"looked,omitzero"` // when the store was last asked whether the snapshot is bad
	// Unchecked: the snapshot was published, and nobody has walked through its history yet.
	Unchecked bool `json:"unchecked,omitempty"`
	// Retain is the manifest's, in seconds, 0: not known, or 0.
	Retain int64 `json:"retain,omitempty"`
}

func (m memoryDir) read(name string) []byte {
	if m == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(string(m), name))
	if err != nil {
		return nil
	}
	return data
}

// write replaces a file, and leaves it to the kernel when it comes to the disk.
func (m memoryDir) write(name string, data []byte) {
	if m == "" {
		return
	}
	path := filepath.Join(string(m), name)
	if refset.MakeCacheDirs(string(m)) != nil {
		return
	}
	f, err := os.CreateTemp(string(m), "."+name+"-*.tmp") // mode 0600; two processes may be here
	if err != nil {
		return
	}
	_, err = f.Write(data)
	if f.Close() != nil || err != nil || os.Rename(f.Name(), path) != nil {
		_ = os.Remove(f.Name())
	}
}

// manifest returns the manifest of the snapshot with that sum, or nil.
func (m memoryDir) manifest(sum string) *Manifest {
	first, rest, ok := bytes.Cut(m.read("manifest"), []byte{'\n'})
	if !ok || string(first) != sum {
		return nil
	}
	check, packed, _ := bytes.Cut(rest, []byte{'\n'})
	if got := sha256.Sum256(packed); hex.EncodeToString(got[:]) != string(check) {
		return nil // half of it came to the disk
	}
	d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil
	}
	defer d.Close()
	data, err := io.ReadAll(io.LimitReader(d, maxPlainManifest))
	if err != nil {
		return nil
	}
	manifest, err := parseManifest(data)
	if err != nil {
		return nil
	}
	return manifest
}

// quickCompressor is one for all: it has tables of its own, which take longer to make than to use.
var quickCompressor = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20))
})

func (m memoryDir) keepManifest(sum string, manifest *Manifest) {
	if m == "" {
		return
	}
	data, err := manifest.encodeJSON()
	if err != nil {
		return
	}
	w, err := quickCompressor()
	if err != nil {
		return
	}
	packed := w.EncodeAll(data, nil)
	check := sha256.Sum256(packed)
	m.write("manifest", append([]byte(sum+"\n"+hex.EncodeToString(check[:])+"\n"), packed...))
}

func (m memoryDir) fileSums() map[string]fileSum {
	var sums map[string]fileSum
	_ = json.Unmarshal(m.read("files"), &sums)
	return sums
}

func (m memoryDir) keepFileSums(old, sums map[string]fileSum) {
	if maps.Equal(old, sums) {
		return
	}
	if data, err := json.Marshal(sums); err == nil {
		m.write("files", data)
	}
}

// recall returns what is known about a snapshot.
func (m memoryDir) recall(sum string) recalled {
	var r recalled
	if json.Unmarshal(m.read("state"), &r) != nil || r.Sum != sum {
		return recalled{Sum: sum}
	}
	return r
}

func (m memoryDir) remember(r recalled) {
	if data, err := json.Marshal(r); err == nil {
		m.write("state", data)
	}
}

// LookAgain has the next Take ask the store whether the latest snapshot is bad, also when it asked lately: something
// was found to be wrong.
func LookAgain(memory string) {
	if known, ok := memoryDir(memory).last(); ok {
		known.Looked = time.Time{}
		memoryDir(memory).remember(known)
	}
}

// Remembered returns the Sum of the latest snapshot that was taken or seen from this machine of the repository, under this name, as
// it is remembered in a Source's Memory; "" when nothing is.
func Remembered(memory, repository string) string {
	r, _ := memoryDir(memory).last()
	if r.Repository != "" && r.Repository != repository {
		return ""
	}
	return r.Sum
}

// last returns what was remembered last.
func (m memoryDir) last() (r recalled, ok bool) {
	if json.Unmarshal(m.read("state"), &r) != nil {
		return recalled{}, false
	}
	return r, r.Sum != ""
}
