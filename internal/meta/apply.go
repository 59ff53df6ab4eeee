package meta

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// receivedFile is where a slave keeps what it got last.
func receivedFile(dir string) string { return filepath.Join(refset.Dir(dir), "received.meta") }

// Apply makes a repository what a checked object of its master says, as far as
// the server accepts it, and returns what was not taken. An error may come after a part
// was done: the master sends it all again.
func Apply(ctx context.Context, repo git.Repo, accept mirrorcfg.Accept, d *Data) (*Answer, error) {
	answer := &Answer{Version: Version, NotTaken: []string{}}
	if d.Head != "" {
		if now, err := repo.Head(ctx); err != nil || now != d.Head {
			if err := repo.SetHead(ctx, d.Head); err != nil {
				return nil, fmt.Errorf("set HEAD: %w", err)
			}
		}
	}
	if err := refset.MakeDirs(refset.Dir(repo.Dir)); err != nil {
		return nil, err
	}
	lock := flock.New(receivedFile(repo.Dir)+".lock", flock.SetPermissions(0o600), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	if err := lock.Lock(); err != nil {
		return nil, err
	}
	defer lock.Close()
	a := &applying{repo: repo, accept: accept, before: received(repo.Dir), after: Data{Config: map[string]string{}}}
	maps.Copy(a.after.Config, a.before.Config)
	for _, m := range members {
		*m.text(&a.after) = *m.text(a.before)
		if err := a.file(m, *m.text(d)); err != nil {
			return nil, fmt.Errorf("%s: %w", m.file, err)
		}
	}
	if d.Config != nil {
		if err := a.config(ctx, d.Config, answer); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	return answer, a.save()
}

// applying is the state of one Apply.
type applying struct {
	repo   git.Repo
	accept mirrorcfg.Accept
	before *Data // what came last time
	after  Data  // what has come now
}

// received returns what came last. A file that is lost or damaged knows nothing:
// then nothing is taken away.
func received(dir string) *Data {
	var d Data
	if text, err := os.ReadFile(receivedFile(dir)); err != nil || json.Unmarshal(text, &d) != nil {
		return &Data{}
	}
	return &d
}

func (a *applying) save() error {
	before, _ := json.Marshal(a.before)
	a.after.Version = Version
	after, err := json.Marshal(a.after)
	if err != nil || string(before) == string(after) {
		return err
	}
	return durable.Replace(receivedFile(a.repo.Dir), after)
}

// file writes one of the files, or removes what came earlier.
func (a *applying) file(m member, text *string) error {
	if text == nil {
		return nil
	}
	path := filepath.Join(a.repo.Dir, m.file)
	now, err := readText(path)
	var bad unfit
	if err != nil && !errors.As(err, &bad) {
		return err
	}
	earlier := *m.text(a.before)
	*m.text(&a.after) = text
	switch {
	case bad != "" && *text == "":
		return nil // not ours
	case bad == "" && now == *text:
		return nil
	case *text != "":
		return a.write(path, *text)
	case earlier == nil || *earlier != now:
		return nil // never came from the master
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// write replaces a file that others than we read: gitweb, which is another user,
// and gitolite. It is as readable as the file HEAD. A link is replaced, not followed.
func (a *applying) write(path, text string) error {
	mode := fs.FileMode(0o644)
	if info, err := os.Lstat(filepath.Join(a.repo.Dir, "HEAD")); err == nil && info.Mode().IsRegular() {
		mode = info.Mode().Perm() &^ 0o111
	}
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".mirror-shell-new") // the lock is held
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.Create(temp, []byte(text)); err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(temp, mode), os.Rename(temp, path)); err != nil {
		os.Remove(temp)
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// config sets the keys that are taken here, and unsets those that came earlier
// and are not among them any more.
func (a *applying) config(ctx context.Context, want map[string]string, answer *Answer) error {
	taken := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if a.accept.TakesKey(key) {
			taken[key] = want[key]
		} else {
			answer.NotTaken = append(answer.NotTaken, key)
		}
	}
	if len(taken) == 0 && len(a.before.Config) == 0 {
		return nil
	}
	now, err := a.ownConfig(ctx)
	if err != nil {
		return err
	}
	for key, value := range taken {
		if old, set := now[key]; set && old == value {
			continue
		}
		if err := a.repo.SetConfig(ctx, key, value); err != nil {
			return err
		}
	}
	for key, value := range a.before.Config {
		if _, stays := taken[key]; stays || now[key] != value {
			continue
		}
		if err := a.repo.UnsetConfig(ctx, key); err != nil {
			return err
		}
	}
	a.after.Config = taken
	return nil
}

func (a *applying) ownConfig(ctx context.Context) (map[string]string, error) {
	entries, err := a.repo.Config(ctx, ".")
	values := make(map[string]string, len(entries))
	for _, e := range entries {
		values[e.Key] = e.Value
	}
	return values, err
}

// Record is what a master knows of a peer.
type Record struct {
	Hash string `json:"hash"` // of what the peer confirmed, Head apart
	Note string `json:"note,omitempty"`
	// Again is from when on (Unix time, seconds) what a peer refused is to be sent again; 0: it
	// has refused nothing.
	Again int64 `json:"again,omitzero"`
	// Head and Description are what a gitolite was given one by one.
	Head        Given `json:"head,omitzero"`
	Description Given `json:"description,omitzero"`
}

// Given is what a gitolite was given by a command of its own, which refuses for itself.
type Given struct {
	Value string `json:"value"`
	Why   string `json:"why,omitempty"`  // in words, why it was not taken; "" when it was
	Again int64  `json:"again,omitzero"` // from when on (Unix time, seconds) a refused one is to be sent again
}

// New reports whether the value is to be sent: it is another, or was refused some time ago.
func (g Given) New(value string) bool { return g.Value != value || g.Due() }

// Due reports whether the value was refused, and is to be sent again.
func (g Given) Due() bool { return g.Why != "" && time.Now().Unix() >= g.Again }

// Due reports whether something of what a gitolite is given one by one is to be sent, where
// HEAD points to head.
func (r Record) Due(head string) bool {
	given := strings.HasPrefix(head, "refs/heads/") && (r.Head.Value != "" && r.Head.Value != head || r.Head.Due())
	return given || r.Description.Due()
}

// New reports whether a peer of which this is known is to be told of the metadata with
// that hash.
func (r Record) New(hash string) bool {
	return r.Hash != hash || r.Again != 0 && time.Now().Unix() >= r.Again
}

func recordFile(repoDir, peer string) string { return refset.Path(repoDir, peer) + ".meta" }

// Known returns the record of a peer: nothing known is the same as nothing sent.
func Known(repoDir, peer string) Record {
	var r Record
	text, err := os.ReadFile(recordFile(repoDir, peer))
	if err == nil && json.Unmarshal(text, &r) != nil {
		return Record{Hash: "?"} // differs from everything: it is sent again
	}
	return r
}

// Save makes it what is known. The caller holds the lock of (repository, peer).
func (r Record) Save(repoDir, peer string) error {
	if r == Known(repoDir, peer) {
		return nil
	}
	if r == (Record{}) {
		return Forget(repoDir, peer)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := refset.MakeDirs(filepath.Dir(recordFile(repoDir, peer))); err != nil {
		return err
	}
	return durable.Replace(recordFile(repoDir, peer), text)
}

// ForgetGiven is for a peer that has turned out to be no gitolite, or none any more: what one was
// given would else differ for ever from what is here. The caller holds the lock.
func ForgetGiven(repoDir, peer string) error {
	r := Known(repoDir, peer)
	if r.Head == (Given{}) && r.Description == (Given{}) {
		return nil
	}
	r.Head, r.Description = Given{}, Given{}
	return r.Save(repoDir, peer)
}

// Forget makes the next sync send everything again, if there is anything.
func Forget(repoDir, peer string) error {
	err := os.Remove(recordFile(repoDir, peer))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
