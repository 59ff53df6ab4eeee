package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"mirror-shell/peer/store"
)

// A simulation of several servers that back one repository up and prune it, over months of a clock of its own. One
// operation of the store happens at a time; which one, chance decides, so a seed repeats a run exactly. Any
// server may be killed before any operation, stand still for days, and have a clock that is wrong.
// After each operation everything that a manifest names must be there.
type simulation struct {
	t      testing.TB
	rng    *rand.Rand
	store  *memory
	now    time.Time
	actors []*actor
	// locksAll has the store retain marks too, which nobody asks it for.
	locksAll bool
	quiet    bool // backups are rare
	// published are the keys that each manifest names, by the manifest's key.
	published                            map[string][]string
	takes, rechecks, retries, deleted    int
	killed, busy, stoodStill, pruneRuns  int
	prunedSnapshots, sweptData, revivals int
	forgotten, forgotData, gone          int
	askedAgain                           int
}

const simGrace = 24 * time.Hour

// actor is a server that does the same again and again.
type actor struct {
	sim      *simulation
	vault    *Vault
	toForget noted
	run      func(*actor)
	resume   func() (struct{}, bool)
	kill     func()
	yield    func(struct{}) bool
	wake     time.Time // does nothing before
	waiting  time.Time // since when its operation waits
	still    float64   // how often it stands still for long before it lists
}

type killedActor struct{}

// gate is where an actor waits until its next operation may happen, or dies.
func (a *actor) gate() {
	if !a.yield(struct{}{}) {
		panic(killedActor{})
	}
}

func (a *actor) sleep(most time.Duration) {
	a.wake = a.sim.now.Add(time.Duration(a.sim.rng.Int64N(int64(most))))
	a.gate()
}

func (a *actor) start() {
	seq := iter.Seq[struct{}](func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(killedActor); !ok {
					panic(r)
				}
			}
		}()
		a.yield = yield
		for {
			a.run(a)
		}
	})
	a.resume, a.kill = iter.Pull(seq)
	a.wake, a.waiting = a.sim.now, a.sim.now
}

// gated is the store as one actor sees it. Reading a manifest, which never changes, is no operation of interest.
type gated struct {
	*memory
	a *actor
}

func (g gated) Put(ctx context.Context, key string, b store.Blob) error {
	g.a.gate()
	if err := ctx.Err(); err != nil {
		return err
	}
	if strings.HasPrefix(key, "marks/") && g.a.sim.locksAll { // a bucket that retains what it gets
		b.Retain = g.a.sim.now.Add(g.a.vault.Retain)
	}
	err := g.memory.Put(ctx, key, b)
	if err == nil && g.a.sim.rng.IntN(40) == 0 { // the answer was lost, and the client asks again, minutes later
		g.a.sleep(5 * time.Minute)
		if ctx.Err() == nil {
			g.a.sim.askedAgain++
			err = g.memory.Put(ctx, key, b)
		}
	}
	if err == nil && g.a.sim.rng.IntN(50) == 0 {
		return errors.New("the answer was lost")
	}
	return err
}

func (g gated) Delete(ctx context.Context, key string) error {
	g.a.gate()
	err := g.memory.Delete(ctx, key)
	if strings.HasPrefix(key, "data/") && err == nil {
		g.a.sim.deleted++
	}
	if err == nil && g.a.sim.rng.IntN(200) == 0 {
		return errors.New("the answer was lost")
	}
	return err
}

func (g gated) List(ctx context.Context, prefix, after string, limit int) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if g.a.sim.rng.Float64() < g.a.still {
			g.a.sleep(2 * simGrace)
		} else {
			g.a.gate()
		}
		g.memory.List(ctx, prefix, after, limit)(yield)
	}
}

const simRepository = "ip1"

// simTake is a backup reduced to the rules that say what it may rely on.
func simTake(a *actor) {
	v, s := a.vault, a.sim
	a.sleep(simGrace / 3)
	if s.quiet { // so that what was forgotten stays so for long enough
		a.sleep(6 * simGrace)
	}
	wanted := map[int]bool{}
	began := v.now()
	base, err := v.Latest(context.Background(), simRepository)
	have := map[string]Object{}
	var previous string
	at := v.now()
	if err == nil {
		m, err := v.Load(context.Background(), base)
		if err != nil {
			return // removed in between: the next run finds another
		}
		for _, f := range m.Files {
			have[f.SHA256] = f.Object
		}
		previous = base.Sum
		if !at.After(base.Time) {
			at = base.Time.Add(time.Millisecond)
		}
	} else if !errors.Is(err, ErrNoSnapshot) {
		s.t.Fatal(err)
	}
	for i := range 12 { // most of a repository stays as it was
		content := sha256.Sum256(fmt.Appendf(nil, "content %d", i))
		_, had := have[hex.EncodeToString(content[:])]
		wanted[i] = had && s.rng.IntN(5) > 0 || !had && s.rng.IntN(6) == 0
	}
	m := &Manifest{Format: Format, Repository: simRepository, Time: at.UTC().Truncate(time.Millisecond), Server: v.Server, Program: "test", Previous: previous, ObjectFormat: "sha1", Head: "refs/heads/main", Digest: strings.Repeat("d", 64), Refs: map[string]string{}, Packs: []Pack{}}
	if m.Time.Before(at) && previous != "" {
		m.Time = m.Time.Add(time.Millisecond)
	}
	for i := range 12 {
		if !wanted[i] {
			continue
		}
		content := fmt.Appendf(nil, "content %d", i)
		sum := sha256.Sum256(content)
		o, ok := have[hex.EncodeToString(sum[:])]
		if !ok {
			if o, ok = a.store(content); !ok {
				return
			}
		}
		m.Files = append(m.Files, File{Path: fmt.Sprintf("hooks/f%d", i), Mode: 0o644, Object: o})
		switch s.rng.IntN(20) {
		case 0:
			a.sleep(3 * simGrace)
		case 1, 2, 3:
			a.sleep(simGrace / 4)
		}
	}
	if v.now().Sub(began) > simGrace/2 {
		s.rechecks++
		if !a.recheck(m) {
			s.retries++
			return
		}
	}
	s.publish(a, m)
}

// store puts content, or uses what is there when that is young enough.
func (a *actor) store(content []byte) (Object, bool) {
	v, ctx := a.vault, context.Background()
	sum := sha256.Sum256(content)
	o := Object{Key: dataOf(simRepository) + "file-" + hex.EncodeToString(sum[:]), Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	err := v.Store.Put(ctx, o.Key, v.blob(content))
	if errors.Is(err, fs.ErrExist) {
		for info, err := range v.Store.List(ctx, o.Key, "", 1) {
			if err == nil && info.Key == o.Key && v.now().Sub(info.Time) < simGrace/2 {
				a.sim.revivals++
				return o, true
			}
		}
		o.Key += fmt.Sprintf("~%08x", a.sim.rng.Uint32())
		err = v.Store.Put(ctx, o.Key, v.blob(content))
	}
	return o, err == nil
}

func (a *actor) recheck(m *Manifest) bool {
	doomed, err := a.vault.doomed(context.Background(), simRepository)
	if err != nil {
		return false
	}
	there := map[string]bool{}
	for info, err := range a.vault.Store.List(context.Background(), dataOf(simRepository), "", 0) {
		if err != nil {
			return false
		}
		there[info.Key] = true
	}
	for _, o := range m.Objects() {
		if doomed[o.Key] || !there[o.Key] {
			return false
		}
	}
	return true
}

func (s *simulation) publish(a *actor, m *Manifest) {
	var keys []string
	for _, o := range m.Objects() {
		keys = append(keys, o.Key)
	}
	name, _, err := a.vault.publish(context.Background(), m)
	if err != nil {
		// The answer was lost, so the manifest may be there.
		for info := range s.store.List(context.Background(), snapshotsOf(simRepository), "", 0) {
			if _, known := s.published[info.Key]; !known {
				s.published[info.Key] = keys
			}
		}
		return
	}
	s.takes++
	s.published[name.Key()] = keys
}

func simPrune(a *actor) {
	s := a.sim
	a.sleep(simGrace / 3)
	if s.rng.IntN(12) == 0 {
		simForget(a)
		return
	}
	policy := Policy{Last: s.rng.IntN(4), Daily: s.rng.IntN(5), Weekly: s.rng.IntN(2), DryRun: s.rng.IntN(20) == 0}
	report, err := a.vault.Prune(context.Background(), simRepository, policy)
	s.pruneRuns++
	s.prunedSnapshots += len(report.Removed)
	s.sweptData += report.Deleted.Blobs
	switch {
	case errors.Is(err, ErrBusy):
		s.busy++
	case err != nil && strings.Contains(err.Error(), "lost its lease"):
		s.stoodStill++
	case err != nil && !errors.Is(err, ErrNoPolicy) && !errors.Is(err, ErrNoSnapshot) && !strings.Contains(err.Error(), "it is gone") && !strings.Contains(err.Error(), "answer was lost"):
		s.t.Errorf("prune: %v", err)
	}
}

// simForget forgets the repository, which goes on being backed up, or finishes what another one began.
func simForget(a *actor) {
	s := a.sim
	forget := func() (ForgetReport, error) {
		return a.vault.Forget(context.Background(), simRepository, ForgetOptions{Note: a.toForget.note})
	}
	if s.rng.IntN(3) == 0 {
		forget = func() (ForgetReport, error) { return a.vault.FinishForgetting(context.Background(), simRepository) }
	}
	report, err := forget()
	s.forgotten += report.Removed
	s.forgotData += report.Deleted.Blobs
	if report.Gone {
		s.gone++
	}
	switch {
	case errors.Is(err, ErrBusy):
		s.busy++
	case err != nil && strings.Contains(err.Error(), "lost its lease"):
		s.stoodStill++
	case err != nil && !errors.Is(err, ErrNoSnapshot) && !strings.Contains(err.Error(), "meanwhile") && !strings.Contains(err.Error(), "it is gone") && !strings.Contains(err.Error(), "answer was lost"):
		s.t.Errorf("forget: %v", err)
	}
}

// step lets one actor do one operation.
func (s *simulation) step() {
	var ready []*actor
	first := s.actors[0]
	for _, a := range s.actors {
		if a.wake.Before(first.wake) {
			first = a
		}
		if !a.wake.After(s.now) {
			ready = append(ready, a)
		}
	}
	if len(ready) == 0 {
		s.now = first.wake
		ready = []*actor{first}
	}
	s.now = s.now.Add(time.Duration(s.rng.Int64N(int64(20 * time.Second))))
	chosen := ready[s.rng.IntN(len(ready))]
	for _, a := range ready { // no operation that was begun takes longer than a lease allows it to
		if s.now.Sub(maxTime(a.waiting, a.wake)) > 2*time.Minute {
			chosen = a
		}
	}
	if s.rng.IntN(60) == 0 {
		s.killed++
		chosen.kill()
		chosen.start()
		chosen.wake = s.now.Add(time.Duration(s.rng.Int64N(int64(simGrace / 8))))
		return
	}
	chosen.resume()
	chosen.waiting = s.now
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (s *simulation) check(step int) {
	for manifest, keys := range s.published {
		if _, there := s.store.blobs[manifest]; !there {
			delete(s.published, manifest)
			continue
		}
		for _, key := range keys {
			if _, there := s.store.blobs[key]; !there {
				s.t.Fatalf("step %d, %s: %s is gone, and %s needs it", step, s.now.Format(time.RFC3339), key, manifest)
			}
		}
	}
}

func simulate(t testing.TB, seed uint64, steps int) *simulation {
	s := &simulation{t: t, rng: rand.New(rand.NewPCG(seed, 6)), store: newMemory(), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), published: map[string][]string{}}
	s.store.now = func() time.Time { return s.now }
	retain := time.Duration(0)
	if s.rng.IntN(3) == 0 {
		retain = time.Duration(1+s.rng.IntN(72)) * time.Hour
		s.locksAll = s.rng.IntN(2) == 0
	}
	s.quiet = s.rng.IntN(3) == 0
	for i := range 6 {
		a := &actor{sim: s, run: simTake}
		skew := time.Duration(s.rng.Int64N(int64(simGrace/8))) - simGrace/16
		a.vault = &Vault{Store: gated{s.store, a}, Server: fmt.Sprintf("server%d", i), Grace: simGrace, Retain: retain, Now: func() time.Time { return s.now.Add(skew) }}
		a.vault.ToForget = a.toForget.of
		if i%2 == 1 {
			a.run, a.still = simPrune, 0.02
		}
		s.actors = append(s.actors, a)
		a.start()
	}
	defer func() {
		for _, a := range s.actors {
			a.kill()
		}
	}()
	for step := range steps {
		s.step()
		s.check(step)
	}
	return s
}

// Nothing that a snapshot needs is ever deleted, and what none needs does not stay for ever.
// PRUNE_SEEDS runs more of them.
func TestPruneSimulation(t *testing.T) {
	seeds := 6
	if n, err := strconv.Atoi(os.Getenv("PRUNE_SEEDS")); err == nil {
		seeds = n
	}
	var sum simulation
	for seed := range uint64(seeds) {
		s := simulate(t, seed, 3000)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		sum.takes += s.takes
		sum.rechecks += s.rechecks
		sum.retries += s.retries
		sum.revivals += s.revivals
		sum.killed += s.killed
		sum.busy += s.busy
		sum.stoodStill += s.stoodStill
		sum.pruneRuns += s.pruneRuns
		sum.prunedSnapshots += s.prunedSnapshots
		sum.sweptData += s.sweptData
		sum.forgotten += s.forgotten
		sum.forgotData += s.forgotData
		sum.gone += s.gone
		sum.askedAgain += s.askedAgain
	}
	t.Logf("%d snapshots (%d looked again, %d gave up, %d blobs used again); %d runs of prune (%d busy, %d stood still), %d snapshots and %d blobs deleted; %d snapshots and %d blobs forgotten, %d times all of it; %d killed",
		sum.takes, sum.rechecks, sum.retries, sum.revivals, sum.pruneRuns, sum.busy, sum.stoodStill, sum.prunedSnapshots, sum.sweptData, sum.forgotten, sum.forgotData, sum.gone, sum.killed)
	for what, n := range map[string]int{"snapshots": sum.takes, "second looks": sum.rechecks, "retries": sum.retries, "busy runs": sum.busy, "runs that stood still": sum.stoodStill, "removed snapshots": sum.prunedSnapshots, "deleted blobs": sum.sweptData, "used again": sum.revivals, "forgotten snapshots": sum.forgotten, "forgotten data": sum.forgotData, "ends of forgetting": sum.gone, "requests that were repeated": sum.askedAgain} {
		if n == 0 {
			t.Errorf("no %s: the simulation does not try what it is for", what)
		}
	}
}
