package shell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// PushTaker is the slave's side of the verb mirror-push. git receive-pack
// does the work, so that all which holds for a push holds for this one: quarantine,
// fsck, the check of connectivity, hooks, one transaction for all refs. It is only
// told to look at the refs that change and at no others: it would list fifty
// thousand of them to nobody, and start another git to list them once more.
//
// Who the master is, the caller has decided, and the hook decides again.
type PushTaker struct {
	Config *mirrorcfg.Repo
	Repo   git.Repo
	Host   string    // our hostname
	Env    []string  // of git and its hooks; nil: ours
	Stderr io.Writer // for what git and hooks say to the master
	// Settings are more of git's settings for the push ("-c", "NAME=VALUE", …).
	Settings []string
	// Still, where it is not nil, is called whenever the master may have kept us waiting, and
	// says why the push is not to go on.
	Still func(context.Context) error
	// Begin, where it is not nil, is called before anything is changed, and may refuse. It
	// returns more settings, and what is to be called when all was applied.
	Begin func(context.Context, []sendpack.Command) (settings []string, done func(), err error)
	// After, where it is not nil, is called when all is applied and all hooks have run, or there was nothing to apply,
	// and says what the master's administrator should know of the repository; "" for nothing.
	After func(context.Context) string
	// HeadFirst is for a repository whose hooks do something with what HEAD points to: they are to find the new one.
	HeadFirst bool
}

// Serve reads one request, or none, and the pack from in, and writes the answer to out. An
// error is a request that makes no sense, or a master that is gone.
func (t *PushTaker) Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	buffered := bufio.NewReaderSize(in, 64<<10)
	if _, err := buffered.Peek(1); err == io.EOF {
		return nil // the master has found something else to do
	}
	request, err := sendpack.ReadQuickRequest(buffered)
	if err != nil {
		return err
	}
	if request.Peer != t.Host {
		return sendpack.WriteQuickAnswer(out, sendpack.QuickAnswer{Stock: fmt.Sprintf("this is %s, and not %s", t.Host, request.Peer)})
	}
	stop := keepSaying(out)
	answer, err := t.take(ctx, request, buffered)
	if said := stop(); said != nil {
		return said
	}
	if err != nil {
		answer = sendpack.QuickAnswer{Stock: err.Error()}
	}
	return sendpack.WriteQuickAnswer(out, answer)
}

// sayEvery is well below any sensible stall_timeout.
const sayEvery = 5 * time.Second

// keepSaying tells the master that we are at work until the function that it
// returns is called, which returns why that could not be told any more.
func keepSaying(w io.Writer) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	err := sendpack.WriteWorking(w)
	done.Go(func() {
		ticker := time.NewTicker(sayEvery)
		defer ticker.Stop()
		for err == nil {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				err = sendpack.WriteWorking(w)
			}
		}
	})
	return func() error {
		cancel()
		done.Wait()
		return err
	}
}

// take applies a request. An error means that git's own protocol is to be
// used; HEAD, and with it nothing else, may have been set by then.
func (t *PushTaker) take(ctx context.Context, q sendpack.QuickRequest, pack io.Reader) (a sendpack.QuickAnswer, err error) {
	if err := t.still(ctx); err != nil {
		return a, err
	}
	// A default branch that was renamed cannot be deleted while HEAD points to it.
	first := q.Head != "" && (t.HeadFirst || t.deletesHead(ctx, q))
	if first {
		if err := t.setHead(ctx, q.Head); err != nil {
			return a, err
		}
	}
	if len(q.Commands) > 0 {
		if err := t.receive(ctx, q, pack); err != nil {
			return a, err
		}
	}
	if t.After != nil {
		a.Note = t.After(ctx)
	}
	if q.Head != "" && !first {
		if err := t.still(ctx); err != nil { // the pack may have taken hours
			return a, err
		}
		if err := t.setHead(ctx, q.Head); err != nil {
			return a, err
		}
	}
	refs, err := t.Repo.ReadRefs(ctx)
	if err != nil {
		return a, err
	}
	a.Digest = digest.Of(t.Config.MirroredRefs(refs))
	a.Head, err = t.Repo.Head(ctx)
	return a, err
}

func (t *PushTaker) still(ctx context.Context) error {
	if t.Still == nil {
		return nil
	}
	return t.Still(ctx)
}

// deletesHead reports whether the branch that HEAD points to is to be deleted.
func (t *PushTaker) deletesHead(ctx context.Context, q sendpack.QuickRequest) bool {
	now, err := t.Repo.Head(ctx)
	return err == nil && slices.ContainsFunc(q.Commands, func(c sendpack.Command) bool {
		return c.Ref == now && refset.IsZero(c.New)
	})
}

func (t *PushTaker) setHead(ctx context.Context, target string) error {
	if !strings.HasPrefix(target, "refs/heads/") || !sendpack.ValidRef(target) {
		return fmt.Errorf("HEAD cannot point to %.80q", target)
	}
	if now, err := t.Repo.Head(ctx); err == nil && now == target {
		return nil
	}
	return t.Repo.SetHead(ctx, target)
}

// receive has git apply all commands or none.
func (t *PushTaker) receive(ctx context.Context, q sendpack.QuickRequest, pack io.Reader) error {
	settings := append(slices.Clone(t.Settings), receiveSettings(t.Repo, q)...)
	done := func() {}
	if t.Begin != nil {
		more, then, err := t.Begin(ctx, q.Commands)
		if err != nil {
			return err
		}
		if settings = append(settings, more...); then != nil {
			done = then
		}
	}
	if err := t.runGit(ctx, q, pack, settings); err != nil {
		return err
	}
	done()
	return nil
}

func (t *PushTaker) runGit(ctx context.Context, q sendpack.QuickRequest, pack io.Reader, settings []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := proc.Command(ctx, t.Env, mirrorReceive(t.Repo.Dir, settings...)...)
	cmd.Stderr = t.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = talk(stdout, closing{stdin}, q, pack)
	stdin.Close()
	io.Copy(io.Discard, stdout)
	return errors.Join(err, cmd.Wait())
}

// closing is a pipe to git: its end tells git that there is no more, where the
// pack of a master that is gone was cut.
type closing struct{ io.WriteCloser }

func (c closing) CloseWrite() error { return c.Close() }

func talk(out io.Reader, in io.Writer, q sendpack.QuickRequest, pack io.Reader) error {
	adv, err := sendpack.ReadAdvertisement(out)
	if err != nil {
		return err
	}
	report, err := sendpack.Push(out, in, adv, q.Commands, func(w io.Writer) error {
		_, err := io.Copy(w, pack)
		return err
	}, sendpack.Options{ObjectFormat: q.Format, Atomic: true, Plain: true, Agent: "mirror-shell"})
	if err != nil {
		return err
	}
	if report.Unpack != "" {
		return fmt.Errorf("the objects were not stored: %s", report.Unpack)
	}
	for _, command := range q.Commands {
		if reason := report.Refs[command.Ref]; reason != "" {
			return fmt.Errorf("%s: %s", command.Ref, reason)
		}
	}
	return nil
}

// fewRefs is the size of packed-refs, in bytes, up to which looking at all refs costs next
// to nothing, and spares walking through history that other branches have.
const fewRefs = 64 << 10

// maxShown is up to how many refs are named on git's command line.
const maxShown = 100

// receiveSettings keep receive-pack from what this push does not need.
func receiveSettings(repo git.Repo, q sendpack.QuickRequest) []string {
	var settings []string
	set := func(setting string) { settings = append(settings, "-c", setting) }
	if !gcDue(repo) {
		set("receive.autogc=false")
	}
	if info, err := os.Stat(filepath.Join(repo.Dir, "packed-refs")); err != nil || info.Size() < fewRefs {
		return settings
	}
	created := slices.ContainsFunc(q.Commands, func(c sendpack.Command) bool { return refset.IsZero(c.Old) })
	if created || len(q.Commands) > maxShown {
		return settings // what is new is checked against all that is there
	}
	set("transfer.hideRefs=refs")
	if head, err := os.ReadFile(filepath.Join(repo.Dir, "HEAD")); err == nil { // what others are merged into or from
		if target, ok := strings.CutPrefix(strings.TrimSpace(string(head)), "ref: "); ok && sendpack.ValidRef(target) {
			set("transfer.hideRefs=!" + target)
		}
	}
	for _, c := range q.Commands {
		set("transfer.hideRefs=!" + c.Ref)
	}
	// While objects are in quarantine the repository itself counts as one that
	// objects are borrowed from, and all of its refs would be listed for that.
	set("core.alternateRefsPrefixes=" + q.Commands[0].Ref)
	return settings
}

// gcDue reports whether git gc --auto, which receive-pack starts after a push,
// might find something to do: a loose object in 256 is looked at, and git begins at
// 6,700 objects or 50 packs. Where it is sure to do nothing, the process is saved.
func gcDue(repo git.Repo) bool {
	few := func(dir string, most int) bool {
		d, err := os.Open(filepath.Join(repo.Dir, "objects", dir))
		if err != nil {
			return errors.Is(err, os.ErrNotExist)
		}
		defer d.Close()
		names, err := d.Readdirnames(most + 1)
		return (err == nil || errors.Is(err, io.EOF)) && len(names) <= most
	}
	return !few("17", 10) || !few("pack", 60) // a pack has three files or four
}
