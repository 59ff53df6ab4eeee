package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"mirror-shell/internal/durable"
)

// Loss says that tables were lost, and that not everything that could have been in them has been found again.
type Loss struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"` // one line
}

func lossPath(stateDir string) string { return filepath.Join(stateDir, "rebuild") }

// LostTable returns the loss that nobody has made good yet; ok is false without one. One whose
// mark cannot be understood has no ID, and stands all the same.
func LostTable(stateDir string) (l Loss, ok bool, err error) {
	data, err := os.ReadFile(lossPath(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return Loss{}, false, nil
	}
	if err != nil {
		return Loss{}, false, fmt.Errorf("look for lost jobs: %w", err)
	}
	if json.Unmarshal(data, &l) != nil {
		l = Loss{Reason: "the jobs database was lost"}
	}
	return l, true, nil
}

// Rebuilt is for whoever has compared everything since LostTable returned the loss: every copy that
// there should be has a row. It does nothing when tables were lost again meanwhile.
func Rebuilt(ctx context.Context, stateDir string, l Loss) error {
	err := locked(ctx, stateDir, func() error {
		now, ok, err := LostTable(stateDir)
		if err != nil || !ok || now.ID != l.ID {
			return err
		}
		return os.Remove(lossPath(stateDir))
	})
	if err != nil {
		return fmt.Errorf("note that lost jobs were found: %w", err)
	}
	return nil
}

// mark notes a loss durably. The lock is held.
func mark(stateDir, reason string) error {
	data, err := json.Marshal(Loss{ID: fmt.Sprintf("%016x", rand.Uint64()), Time: time.Now().UTC(), Reason: oneLine(reason)})
	if err == nil {
		err = durable.Replace(lossPath(stateDir), append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("note that jobs were lost: %w", err)
	}
	return nil
}

// markLost notes a loss unless one is noted already, and raises the alarm if it does.
func (q *Queue) markLost(ctx context.Context, reason string) error {
	return locked(ctx, q.stateDir, func() error {
		if _, standing, err := LostTable(q.stateDir); standing || err != nil {
			return err
		}
		if err := mark(q.stateDir, reason); err != nil {
			return err
		}
		q.alarm(reason)
		return nil
	})
}

func (q *Queue) alarm(reason string) {
	if q.onLoss != nil {
		q.onLoss(reason + ": a new one was made, and everything is compared again")
	}
}

// created is called in the transaction that makes the tables. If there were some before, they were lost: that is noted
// before anybody can see the new ones, and pauses are taken over.
func (q *Queue) created(ctx context.Context, db querier) error {
	if was, err := usedBefore(q.stateDir); err != nil || !was {
		return err
	}
	if err := q.markLost(ctx, "the jobs database was gone or empty"); err != nil {
		return err
	}
	if q.file == nil {
		return nil
	}
	for _, peer := range readPauses(q.stateDir) {
		if _, err := db.ExecContext(ctx, sqlAddPaused, q.server, peer); err != nil {
			return fmt.Errorf("keep %s paused: %w", peer, err)
		}
	}
	return nil
}

// rebuilding is a worker's part in making good a loss.
type rebuilding struct {
	standing bool          // there is a loss
	ended    chan error    // of Rebuild under way, else nil
	next     time.Time     // not before
	wait     time.Duration // the latest pause
}

// open reports whether something is left to do.
func (r *rebuilding) open() bool { return r.standing || r.ended != nil }

// Pauses after a Rebuild that did not bring back everything.
var (
	rebuildWait    = 10 * time.Second // less in tests
	rebuildWaitMax = 15 * time.Minute
)

// mayRebuild starts Rebuild when there is reason to. Nobody but Rebuild, or a person's sync, takes the mark away.
func (l *loop) mayRebuild(ctx context.Context) {
	r := &l.rebuild
	if l.w.Rebuild == nil {
		return
	}
	_, standing, err := LostTable(l.w.Queue.stateDir)
	if err != nil {
		standing = true // better once too often
	}
	if r.standing = standing; !standing {
		r.wait = 0
		return
	}
	if r.ended != nil || time.Now().Before(r.next) || l.lingered() || ctx.Err() != nil {
		return
	}
	ended := make(chan error, 1)
	r.ended = ended
	go func() { ended <- l.w.Rebuild(ctx) }() // run's end, or wait, receives
}

func (l *loop) rebuiltWith(ctx context.Context, err error) {
	r := &l.rebuild
	r.ended = nil
	r.wait = min(max(2*r.wait, rebuildWait), rebuildWaitMax)
	r.next = time.Now().Add(r.wait)
	_, standing, lerr := LostTable(l.w.Queue.stateDir)
	switch {
	case ctx.Err() != nil:
	case !standing && lerr == nil:
		r.standing = false
		l.progress = time.Now()
		l.w.Log.Info("all copies were compared after the loss of the jobs database")
	default:
		l.w.Log.Error("the jobs database was lost, and comparing all copies did not succeed", "again_in", r.wait, "error", errors.Join(err, lerr))
	}
}

func pausesPath(stateDir string) string { return filepath.Join(stateDir, "paused") }

// readPauses returns the peers that are known to be paused. A file that is damaged too is no reason to have no table.
func readPauses(stateDir string) (peers []string) {
	data, err := os.ReadFile(pausesPath(stateDir))
	if err != nil || json.Unmarshal(data, &peers) != nil {
		return nil
	}
	return slices.DeleteFunc(peers, func(name string) bool { return Key{"any", name}.check() != nil })
}

// keepPauses writes down, outside of the table, which peers are paused. The transaction
// keeps others from doing the same.
func (tx *tx) keepPauses(ctx context.Context) error {
	if tx.q.file == nil {
		return nil
	}
	list, err := tx.listPeers(ctx, false)
	if err != nil {
		return err
	}
	names := []string{}
	for _, p := range list {
		if p.paused {
			names = append(names, p.name)
		}
	}
	data, err := json.Marshal(names)
	if err == nil {
		err = durable.Replace(pausesPath(tx.q.stateDir), append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("remember pauses: %w", err)
	}
	return nil
}
