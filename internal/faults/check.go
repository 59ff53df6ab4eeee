package faults

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// check looks at everything with git and the file system; of the product only `status
// --failing` and `rescued` are asked, about themselves.
func (w *world) check() *Report {
	c := checker{world: w, report: &Report{Pushes: int(w.made.Load()), Faults: int(w.injected.Load())}}
	for _, h := range w.sorted() {
		if r := h.run(time.Minute, "mirror-shell", "status", "--failing"); r.status != 0 {
			c.wrong("%s$ mirror-shell status --failing: %s", h.Name, r)
		}
	}
	if state := w.hosts["frodo"].endSupervision(); !state.Success() {
		c.wrong("the daemon on frodo ended with %v after SIGTERM", state)
	}
	c.report.Problems = append(c.report.Problems, w.idle()...)
	c.values()
	for _, h := range w.sorted() {
		for _, r := range repositories {
			if r.on(h.Name) {
				c.equal(h, r)
				c.sound(h, r)
				c.rescued(h, r)
			}
		}
		c.inbox(h)
		c.locks(h)
		c.logs(h)
	}
	return c.report
}

func (w *world) sorted() []*host {
	var list []*host
	for _, name := range slices.Sorted(maps.Keys(w.hosts)) {
		list = append(list, w.hosts[name])
	}
	return list
}

type checker struct {
	*world
	report *Report
}

func (c *checker) wrong(format string, args ...any) {
	c.report.Problems = append(c.report.Problems, fmt.Sprintf(format, args...))
}

// mirrored are the refs that must be equal, and HEAD.
func (c *checker) mirrored(h *host, r repository) map[string]string {
	refs, err := h.refs(r.name)
	if err != nil {
		c.wrong("%v", err)
	}
	maps.DeleteFunc(refs, func(ref, _ string) bool {
		return strings.HasPrefix(ref, "refs/mirror/") || r.hidden != "" && strings.HasPrefix(ref, r.hidden)
	})
	if refs != nil {
		refs["HEAD"] = strings.TrimSpace(h.git(r.name, "", "symbolic-ref", "HEAD").stdout)
	}
	return refs
}

// equal compares a slave with the master.
func (c *checker) equal(h *host, r repository) {
	if h.Name == r.master {
		return
	}
	want, got := c.mirrored(c.hosts[r.master], r), c.mirrored(h, r)
	for ref := range maps.Keys(mergeKeys(want, got)) {
		if want[ref] != got[ref] {
			c.wrong("%s: %s is %q on %s and %q on %s", r.name, ref, want[ref], r.master, got[ref], h.Name)
		}
	}
}

func mergeKeys(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// values asks the oracle whether all is where it has to be.
func (c *checker) values() {
	s := state{master: map[string]map[string]bool{}, anywhere: map[string]map[string]bool{}, refs: map[string]map[string]string{}}
	for _, r := range repositories {
		s.anywhere[r.name] = map[string]bool{}
		for _, h := range c.sorted() {
			if !r.on(h.Name) {
				continue
			}
			refs, err := h.refs(r.name)
			if err != nil {
				c.wrong("%v", err)
			}
			maps.Copy(s.anywhere[r.name], c.reachable(h, r, refs))
			if h.Name == r.master {
				maps.DeleteFunc(refs, func(ref, _ string) bool { return strings.HasPrefix(ref, "refs/mirror/") })
				s.refs[r.name], s.master[r.name] = refs, c.reachable(h, r, refs)
			}
		}
	}
	v := c.oracle.judge(s)
	c.report.Checked, c.report.Lost = v.checked, len(v.lost)
	c.tally.add("values that users overwrote", v.excused)
	for _, l := range v.lost {
		c.wrong("LOST %s", l)
	}
}

// reachable lists all objects that refs reach.
func (c *checker) reachable(h *host, r repository, refs map[string]string) map[string]bool {
	values := strings.Join(slices.Collect(maps.Values(refs)), "\n") + "\n"
	out := h.git(r.name, values, "rev-list", "--objects", "--no-object-names", "--stdin")
	if out.status != 0 {
		c.wrong("%s on %s: git rev-list: %s", r.name, h.Name, out)
	}
	found := map[string]bool{}
	for line := range strings.Lines(out.stdout) {
		found[strings.TrimSpace(line)] = true
	}
	return found
}

// sound asks git about a repository.
func (c *checker) sound(h *host, r repository) {
	// The commit graph that gc wrote names commits which our repack -ad has dropped since:
	// a cache of git's, and none of the product's business.
	out := h.git(r.name, "", "-c", "core.commitGraph=false", "fsck", "--strict", "--no-dangling", "--no-progress")
	if said := out.stdout + out.stderr; out.status != 0 || strings.Contains(said, "error") || strings.Contains(said, "missing") {
		c.wrong("%s on %s: git fsck: %s", r.name, h.Name, out)
	}
	for _, pattern := range []string{"objects/tmp_objdir*", "objects/pack/tmp_*", "objects/??/tmp_obj_*"} {
		left, _ := filepath.Glob(filepath.Join(h.RepoDir(r.name), pattern))
		c.tally.add("left by git that was killed: "+pattern, len(left))
	}
}

// rescued looks at what was rescued: each value once, and nothing without need.
func (c *checker) rescued(h *host, r repository) {
	refs, err := h.refs(r.name)
	if err != nil {
		c.wrong("%v", err)
	}
	seen := map[string]string{}
	for ref, oid := range refs {
		rest, ok := strings.CutPrefix(ref, "refs/mirror/rescued/")
		if !ok {
			if strings.HasPrefix(ref, "refs/mirror/") {
				c.wrong("%s on %s has a ref that nobody needs any more: %s", r.name, h.Name, ref)
			}
			continue
		}
		c.report.Rescued++
		_, name, _ := strings.Cut(rest, "/")
		if other := seen[name+" "+oid]; other != "" {
			c.wrong("%s on %s: rescued twice: %s and %s", r.name, h.Name, other, ref)
		}
		seen[name+" "+oid] = ref
		if !c.oracle.holdsDeeds(oid) {
			c.tally.add("rescued without need", 1)
			c.history.add("rescued without need on %s: %s %s %s", h.Name, r.name, ref, oid)
		}
	}
	if len(seen) == 0 {
		return
	}
	if out := h.run(time.Minute, "mirror-shell", "rescued", "--json", r.name); out.status != 0 || strings.Count(out.stdout, `"oid"`) != len(seen) {
		c.wrong("%s$ mirror-shell rescued %s: not %d: %s", h.Name, r.name, len(seen), out)
	}
}

// inbox must have been emptied.
func (c *checker) inbox(h *host) {
	for _, dir := range []string{"inbox", "inbox/taken", "inbox/bad"} {
		entries, err := os.ReadDir(filepath.Join(h.StateDir(), dir))
		if err != nil && !os.IsNotExist(err) {
			c.wrong("%v", err)
		}
		for _, e := range entries {
			switch {
			case e.IsDir():
			case strings.HasPrefix(e.Name(), ".") && strings.HasSuffix(e.Name(), ".tmp"):
				c.tally.add("left by hooks that were killed: half-written events", 1)
			case strings.HasSuffix(e.Name(), ".json"):
				c.wrong("%s: left in %s: %s", h.Name, dir, e.Name())
			}
		}
	}
}

// locks can all be had.
func (c *checker) locks(h *host) {
	dirs := []string{h.StateDir()}
	for _, r := range repositories {
		dirs = append(dirs, h.RepoDir(r.name))
	}
	for _, dir := range dirs {
		filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".lock") {
				return nil
			}
			if dir != h.StateDir() && !strings.Contains(path, "/mirror-shell/") {
				c.wrong("%s: a lock of git is left: %s", h.Name, path)
				return nil
			}
			c.tally.add("locks of ours tried", 1)
			lock := flock.New(path)
			if free, err := lock.TryLock(); err != nil || !free {
				c.wrong("%s: somebody holds %s (%v)", h.Name, path, err)
			}
			lock.Close()
			return nil
		})
	}
}

// logs must not tell of mistakes in the programs.
func (c *checker) logs(h *host) {
	for _, path := range []string{filepath.Join(h.StateDir(), "mirror-shell.log"), filepath.Join(h.StateDir(), "audit.log"), h.daemonLog()} {
		data, _ := os.ReadFile(path)
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "panic") || strings.Contains(line, "goroutine ") || strings.HasPrefix(line, "fatal error") {
				c.wrong("%s: %s: %s", h.Name, filepath.Base(path), oneLine(line))
				break
			}
		}
	}
}
