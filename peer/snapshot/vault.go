package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"time"

	"filippo.io/age"

	"mirror-shell/peer/store"
)

// Vault is a store with snapshots in it. The zero value of every field but Store and Scratch is
// usable. Its methods may be called by any number of goroutines.
type Vault struct {
	Store store.Store
	// Scratch is a directory of this machine for files that are being made, on a disk with room for
	// the largest of them.
	Scratch string
	// Recipients encrypt all content; none: nothing is encrypted. Identities decrypt.
	Recipients []age.Recipient
	Identities []age.Identity
	// Include and Exclude choose the files that are kept beside refs and packs, by globs of paths
	// in the repository's directory (mirrorcfg.MatchGlob); DefaultInclude when Include is nil.
	Include, Exclude []string
	// Retain is for how long the store must refuse to delete what a snapshot needs; 0: it need not.
	Retain time.Duration
	// Keep is what Prune is going to keep, as far as that is known here: it says which packs are needed for long. The
	// zero Policy: nobody knows.
	Keep Policy
	// ToForget returns the Sums of snapshots that are there only because the store retained them when Forget was to remove them
	// on this machine; nil: none. Prune keeps none of these. What marks in the vault say about it does not count: whoever may only add
	// to a vault must not be able to have Prune empty it.
	ToForget func(repository string) map[string]bool
	// Grace is how long nothing is deleted that may still come into use; 0: DefaultGrace. It
	// bounds how long a backup may take without looking again (half of it), and should be the same on every server
	// that uses the vault: see Manifest.Grace.
	Grace time.Duration
	// Server is this server's hostname, Program the program and its version, for manifests.
	Server, Program string
	Log             *slog.Logger // nil: nothing is logged
	// Now tells the time; nil: time.Now.
	Now func() time.Time
}

// DefaultGrace is the Grace of a vault that names none.
const DefaultGrace = 24 * time.Hour

// DefaultInclude are the files that are kept unless told otherwise.
var DefaultInclude = []string{"description", "config", "hooks/**", "info/attributes", "info/exclude", "info/grafts", "gl-creator", "gl-perms", "gl-conf", "lfs/objects/**"}

func (v *Vault) now() time.Time {
	if v.Now != nil {
		return v.Now()
	}
	return time.Now()
}

func (v *Vault) grace() time.Duration {
	if v.Grace > 0 {
		return v.Grace
	}
	return DefaultGrace
}

// maxRetain bounds what a manifest says of its own retention.
const maxRetain = 200 * 366 * 24 * time.Hour

// retains is how long the store keeps what is written; 0 where it cannot be told to.
func (v *Vault) retains() time.Duration {
	if _, can := v.Store.(store.Retainer); !can {
		return 0
	}
	return min(v.Retain, maxRetain)
}

// maxGrace bounds what a manifest asks of a prune: whoever may write to the vault chooses it.
const maxGrace = 10 * 366 * 24 * time.Hour

func (v *Vault) toForget(repository string) map[string]bool {
	if v.ToForget == nil {
		return nil
	}
	return v.ToForget(repository)
}

func (v *Vault) log() *slog.Logger {
	if v.Log != nil {
		return v.Log
	}
	return slog.New(slog.DiscardHandler)
}

// elapsed is how much time has passed: by the clock on the wall or by that which only runs while the
// machine does, whichever says longer. The second stands still in a suspended machine, the first is set.
func elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

// ErrNoSnapshot: the vault has none of that repository, or none that fits. It is fs.ErrNotExist.
var ErrNoSnapshot = fmt.Errorf("no snapshot: %w", fs.ErrNotExist)

// ErrDamaged: what the store gives is not what was written, or is missing.
var ErrDamaged = errors.New("damaged in the store")

// ErrKey: the content is encrypted, and none of our identities decrypts it.
var ErrKey = errors.New("cannot be decrypted with the identities that are configured")

// Snapshots yields the snapshots of a repository, newest first; of every repository, sorted by the
// key, when repository is "". A key that is no snapshot's is logged and left out.
func (v *Vault) Snapshots(ctx context.Context, repository string) iter.Seq2[Name, error] {
	prefix := "snapshots/"
	if repository != "" {
		prefix = snapshotsOf(repository)
	}
	return v.names(ctx, prefix, "", 0)
}

func (v *Vault) names(ctx context.Context, prefix, after string, limit int) iter.Seq2[Name, error] {
	return func(yield func(Name, error) bool) {
		for info, err := range v.Store.List(ctx, prefix, after, limit) {
			if err != nil {
				yield(Name{}, fmt.Errorf("list snapshots: %w", err))
				return
			}
			name, err := ParseName(info.Key)
			if err != nil {
				v.log().Warn("a key in the vault is not ours", "error", err)
				continue
			}
			if !yield(name, nil) {
				return
			}
		}
	}
}

// infos returns what the store lists below a prefix, by key. What names that in errors.
func (v *Vault) infos(ctx context.Context, what, prefix string) (map[string]store.Info, error) {
	infos := map[string]store.Info{}
	for info, err := range v.Store.List(ctx, prefix, "", 0) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", what, err)
		}
		infos[info.Key] = info
	}
	return infos, nil
}

// Latest returns the newest snapshot of a repository, by one request; ErrNoSnapshot when there is none.
func (v *Vault) Latest(ctx context.Context, repository string) (Name, error) {
	return v.first(ctx, repository, "")
}

// At returns the newest snapshot that is not newer than t; ErrNoSnapshot when there is none.
func (v *Vault) At(ctx context.Context, repository string, t time.Time) (Name, error) {
	// What follows the countdown is greater than "" and smaller than "~".
	return v.first(ctx, repository, snapshotsOf(repository)+countdown(t.Truncate(time.Millisecond)))
}

func (v *Vault) first(ctx context.Context, repository, after string) (Name, error) {
	for limit := 1; ; limit = 0 { // the first key may be one that is not ours
		seen := false
		for info, err := range v.Store.List(ctx, snapshotsOf(repository), after, limit) {
			if err != nil {
				return Name{}, fmt.Errorf("list snapshots of %s: %w", repository, err)
			}
			if name, err := ParseName(info.Key); err == nil {
				return name, nil
			}
			seen = true
		}
		if !seen || limit == 0 {
			return Name{}, fmt.Errorf("%s: %w", repository, ErrNoSnapshot)
		}
	}
}

// Load reads a snapshot's manifest and checks it against its name. Errors may wrap ErrDamaged, ErrKey
// and those of the store.
func (v *Vault) Load(ctx context.Context, name Name) (*Manifest, error) {
	r, err := v.Store.Get(ctx, name.Key(), 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("manifest %s: %w: it is gone", name.Key(), ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name.Key(), err)
	}
	defer r.Close()
	stored, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name.Key(), err)
	}
	if len(stored) > maxManifest {
		return nil, fmt.Errorf("manifest %s: %w: more than %d bytes", name.Key(), ErrDamaged, maxManifest)
	}
	m, err := v.decodeManifest(name, stored)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name.Key(), err)
	}
	return m, nil
}

// maxManifest bounds what is read into memory: a million refs are less. Unpacked it may have maxPlainManifest.
const (
	maxManifest      = 256 << 20
	maxPlainManifest = 4 * maxManifest
)

func (v *Vault) decodeManifest(name Name, stored []byte) (*Manifest, error) {
	sum := sha256.Sum256(stored)
	if hex.EncodeToString(sum[:16]) != name.Sum {
		return nil, fmt.Errorf("%w: its SHA-256 is another than its name says", ErrDamaged)
	}
	encoding := encodingZstd
	if name.Sealed {
		encoding = encodingBoth
	}
	plain, err := v.decode(bytes.NewReader(stored), encoding)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	data, err := io.ReadAll(io.LimitReader(plain, maxPlainManifest))
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	if m.Repository != name.Repository || m.Digest != name.Digest || m.State() != name.State || !m.Time.Equal(name.Time) || m.ID != name.ID {
		return nil, fmt.Errorf("%w: it is the manifest of another snapshot than its name says", ErrDamaged)
	}
	return m, nil
}

// publish writes a manifest, which makes it a snapshot. Everything that it names is in the store.
func (v *Vault) publish(ctx context.Context, m *Manifest) (Name, []byte, error) {
	m.Retain = int64(v.retains() / time.Second)
	if err := m.check(); err != nil { // nothing is written that could not be read
		return Name{}, nil, fmt.Errorf("manifest: %w", err)
	}
	data, err := m.encodeJSON()
	if err != nil {
		return Name{}, nil, err
	}
	var stored bytes.Buffer
	w, err := v.encode(&stored, encodingZstd)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return Name{}, nil, fmt.Errorf("manifest: %w", err)
	}
	if len(data) > maxPlainManifest || stored.Len() > maxManifest {
		return Name{}, nil, fmt.Errorf("manifest: %d refs, %d files and %d LFS objects are more than a manifest can hold", len(m.Refs), len(m.Files), len(m.LFS))
	}
	sum := sha256.Sum256(stored.Bytes())
	name := Name{Repository: m.Repository, Time: m.Time, Digest: m.Digest, State: m.State(), Sum: hex.EncodeToString(sum[:16]), ID: m.ID, Sealed: len(v.Recipients) > 0}
	err = v.Store.Put(ctx, name.Key(), v.blob(stored.Bytes()))
	if err != nil && !errors.Is(err, fs.ErrExist) { // the same bytes: an earlier attempt of ours
		return Name{}, nil, fmt.Errorf("publish snapshot of %s: %w", m.Repository, err)
	}
	return name, stored.Bytes(), nil
}

// blob is data to be stored, retained as the vault wants it.
func (v *Vault) blob(data []byte) store.Blob {
	return store.Blob{Size: int64(len(data)), Retain: v.retainUntil(), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

// retainUntil is until when what is written now has to stay; zero: not at all.
func (v *Vault) retainUntil() time.Time {
	if v.Retain == 0 {
		return time.Time{}
	}
	return v.now().Add(v.Retain).UTC().Truncate(time.Second)
}
