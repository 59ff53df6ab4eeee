package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/durable"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// Hold is what a held sync saw. It is kept as one JSON object in
// mirror-shell/peers/PEER.held of the repository, beside the record of the
// peer's refs, for as long as the sync is held. Approve turns it into PEER.approved: that lets
// through what is described by exactly these two digests, and is void as soon
// as either side has changed.
type Hold struct {
	Reasons []string  `json:"reasons"`
	Ours    string    `json:"ours"`   // digest of our mirrored refs
	Theirs  string    `json:"theirs"` // digest of the peer's mirrored refs
	Time    time.Time `json:"time"`   // since when
}

// ErrNothingHeld is wrapped by Approve's error.
var ErrNothingHeld = errors.New("nothing is held")

// besideRecord is a file beside the record of the peer's refs.
func besideRecord(repoDir, peer, suffix string) string {
	path := refset.Path(repoDir, peer)
	return strings.TrimSuffix(path, filepath.Ext(path)) + suffix
}

func heldFile(repoDir, peer string) string     { return besideRecord(repoDir, peer, ".held") }
func approvedFile(repoDir, peer string) string { return besideRecord(repoDir, peer, ".approved") }

// Approve lets the sync of a copy through that is held now, once, as long as
// both sides stay as they were seen then. The caller has the job run.
func (p *Peers) Approve(ctx context.Context, repository, name string) (Hold, error) {
	if err := mirrorcfg.CheckHost(name); err != nil {
		return Hold{}, err
	}
	repository, err := mirrorcfg.CleanRepo(repository)
	if err != nil {
		return Hold{}, err
	}
	repo, unlock, err := p.lock(ctx, repository, name)
	if err != nil {
		return Hold{}, err
	}
	defer unlock()
	hold, err := readHold(heldFile(repo.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(approvedFile(repo.Dir, name)); err == nil {
			return Hold{}, fmt.Errorf("%w: %s to %s has been approved, and waits for its push: see mirror-shell status %s", ErrNothingHeld, repository, name, repository)
		}
		return Hold{}, fmt.Errorf("%w: %s to %s waits for nobody's approval: see mirror-shell status %s", ErrNothingHeld, repository, name, repository)
	}
	if err != nil {
		return Hold{}, err
	}
	if err := writeDurably(approvedFile(repo.Dir, name), hold); err != nil {
		return Hold{}, fmt.Errorf("approve %s to %s: %w", repository, name, err)
	}
	return hold, errors.Join(removeIfThere(heldFile(repo.Dir, name)), clearRestored(repo.Dir, name))
}

// errApprovalWaits: what was approved is compared with what the peer really has.
var errApprovalWaits = errors.New("an approval waits")

// approved reports whether somebody has let through just what we are about to
// do. An approval of anything else is void, and removed.
func (r *syncRun) approved() (bool, error) {
	file := approvedFile(r.src.Repo.Dir, r.name)
	approval, err := readHold(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case r.adv == nil:
		return false, errApprovalWaits
	case err == nil && approval.Ours == digest.Of(r.ours) && approval.Theirs == digest.Of(r.theirs):
		return true, nil
	}
	fmt.Fprintln(r.say, "   what was approved is not what would be done now")
	return false, removeIfThere(file)
}

// carry has an approval go on for the rest of a plan of which a part is done, and returns what the
// peer's refs are by then. Another push, after this one was cut off, goes on from there as well.
func (r *syncRun) carry() (theirs string, err error) {
	file := approvedFile(r.src.Repo.Dir, r.name)
	approval, err := readHold(file)
	if err != nil {
		return "", err
	}
	approval.Theirs = digest.Of(r.theirs)
	return approval.Theirs, writeDurably(file, approval)
}

// useUp ends an approval when what it was for is done. While a push fails, and
// has changed nothing, it stays good.
func (r *syncRun) useUp(p plan) error {
	if !p.approved || digest.Of(r.theirs) != digest.Of(r.ours) {
		return nil
	}
	return removeIfThere(approvedFile(r.src.Repo.Dir, r.name))
}

// noteHeld writes down what is held. When nothing has changed since the last
// time, neither does the file.
func (r *syncRun) noteHeld(reasons []string) error {
	file := heldFile(r.src.Repo.Dir, r.name)
	hold := Hold{Reasons: reasons, Ours: digest.Of(r.ours), Theirs: digest.Of(r.theirs), Time: time.Now().UTC().Truncate(time.Second)}
	if old, err := readHold(file); err == nil && old.Ours == hold.Ours && old.Theirs == hold.Theirs && slices.Equal(old.Reasons, hold.Reasons) {
		return nil
	}
	if err := writeDurably(file, hold); err != nil {
		return fmt.Errorf("it cannot be approved: %w", err)
	}
	return nil
}

// unhold forgets what was held.
func (r *syncRun) unhold() error { return removeIfThere(heldFile(r.src.Repo.Dir, r.name)) }

func readHold(file string) (hold Hold, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return hold, err
	}
	if err := json.Unmarshal(data, &hold); err != nil || hold.Ours == "" || hold.Theirs == "" {
		return hold, fmt.Errorf("%s makes no sense: delete it, and run mirror-shell sync", file)
	}
	return hold, nil
}

func removeIfThere(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeDurably replaces a file by value as JSON. The lock of (repository, peer) is held.
func writeDurably(file string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := refset.MakeDirs(filepath.Dir(file)); err != nil {
		return err
	}
	return durable.Replace(file, append(data, '\n'))
}
