package repos

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
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"mirror-shell/internal/durable"
	"mirror-shell/mirrorcfg"
)

// Kind is what happened to a repository.
type Kind string

const (
	Deleted Kind = "delete"
	Renamed Kind = "rename"
)

// Op is something that a peer is still to be told.
type Op struct {
	ID   string    `json:"id"` // of a deletion, that of its place in the trash
	Kind Kind      `json:"kind"`
	Name string    `json:"name"`         // as it was
	To   string    `json:"to,omitempty"` // Renamed: as it is
	At   time.Time `json:"at"`
	// Prepared: it was about to happen here. When that is still there after the lock
	// is free again, the process was killed, and what is on disk tells whether it happened.
	Prepared bool `json:"prepared,omitempty"`
	// Inode is that of the repository's directory, by which a renaming is told from
	// another repository that has been given the new name since.
	Inode uint64 `json:"inode,omitempty"`
}

func (p *place) untoldFile(peer string) string { return p.private("untold", peer+".json") }

// readOps returns what a peer is still to be told. A damaged file is an error: what it
// said is not known any more.
func readOps(file string) ([]Op, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ops []Op
	if err == nil {
		err = json.Unmarshal(text, &ops)
	}
	if err != nil {
		return nil, fmt.Errorf("what is still to be told to a peer: %s: %w: look at it, and move it away", file, err)
	}
	return ops, nil
}

func (p *place) writeOps(peer string, ops []Op) error {
	file := p.untoldFile(peer)
	if len(ops) == 0 {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := json.Marshal(ops)
	if err != nil {
		return err
	}
	if err := durable.MakeDirs(filepath.Dir(file)); err != nil {
		return err
	}
	return durable.Replace(file, text)
}

// change rewrites the ops of some peers.
func (p *place) change(peers []string, f func([]Op) []Op) error {
	for _, peer := range peers {
		ops, err := readOps(p.untoldFile(peer))
		if err == nil {
			err = p.writeOps(peer, f(ops))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// announce does something that peers are to be told: what they are to be told is
// on disk before it is done, and is final after.
func (p *place) announce(peers []string, op Op, do func() error) error {
	for _, peer := range peers {
		if err := mirrorcfg.CheckHost(peer); err != nil {
			return err
		}
	}
	prepared := op
	prepared.Prepared = true
	if err := p.change(peers, func(ops []Op) []Op { return append(ops, prepared) }); err != nil {
		return errors.Join(err, p.retract(peers, op.ID))
	}
	if err := do(); err != nil {
		return errors.Join(err, p.retract(peers, op.ID))
	}
	return p.change(peers, func(ops []Op) []Op {
		for i := range ops {
			if ops[i].ID == op.ID {
				ops[i] = op
			}
		}
		return ops
	})
}

func (p *place) retract(peers []string, id string) error {
	return p.change(peers, func(ops []Op) []Op {
		return slices.DeleteFunc(ops, func(o Op) bool { return o.ID == id })
	})
}

// happened says whether an op that was only prepared was carried out.
func (p *place) happened(op Op) bool {
	if op.Kind == Deleted {
		return isDir(p.private("trash", op.ID, "repository"))
	}
	dir := filepath.Join(p.base, op.To+".git")
	return isDir(dir) && (op.Inode == 0 || inode(dir) == op.Inode)
}

// inode identifies a directory as long as it is there, whatever it is called; 0 when it is not.
func inode(dir string) uint64 {
	info, err := os.Lstat(dir)
	if err != nil {
		return 0
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return stat.Ino
}

func isDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// Untold returns what a peer is still to be told that has to do with a
// repository's name, in order: what it is called now, was called, and what else was
// called that. Where nothing is to be told, which is nearly always, it costs one
// look for a file.
func Untold(ctx context.Context, server *mirrorcfg.Server, peer, name string) ([]Op, error) {
	ops, err := untold(ctx, server, peer)
	return related(ops, name), err
}

func untold(ctx context.Context, server *mirrorcfg.Server, peer string) ([]Op, error) {
	base, err := server.Base()
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat((&place{base: base}).untoldFile(peer)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	p, err := open(ctx, server)
	if err != nil {
		return nil, err
	}
	defer p.close()
	ops, err := readOps(p.untoldFile(peer))
	if err != nil || !slices.ContainsFunc(ops, func(o Op) bool { return o.Prepared }) {
		return ops, err
	}
	ops = slices.DeleteFunc(ops, func(o Op) bool { return o.Prepared && !p.happened(o) })
	for i := range ops {
		ops[i].Prepared = false
	}
	return ops, p.writeOps(peer, ops)
}

// related are the ops that touch a name, or a name that such an op touches.
func related(ops []Op, name string) []Op {
	names := map[string]bool{name: true}
	for grown := true; grown; {
		grown = false
		for _, op := range ops {
			if (names[op.Name] || op.To != "" && names[op.To]) && !(names[op.Name] && (op.To == "" || names[op.To])) {
				names[op.Name], names[op.To] = true, true
				grown = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(ops), func(op Op) bool { return !names[op.Name] && (op.To == "" || !names[op.To]) })
}

// Telling waits until nobody else tells the peer anything, and returns the release. What is
// to be told is read after that: an op that somebody else has told meanwhile would
// reach the peer a second time, when its name may be another repository's.
func Telling(ctx context.Context, server *mirrorcfg.Server, peer string) (release func(), err error) {
	if err := mirrorcfg.CheckHost(peer); err != nil {
		return nil, err
	}
	base, err := server.Base()
	if err != nil {
		return nil, err
	}
	p := &place{base: base}
	if err := durable.MakeDirs(p.private("untold")); err != nil {
		return nil, err
	}
	l := flock.New(p.private("untold", peer+".lock"), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	if _, err := l.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return nil, fmt.Errorf("wait for what else %s is told: %w", peer, err)
	}
	return func() { l.Close() }, nil
}

// Told removes what a peer has confirmed.
func Told(ctx context.Context, server *mirrorcfg.Server, peer string, op Op) error {
	p, err := open(ctx, server)
	if err != nil {
		return err
	}
	defer p.close()
	return p.retract([]string{peer}, op.ID)
}

// Waiting returns, for every peer that is still to be told something, what. Files
// that cannot be read are an error after the others.
func Waiting(ctx context.Context, server *mirrorcfg.Server) (map[string][]Op, error) {
	base, err := server.Base()
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir((&place{base: base}).private("untold"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	waiting := map[string][]Op{}
	for _, f := range files {
		peer, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || mirrorcfg.CheckHost(peer) != nil {
			continue
		}
		ops, opsErr := untold(ctx, server, peer)
		err = errors.Join(err, opsErr)
		if len(ops) > 0 {
			waiting[peer] = ops
		}
	}
	return waiting, err
}

// Forget drops what the peers are still to be told about a name, and says how
// much that was.
func Forget(ctx context.Context, server *mirrorcfg.Server, name string) (n int, err error) {
	waiting, err := Waiting(ctx, server)
	if err != nil || len(waiting) == 0 {
		return 0, err
	}
	p, err := open(ctx, server)
	if err != nil {
		return 0, err
	}
	defer p.close()
	for peer := range waiting {
		err := p.change([]string{peer}, func(ops []Op) []Op {
			return slices.DeleteFunc(ops, func(op Op) bool {
				gone := op.Name == name && op.Kind == Deleted || op.Kind == Renamed && op.To == name
				if gone {
					n++
				}
				return gone
			})
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
