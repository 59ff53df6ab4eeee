package hooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/rescue"
	"mirror-shell/mirrorcfg"
)

// What pre-receive does on a slave before a mirror push changes anything: it
// refuses what would do harm that cannot be seen from the updates, keeps the
// commits that would be lost, and records what is going to be set.
//
// A value is lost when the master did not set it and nothing that the refs will be
// after the push contains it. Refs outside gitolite.mirror.refs are no exception: when the
// master pushes one all the same, what stood there is gone all the same.

// checkPrivate refuses to have refs below refs/mirror/ changed, by anyone, in any
// way: they belong to this server. In a session of ours git itself refuses
// them, each by itself, and they do not stop the rest of a push.
func checkPrivate(hostname string, updates []update, gitConfig string) error {
	if gitHides(gitConfig) {
		return nil
	}
	for _, u := range updates {
		if rescue.IsPrivate(u.ref) {
			return fmt.Errorf("push refused: %.200q belongs to %s alone: push without %s/", u.ref, hostname, rescue.Private)
		}
	}
	return nil
}

// gitHides reports whether the git that runs the hook was started to hide all
// private refs, and so to refuse them; text is GIT_CONFIG_PARAMETERS, which holds the
// settings of its command line.
func gitHides(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "'transfer.hiderefs'='"+rescue.Private+"'") && !strings.Contains(text, "!"+rescue.Private)
}

// admit prepares for a mirror push of the master. An error refuses it.
func (h *Hook) admit(ctx context.Context, server *mirrorcfg.Server, cfg *mirrorcfg.Repo, updates []update) error {
	repo := git.Repo{Dir: h.Dir}
	if err := checkTargets(ctx, server.Hostname, repo, updates); err != nil {
		return err
	}
	r, err := openRecord(h.Dir)
	if err != nil {
		h.warn(server, recordTrouble, err)
	}
	defer func() {
		if err := r.close(); err != nil {
			h.warn(server, recordTrouble, err)
		}
	}()
	if doubtful := foreign(updates, r.ours); len(doubtful) > 0 {
		if err := h.rescue(ctx, server, cfg, updates, doubtful); err != nil {
			return err
		}
	}
	if err := r.sending(updates); err != nil {
		h.warn(server, recordTrouble, err)
	}
	return nil
}

// checkTargets looks at the refs as they stand on disk, which tells what git
// does not do with them:
//
//   - git changes, and deletes, the ref that a symbolic ref points to. Only when
//     the push does the same to both is that what the master meant.
//   - git deletes a ref whatever its value when the old value it is told does not
//     exist. The value that is going to be lost would be another than we see.
func checkTargets(ctx context.Context, hostname string, repo git.Repo, updates []update) error {
	byRef := make(map[string]update, len(updates))
	names := make([]string, 0, len(updates))
	deletes := false
	for _, u := range updates {
		if sound(u.ref) {
			byRef[u.ref] = u
			names = append(names, u.ref)
			deletes = deletes || refset.IsZero(u.new)
		}
	}
	refs, err := repo.RawRefs(ctx, names, false)
	if err == nil && deletes {
		refs, err = repo.RawRefs(ctx, names, true)
	}
	if err != nil {
		return fmt.Errorf("push refused: %s: %w", hostname, err)
	}
	for _, name := range names {
		u, now := byRef[name], refs[name]
		if now.Target != "" {
			if to, both := byRef[now.Target]; both && to.new == u.new && refs[now.Target].Target == "" {
				continue
			}
			return fmt.Errorf("push refused: on %s %s is only another name of %s, and git would change or delete that: delete the symbolic ref there (git symbolic-ref --delete)",
				hostname, u.ref, now.Target)
		}
		if refset.IsZero(u.new) && now.OID != u.old && !(now.OID == "" && refset.IsZero(u.old)) {
			return fmt.Errorf("push refused: %s is at %.10s on %s, and not at %.10s: try again", u.ref, cmp.Or(now.OID, "nothing"), hostname, u.old)
		}
	}
	return nil
}

// foreign picks the updates that replace what the master did not set.
func foreign(updates []update, ours func(ref, oid string) bool) []update {
	var list []update
	for _, u := range updates {
		if !refset.IsZero(u.old) && u.old != u.new && sound(u.ref) && !rescue.IsPrivate(u.ref) && !ours(u.ref, u.old) {
			list = append(list, u)
		}
	}
	return list
}

// remaining are the values that refs will have after the push, as tips of what is
// not lost by it. Private refs do not count: nobody can fetch them.
func remaining(refs map[string]string, updates []update) []string {
	var tips []string
	changed := make(map[string]bool, len(updates))
	for _, u := range updates {
		changed[u.ref] = true
		if !refset.IsZero(u.new) && !rescue.IsPrivate(u.ref) {
			tips = append(tips, u.new)
		}
	}
	for ref, oid := range refs {
		if !changed[ref] && !rescue.IsPrivate(ref) {
			tips = append(tips, oid)
		}
	}
	return tips
}

// rescue keeps those of the doubtful old values that would be lost.
func (h *Hook) rescue(ctx context.Context, server *mirrorcfg.Server, cfg *mirrorcfg.Repo, updates, doubtful []update) error {
	repo := git.Repo{Dir: h.Dir}
	lost, err := h.lost(ctx, server, repo, updates, doubtful)
	if err == nil && len(lost) > 0 {
		var kept []rescue.Kept
		if kept, err = rescue.Keep(ctx, repo, "", lost, time.Now()); err == nil {
			h.tellRescued(server, cfg.Name, kept)
		}
	}
	if err != nil {
		return fmt.Errorf("push refused: %s has commits in %s that are nowhere else (%s), and they cannot be kept: %w: look at the disk there, and run git fsck",
			server.Hostname, cfg.Name, doubtful[0].ref, err)
	}
	return nil
}

// lost finds out which of the doubtful old values no ref will contain. Where git
// cannot tell, for want of an object or with a broken ref in its way, the answer is: all.
func (h *Hook) lost(ctx context.Context, server *mirrorcfg.Server, repo git.Repo, updates, doubtful []update) ([]rescue.Value, error) {
	var oids []string
	for _, u := range doubtful {
		oids = append(oids, u.old)
	}
	types, err := repo.Types(ctx, oids)
	if err != nil {
		return nil, err
	}
	refs, err := repo.Refs(ctx)
	if err != nil {
		h.warn(server, "what is in other refs is not considered", err)
	}
	tips := remaining(refs, updates)
	outside, err := repo.CommitsOutside(ctx, ofType(oids, types, "commit"), tips, git.Quarantine())
	if err != nil {
		h.warn(server, "what the push contains cannot be told", err)
		outside = nil
	}
	isTip := make(map[string]bool, len(tips))
	for _, oid := range tips {
		isTip[oid] = true
	}
	var lost []rescue.Value
	for _, u := range doubtful {
		kind := types[u.old]
		switch {
		case kind == "":
			h.warn(server, u.ref, fmt.Errorf("its old value %.10s does not exist, and cannot be kept", u.old))
		case isTip[u.old] || kind == "commit" && outside != nil && !outside[u.old]:
		default:
			lost = append(lost, rescue.Value{Ref: u.ref, OID: u.old})
		}
	}
	return lost, nil
}

func ofType(oids []string, types map[string]string, kind string) []string {
	var list []string
	for _, oid := range oids {
		if types[oid] == kind {
			list = append(list, oid)
		}
	}
	return list
}

// maxTold is how many refs who pushes is told of by name.
const maxTold = 20

// tellRescued tells who pushes, the log, and whoever is to be told.
func (h *Hook) tellRescued(server *mirrorcfg.Server, repo string, kept []rescue.Kept) {
	var names []string
	for _, k := range kept {
		if !k.Before {
			names = append(names, k.Name)
		}
	}
	if len(names) > 0 {
		h.noticeRescued(server, repo, names)
	}
	for i, k := range kept {
		if i == maxTold {
			fmt.Fprintf(h.Stderr, "%s: and %d more: see mirror-shell rescued %s on %s\n", server.Hostname, len(kept)-i, repo, server.Hostname)
			return
		}
		text := "rescued %s at %.10s as %s"
		if k.Before {
			text = "%s at %.10s is rescued already, as %s"
		}
		text = fmt.Sprintf(text, k.Ref, k.OID, k.Name) // names may hold what a terminal obeys
		fmt.Fprintf(h.Stderr, "%s: %s\n", server.Hostname, proc.OneLine(text, 10_000))
	}
}

// noticeRescued makes known that refs were rescued: full names of rescued refs.
func (h *Hook) noticeRescued(server *mirrorcfg.Server, repo string, refs []string) {
	err := inbox.PutNotice(server.StateDir, inbox.Notice{Kind: inbox.NoticeRescued, Repository: repo, Peer: h.Peer, Refs: refs})
	if err == nil {
		err = Wake(server, h.Programs)
	}
	if err != nil {
		logError(server, "nobody is notified of what was rescued", err, "repository", repo)
	}
	file, err := server.OpenLog()
	if err != nil {
		return // who pushes is told, and the refs remain
	}
	defer file.Close()
	log := slog.New(slog.NewTextHandler(file, nil))
	for _, ref := range refs {
		log.Warn("rescued", "repository", repo, "ref", ref)
	}
}

// receive decides on the updates of a push to a mirrored repository.
func (h *Hook) receive(ctx context.Context, server *mirrorcfg.Server, cfg *mirrorcfg.Repo) error {
	updates, err := h.updates()
	if err != nil {
		return fmt.Errorf("push refused: %w", err)
	}
	if err := checkPrivate(server.Hostname, updates, os.Getenv("GIT_CONFIG_PARAMETERS")); err != nil {
		return err
	}
	if cfg.Role(server.Hostname) != mirrorcfg.Slave {
		return nil
	}
	if h.Peer != cfg.Master { // decidePush has seen to that
		return errors.New("push refused: not from the master")
	}
	return h.admit(ctx, server, cfg, updates)
}
