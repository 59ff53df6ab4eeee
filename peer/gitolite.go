package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"mirror-shell/internal/meta"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// What a gitolite 3 takes that has no mirror-shell. Of a wild repository, which is one that a
// user has created and so has a gl-creator, gitolite's own masters send before each push
//
//	CREATOR=alice perms -c 'REPO'
//
// with gl-perms on standard input. It makes the copy if there is none, when its gitolite.conf lets
// that creator make it, and sets its permissions, when it is the creator's there. The session runs
// as server-FRODO, which only a key of that name in its keydir/ gives.
//
// We send it when there is news, and ahead of the first push: a gitolite whose rule lets
// everybody create (C = @all) would make the copy by the push itself, with server-FRODO for its
// creator, and take no permissions for it any more.
//
// A refusal does not keep the refs of a copy that is there from travelling. It is a note, and
// is tried again by the first sync a minute later.

// refusedFor is how long what a gitolite has refused is not sent again.
const refusedFor = time.Minute

// wildSync is what was done about a wild repository by one Sync.
type wildSync struct {
	tried   bool
	refused string // why it was not taken, "" where it was
	said    string // the peer's part of that
	advice  string // what to do about it, or ""
}

// note is one line for people, "" where there is nothing to tell.
func (w *wildSync) note() string {
	if w.advice == "" {
		return w.refused
	}
	return w.refused + ": " + w.advice
}

// greeted is the first line of what gitolite 3 answers to info.
var greeted = regexp.MustCompile(`^hello (\S{1,100}), this is \S+ running gitolite(3\S* \S+)`)

// GitoliteGreeting finds in an answer to info the name by which a gitolite 3 knows our key,
// and its version.
func GitoliteGreeting(text string) (user, version string, ok bool) {
	m := greeted.FindStringSubmatch(text)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// gitolite reports whether the peer is a gitolite 3 without mirror-shell. One that has no JSON
// for its info is asked for the info that people read, once for as long as an identity is believed.
func (p *sshPeer) gitolite(ctx context.Context) bool {
	known := p.identities.of(p.name)
	if known.make != foreign {
		return known.make == gitolite
	}
	ctx, pulse := watch(ctx, p.stall)
	defer pulse.stop()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	raw, err := p.transport.Open(asking, p.name, "info", io.Discard)
	if err != nil {
		return false
	}
	stream := beating{raw, pulse}
	stream.CloseWrite()
	text, readErr := io.ReadAll(io.LimitReader(stream, maxGreeting))
	if len(text) == maxGreeting {
		stop()
	}
	if end := stream.Wait(); errors.Is(end, ErrUnreachable) || readErr != nil || context.Cause(ctx) != nil {
		return false // and nothing was found out
	}
	known.make = gitAlone
	if user, _, ok := GitoliteGreeting(string(text)); ok {
		known.make, known.user = gitolite, user
	}
	p.identities.found(p.name, known)
	return known.make == gitolite
}

// isWild reports whether users own the repository.
func (h *metaSync) isWild() bool {
	return h != nil && h.data != nil && h.data.Creator != nil && *h.data.Creator != ""
}

// wildFirst has a gitolite make the copy of a wild repository of which nothing is known there.
func (r *syncRun) wildFirst(ctx context.Context) error {
	if h := r.head; h.isWild() && !h.wild.tried && h.newRest() {
		if refs, _ := r.log.Guess(); len(refs) == 0 && r.gitolite(ctx) {
			return h.sendWild(ctx)
		}
	}
	return nil
}

// wildLast is for a push that a gitolite refused although the copy was there once: it may be
// there no more. The error is what was refused.
func (r *syncRun) wildLast(ctx context.Context, refused error) (*conn, error) {
	h := r.head
	if !h.isWild() || errors.Is(refused, ErrUnreachable) || ctx.Err() != nil || !r.gitolite(ctx) {
		return nil, refused
	}
	if !h.wild.tried {
		if err := h.sendWild(ctx); err != nil {
			return nil, also(refused, err)
		}
		if h.wild.refused == "" {
			return r.showRefs(ctx)
		}
	}
	switch {
	case h.wild.refused == "":
		return nil, refused
	case h.wild.advice != "" && strings.Contains(refused.Error(), h.wild.said):
		return nil, fmt.Errorf("%w: %s", refused, h.wild.advice)
	}
	return nil, fmt.Errorf("%w; %s", refused, h.wild.note())
}

// MakeFirst reports whether the copy of a wild repository must not be looked at before it is
// pushed to: nothing is known of it, and by a look a gitolite could make it as ours.
func (p *Peers) MakeFirst(repoDir, name string) bool {
	_, wild := os.Lstat(filepath.Join(repoDir, "gl-creator"))
	_, known := os.Lstat(refset.Path(repoDir, name))
	return wild == nil && errors.Is(known, fs.ErrNotExist)
}

// sendToGitolite sends what a gitolite takes, if it is news. One that has turned out to be empty
// may have been made anew.
func (h *metaSync) sendToGitolite(ctx context.Context) error {
	if h.isWild() && !h.wild.tried && (h.newRest() || h.empty) {
		if err := h.sendWild(ctx); err != nil {
			return err
		}
	}
	return h.give(ctx)
}

// sendWild sends creator and permissions. The error is that nothing was found out about
// whether they are taken.
func (h *metaSync) sendWild(ctx context.Context) error {
	h.wild.tried = true
	const what = "gl-creator and gl-perms were not sent: "
	command, perms, err := wildCommand(h.src.Config.Name, h.data)
	user := h.identities.of(h.name).user
	switch {
	case user != "server-"+h.hostname:
		h.wild.refused = fmt.Sprintf("%s%s takes us for the user %s", what, h.name, proc.OneLine(user, 80))
		h.wild.advice = fmt.Sprintf("our key is to be keydir/server-%s.pub there", h.hostname)
		return nil
	case err != nil && (command == "" || h.adv != nil): // a copy that is there keeps what it has
		h.wild.refused = what + err.Error()
		return nil
	case err != nil:
		h.wild.refused = "gl-perms was not sent: " + err.Error()
	}
	why, err := h.runThere(ctx, command, perms)
	if err != nil {
		err = fmt.Errorf("gl-creator and gl-perms: %w", err)
	}
	if why != "" {
		h.wild.said, h.wild.refused = why, fmt.Sprintf("gl-creator and gl-perms were not taken: %s says: %s", h.name, why)
		h.wild.advice = wildAdvice(why, strings.TrimSuffix(*h.data.Creator, "\n"), h.hostname, h.name, h.src.Config.Name)
	}
	return err
}

// runThere runs a command of a gitolite's. It returns why the peer refuses, or the error by
// which that is not known.
func (h *metaSync) runThere(ctx context.Context, command, input string) (why string, err error) {
	var said heldBack
	conn, err := h.open(ctx, command, &said)
	if err != nil {
		return "", err
	}
	defer conn.cancel()
	_, err = h.exchange(conn, func(w io.Writer) error {
		_, err := io.WriteString(w, input)
		return err
	})
	if err == nil {
		return "", nil
	}
	why = gitoliteRefusal(said.String())
	if ctx.Err() != nil || errors.Is(err, ErrUnreachable) && why == "" { // perl's exit status may be ssh's own
		return "", err
	}
	if why == "" {
		why = proc.OneLine(err.Error(), maxRefusal)
	}
	return why, nil
}

// wildCommand is what sets the creator and the permissions of a wild repository, and what the
// command reads. Both come from users, and a shell of gitolite's reads the name again. An
// error with a command is about the permissions, which are none then.
func wildCommand(repo string, d *meta.Data) (command, perms string, err error) {
	creator := strings.TrimSuffix(*d.Creator, "\n")
	if clean, err := mirrorcfg.CleanRepo(repo); err != nil || clean != repo {
		return "", "", fmt.Errorf("%.80q is no name of a repository", repo)
	}
	if err := mirrorcfg.CheckUser(creator); err != nil || strings.HasPrefix(creator, "@") {
		return "", "", fmt.Errorf("the creator %.80q is no name of a user", creator) // and @all would be everybody
	}
	command = "CREATOR=" + creator + " perms -c '" + repo + "'"
	if d.Perms != nil {
		if perms, err = meta.ParsePerms(*d.Perms); err != nil {
			return command, "", err
		}
	}
	return command, perms, nil
}

// maxRefusal bounds what is told of a refusal, in bytes.
const maxRefusal = 200

// gitoliteRefusal finds in what a gitolite has said why it refused, "" where nothing looks so.
// Much else is said every time.
func gitoliteRefusal(said string) string {
	for line := range strings.Lines(said) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "remote: ")
		if text, ok := strings.CutPrefix(line, "FATAL: "); ok {
			return proc.OneLine(text, maxRefusal)
		}
		if line == "You are not authorised" { // symbolic-ref, a script of another kind
			return line
		}
		if strings.HasPrefix(line, "Invalid role ") {
			text, _, _ := strings.Cut(line, ";")
			return proc.OneLine(text, maxRefusal)
		}
	}
	return ""
}

// wildAdvice says, after a refusal, which line the administrator of the slave has to write.
func wildAdvice(why, creator, master, slave, repo string) string {
	entry := func(lines ...string) string {
		for i, line := range lines {
			lines[i] = "`" + line + "`"
		}
		return fmt.Sprintf("for %s gitolite.conf on %s needs %s", repo, slave, strings.Join(lines, ", "))
	}
	masterLine, copyLine, createLine := "option mirror.master = "+master, "option mirror.copies = "+slave, "C = "+creator
	switch {
	case strings.Contains(why, "is local"):
		return entry(createLine, masterLine, copyLine)
	case strings.Contains(why, "is not the master for"), strings.Contains(why, "is native"):
		return entry(masterLine)
	case strings.Contains(why, "mirrored but not here"):
		return entry(copyLine)
	case strings.Contains(why, "not authorised"), strings.Contains(why, "DENIED"):
		return entry(createLine) + "; a copy that is there already needs " + creator + " in its gl-creator"
	case strings.HasPrefix(why, "Invalid role "):
		return fmt.Sprintf("add it to ROLES in ~/.gitolite.rc on %s, and to its gitolite.conf", slave)
	case strings.Contains(why, "unknown git/gitolite command"):
		return fmt.Sprintf("enable 'Mirroring' and set HOSTNAME in ~/.gitolite.rc on %s", slave)
	}
	return ""
}
