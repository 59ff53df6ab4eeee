package repos

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/lazyregexp"
	"mirror-shell/mirrorcfg"
)

// Entry is a repository in the trash.
type Entry struct {
	ID   string    `json:"id"`
	Name string    `json:"name"`
	At   time.Time `json:"deleted"`
	By   string    `json:"by,omitempty"` // the master that had it deleted; "" for this server itself
	Op   string    `json:"op,omitempty"` // the master's id of the deletion
}

// entryID is a date and eight random digits.
var entryID = lazyregexp.New(`^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$`)

const stamp = "20060102T150405Z"

func newID(now time.Time) string {
	var random [4]byte
	rand.Read(random[:])
	return now.UTC().Format(stamp) + "-" + hex.EncodeToString(random[:])
}

// Deletion says what to move to the trash.
type Deletion struct {
	Name  string
	By    string   // the authenticated master whose wish it is; "" for this server's administrator
	Op    string   // By's id of the deletion
	Peers []string // who is to be told
}

// Delete moves a repository to the trash. Whose it is, is looked at again once
// nobody else can exchange it. Errors: mirrorcfg.ErrNoRepo; why it failed, and then the
// repository is where it was.
func Delete(ctx context.Context, server *mirrorcfg.Server, d Deletion) (Entry, error) {
	p, err := open(ctx, server)
	if err != nil {
		return Entry{}, err
	}
	defer p.close()
	name, dir, err := p.owned(ctx, server, d.Name, d.By)
	if err != nil {
		return Entry{}, err
	}
	if err := lentTo(server, dir, d.By); err != nil {
		return Entry{}, fmt.Errorf("delete %s: %w", name, err)
	}
	now := time.Now()
	e := Entry{ID: newID(now), Name: name, At: now.UTC().Truncate(time.Second), By: d.By, Op: d.Op}
	place := p.private("trash", e.ID)
	if err := durable.MakeDirs(filepath.Dir(place)); err != nil {
		return Entry{}, err
	}
	if err := os.Mkdir(place, 0o700); err != nil {
		return Entry{}, err
	}
	text, err := json.Marshal(e)
	if err == nil {
		err = durable.Replace(filepath.Join(place, "about.json"), text)
	}
	if err == nil {
		err = p.announce(d.Peers, Op{ID: e.ID, Kind: Deleted, Name: name, At: e.At}, func() error {
			return p.move(dir, filepath.Join(place, "repository"))
		})
	}
	if err != nil && !isDir(filepath.Join(place, "repository")) {
		os.RemoveAll(place)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("delete %s: %w", name, err)
	}
	return e, nil
}

// owned finds a repository that is to be moved, under the lock. Its directory
// must be what it looks like: a link is somebody's arrangement, for them to change.
func (p *place) owned(ctx context.Context, server *mirrorcfg.Server, name, master string) (clean, dir string, err error) {
	clean, repo, err := server.Find(name)
	if err != nil {
		return "", "", err
	}
	if info, err := os.Lstat(filepath.Join(p.base, clean+".git")); err != nil || !info.IsDir() {
		return "", "", errors.Join(err, fmt.Errorf("%s is a link: move what it leads to by hand", clean))
	}
	if master == "" {
		return clean, repo.Dir, nil
	}
	cfg, err := mirrorcfg.LoadRepo(ctx, clean, repo)
	if err == nil && cfg.Master != master {
		err = fmt.Errorf("the master of %s is %s", clean, cmp.Or(cfg.Master, "not set"))
	}
	return clean, repo.Dir, err
}

// Trash lists what is in the trash, the oldest first. Entries that cannot be read
// are an error after the others.
func Trash(server *mirrorcfg.Server) ([]Entry, error) {
	base, err := server.Base()
	if err != nil {
		return nil, err
	}
	p := &place{base: base}
	dirs, err := os.ReadDir(p.private("trash"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []Entry
	for _, d := range dirs {
		if !entryID.MatchString(d.Name()) || !isDir(p.private("trash", d.Name(), "repository")) {
			continue // a deletion that was cut off; nothing is in it
		}
		e, readErr := p.entry(d.Name())
		if readErr != nil {
			err = errors.Join(err, readErr)
			continue
		}
		list = append(list, e)
	}
	return list, err
}

func (p *place) entry(id string) (e Entry, err error) {
	if !entryID.MatchString(id) {
		return e, fmt.Errorf("%.60q is no id of something in the trash: see mirror-shell trash", id)
	}
	text, err := os.ReadFile(p.private("trash", id, "about.json"))
	if err == nil {
		err = json.Unmarshal(text, &e)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return e, fmt.Errorf("%s is not in the trash: see mirror-shell trash", id)
	}
	if err == nil && e.ID != id {
		err = errors.New("it says that it is another one")
	}
	if err != nil {
		return e, fmt.Errorf("trash %s: %w", id, err)
	}
	return e, nil
}

// Restore moves a repository from the trash back to where it was, or to another
// name. Peers that have not been told of its deletion are not told any more.
func Restore(ctx context.Context, server *mirrorcfg.Server, id, as string) (Entry, error) {
	waiting, err := Waiting(ctx, server)
	if err != nil {
		return Entry{}, err
	}
	p, err := open(ctx, server)
	if err != nil {
		return Entry{}, err
	}
	defer p.close()
	e, err := p.entry(id)
	if err != nil {
		return e, err
	}
	name, err := mirrorcfg.CleanRepo(cmp.Or(as, e.Name))
	if err != nil {
		return e, err
	}
	dir, err := p.vacant(name)
	if err != nil {
		return e, fmt.Errorf("restore %s: %w: give it another name with --as", id, err)
	}
	if err := p.makeParents(dir); err != nil {
		return e, err
	}
	// First: a peer that were told between the two would lose what is just being put back.
	for peer := range waiting {
		if err := p.retract([]string{peer}, id); err != nil {
			return e, err
		}
	}
	if err := p.move(p.private("trash", id, "repository"), dir); err != nil {
		return e, fmt.Errorf("restore %s: %w", id, err)
	}
	e.Name = name
	return e, errors.Join(os.RemoveAll(p.private("trash", id)), p.forgetMoved(name))
}

// Expire destroys what has been in the trash since before a time, and returns what that was.
func Expire(ctx context.Context, server *mirrorcfg.Server, before time.Time) ([]Entry, error) {
	list, err := Trash(server)
	list = slices.DeleteFunc(list, func(e Entry) bool { return !e.At.Before(before) })
	if len(list) == 0 {
		return nil, err
	}
	p, openErr := open(ctx, server)
	if openErr != nil {
		return nil, errors.Join(err, openErr)
	}
	defer p.close()
	var gone []Entry
	for _, e := range list {
		if removeErr := os.RemoveAll(p.private("trash", e.ID)); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		gone = append(gone, e)
	}
	return gone, err
}

// Done reports whether a master's deletion of that id was carried out before: it is
// told again when the answer was lost, and what now has that name is another one.
func Done(server *mirrorcfg.Server, master, op string) (bool, error) {
	if op == "" {
		return false, nil
	}
	list, err := Trash(server)
	return slices.ContainsFunc(list, func(e Entry) bool { return e.By == master && e.Op == op }), err
}

// Size is how much an entry takes, in bytes.
func Size(server *mirrorcfg.Server, id string) (size int64, err error) {
	base, err := server.Base()
	if err != nil {
		return 0, err
	}
	err = filepath.WalkDir((&place{base: base}).private("trash", id), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}

// InTrash returns the latest repository of that name that this server's administrator has deleted.
func InTrash(server *mirrorcfg.Server, name string) (e Entry, ok bool, err error) {
	list, err := Trash(server)
	for _, found := range list {
		if found.Name == name && found.By == "" {
			e, ok = found, true
		}
	}
	return e, ok, err
}
