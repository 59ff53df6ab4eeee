package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"mirror-shell/peer/store"
)

// ErrBusy: another prune of the repository is running, or was killed a short while ago.
var ErrBusy = errors.New("another prune is at work")

// maxLease is how long the lease of a prune that was killed keeps others out at the most.
const maxLease = 20 * time.Minute

// lease is the right to prune a repository, alone. It is a blob with a name of its own: who finds that of
// another after writing its own steps back, so that of two at once at most one goes on, whatever
// their clocks say. Ages are differences of the store's times.
type lease struct {
	v          *Vault
	repository string
	keys       []string  // of the blobs written
	taken      time.Time // when the last one began to be written, by this machine's clock
	now        time.Time // when the first one was written, by the store's clock
}

// leaseTime is how long a lease blob counts. Its holder renews it after a quarter and stops at the half.
func (v *Vault) leaseTime() time.Duration { return min(maxLease, v.grace()/2) }

// lease takes the lease, or says until when another one counts (ErrBusy).
func (v *Vault) lease(ctx context.Context, repository string) (*lease, error) {
	l := &lease{v: v, repository: repository}
	if err := l.write(ctx); err != nil {
		return nil, err
	}
	all, err := l.list(ctx)
	if err == nil && all[l.keys[0]].IsZero() && l.held() >= v.leaseTime()/2 {
		err = l.lost() // and somebody cleared it away
	} else if err == nil && all[l.keys[0]].IsZero() {
		err = fmt.Errorf("lease of %s: the store does not list what was just written to it: nothing can be deleted safely there", repository)
	}
	if err != nil {
		l.release(ctx)
		return nil, err
	}
	l.now = all[l.keys[0]]
	for key, written := range all {
		switch age := l.now.Sub(written); {
		case key == l.keys[0]:
		case age >= v.leaseTime():
			if err := v.Store.Delete(ctx, key); err != nil && !errors.Is(err, store.ErrLocked) {
				v.log().Warn("an old lease stays", "key", key, "error", err)
			}
		default:
			if age < -v.leaseTime() && l.held() < v.leaseTime() { // else we have stood still
				err, age = l.redate(ctx, key), 0
			}
			l.release(ctx)
			if err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("%w on %s, or was killed: try again after %s", ErrBusy, repository, v.now().Add(v.leaseTime()-age).Format(time.TimeOnly))
		}
	}
	return l, nil
}

// redate puts a lease again, under another name, and removes it: the store's clock has been set back since it was
// written, and it would count for as long. Its holder, should it live, renews it in less time than the new one lasts.
func (l *lease) redate(ctx context.Context, key string) error {
	again := lease{v: l.v, repository: l.repository} // nobody releases it
	if err := again.write(ctx); err != nil {
		return err
	}
	if err := l.v.Store.Delete(ctx, key); !errors.Is(err, store.ErrLocked) {
		return err
	}
	return nil
}

func (l *lease) list(ctx context.Context) (map[string]time.Time, error) {
	all := map[string]time.Time{}
	prefix := marksOf(l.repository) + "lease-"
	for info, err := range l.v.Store.List(ctx, prefix, "", 0) {
		if err != nil {
			return nil, fmt.Errorf("list leases of %s: %w", l.repository, err)
		}
		if leasePattern.MatchString(strings.TrimPrefix(info.Key, marksOf(l.repository))) {
			all[info.Key] = info.Time
		}
	}
	return all, nil
}

func (l *lease) write(ctx context.Context) error {
	id := make([]byte, 16)
	rand.Read(id) // never fails
	key := marksOf(l.repository) + "lease-" + hex.EncodeToString(id) + ".json"
	taken := l.v.now()
	data, err := json.Marshal(map[string]any{"format": recordFormat, "time": taken.UTC(), "server": l.v.Server})
	if err != nil {
		return err
	}
	blob := l.v.blob(data)
	blob.Retain = time.Time{}
	l.keys = append(l.keys, key) // also when the answer is lost
	// Nobody else has such a key: one that exists is ours, the first answer was lost.
	if err := l.v.Store.Put(ctx, key, blob); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("lease of %s: %w", l.repository, err)
	}
	l.taken = taken
	return nil
}

// hold has to be called before each operation that removes something. It renews the lease in time, and returns
// a context that ends the operation before the lease does. A process that was stopped for too long gets
// an error: somebody else may prune by now.
func (l *lease) hold(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	total := l.v.leaseTime()
	if l.held() >= total/2 {
		return nil, nil, l.lost()
	}
	if l.held() >= total/4 {
		if err := l.write(ctx); err != nil {
			return nil, nil, err
		}
		if l.held() >= total/2 { // the store was slow
			return nil, nil, l.lost()
		}
	}
	within, cancel := context.WithTimeout(ctx, total/2-l.held())
	return within, cancel, nil
}

func (l *lease) lost() error {
	return fmt.Errorf("prune of %s stood still for %s and lost its lease: run it again", l.repository, l.held().Round(time.Second))
}

// held is how long ago the lease was renewed.
func (l *lease) held() time.Duration { return elapsed(l.taken, l.v.now()) }

// release lets others in. It is tried also when the run was cancelled.
func (l *lease) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	for _, key := range l.keys {
		if err := l.v.Store.Delete(ctx, key); err != nil && !errors.Is(err, store.ErrLocked) {
			l.v.log().Warn("the lease of a prune stays until it ends by itself", "key", key, "error", err)
		}
	}
}
