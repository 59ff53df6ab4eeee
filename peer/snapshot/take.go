package snapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// Source is what a snapshot is taken of.
type Source struct {
	Repository string   // name, as in the vault's keys
	Repo       git.Repo // where it is
	// Mirrored chooses the refs that count for the digest; nil: all but those below refs/mirror/.
	// Every ref is kept, whatever it says.
	Mirrored func(refs map[string]string) map[string]string
	// ID is that of the run, or "".
	ID string
	// Look has Take only find out: when the repository is not as in the latest snapshot, it returns
	// a Result that is not Unchanged, and nothing was written.
	Look bool
	// Memory is a directory of this machine, for this vault and repository alone, in which is remembered what would have
	// to be read again otherwise; "": nothing is.
	Memory string
	// Progress, when not nil, is called from any goroutine as the stages "pack", "upload" and "check" go on. Done
	// and total are bytes of content while uploading, else 0.
	Progress func(stage string, done, total int64)
}

// Result is what Take did.
type Result struct {
	// Name is the snapshot that holds the repository as it is. It is set, besides a nil error, when a
	// snapshot was published and then found to be incomplete.
	Name Name
	// Unchanged: the repository was as in the latest snapshot, and no data was written.
	Unchanged bool
	// Checked: git has walked through all history that is new since the last snapshot, or all of it
	// when there was none.
	Checked   bool
	Uploaded  int64 // bytes of blobs that were written, manifest and check apart
	Packs     int   // that the snapshot has
	Compacted bool  // small packs were put together
	Phases    Phases
	Note      string // what an administrator may want to know, for one line
}

// Phases are how long the parts of Take lasted.
type Phases struct {
	Read    time.Duration // the latest snapshot's name, refs, files
	Pack    time.Duration // git making packs
	Upload  time.Duration
	Publish time.Duration // the manifest, and what is looked at before
	Check   time.Duration // history that a first snapshot has; the snapshot is there already
}

// ErrSource is wrapped by errors that are the repository's fault: damaged or missing
// objects, or a kind of repository that cannot be backed up.
var ErrSource = errors.New("the repository cannot be backed up")

const (
	// maxAttempts bounds how often a repository that changes meanwhile is looked at.
	maxAttempts = 4
	// lookAgain is for how long a snapshot that was not bad counts as such without another look.
	lookAgain = 24 * time.Hour
	// uploads is how many blobs of one repository are written at once.
	uploads = 4
)

// taking is one attempt to take a snapshot.
type taking struct {
	v       *Vault
	src     Source
	memory  memoryDir
	result  *Result
	scratch string
	remove  func() // removes scratch
	attempt int

	latest Name      // zero: there is none
	loaded *Manifest // of latest, when it was asked for
	base   *Manifest // loaded; nil: everything is taken anew
	now    *capture
	tips   []string  // of now
	began  time.Time // before latest was looked up
	put    *putter
	raw    *objectStore // packs that are taken as they are
	tmp    git.Scratch  // packs that are made
	made   []*localPack
	walked bool // git has walked through what is new
	aside  bool // or through all of a first snapshot, before that is published
	anew   bool // no pack of base is used
}

// Take makes the latest snapshot of the repository equal to it. When it is that already nothing is written, except a
// small record when the run has an ID. Errors wrap ErrSource when the repository is to blame, else they are
// the store's, ctx's or this machine's. After an error nothing was published, or, when Result.Name is set, a first snapshot
// that turned out to be incomplete and was marked as bad.
func (v *Vault) Take(ctx context.Context, src Source) (Result, error) {
	if clean, err := mirrorcfg.CleanRepo(src.Repository); err != nil || clean != src.Repository {
		return Result{}, fmt.Errorf("back up %q: that is no repository's name", src.Repository)
	}
	if src.ID != "" {
		if err := CheckID(src.ID); err != nil {
			return Result{}, err
		}
	}
	for attempt := 1; ; attempt++ {
		result, err := v.takeOnce(ctx, src, attempt)
		if err == nil {
			return result, nil
		}
		if !errors.Is(err, errMoved) || attempt == maxAttempts || ctx.Err() != nil {
			return result, fmt.Errorf("back up %s: %w", src.Repository, blame(err))
		}
		v.log().Debug("looking at the repository again", "repository", src.Repository, "error", err)
	}
}

// blame makes an error of the source an ErrSource.
func blame(err error) error {
	var fromSource *sourceError
	if errors.As(err, &fromSource) || errors.Is(err, errMoved) {
		return fmt.Errorf("%w: %w", ErrSource, err)
	}
	return err
}

func (v *Vault) takeOnce(ctx context.Context, src Source, attempt int) (result Result, err error) {
	t := &taking{v: v, src: src, memory: memoryDir(src.Memory), result: &result, attempt: attempt}
	defer t.close()
	return result, t.run(ctx)
}

func (t *taking) close() {
	if t.now != nil && t.now.files != nil {
		t.now.files.close()
	}
	if t.raw != nil {
		t.raw.close()
	}
	for _, p := range t.made {
		p.close()
	}
	if t.remove != nil {
		t.remove()
	}
}

func (t *taking) run(ctx context.Context) (err error) {
	t.began = t.v.now()
	if err := t.look(ctx); err != nil {
		return err
	}
	t.tips = t.now.Manifest.tips()
	known := t.memory.recall(t.latest.Sum)
	same := t.latest.Digest == t.now.Digest && t.latest.State == t.now.State()
	if t.src.Look && !same {
		return nil // what else is wrong with the latest snapshot changes nothing
	}
	for _, text := range t.now.dropped {
		t.note(text)
	}
	bad, err := t.isBad(ctx, &known, same)
	if err != nil {
		return err
	}
	t.result.Phases.Read = t.v.now().Sub(t.began)
	if same && !bad {
		if due, err := t.retentionDue(ctx, &known); err != nil {
			return err
		} else if !due {
			return t.unchanged(ctx)
		}
	}
	if t.src.Look {
		return nil
	}
	if err := t.prepare(ctx, bad, known.Unchecked); err != nil {
		return err
	}
	t.result.Unchanged = same && t.base != nil
	return t.make(ctx)
}

// look looks at the repository, and meanwhile for its latest snapshot. Which of the two is older does not matter: only
// that they are equal says anything.
func (t *taking) look(ctx context.Context) error {
	found := make(chan error, 1)
	go func() {
		var err error
		t.latest, err = t.v.Latest(ctx, t.src.Repository)
		found <- err
	}()
	now, err := t.capture(ctx)
	if err == nil {
		t.now = now // is closed with t
	}
	if missing := <-found; missing != nil && !errors.Is(missing, ErrNoSnapshot) {
		return missing
	}
	if err != nil && ctx.Err() == nil {
		return &sourceError{err}
	}
	return ctx.Err()
}

// isBad asks the store whether the latest snapshot is known not to be whole, unless it was
// asked lately and nothing will be built on the answer.
func (t *taking) isBad(ctx context.Context, known *recalled, same bool) (bad bool, err error) {
	if t.latest.Sum == "" || same && t.v.now().Sub(known.Looked).Abs() < lookAgain && !known.Unchecked {
		return false, nil
	}
	verdict, err := t.verdict(ctx)
	if err != nil {
		return false, err
	}
	switch verdict {
	case checkBad, checkForgotten:
		known.Unchecked = false // more is known: its data may be damaged in the store
		return true, nil
	case checkGood:
		t.seenGood(known, same)
		return false, nil
	}
	if !known.Unchecked {
		if known.Unchecked, err = t.unwalked(ctx); err != nil {
			return false, err
		}
	}
	if known.Unchecked {
		return true, nil
	}
	t.seenGood(known, same)
	return false, nil
}

// verdict is the last word on the latest snapshot, "" when there is none. A drill gives its own, and nothing ends that one is forgotten.
func (t *taking) verdict(ctx context.Context) (string, error) {
	var checks []checkName
	for check, err := range t.v.checks(ctx, t.src.Repository) {
		if err != nil {
			return "", err
		}
		if check.Time.Before(t.latest.Time) {
			break
		}
		if check.Sum == t.latest.Sum && check.Kind != checkSame { // of which there are many
			checks = append(checks, check)
		}
	}
	return verdicts(checks)[t.latest.Sum], nil
}

// seenGood remembers that the latest snapshot was not bad just now.
func (t *taking) seenGood(known *recalled, same bool) {
	known.Unchecked = false
	if same {
		known.Looked = t.v.now()
		t.remember(*known)
	}
}

func (t *taking) remember(r recalled) {
	r.Repository = t.src.Repository
	t.memory.remember(r)
}

// unwalked reports whether the latest snapshot was published before anybody had walked through its history. One that
// cannot be read is left to loadBase.
func (t *taking) unwalked(ctx context.Context) (bool, error) {
	m, err := t.load(ctx)
	if errors.Is(err, ErrKey) || errors.Is(err, ErrDamaged) {
		return false, nil
	}
	return err == nil && m.Unwalked, err
}

// load returns the latest snapshot's manifest, from what is remembered or from the store.
func (t *taking) load(ctx context.Context) (m *Manifest, err error) {
	if t.loaded == nil {
		t.loaded = t.memory.manifest(t.latest.Sum)
	}
	if t.loaded == nil {
		t.loaded, err = t.v.Load(ctx, t.latest)
	}
	return t.loaded, err
}

// unchanged writes that the run with this ID found the repository as it was.
func (t *taking) unchanged(ctx context.Context) error {
	t.result.Name, t.result.Unchanged = t.latest, true
	if t.src.ID == "" || t.src.ID == t.latest.ID {
		return nil
	}
	return t.v.record(ctx, t.src.Repository, Check{Kind: checkSame, Snapshot: t.latest.Sum, ID: t.src.ID})
}

// retentionDue reports whether an unchanged repository needs a new snapshot so that the retention of what it
// consists of does not end. When a snapshot is made everything in it is retained for at least half of
// the vault's Retain; a quarter is left for runs that fail. One that was made when the vault retained nothing, or for
// less, does not hold what the vault promises now.
func (t *taking) retentionDue(ctx context.Context, known *recalled) (bool, error) {
	retain := t.v.retains()
	if retain == 0 {
		return false, nil
	}
	now := t.v.now()
	if now.Sub(t.latest.Time) > retain/4 {
		return true, nil
	}
	// One that is named after a clock that was ahead does not say how old it is, but its manifest until when its data is retained.
	ahead := t.latest.Time.Sub(now) > retain/16
	if seconds := int64(retain / time.Second); known.Retain < seconds || ahead {
		m, err := t.load(ctx)
		if errors.Is(err, ErrKey) || errors.Is(err, ErrDamaged) { // loadBase will say so, when there is something to add
			return false, nil
		}
		if err != nil || m.Retain < seconds || ahead && m.freeBefore(now.Add(retain/4)) {
			return err == nil, err
		}
		if known.Retain == m.Retain {
			return false, nil
		}
		known.Retain = m.Retain
		t.remember(*known)
	}
	return false, nil
}

// prepare finds out what the new snapshot is built on. What is known to be bad, or was never walked through, is not
// built on, and before everything is taken anew the repository has to be whole.
func (t *taking) prepare(ctx context.Context, bad, unchecked bool) (err error) {
	if t.scratch, t.remove, err = t.v.scratchDir("take"); err != nil {
		return err
	}
	if t.tmp, err = git.NewScratch(t.scratch); err != nil {
		return err
	}
	t.put = &putter{v: t.v, scratch: t.scratch, fresh: bad && !unchecked, attempt: t.memory.recallAttempt()}
	switch {
	case bad:
		t.note("the latest snapshot is not known to be whole: everything is taken anew")
		if err := t.src.Repo.Complete(ctx, nil, t.tips); err != nil {
			return t.walkError(ctx, err)
		}
	case t.latest.Sum != "":
		return t.loadBase(ctx)
	case Remembered(t.src.Memory, t.src.Repository) != "":
		t.note("the vault has no snapshot of it any more, although this server has made one: see that it is the right place, and that its disk is mounted")
	}
	return nil
}

func (t *taking) loadBase(ctx context.Context) error {
	base, err := t.load(ctx)
	switch {
	case errors.Is(err, ErrKey):
		t.note("the latest snapshot is encrypted and no identity is configured here: everything is taken anew")
		return nil
	case errors.Is(err, ErrDamaged):
		t.note("the latest snapshot cannot be read, and everything is taken anew: " + err.Error())
		t.put.fresh = true
		return nil
	case err != nil:
		return err
	}
	if base.ObjectFormat != t.now.ObjectFormat || base.Repository != t.src.Repository {
		t.note("the latest snapshot has another object format: everything is taken anew")
		return nil
	}
	// Who can read the new snapshot has to be able to read all of it, and nobody else.
	if base.SealedFor != t.now.SealedFor {
		t.note("the latest snapshot is not encrypted for the recipients that are configured now: everything is taken anew")
		t.put.fresh = len(t.v.Recipients) == 0 // else nothing is used again but what an attempt put that was encrypted for them
		return nil
	}
	if base.Server != t.v.Server {
		t.note(fmt.Sprintf("the snapshot before was made by %s: servers that share a vault must not back up repositories of the same name", proc.OneLine(base.Server, 80)))
	}
	t.base = base
	return nil
}

func (t *taking) note(text string) {
	if t.result.Note != "" {
		text = t.result.Note + "; " + text
	}
	t.result.Note = text
}

func (t *taking) progress(stage string, done, total int64) {
	if t.src.Progress != nil {
		t.src.Progress(stage, done, total)
	}
}

// nameTips adds to an error that speaks of object ids which refs have them.
func (t *taking) nameTips(err error) error {
	var refs []string
	for name, oid := range t.now.Refs {
		if strings.Contains(err.Error(), oid) {
			refs = append(refs, name)
		}
		if len(refs) == 5 {
			break
		}
	}
	if len(refs) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(refs, ", "))
}
