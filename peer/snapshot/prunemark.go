package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/lazyregexp"
	"mirror-shell/peer/store"
)

// mark is what a run of Prune announces before it removes anything; see "Pruning" in the package comment.
type mark struct {
	Format  int       `json:"format"`
	Time    time.Time `json:"time"`
	Server  string    `json:"server"`
	Program string    `json:"program"`
	// Forgotten: Forget was told to remove all that there was. It has Forget finish that, and drops nothing by itself: see Vault.ToForget.
	Forgotten bool `json:"forgotten,omitempty"`
	// Grace is the longest grace period that is known of who made them, in seconds.
	Grace int64 `json:"grace,omitempty"`
	// Removed are the snapshots that a policy dropped, or that are forgotten.
	Removed []removed `json:"removed,omitempty"`
	// Candidates are keys of data that no manifest named but those of Removed.
	Candidates []string `json:"candidates,omitempty"`
	// Retires are keys of older marks, which do not count any more.
	Retires []string `json:"retires,omitempty"`

	key    string    // in the store
	stored time.Time // by the store's clock
}

// removed names a snapshot: the Sum and the Time of its Name.
type removed struct {
	Sum  string    `json:"sum"`
	Time time.Time `json:"time"`
}

// maxCandidates bounds a mark. What does not fit is found again by a later run.
const maxCandidates = 200_000

// maxMark bounds what is read of a mark, in bytes.
const maxMark = 256 << 20

var (
	markPattern  = lazyregexp.New(`^([0-9]{13})-([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)-([0-9a-f]{32})\.json$`)
	leasePattern = lazyregexp.New(`^lease-[0-9a-f]{32}\.json$`)
	sumPattern   = lazyregexp.New(`^[0-9a-f]{32}$`)
)

// marks returns a repository's marks that count, oldest first, and the keys of those that others retire. A mark
// that cannot be read is an error: what it says about others would be unknown.
func (v *Vault) marks(ctx context.Context, repository string) (valid []mark, retired []string, err error) {
	var all []mark
	gone := map[string]bool{}
	for info, err := range v.Store.List(ctx, marksOf(repository), "", 0) {
		if err != nil {
			return nil, nil, fmt.Errorf("list marks of %s: %w", repository, err)
		}
		name := strings.TrimPrefix(info.Key, marksOf(repository))
		if leasePattern.MatchString(name) {
			continue
		}
		m, err := v.loadMark(ctx, repository, info)
		if errors.Is(err, fs.ErrNotExist) {
			continue // merged into another one since the listing: which then says no less
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			return nil, nil, err
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%w: delete every mark of this repository, which is always safe and only costs another grace period", err)
		}
		all = append(all, m)
		for _, key := range m.Retires {
			gone[key] = true
		}
	}
	slices.Reverse(all)
	for _, m := range all {
		if gone[m.key] {
			retired = append(retired, m.key)
		} else {
			valid = append(valid, m)
		}
	}
	return valid, retired, nil
}

func (v *Vault) loadMark(ctx context.Context, repository string, info store.Info) (mark, error) {
	r, err := v.Store.Get(ctx, info.Key, 0, -1)
	if err != nil {
		return mark{}, fmt.Errorf("mark %s: %w", info.Key, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxMark+1))
	if err != nil {
		return mark{}, fmt.Errorf("mark %s: %w", info.Key, err)
	}
	m, err := parseMark(repository, info.Key, data)
	if err != nil {
		return mark{}, fmt.Errorf("mark %s: %w", info.Key, err)
	}
	m.stored = info.Time
	return m, nil
}

// parseMark reads the mark with that key. It comes from a place that others may write to: keys outside the
// repository's data would have Prune delete what is not its own.
func parseMark(repository, key string, data []byte) (mark, error) {
	name := markPattern.FindStringSubmatch(strings.TrimPrefix(key, marksOf(repository)))
	if name == nil {
		return mark{}, fmt.Errorf("%w: its name is not that of a mark", ErrDamaged)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:16]) != name[3] {
		return mark{}, fmt.Errorf("%w: its SHA-256 is another than its name says", ErrDamaged)
	}
	m := mark{key: key}
	if err := json.Unmarshal(data, &m); err != nil {
		return mark{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if m.Format != recordFormat {
		return mark{}, fmt.Errorf("it has format %d, and this version of mirror-shell reads %d: use a newer one", m.Format, recordFormat)
	}
	if m.Grace < 0 || m.Grace > int64(maxGrace/time.Second) {
		return mark{}, fmt.Errorf("%w: no grace period takes %d seconds", ErrDamaged, m.Grace)
	}
	at, err := parseTimes(name[1], name[2])
	if err != nil || !at.Equal(m.Time) {
		return mark{}, fmt.Errorf("%w: its time is another than its name says", ErrDamaged)
	}
	for _, k := range m.Candidates {
		if !within(k, dataOf(repository)) {
			return mark{}, fmt.Errorf("%w: candidate %q is not below %s", ErrDamaged, k, dataOf(repository))
		}
	}
	for _, k := range m.Retires {
		if !within(k, marksOf(repository)) {
			return mark{}, fmt.Errorf("%w: %q is not below %s", ErrDamaged, k, marksOf(repository))
		}
	}
	for _, r := range m.Removed {
		if !sumPattern.MatchString(r.Sum) {
			return mark{}, fmt.Errorf("%w: %q is no snapshot", ErrDamaged, r.Sum)
		}
	}
	return m, nil
}

// within reports whether key is one element below the prefix.
func within(key, prefix string) bool {
	rest, ok := strings.CutPrefix(key, prefix)
	return ok && rest != "" && !strings.Contains(rest, "/") && store.CheckKey(key) == nil
}

// putMark writes a mark and fills in its key.
func (v *Vault) putMark(ctx context.Context, repository string, m *mark) error {
	m.Format, m.Server, m.Program = recordFormat, v.Server, v.Program
	m.Time = v.now().UTC().Truncate(time.Millisecond)
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	m.key = marksOf(repository) + countdown(m.Time) + "-" + m.Time.Format(timeLayout) + "-" + hex.EncodeToString(sum[:16]) + ".json"
	if _, err := parseMark(repository, m.key, data); err != nil {
		return fmt.Errorf("write a mark: %w", err) // nothing is written that could not be read
	}
	blob := v.blob(data)
	blob.Retain = time.Time{} // a mark has to go when it is done
	if err := v.Store.Put(ctx, m.key, blob); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write a mark for %s: %w", repository, err)
	}
	return nil
}

// removed returns the Sums of snapshots that Prune removed, as far as a remaining snapshot may follow them:
// one that is neither there nor among these has vanished.
func (v *Vault) removed(ctx context.Context, repository string) (map[string]bool, error) {
	marks, _, err := v.marks(ctx, repository)
	if err != nil {
		return nil, err
	}
	sums := map[string]bool{}
	for _, m := range marks {
		for _, r := range m.Removed {
			sums[r.Sum] = true
		}
	}
	return sums, nil
}

// doomed returns the keys of data that Prune may delete within the time that a backup may still rely on
// them: candidates of marks that are older than half the grace period. A backup that looks again calls it
// first and asks then whether what it relies on is there: data that is there after this, and not
// in it, stays for at least half the grace period from the call on.
func (v *Vault) doomed(ctx context.Context, repository string) (map[string]bool, error) {
	marks, _, err := v.marks(ctx, repository)
	if err != nil {
		return nil, err
	}
	keys := map[string]bool{}
	for _, m := range marks {
		if v.isYoung(m.stored) {
			continue
		}
		for _, key := range m.Candidates {
			keys[key] = true
		}
	}
	return keys, nil
}
