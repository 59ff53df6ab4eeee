package faults

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Kind is a kind of fault.
type Kind string

// The kinds.
const (
	KillWorker   Kind = "kill worker"    // serve, drain
	KillGit      Kind = "kill git"       // and hooks
	KillAny      Kind = "kill anything"  // of a server's unix user
	KillSession  Kind = "kill session"   // sshd's child
	Freeze       Kind = "freeze process" // SIGSTOP, and later SIGCONT
	SSHDown      Kind = "sshd down"
	LinkCut      Kind = "connections cut"
	LinkCutAfter Kind = "connection cut after N bytes"
	LinkRefuse   Kind = "connections refused"
	LinkHang     Kind = "hang after connect"
	LinkStall    Kind = "hang in the middle"
	FullState    Kind = "full state_dir"
	ReadOnly     Kind = "read-only repository"
	GC           Kind = "gc"
	Repack       Kind = "repack -ad"
	StaleLock    Kind = "stale lock file"
	TwoWorkers   Kind = "second worker"
	DatabaseGone Kind = "database deleted"
	DatabaseBad  Kind = "database corrupted"
)

var kindWeights = map[Kind]int{
	KillWorker: 12, KillGit: 14, KillAny: 12, KillSession: 10, Freeze: 6, SSHDown: 6,
	LinkCut: 8, LinkCutAfter: 10, LinkRefuse: 4, LinkHang: 4, LinkStall: 5,
	FullState: 5, ReadOnly: 6, GC: 5, Repack: 6, StaleLock: 6, TwoWorkers: 5,
	DatabaseGone: 4, DatabaseBad: 4,
}

// AllKinds are the kinds, those of the database not included: see DatabaseKinds.
func AllKinds() []Kind {
	return []Kind{KillWorker, KillGit, KillAny, KillSession, Freeze, SSHDown, LinkCut, LinkCutAfter, LinkRefuse, LinkHang, LinkStall, FullState, ReadOnly, GC, Repack, StaleLock, TwoWorkers}
}

// DatabaseKinds take the jobs table away.
func DatabaseKinds() []Kind { return []Kind{DatabaseGone, DatabaseBad} }

// between is a duration chosen by the plan.
func (p faultPlan) between(least, most time.Duration) time.Duration {
	return least + time.Duration(p.long*float64(most-least))
}

// inject breaks something, waits as long as that takes, and mends it if it does not mend itself.
// It returns false when there was nothing to break.
func (w *world) inject(p faultPlan) bool {
	h := w.hosts[p.server]
	what, ok := w.breakIt(h, p)
	if !ok {
		return false
	}
	w.tally.add("faults: "+string(p.kind), 1)
	w.history.add("FAULT %s: %s", p.kind, what)
	return true
}

func (w *world) breakIt(h *host, p faultPlan) (string, bool) {
	switch p.kind {
	case KillWorker:
		return w.kill(h, p, process.worker)
	case KillGit:
		return w.kill(h, p, func(x process) bool { return !x.worker() && !x.session() && x.name != "ssh" })
	case KillAny:
		return w.kill(h, p, func(x process) bool { return !x.session() })
	case KillSession:
		return w.kill(h, p, process.session)
	case Freeze:
		return w.freeze(h, p)
	case SSHDown:
		return w.sshdDown(h, p)
	case LinkCut, LinkCutAfter, LinkRefuse, LinkHang, LinkStall:
		return w.breakLink(p)
	case FullState:
		return w.fillState(h, p)
	case ReadOnly:
		return w.readOnly(h, p)
	case GC, Repack:
		return w.collect(h, p)
	case StaleLock:
		return w.staleLock(h, p)
	case TwoWorkers:
		return w.secondWorker(h, p)
	case DatabaseGone, DatabaseBad:
		return w.breakDatabase(h, p)
	}
	panic("faults: unknown kind " + p.kind)
}

// huntLimit is how long a process that can be killed is waited for.
const huntLimit = 2 * time.Second

// hunt waits for processes that match, and picks one.
func (w *world) hunt(h *host, pick uint64, match func(process) bool) (process, bool) {
	for deadline := time.Now().Add(huntLimit); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var found []process
		for _, p := range h.processes() {
			if match(p) {
				found = append(found, p)
			}
		}
		if len(found) > 0 {
			return found[pick%uint64(len(found))], true
		}
	}
	return process{}, false
}

// signal is sent only to what is still the same user's.
func (h *host) signal(p process, s syscall.Signal) bool {
	var stat syscall.Stat_t
	return syscall.Stat(fmt.Sprintf("/proc/%d", p.pid), &stat) == nil && int(stat.Uid) == h.uid && syscall.Kill(p.pid, s) == nil
}

func (w *world) kill(h *host, p faultPlan, match func(process) bool) (string, bool) {
	time.Sleep(p.between(0, 300*time.Millisecond)) // not always at its very beginning
	victim, found := w.hunt(h, p.pick, match)
	if !found || !h.signal(victim, syscall.SIGKILL) {
		return "", false
	}
	return fmt.Sprintf("on %s: %s", h.Name, victim), true
}

func (w *world) freeze(h *host, p faultPlan) (string, bool) {
	victim, found := w.hunt(h, p.pick, func(x process) bool { return true })
	if !found || !h.signal(victim, syscall.SIGSTOP) {
		return "", false
	}
	long := p.between(500*time.Millisecond, 6*time.Second) // at most longer than stall_timeout
	time.Sleep(long)
	h.signal(victim, syscall.SIGCONT)
	return fmt.Sprintf("on %s for %s: %s", h.Name, long, victim), true
}

func (w *world) sshdDown(h *host, p faultPlan) (string, bool) {
	if !h.try("sshd") {
		return "", false
	}
	defer h.mended("sshd")
	h.StopSSH(w.t)
	long := p.between(200*time.Millisecond, 4*time.Second)
	time.Sleep(long)
	h.StartSSH(w.t)
	return fmt.Sprintf("on %s for %s", h.Name, long), true
}

// breakLink breaks a connection between two servers.
func (w *world) breakLink(p faultPlan) (string, bool) {
	l := w.links[p.pick%uint64(len(w.links))]
	h := w.hosts[l.from]
	if !h.try("link to " + l.to) {
		return "", false
	}
	defer h.mended("link to " + l.to)
	name := l.from + " → " + l.to
	long := p.between(200*time.Millisecond, 7*time.Second)
	switch p.kind {
	case LinkCut:
		n := l.cut(0)
		return fmt.Sprintf("%s: %d of them", name, n), n > 0
	case LinkCutAfter:
		bytes := int64(1) << (p.pick >> 32 % 16)
		bytes += int64(p.pick >> 40 % uint64(bytes))
		l.cut(bytes)
		defer l.disarm()
		for deadline := time.Now().Add(5 * time.Second); l.armed(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				return "", false
			}
		}
		return fmt.Sprintf("%s: after %d", name, bytes), true
	case LinkRefuse:
		l.set(linkRefuses)
		l.cut(0)
	case LinkHang:
		l.set(linkHangs)
		l.cut(0)
	case LinkStall:
		l.set(linkStalls)
	}
	time.Sleep(long)
	l.set(linkPasses)
	return fmt.Sprintf("%s for %s", name, long), true
}

// fillState leaves no room in state_dir for a while.
func (w *world) fillState(h *host, p faultPlan) (string, bool) {
	if !h.small || !h.try("state") {
		return "", false
	}
	defer h.mended("state")
	path := filepath.Join(h.StateDir(), "filling")
	defer os.Remove(path)
	err := fill(path)
	if !errors.Is(err, syscall.ENOSPC) {
		w.t.Errorf("fill %s: %v", path, err)
		return "", false
	}
	long := p.between(time.Second, 5*time.Second)
	time.Sleep(long)
	return fmt.Sprintf("on %s for %s", h.Name, long), true
}

func fill(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for size := 1 << 20; ; {
		switch _, err := file.Write(make([]byte, size)); {
		case err == nil:
		case size > 1:
			size /= 16
		default:
			return err
		}
	}
}

// readOnly takes the right to write from all directories of a repository.
func (w *world) readOnly(h *host, p faultPlan) (string, bool) {
	if !p.repo.on(h.Name) || !h.try("repository "+p.repo.name) {
		return "", false
	}
	defer h.mended("repository " + p.repo.name)
	modes := map[string]fs.FileMode{}
	filepath.WalkDir(h.RepoDir(p.repo.name), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return nil
		}
		if info, err := entry.Info(); err == nil && os.Chmod(path, info.Mode()&^0o222) == nil {
			modes[path] = info.Mode()
		}
		return nil
	})
	long := p.between(500*time.Millisecond, 4*time.Second)
	time.Sleep(long)
	for path, mode := range modes {
		if err := os.Chmod(path, mode); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Error(err)
		}
	}
	return fmt.Sprintf("%s on %s for %s", p.repo.name, h.Name, long), true
}

func (w *world) collect(h *host, p faultPlan) (string, bool) {
	if !p.repo.on(h.Name) {
		return "", false
	}
	args := []string{"gc", "--quiet"}
	if p.kind == Repack {
		args = []string{"repack", "-a", "-d", "-q"}
	}
	r := h.git(p.repo.name, "", args...)
	return fmt.Sprintf("%s on %s: %s", p.repo.name, h.Name, r), true
}

// staleLock leaves a lock file as a git does that was killed. Sometimes somebody removes
// it soon.
func (w *world) staleLock(h *host, p faultPlan) (string, bool) {
	if !p.repo.on(h.Name) {
		return "", false
	}
	name := []string{"packed-refs.lock", "HEAD.lock", p.ref + ".lock", p.ref + ".lock"}[p.pick%4]
	path := filepath.Join(h.RepoDir(p.repo.name), name)
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return "", false
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", false
	}
	file.Close()
	os.Chown(path, h.uid, h.gid)
	long := time.Duration(0)
	if p.pick>>8%4 != 0 {
		long = p.between(time.Second, 4*time.Second)
		time.Sleep(long)
		os.Remove(path)
	}
	return fmt.Sprintf("%s of %s on %s for %s (0: until it is swept)", name, p.repo.name, h.Name, long), true
}

// secondWorker starts another worker. A second daemon has to leave the first alone, and to end.
func (w *world) secondWorker(h *host, p faultPlan) (string, bool) {
	first := h.daemonPID()
	if first == 0 || p.pick%3 == 0 {
		one := make(chan result)
		go func() { one <- h.run(15*time.Second, "mirror-shell", "drain") }()
		two := h.run(15*time.Second, "mirror-shell", "drain")
		return fmt.Sprintf("two drains on %s: %s, %s", h.Name, <-one, two), true
	}
	r := h.run(12*time.Second, "mirror-shell", "serve")
	if r.late && h.daemonPID() == first {
		w.problem("two daemons work on %s at once, %d and another: %s", h.Name, first, r)
	}
	return fmt.Sprintf("a second daemon on %s beside %d: %s", h.Name, first, r), true
}

// breakDatabase deletes or overwrites the jobs table, under whoever uses it.
func (w *world) breakDatabase(h *host, p faultPlan) (string, bool) {
	files, _ := filepath.Glob(filepath.Join(h.StateDir(), "queue.db*"))
	if len(files) == 0 || !h.try("state") {
		return "", false
	}
	defer h.mended("state")
	var errs []error
	for _, file := range files {
		switch {
		case p.kind == DatabaseGone:
			errs = append(errs, os.Remove(file))
		case strings.HasSuffix(file, ".db"):
			errs = append(errs, scribble(file, p))
		}
	}
	return fmt.Sprintf("on %s: %v", h.Name, errors.Join(errs...)), true
}

// scribble overwrites some pages of a file, the first among them sometimes.
func scribble(path string, p faultPlan) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	r := stream(p.pick, 0)
	garbage := make([]byte, 4096)
	for range 3 {
		for i := range garbage {
			garbage[i] = byte(r.Uint32())
		}
		if _, err := file.WriteAt(garbage, r.Int64N(max(info.Size()/4096, 1))*4096); err != nil {
			return err
		}
	}
	return nil
}
