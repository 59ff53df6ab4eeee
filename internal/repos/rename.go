package repos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"mirror-shell/internal/durable"
	"mirror-shell/mirrorcfg"
)

// Moved remembers that a repository has another name, for who still uses the old one.
type Moved struct {
	Old string    `json:"old"`
	New string    `json:"new"`
	At  time.Time `json:"at"`
}

// Renaming says what to rename.
type Renaming struct {
	Old, New string
	By       string   // the authenticated master whose wish it is; "" for this server's administrator
	Peers    []string // who is to be told
}

// Rename gives a repository another name. What is remembered of its copies stands
// in it, and goes with it. Errors: mirrorcfg.ErrNoRepo for the old name, ErrExists for the
// new one; why it failed, and then the repository is where it was.
func Rename(ctx context.Context, server *mirrorcfg.Server, r Renaming) error {
	p, err := open(ctx, server)
	if err != nil {
		return err
	}
	defer p.close()
	old, dir, err := p.owned(ctx, server, r.Old, r.By)
	if err != nil {
		return err
	}
	if err := lentTo(server, dir, r.By); err != nil {
		return fmt.Errorf("rename %s: %w", old, err)
	}
	name, err := mirrorcfg.CleanRepo(r.New)
	if err != nil {
		return err
	}
	to, err := p.vacant(name)
	if err != nil {
		return err
	}
	if r.By != "" {
		if err := p.countCreation(r.By, server.Accept.CreatePerDay); err != nil {
			return err
		}
	}
	if err := p.makeParents(to); err != nil {
		return err
	}
	now := time.Now()
	op := Op{ID: newID(now), Kind: Renamed, Name: old, To: name, At: now.UTC().Truncate(time.Second), Inode: inode(dir)}
	if err := p.announce(r.Peers, op, func() error { return p.move(dir, to) }); err != nil {
		return fmt.Errorf("rename %s to %s: %w", old, name, err)
	}
	return errors.Join(p.rememberMoved(Moved{old, name, op.At}), p.forgetMoved(name))
}

func (p *place) movedFile(old string) string {
	sum := sha256.Sum256([]byte(old))
	return p.private("renamed", hex.EncodeToString(sum[:])+".json")
}

func (p *place) rememberMoved(m Moved) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := durable.MakeDirs(filepath.Dir(p.movedFile(m.Old))); err != nil {
		return err
	}
	return durable.Replace(p.movedFile(m.Old), text)
}

// forgetMoved: the name is in use again.
func (p *place) forgetMoved(name string) error {
	if err := os.Remove(p.movedFile(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// maxMoves is how often a repository is followed from one name to the next.
const maxMoves = 16

// NewName returns what a repository is called now that was once called name, and
// "" when nothing is known, or it is gone.
func NewName(server *mirrorcfg.Server, name string) string {
	base, err := server.Base()
	if err != nil {
		return ""
	}
	p := &place{base: base}
	for range maxMoves {
		var m Moved
		text, err := os.ReadFile(p.movedFile(name))
		if err != nil || json.Unmarshal(text, &m) != nil || m.Old != name {
			return ""
		}
		if clean, _, err := server.Find(m.New); err == nil {
			return clean
		}
		name = m.New
	}
	return ""
}
