// Package faults breaks everything that can break while people push, and then
// asks whether anything was lost. Only tests use it.
//
// # A run
//
// Run makes the world of package testenv (real sshd, a unix user for each
// server, our programs as they are installed) with some repositories whose
// masters differ, and plays a history in it:
//
//   - users push at once, through any server: forward, by force, new and deleted
//     branches, tags, many refs together, names that stand in each other's way
//   - deeds of administrators: commits made straight on a slave's disk, which its
//     master knows nothing of; refs deleted there; other HEADs on the master; what
//     a timer does (sync, drain); the approval of syncs that are held
//   - faults: SIGKILL, frozen processes, an sshd that is down, connections between
//     servers that are cut, refused or silent, disks that are full or read-only,
//     gc, lock files left behind, a second worker, a database that is gone
//
// Then everything is made whole, as an administrator would: servers up, stale locks
// of git removed, `mirror-shell sync` until it is content. What has to be true then
// is checked without help of the product (check.go): nothing that a user was told is
// stored may be missing on the master, and nothing that stood on a slave's disk may
// be missing everywhere.
//
// # Seeds
//
// Who does what, where and in which order follows from the seed alone (plan.go). What
// comes of it does not: three users and a scheduler of faults race each other, which is
// the point. A seed is where to begin to look, and the history that a failed run
// leaves in its directory is what happened.
package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/internal/testenv"
)

// Options say what is played.
type Options struct {
	Seed   uint64
	Pushes int
	Faults int    // so many are injected while the pushes are made
	Kinds  []Kind // nil: AllKinds
	Dir    string // where a run that failed leaves history, logs and repositories
	Keep   bool   // so does any other
}

// repository is one of the world. Every server has it.
type repository struct {
	name     string
	master   string
	slaves   []string
	redirect string // gitolite.mirror.redirectOK
	refs     string // gitolite.mirror.refs
	hidden   string // prefix of refs that refs leaves out, "" for none
}

// repositories are five: two masters, all that redirectOK may say, and one with
// refs that are not mirrored.
var repositories = []repository{
	{name: "fellowship", master: "frodo", slaves: []string{"sam", "gollum"}, redirect: "true"},
	{name: "there/and/back", master: "frodo", slaves: []string{"sam", "gollum"}, redirect: "sam"},
	{name: "ring", master: "frodo", slaves: []string{"gollum"}},
	{name: "shire", master: "sam", slaves: []string{"frodo", "gollum"}, redirect: "true"},
	{name: "garden", master: "sam", slaves: []string{"frodo"}, redirect: "true", refs: "!refs/heads/wip/*", hidden: "refs/heads/wip/"},
}

// has: the repository is mirrored to, or from, a server.
func (r repository) on(server string) bool {
	return r.master == server || slices.Contains(r.slaves, server)
}

var serverNames = []string{"frodo", "sam", "gollum"}
var userNames = []string{"alice", "bob", "carol"}

// world is a run.
type world struct {
	t       testing.TB
	options Options
	env     *testenv.Env
	hosts   map[string]*host
	links   []*link
	users   []*user
	oracle  *oracle
	history *history
	tally   *tally

	made     atomic.Int64 // pushes
	begun    atomic.Int64 // faults
	injected atomic.Int64 // those of them that found something to break
	quiet    chan struct{}
	deeds    sync.WaitGroup
}

// Run plays the history of a seed and returns what it found. That nothing is wrong
// is Report.Problems being empty.
func Run(t testing.TB, o Options) *Report {
	t.Helper()
	began := time.Now()
	if o.Kinds == nil {
		o.Kinds = AllKinds()
	}
	w := newWorld(t, o)
	w.play()
	whole := w.makeWhole()
	report := w.check()
	report.Problems = append(whole, report.Problems...)
	report.Seed, report.Duration = o.Seed, time.Since(began).Round(time.Second)
	report.Tally = w.tally.all()
	if len(report.Problems) > 0 || o.Keep {
		report.History = w.history.last(40)
		report.Kept = w.keep()
		os.WriteFile(filepath.Join(o.Dir, "report"), []byte(report.String()), 0o644)
	}
	return report
}

// newWorld sets up servers, links, repositories and users.
func newWorld(t testing.TB, o Options) *world {
	t.Helper()
	w := &world{t: t, options: o, hosts: map[string]*host{}, oracle: newOracle(), tally: newTally(), quiet: make(chan struct{})}
	w.env = testenv.New(t, serverNames...)
	var err error
	if w.history, err = openHistory(filepath.Join(w.env.Root, "history.log")); err != nil {
		t.Fatal(err)
	}
	for _, s := range w.env.Servers {
		w.hosts[s.Name] = newHost(t, s)
	}
	for _, h := range w.hosts {
		w.interpose(t, h)
	}
	for _, r := range repositories {
		config := map[string]string{"master": r.master, "slaves": strings.Join(r.slaves, " ")}
		if r.redirect != "" {
			config["redirectOK"] = r.redirect
		}
		if r.refs != "" {
			config["refs"] = r.refs
		}
		w.env.CreateRepo(t, r.name, config, append([]string{r.master}, r.slaves...)...)
	}
	for i, name := range userNames {
		w.users = append(w.users, newUser(t, w, i, w.env.AddUser(t, name)))
	}
	w.begin(t)
	// One with a daemon, one where the hook and the timer do it all.
	w.hosts["frodo"].supervise(t)
	t.Cleanup(func() { w.hosts["frodo"].endSupervision() })
	return w
}

// begin gives each repository a first commit, and each slave the same: a slave that has
// nothing of its master's is another story.
func (w *world) begin(t testing.TB) {
	t.Helper()
	for _, r := range repositories {
		w.users[0].push(pushPlan{repo: r, refs: []refPlan{{"refs/heads/main", forward, ""}}})
	}
	for _, name := range []string{"frodo", "sam"} {
		if r := w.administer(w.hosts[name], "sync"); r.status != 0 {
			t.Fatalf("the world is not equal to begin with: %s", r)
		}
	}
}

// play runs the users beside the deeds and faults until the pushes are made.
func (w *world) play() {
	var users sync.WaitGroup
	for i, u := range w.users {
		users.Go(func() { u.run(pushPlans(w.options.Seed, i, share(w.options.Pushes, i, len(w.users)))) })
	}
	var scheduler sync.WaitGroup
	scheduler.Go(w.runFaults)
	scheduler.Go(w.runDeeds)
	users.Wait()
	close(w.quiet)
	scheduler.Wait()
	w.deeds.Wait()
}

// share of n that falls to the i-th of so many.
func share(n, i, many int) int { return (n + many - 1 - i) / many }

// progress waits until so many pushes are made; false when they all are.
func (w *world) progress(due int64) bool {
	for w.made.Load() < due {
		select {
		case <-w.quiet:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}

// keepPace makes users wait for faults, which take longer.
func (w *world) keepPace() {
	due := func() int64 { return w.made.Load()*int64(w.options.Faults)/int64(w.options.Pushes) - atOnce }
	for w.begun.Load() < due() {
		time.Sleep(10 * time.Millisecond)
	}
}

// runDeeds does what administrators do, spread over the pushes.
func (w *world) runDeeds() {
	plans := deedPlans(w.options.Seed, w.options.Pushes/4)
	for i, d := range plans {
		if !w.progress(int64(i * w.options.Pushes / len(plans))) {
			return
		}
		switch d.act {
		case timer, drain, look, approve: // what takes long stops nobody else
			w.deeds.Go(func() { w.deed(d) })
		default:
			w.deed(d)
		}
	}
}

// atOnce is how many faults may last at the same time.
const atOnce = 4

// runFaults injects faults, spread over the pushes. One that finds nothing to break does not
// count, and is followed by the next at once.
func (w *world) runFaults() {
	next := faultPlans(w.options.Seed, w.options.Kinds)
	slots := make(chan struct{}, atOnce)
	every := float64(w.options.Pushes) / float64(max(w.options.Faults, 1))
	for begun := 0; begun < w.options.Faults; begun++ {
		if !w.progress(int64(float64(begun) * every)) {
			return
		}
		slots <- struct{}{}
		w.begun.Add(1)
		w.deeds.Go(func() {
			defer func() { <-slots }()
			for range 20 {
				if w.inject(next()) {
					w.injected.Add(1)
					return
				}
			}
		})
	}
}

// keep saves what a person needs to find out what went wrong.
func (w *world) keep() string {
	if err := os.MkdirAll(w.options.Dir, 0o755); err != nil {
		return "nothing could be kept: " + err.Error()
	}
	w.history.close()
	for _, dir := range []string{"history.log", "servers"} {
		target := filepath.Join(w.options.Dir, dir)
		if r := execute(time.Minute, "", program("cp", "-a", filepath.Join(w.env.Root, dir), target)); r.status != 0 {
			return fmt.Sprintf("not everything could be kept in %s: %s", w.options.Dir, r)
		}
	}
	return w.options.Dir
}
