package git

import (
	"bufio"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"mirror-shell/internal/proc"
)

// IsAncestor reports whether descendant's history contains ancestor; every
// commit is its own ancestor. Both must exist here; tags stand for their commits.
func (r Repo) IsAncestor(ctx context.Context, ancestor, descendant string) (bool, error) {
	_, err := r.run(ctx, nil, nil, "merge-base", "--is-ancestor", ancestor, descendant)
	switch proc.ExitCode(err) {
	case 0:
		return true, nil
	case 1:
		return false, nil
	}
	return false, fmt.Errorf("compare histories: %w", err)
}

// Beyond returns those of the commits, all of which must exist here, that cannot
// be reached from the tips. Unlike Unreachable it looks at commits alone, which
// is far cheaper: what is no commit is never returned.
func (r Repo) Beyond(ctx context.Context, commits, tips []string) (map[string]bool, error) {
	return r.unreached(ctx, commits, tips)
}

// unreached walks from the objects down to the tips and notes which of them it
// meets. The options say what kinds of objects are walked besides commits.
func (r Repo) unreached(ctx context.Context, oids, tips []string, options ...string) (map[string]bool, error) {
	wanted := make(map[string]bool, len(oids))
	for _, oid := range oids {
		wanted[oid] = true
	}
	found := make(map[string]bool)
	if len(oids) == 0 {
		return found, nil
	}
	stdin := io.MultiReader(lines(oids, ""), lines(tips, "^"))
	out := &lineWriter{line: func(oid string) {
		if wanted[oid] {
			found[oid] = true
		}
	}}
	args := append(append([]string{"rev-list"}, options...), "--stdin")
	if _, err := r.run(ctx, stdin, out, args...); err != nil {
		return nil, fmt.Errorf("compare histories: %w", err)
	}
	return found, nil
}

// maxHeader bounds what is read of a loose commit for its parents, in bytes.
const maxHeader = 64 << 10

// LooseParents returns the parents of a commit, in order, and no process is
// started for it: ok is false when the object is no commit or, as most of history, is
// not a loose object of this very repository.
func (r Repo) LooseParents(oid string) (parents []string, ok bool) {
	if len(oid) < 40 {
		return nil, false
	}
	f, err := os.Open(filepath.Join(r.Dir, "objects", oid[:2], oid[2:]))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	z, err := zlib.NewReader(f)
	if err != nil {
		return nil, false
	}
	in := bufio.NewReader(io.LimitReader(z, maxHeader))
	if head, err := in.ReadString(0); err != nil || !strings.HasPrefix(head, "commit ") {
		return nil, false
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, false
		}
		parent, isParent := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "parent ")
		switch {
		case isParent:
			parents = append(parents, parent)
		case !strings.HasPrefix(line, "tree "):
			return parents, true
		}
	}
}

// RefUpdate is one change of UpdateRefs. A zero oid stands for a ref that is not there.
type RefUpdate struct{ Ref, Old, New string }

// UpdateRefs carries out all of the updates or none, and makes them last through a
// power cut: when a ref is not what Old says, nothing is changed.
func (r Repo) UpdateRefs(ctx context.Context, updates []RefUpdate) error {
	if len(updates) == 0 {
		return nil
	}
	var text strings.Builder
	for _, u := range updates {
		if strings.ContainsAny(u.Ref+u.Old+u.New, " \n") || !strings.HasPrefix(u.Ref, "refs/") {
			return fmt.Errorf("update refs: %q from %q to %q cannot be written", u.Ref, u.Old, u.New)
		}
		if strings.Trim(u.New, "0") == "" {
			fmt.Fprintf(&text, "delete %s %s\n", u.Ref, u.Old)
		} else {
			fmt.Fprintf(&text, "update %s %s %s\n", u.Ref, u.New, u.Old)
		}
	}
	if _, err := r.run(ctx, strings.NewReader(text.String()), nil, "-c", "core.fsync=reference", "update-ref", "--no-deref", "--stdin"); err != nil {
		return fmt.Errorf("update refs: %w", err)
	}
	return nil
}

// Conn is a connection to a git-upload-pack that runs already.
type Conn interface {
	io.ReadWriter
	CloseWrite() error // nothing more will be written
}

// Fetch fetches over conn, which must end when ctx does, what the refspecs say:
// full ref names, object ids, patterns with "*" and "^" for what not to fetch. Tags do not
// follow, nothing is recorded in FETCH_HEAD, no gc is started, and no ref is deleted. What was
// fetched lasts through a power cut.
//
// The connection's bytes are handed to git over two pipes, so it does not matter to git how
// the peer is reached.
func (r Repo) Fetch(ctx context.Context, conn Conn, refspecs []string) error {
	inRead, inWrite, err := os.Pipe() // from conn to git
	if err != nil {
		return err
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return errors.Join(err, inRead.Close(), inWrite.Close())
	}
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C", "GIT_NO_REPLACE_OBJECTS=1", "GIT_NO_LAZY_FETCH=1"), "git", "--git-dir="+r.Dir,
		"-c", "protocol.fd.allow=always", "-c", "core.fsync=committed", "fetch", "--quiet", "--no-prune", "--no-tags", "--no-write-fetch-head",
		"--no-recurse-submodules", "--no-auto-maintenance", "--no-show-forced-updates", "--stdin", "fd::3,4")
	cmd.Stdin = strings.NewReader(strings.Join(refspecs, "\n") + "\n")
	cmd.ExtraFiles = []*os.File{inRead, outWrite}
	copied := make(chan struct{}, 2)
	go func() {
		_, _ = io.Copy(inWrite, conn) // git tells what is missing
		inWrite.Close()
		copied <- struct{}{}
	}()
	go func() {
		_, _ = io.Copy(conn, outRead)
		_ = conn.CloseWrite()
		outRead.Close()
		copied <- struct{}{}
	}()
	_, err = proc.Run(cmd)
	inRead.Close()
	outWrite.Close()
	<-copied
	<-copied
	if err != nil {
		return fmt.Errorf("git fetch: %w", err)
	}
	return nil
}
