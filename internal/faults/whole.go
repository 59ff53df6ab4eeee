package faults

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// wholeLimit bounds how long it may take until everything is equal, once nothing is broken
// any more.
const wholeLimit = 3 * time.Minute

// problem notes what must not be, from anywhere.
func (w *world) problem(format string, args ...any) {
	w.history.add("PROBLEM "+format, args...)
	w.oracle.mu.Lock()
	defer w.oracle.mu.Unlock()
	w.oracle.problems = append(w.oracle.problems, fmt.Sprintf(format, args...))
}

// makeWhole does what an administrator does after a bad day, until every server says that
// all is equal. All faults have ended by now.
func (w *world) makeWhole() []string {
	w.history.add("making whole")
	began := time.Now()
	for _, l := range w.links {
		l.set(linkPasses)
		l.disarm()
	}
	var before []lockFile
	var wrong []string
	for round := 1; time.Since(began) < wholeLimit; round++ {
		before = w.removeIdleLocks(before)
		wrong = nil
		for _, name := range serverNames { // gollum has nothing to push, but may have lost its database
			h := w.hosts[name]
			w.approveHeld(h)
			r := h.run(time.Minute, "mirror-shell", "sync")
			w.history.add("%s$ mirror-shell sync: %s", name, r)
			if r.status != 0 {
				wrong = append(wrong, fmt.Sprintf("%s$ mirror-shell sync: %s", name, r))
			}
		}
		if len(wrong) == 0 && len(before) == 0 { // a lock may be in nobody's way until later
			w.tally.add("rounds until all was equal", round)
			w.tally.add("seconds until all was equal", int(time.Since(began).Seconds()))
			return w.oracle.problems
		}
		time.Sleep(time.Second)
	}
	return append(append(w.oracle.problems, fmt.Sprintf("not equal %s after the last fault", wholeLimit)), wrong...)
}

// removeIdleLocks removes git's lock files that were there a round ago: no git takes so long now.
func (w *world) removeIdleLocks(before []lockFile) (now []lockFile) {
	for _, h := range w.hosts {
		locks := h.staleLocks(0)
		stale := slices.DeleteFunc(slices.Clone(locks), func(l lockFile) bool {
			return !slices.ContainsFunc(before, func(b lockFile) bool { return b.path == l.path && b.inode == l.inode })
		})
		w.removeLocks(h, stale)
		now = append(now, locks...)
	}
	return now
}

// idle waits until the unix users run nothing but sshd, and returns what else they run.
func (w *world) idle() []string {
	var busy []string
	for deadline := time.Now().Add(45 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		busy = nil
		for _, h := range w.hosts {
			for _, p := range h.processes() {
				if !p.session() {
					busy = append(busy, fmt.Sprintf("left running on %s: %s", h.Name, strings.TrimSpace(p.String())))
				}
			}
		}
		if len(busy) == 0 {
			return nil
		}
	}
	return busy
}
