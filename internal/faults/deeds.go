package faults

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// commandLimit bounds what administrators run while things are being broken.
const commandLimit = 20 * time.Second

// deed does one thing.
func (w *world) deed(d deedPlan) {
	master := w.hosts[d.repo.master]
	slave := w.hosts[d.repo.slaves[int(d.server%uint64(len(d.repo.slaves)))]]
	either := w.hosts[[]string{"frodo", "sam"}[d.server%2]]
	switch d.act {
	case behind, behindTag:
		w.behind(slave, d)
	case vanish:
		w.vanish(slave, d)
	case head:
		w.setHead(master, d)
	case wrongHead:
		w.setHead(slave, d)
	case timer:
		w.administer(either, "sync", "--quiet")
	case drain:
		w.administer(either, "drain")
	case ask:
		w.administer(master, "request-push", d.repo.name)
	case look:
		w.administer(either, "status", "--json")
		w.administer(w.hosts[serverNames[d.pick%3]], "doctor", "--json")
	case approve:
		for _, name := range []string{"frodo", "sam"} {
			w.approveHeld(w.hosts[name])
		}
	case sweep:
		for _, h := range w.hosts {
			w.removeLocks(h, h.staleLocks(sweepAge))
		}
	}
}

// administer runs one of our commands.
func (w *world) administer(h *host, args ...string) result {
	r := h.run(commandLimit, append([]string{"mirror-shell"}, args...)...)
	w.tally.add("deeds: mirror-shell "+args[0], 1)
	w.history.add("%s$ mirror-shell %s: %s", h.Name, strings.Join(args, " "), r)
	return r
}

// behind makes a commit, or a tag, on a slave's disk.
func (w *world) behind(h *host, d deedPlan) {
	repo := d.repo.name
	refs, err := h.refs(repo)
	if err != nil {
		w.history.add("%v", err)
		return
	}
	ref, old := d.ref, refs[d.ref]
	switch {
	case d.act == behindTag:
		ref = fmt.Sprintf("refs/tags/behind-%s-%d", h.Name, d.pick%1e6)
		old = refs[ref]
	case d.pick%4 == 0:
		ref = fmt.Sprintf("refs/heads/behind-%s-%d", h.Name, d.pick%1e6)
		old = refs[ref]
	}
	tree := strings.TrimSpace(h.git(repo, "", "mktree").stdout)
	args := []string{"commit-tree", "-m", fmt.Sprintf("behind the back on %s %d", h.Name, d.pick), tree}
	parent := w.oracle.peel(old)
	if parent == "" {
		parent = w.oracle.peel(refs["refs/heads/main"])
	}
	var parents []string
	if parent != "" {
		args, parents = append(args, "-p", parent), []string{parent}
	}
	made := h.git(repo, "", args...)
	oid := strings.TrimSpace(made.stdout)
	if made.status != 0 {
		w.history.add("%s %s: no commit: %s", h.Name, repo, made)
		return
	}
	w.oracle.commit(oid, parents...)
	if d.act == behindTag {
		text := fmt.Sprintf("object %s\ntype commit\ntag t\ntagger %s <%s@example.com> %d +0000\n\nbehind the back\n", oid, h.Name, h.Name, time.Now().Unix())
		tag := h.git(repo, text, "mktag")
		if tag.status != 0 {
			w.history.add("%s %s: no tag: %s", h.Name, repo, tag)
			return
		}
		commit := oid
		oid = strings.TrimSpace(tag.stdout)
		w.oracle.tag(oid, commit)
	}
	expect := old
	if expect == "" {
		expect = strings.Repeat("0", len(oid))
	}
	set := h.git(repo, "", "update-ref", ref, oid, expect)
	w.oracle.behind(deed{repo, h.Name, ref, oid, set.status == 0})
	w.tally.add("deeds: values set on a slave's disk", 1)
	w.history.add("%s %s: behind the back %s:%.8s..%.8s %s", h.Name, repo, ref, old, oid, set)
}

// vanish deletes a ref of a slave that holds nothing but the master's.
func (w *world) vanish(h *host, d deedPlan) {
	refs, err := h.refs(d.repo.name)
	if err != nil || refs[d.ref] == "" || w.oracle.holdsDeeds(refs[d.ref]) {
		return
	}
	r := h.git(d.repo.name, "", "update-ref", "-d", d.ref, refs[d.ref])
	w.tally.add("deeds: refs deleted on a slave's disk", 1)
	w.history.add("%s %s: deleted on disk %s:%.8s %s", h.Name, d.repo.name, d.ref, refs[d.ref], r)
}

// setHead points HEAD to some branch, and sometimes to one that is not there.
func (w *world) setHead(h *host, d deedPlan) {
	refs, err := h.refs(d.repo.name)
	if err != nil {
		return
	}
	target := "refs/heads/main"
	branches := slices.DeleteFunc(slices.Sorted(maps.Keys(refs)), func(ref string) bool { return !strings.HasPrefix(ref, "refs/heads/") })
	switch {
	case d.pick%10 == 0 && strings.HasPrefix(d.ref, "refs/heads/"):
		target = d.ref
	case len(branches) > 0:
		target = branches[d.pick%uint64(len(branches))]
	}
	r := h.git(d.repo.name, "", "symbolic-ref", "HEAD", target)
	w.tally.add("deeds: HEAD set", 1)
	w.history.add("%s %s: HEAD -> %s %s", h.Name, d.repo.name, target, r)
}

// statusLine is what we need of `mirror-shell status --json`.
type statusLine struct{ Repository, Peer, State, Error string }

// status asks a server; nil when it cannot be asked.
func (w *world) status(h *host) []statusLine {
	r := h.run(commandLimit, "mirror-shell", "status", "--json")
	var report struct{ Lines []statusLine }
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		w.history.add("%s$ mirror-shell status --json: %v: %s", h.Name, err, r)
		return nil
	}
	return report.Lines
}

// approveHeld approves all that a server holds.
func (w *world) approveHeld(h *host) {
	for _, line := range w.status(h) {
		if line.State != "held" {
			continue
		}
		w.tally.add("syncs found held: "+reason(line.Error), 1)
		w.history.add("%s holds %s to %s: %s", h.Name, line.Repository, line.Peer, line.Error)
		if r := w.administer(h, "approve", line.Repository, line.Peer); r.status == 0 {
			w.tally.add("approvals that went through", 1)
		}
	}
}

// reason is the kind of a hold.
func reason(text string) string {
	for _, known := range []string{"would be deleted", "would go back", "nothing in common", "was rolled back here", "is empty here", "could not be fetched", "restored from a backup"} {
		if strings.Contains(text, known) {
			return known
		}
	}
	return text
}

// lockFile is one that git makes and, when it is killed, leaves.
type lockFile struct {
	path  string
	inode uint64
	age   time.Duration
}

// sweepAge is older than any lock of a git that runs: no fault freezes one for as long.
const sweepAge = 10 * time.Second

// staleLocks lists git's lock files of at least that age. Ours are below mirror-shell/, and stay.
func (h *host) staleLocks(age time.Duration) []lockFile {
	var list []lockFile
	for _, r := range repositories {
		dir := h.RepoDir(r.name)
		filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
			case entry.IsDir() && path == filepath.Join(dir, "mirror-shell"):
				return fs.SkipDir
			case !entry.IsDir() && strings.HasSuffix(path, ".lock"):
				info, err := entry.Info()
				if err == nil && time.Since(info.ModTime()) >= age {
					list = append(list, lockFile{path, info.Sys().(*syscall.Stat_t).Ino, time.Since(info.ModTime())})
				}
			}
			return nil
		})
	}
	return list
}

func (w *world) removeLocks(h *host, locks []lockFile) {
	for _, l := range locks {
		if err := os.Remove(l.path); err == nil {
			w.tally.add("lock files of git removed", 1)
			w.history.add("%s: removed %s, %s old", h.Name, strings.TrimPrefix(l.path, h.Home()), l.age.Round(time.Millisecond))
		}
	}
}
