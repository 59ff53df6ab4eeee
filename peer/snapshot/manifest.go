package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/lazyregexp"
)

// Format is the latest version of manifests. Readers know it and all before it; what is written is the
// earliest that can say what there is (see the package comment), so that older servers read nearly all.
const Format = 2

// recordFormat is the version of checks, marks and leases.
const recordFormat = 1

// Manifest describes a repository at one moment.
type Manifest struct {
	Format       int       `json:"format"`
	Repository   string    `json:"repository"`
	Time         time.Time `json:"time"` // when its refs were read
	ID           string    `json:"id,omitempty"`
	Server       string    `json:"server"`             // hostname of the server that made it
	Program      string    `json:"program"`            // and the version of the program
	Previous     string    `json:"previous,omitempty"` // Sum of the snapshot before it, as far as its maker knew
	ObjectFormat string    `json:"object_format"`      // "sha1" or "sha256"
	// Head is what HEAD points to, whether that exists or not; Detached is HEAD's object id when it points to none.
	Head     string `json:"head,omitempty"`
	Detached string `json:"detached,omitempty"`
	// SealedFor tells apart for whom the data is encrypted: 32 hex digits, made from the recipients; "": it is not.
	SealedFor string `json:"sealed_for,omitempty"`
	// Unwalked: when the snapshot was published nobody had walked through all of its history. A check
	// of the kind "good" says that somebody has since, and found it whole.
	Unwalked bool `json:"unwalked,omitempty"`
	// Grace is the grace period of the server that made it, in seconds: prune waits for at least as long.
	Grace int64 `json:"grace,omitempty"`
	// Retain is for how long from Time the store was told to keep the manifest itself, in seconds; 0: not at all.
	Retain int64 `json:"retain,omitempty"`
	// Digest is that of the mirrored refs, as peers are compared by it.
	Digest string `json:"digest"`
	// Refs are all refs, full name → object id, those of refs/mirror/ too; and, as refs/mirror/worktrees/WORKTREE/HEAD, what linked
	// worktrees stand on. Symbolic ones have their value here and their target in SymRefs, and only that
	// when they point to nothing. In the JSON, a byte of a ref's name that is not part of
	// a UTF-8 character is \xHH.
	Refs    map[string]string `json:"refs"`
	SymRefs map[string]string `json:"symrefs,omitempty"`
	Packs   []Pack            `json:"packs"`
	Files   []File            `json:"files,omitempty"`
	LFS     []LFS             `json:"lfs,omitempty"`
}

// Object is a piece of data in the store.
type Object struct {
	Key    string `json:"key"`
	Size   int64  `json:"size"`   // bytes of the content
	SHA256 string `json:"sha256"` // of the content
	// Encoding says how the stored bytes differ from the content: "", "zstd", "age" or
	// "zstd+age" (compressed, then encrypted). Then the stored bytes have a size and a SHA-256 of their own.
	Encoding     string `json:"encoding,omitempty"`
	StoredSize   int64  `json:"stored_size,omitempty"`
	StoredSHA256 string `json:"stored_sha256,omitempty"`
	// Retained is until when the store was told to keep it; zero: never told.
	Retained time.Time `json:"retained,omitzero"`
}

// Stored returns size and SHA-256 of the bytes in the store.
func (o Object) Stored() (size int64, sum string) {
	if o.Encoding == "" {
		return o.Size, o.SHA256
	}
	return o.StoredSize, o.StoredSHA256
}

// Pack is a pack with its index, and what else git keeps beside it is made anew.
type Pack struct {
	Name  string `json:"name"` // "pack-" and the hash that git names it by
	Pack  Object `json:"pack"`
	Index Object `json:"idx"`
}

// File is a kept file, by its path in the repository's directory.
type File struct {
	Path string `json:"path"` // clean, relative, with "/"
	Mode uint32 `json:"mode"` // permission bits: 0755 where the owner may execute, else 0644, less those of others and the group where they have none
	Object
}

// LFS is an object of git-lfs, kept once by its id, the SHA-256 of its content.
type LFS struct {
	OID string `json:"oid"`
	Object
}

// format is the earliest format of which all programs understand what is in the manifest.
func (m *Manifest) format() int {
	private := func(f File) bool { return f.Mode != 0o644 && f.Mode != 0o755 }
	if m.SealedFor != "" || m.looseSymRefs() || slices.ContainsFunc(m.Files, private) || m.namesAreBytes() {
		return 2
	}
	return 1
}

// looseSymRefs reports whether there are symbolic refs that no manifest of format 1 has.
func (m *Manifest) looseSymRefs() bool {
	for name, target := range m.SymRefs {
		if _, ok := m.Refs[name]; !ok || !isRef(target) {
			return true
		}
	}
	return false
}

// State condenses all that a name's digest does not tell: a repository whose digest and state
// are those of a snapshot has not changed since. It is 32 hex digits of the SHA-256 of a text
// with a line for each: object format, HEAD, every ref, symbolic refs, files, one for all LFS objects, and
// for whom it is encrypted if it is.
func (m *Manifest) State() string {
	var b strings.Builder
	line := func(words ...string) { b.WriteString(strings.Join(words, " ") + "\n") }
	line("format", m.ObjectFormat)
	line("head", m.Head, m.Detached)
	for _, name := range slices.Sorted(maps.Keys(m.Refs)) {
		line("ref", m.Refs[name], name)
	}
	for _, name := range slices.Sorted(maps.Keys(m.SymRefs)) {
		line("symref", m.SymRefs[name], name)
	}
	files := slices.SortedFunc(slices.Values(m.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for _, f := range files {
		line("file", f.SHA256, fmt.Sprintf("%o", f.Mode), f.Path)
	}
	oids := make([]string, 0, len(m.LFS))
	for _, l := range m.LFS {
		oids = append(oids, l.OID)
	}
	slices.Sort(oids)
	line(append([]string{"lfs"}, oids...)...)
	if m.SealedFor != "" {
		line("sealed", m.SealedFor)
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:16])
}

// Objects returns every piece of data that the snapshot needs, each key once.
func (m *Manifest) Objects() []Object {
	all := make([]Object, 0, 2*len(m.Packs)+len(m.Files)+len(m.LFS))
	for _, p := range m.Packs {
		all = append(all, p.Pack, p.Index)
	}
	for _, f := range m.Files {
		all = append(all, f.Object)
	}
	for _, l := range m.LFS {
		all = append(all, l.Object)
	}
	seen := make(map[string]bool, len(all))
	return slices.DeleteFunc(all, func(o Object) bool {
		again := seen[o.Key]
		seen[o.Key] = true
		return again
	})
}

// freeBefore reports whether the store was not told to keep all of the data until then.
func (m *Manifest) freeBefore(t time.Time) bool {
	return slices.ContainsFunc(m.Objects(), func(o Object) bool { return o.Retained.Before(t) })
}

var (
	packName  = lazyregexp.New(`^pack-([0-9a-f]{40}|[0-9a-f]{64})$`)
	sha256Hex = lazyregexp.New(`^[0-9a-f]{64}$`)
)

// parseManifest reads the JSON of a manifest and checks all that a restore relies on:
// it comes from a place that others may write to.
func parseManifest(data []byte) (*Manifest, error) {
	m := &Manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.Format < 1 || m.Format > Format {
		return nil, fmt.Errorf("manifest has format %d, and this version of mirror-shell reads up to %d: use a newer one", m.Format, Format)
	}
	if err := m.nameBytes(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return m, nil
}
