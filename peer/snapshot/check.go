package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"time"

	"mirror-shell/peer/store"
)

// Kinds of a Check; see the package comment.
const (
	checkSame  = "same"
	checkBad   = "bad"
	checkGood  = "good"
	checkDrill = "drill"
	// checkForgotten is final.
	checkForgotten = "forgotten"
)

// Check is what was found out about a snapshot after it was made, as it is stored.
type Check struct {
	Format   int       `json:"format"`
	Kind     string    `json:"kind"`     // "same", "bad", "good", "drill" or "forgotten"
	Snapshot string    `json:"snapshot"` // Sum of the snapshot
	ID       string    `json:"id,omitempty"`
	Time     time.Time `json:"time"`
	Server   string    `json:"server"`
	Program  string    `json:"program"`
	Error    string    `json:"error,omitempty"` // what is wrong; "": nothing
	Seconds  float64   `json:"seconds,omitempty"`
	Bytes    int64     `json:"bytes,omitempty"`   // that were read
	Objects  int64     `json:"objects,omitempty"` // of the store, that were looked at
	Text     string    `json:"text,omitempty"`    // for people
}

// maxCheck bounds what is read of a check, in bytes.
const maxCheck = 1 << 20

// record stores a check. Format, server, program and (when it is zero) the time are filled in.
func (v *Vault) record(ctx context.Context, repository string, c Check) error {
	return v.recordBy(ctx, v.Store.Put, repository, c)
}

// recordHint is record for what can be found out again: a power cut may take it away.
func (v *Vault) recordHint(ctx context.Context, repository string, c Check) error {
	return v.recordBy(ctx, v.putDeferred(), repository, c)
}

// recordVerdict is record for what is found out about the snapshot with that name. Of verdicts the newest counts, and who looks for them
// stops at those that are older than the snapshot: so it is newer than both, also where a clock was put back.
func (v *Vault) recordVerdict(ctx context.Context, n Name, c Check) error {
	c.Time = after(v.now(), n.Time)
	for other, err := range v.checks(ctx, n.Repository) {
		if err != nil {
			return err
		}
		if other.Time.Before(c.Time) {
			break
		}
		if other.Sum == n.Sum {
			c.Time = after(c.Time, other.Time)
			break
		}
	}
	return v.record(ctx, n.Repository, c)
}

// putting publishes a blob.
type putting func(ctx context.Context, key string, b store.Blob) error

// putDeferred is the store's Put, or the one that has to be settled where it has such.
func (v *Vault) putDeferred() putting {
	if place, ok := v.Store.(store.Deferrer); ok {
		return place.PutDeferred
	}
	return v.Store.Put
}

func (v *Vault) recordBy(ctx context.Context, put putting, repository string, c Check) error {
	c.Format, c.Server, c.Program = recordFormat, v.Server, v.Program
	if c.Time.IsZero() {
		c.Time = v.now()
	}
	c.Time = c.Time.UTC().Truncate(time.Millisecond)
	for attempt := 0; ; attempt++ {
		data, err := json.Marshal(c)
		if err != nil {
			return err
		}
		name := checkName{Repository: repository, Time: c.Time, Kind: c.Kind, Sum: c.Snapshot, ID: c.ID}
		if _, err := parseCheckName(name.key()); err != nil {
			return fmt.Errorf("record a check: %w", err) // nothing is written that could not be read
		}
		err = put(ctx, name.key(), v.blob(data))
		if errors.Is(err, fs.ErrExist) && attempt < 10 { // another one in this millisecond
			c.Time = c.Time.Add(time.Millisecond)
			continue
		}
		if err != nil {
			return fmt.Errorf("record a check of %s: %w", repository, err)
		}
		return nil
	}
}

// checks yields the names of a repository's checks, newest first. Keys that are none's are left out.
func (v *Vault) checks(ctx context.Context, repository string) iter.Seq2[checkName, error] {
	return func(yield func(checkName, error) bool) {
		for info, err := range v.Store.List(ctx, checksOf(repository), "", 0) {
			if err != nil {
				yield(checkName{}, fmt.Errorf("list checks of %s: %w", repository, err))
				return
			}
			name, err := parseCheckName(info.Key)
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

// loadCheck reads a check. Nothing protects its content from who may write to the store.
func (v *Vault) loadCheck(ctx context.Context, name checkName) (Check, error) {
	data, err := v.readSmall(ctx, name.key(), maxCheck)
	if err != nil {
		return Check{}, err
	}
	var c Check
	if err := json.Unmarshal(data, &c); err != nil {
		return Check{}, fmt.Errorf("check %s: %w: %w", name.key(), ErrDamaged, err)
	}
	if c.Snapshot != name.Sum || c.Kind != name.Kind {
		return Check{}, fmt.Errorf("check %s: %w: it speaks of something else than its name", name.key(), ErrDamaged)
	}
	return c, nil
}

// readSmall reads a blob of at most max bytes.
func (v *Vault) readSmall(ctx context.Context, key string, max int64) ([]byte, error) {
	r, err := v.Store.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", key, ErrDamaged, max)
	}
	return data, nil
}
