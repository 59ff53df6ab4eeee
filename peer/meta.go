package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
	"mirror-shell/internal/meta"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// metaSync takes HEAD and the metadata to a peer. A push cannot: it takes the verb
// mirror-meta, which only mirror-shell servers have, and a connection of its own.
// So it is done when something is not what the peer was told before, and ahead of
// the refs, because a default branch that was renamed cannot be deleted while HEAD
// points to it. (A push by the verb mirror-push carries HEAD itself; then the rest
// follows it, where there is news.)
type metaSync struct {
	*syncRun
	target  string     // of HEAD, "" when it is not to be sent
	data    *meta.Data // everything else
	hash    string     // of data
	known   meta.Record
	notes   []string // what cannot travel
	sent    bool     // by this Sync
	foreign bool     // the peer was found not to take it, by this Sync
	wild    wildSync // what a gitolite takes of it
	given   bool     // HEAD and description, to a gitolite, by this Sync
	stays   bool     // a branch that could not be deleted, because a gitolite's HEAD points to it
}

// look finds out what there is to send.
func (h *metaSync) look(ctx context.Context) error {
	if err := h.read(); err != nil {
		return err
	}
	target, err := h.src.Repo.Head(ctx)
	if err != nil {
		return err
	}
	h.aim(target, len(h.ours) > 0)
	return nil
}

// read is what look finds out without a process: all but HEAD.
func (h *metaSync) read() (err error) {
	if h.data, h.notes, err = meta.Read(h.src.Repo, h.src.Config); err != nil {
		return err
	}
	h.hash, h.known = h.data.Hash(), meta.Known(h.src.Repo.Dir, h.name)
	return nil
}

// aim decides whether a HEAD that points to target, "" when it is detached, is to be sent.
func (h *metaSync) aim(target string, anyRefs bool) {
	switch {
	case target == "":
		h.notes = append(h.notes, "HEAD is detached here and was not sent")
	case !strings.HasPrefix(target, "refs/heads/"):
		h.notes = append(h.notes, "HEAD was not sent: "+target+" is no branch")
	case anyRefs:
		h.target = target
	}
}

// newHead reports whether the peer is to be told of HEAD.
func (h *metaSync) newHead() bool {
	known, _ := h.log.Confirmed("HEAD")
	if h.target != "" && known == "!ref:"+h.target {
		return h.known.Head.Due()
	}
	return h.target != "" && known != "ref:"+h.target
}

// newRest reports whether the peer is to be told of the rest.
func (h *metaSync) newRest() bool { return h.known.New(h.hash) }

// before sends what is news.
func (h *metaSync) before(ctx context.Context) error {
	if h.newHead() || h.newRest() || h.known.Description.Due() {
		return h.send(ctx)
	}
	return nil
}

// rest sends what a quick push, which has taken HEAD along, left behind.
func (h *metaSync) rest(ctx context.Context) error {
	if h.newRest() {
		return h.send(ctx)
	}
	return nil
}

// after finishes what before could not know. A peer that turned out to be empty
// may have been made anew, and its HEAD with it. And that a peer takes no HEAD
// is believed, and remembered until HEAD changes, only of one that takes refs:
// a server in trouble answers no verb at all.
func (h *metaSync) after(ctx context.Context, refsErr error) error {
	if h.adv == nil || h.target == "" && h.hash == "" && h.known == (meta.Record{}) {
		return nil
	}
	if h.empty && !h.sent && !h.foreign {
		if err := errors.Join(forgetHeadIn(h.log, h.adv.ObjectFormat), meta.Forget(h.src.Repo.Dir, h.name)); err != nil || refsErr != nil {
			return err
		}
		h.known = meta.Record{}
		if err := h.send(ctx); err != nil {
			return err
		}
	}
	if !h.foreign && h.stays {
		return h.known.Save(h.src.Repo.Dir, h.name)
	}
	if !h.foreign {
		return nil
	}
	if h.target != "" {
		if err := h.log.Confirm([]refset.Entry{{Ref: "HEAD", OID: "!ref:" + h.target}}); err != nil {
			return err
		}
	}
	if !h.wild.tried && !h.newRest() {
		return h.known.Save(h.src.Repo.Dir, h.name) // and what was noted about it then stays noted
	}
	return h.record(h.notTaken())
}

// note says what did not travel, now or earlier.
func (h *metaSync) note() string {
	notes := h.notes
	if known, _ := h.log.Confirmed("HEAD"); h.target != "" && (h.foreign || known == "!ref:"+h.target) {
		notes = append(notes, h.headNote()...)
	}
	if why := h.known.Description.Why; why != "" {
		notes = append(notes, why)
	}
	if h.known.Hash == h.hash && h.known.Note != "" {
		notes = append(notes, h.known.Note)
	}
	return strings.Join(notes, "; ")
}

// MetaNote says what of HEAD and the metadata did not travel to a peer, by what is on record and stands in the repository: what a
// comparison of refs cannot see. It is "" for nothing, and of a backup, which tells itself. foreign says that the peer took no
// HEAD from us when it was told last. The repository has that configuration and digest, and its HEAD points to head, "" where
// it is detached: no process is started, since thousands of copies may have a note.
func (p *Peers) MetaNote(dir, name string, cfg *mirrorcfg.Repo, refs, head string) (note string, foreign bool, err error) {
	if p.Kind(name) == KindBackup {
		return "", false, nil
	}
	log, err := refset.Open(refset.Path(dir, name))
	if err != nil {
		return "", false, err
	}
	defer log.Close()
	h := metaSync{syncRun: &syncRun{sshPeer: &sshPeer{name: name}, src: Source{Repo: git.Repo{Dir: dir}, Config: cfg}, log: log}}
	if err := h.read(); err != nil {
		return "", false, err
	}
	h.aim(head, refs != digest.Of(nil))
	known, _ := log.Confirmed("HEAD")
	return h.note(), strings.HasPrefix(known, "!"), nil
}

// notTaken is the note about a peer that takes no metadata, or of a wild repository only what
// gitolite does; "" where there is none.
func (h *metaSync) notTaken() string {
	names := h.data.Names()
	if h.wild.tried {
		names = slices.DeleteFunc(names, func(name string) bool { return name == "gl-creator" || name == "gl-perms" })
	}
	if h.given {
		names = slices.DeleteFunc(names, func(name string) bool { return name == "description" })
	}
	var notes []string
	if len(names) > 0 {
		notes = append(notes, strings.Join(names, ", ")+" not sent: "+h.name+" does not take it")
	}
	if h.wild.refused != "" {
		notes = append(notes, h.wild.note())
	}
	return strings.Join(notes, "; ")
}

func (h *metaSync) record(note string) error {
	h.known = meta.Record{Hash: h.hash, Note: note, Head: h.known.Head, Description: h.known.Description}
	if h.wild.refused != "" {
		h.known.Again = time.Now().Add(refusedFor).Unix()
	}
	return h.known.Save(h.src.Repo.Dir, h.name)
}

func (h *metaSync) send(ctx context.Context) error {
	if h.identities.of(h.name).make == gitolite {
		h.foreign = true
		return h.sendToGitolite(ctx)
	}
	what := "metadata"
	if h.newHead() || h.data.Empty() {
		what = "HEAD"
	}
	d := *h.data
	d.Head = h.target
	answer, err := h.tell(ctx, "mirror-meta", &d)
	if err == nil {
		return h.taken(answer)
	}
	if errors.Is(err, ErrUnreachable) || ctx.Err() != nil || !h.lacks(ctx, "mirror-meta") {
		return fmt.Errorf("%s: %w", what, err)
	}
	h.foreign = true
	if h.gitolite(ctx) {
		return h.sendToGitolite(ctx)
	}
	h.known.Head, h.known.Description = meta.Given{}, meta.Given{} // if it ever was one
	return nil
}

// taken records what the peer has confirmed. One that confirms nothing is an
// older server, which takes HEAD alone.
func (h *metaSync) taken(answer *meta.Answer) error {
	h.sent = true
	h.known.Head, h.known.Description = meta.Given{}, meta.Given{} // that of a gitolite
	note := ""
	switch {
	case answer == nil:
		note = h.notTaken()
	case len(answer.NotTaken) > 0:
		note = fmt.Sprintf("config not taken by %s (config under [accept] there): %s", h.name, list(answer.NotTaken))
	}
	if err := h.record(note); err != nil || h.target == "" {
		return err
	}
	return h.log.Confirm([]refset.Entry{{Ref: "HEAD", OID: "ref:" + h.target}})
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 64 << 10

// tell sends an object with a verb. The answer is nil when the peer gives none.
func (r *syncRun) tell(ctx context.Context, verb string, d *meta.Data) (*meta.Answer, error) {
	conn, err := r.open(ctx, verb+" '"+r.src.Config.Name+"'", io.Discard)
	if err != nil {
		return nil, err
	}
	defer conn.cancel()
	text, err := r.exchange(conn, d.Write)
	if err != nil {
		return nil, err
	}
	var answer meta.Answer
	if json.Unmarshal(text, &answer) != nil || answer.Version == 0 {
		return nil, nil
	}
	for i, key := range answer.NotTaken {
		answer.NotTaken[i] = printable(key)
	}
	return &answer, nil
}

// exchange writes a request and returns the answer, when the peer ends well.
func (r *syncRun) exchange(conn *conn, write func(io.Writer) error) ([]byte, error) {
	err := write(conn)
	_ = conn.CloseWrite()
	text, readErr := io.ReadAll(io.LimitReader(conn, maxAnswer))
	if end := r.ended(conn, nil); end != nil {
		return nil, end // and why nobody read what was written
	}
	return text, errors.Join(err, readErr)
}

// forgetHead makes the next Sync send HEAD and the metadata.
func forgetHead(repo git.Repo, peer string) error {
	log, err := refset.Open(refset.Path(repo.Dir, peer))
	if err != nil {
		return err
	}
	return errors.Join(forgetHeadIn(log, ""), log.Close(), meta.Forget(repo.Dir, peer))
}

func forgetHeadIn(log *refset.Log, format string) error {
	zero := strings.Repeat("0", oidLength(format)) // absent: nothing is known
	return log.Confirm([]refset.Entry{{Ref: "HEAD", OID: zero}})
}
