package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mirror-shell/internal/testenv"
)

// host is a server as its administrator, root, sees it.
type host struct {
	*testenv.Server
	uid, gid int
	small    bool // state_dir is a file system of its own, which can be filled

	mu     sync.Mutex
	broken map[string]bool // see try

	daemon struct {
		sync.Mutex
		pid  int // 0: not running
		stop chan struct{}
		done chan struct{}
		last *os.ProcessState // of the latest daemon
	}
}

// configuration has short times, so that a run sees many of them end.
const configuration = `
[worker]
retry_max = "2s"
stall_timeout = "4s"
`

func newHost(t testing.TB, s *testenv.Server) *host {
	t.Helper()
	info, err := os.Stat(s.Home())
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	h := &host{Server: s, uid: int(stat.Uid), gid: int(stat.Gid), broken: map[string]bool{}}
	s.Configure(t, configuration)
	s.MustRun(t, "mkdir", "-p", "-m", "0700", s.StateDir())
	options := fmt.Sprintf("size=%d,mode=0700,uid=%d,gid=%d", stateBytes, h.uid, h.gid)
	switch err := syscall.Mount("tmpfs", s.StateDir(), "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, options); {
	case err == nil:
		h.small = true
		t.Cleanup(func() {
			if err := syscall.Unmount(s.StateDir(), syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", s.StateDir(), err)
			}
		})
	case !errors.Is(err, syscall.EPERM):
		t.Fatal(err)
	}
	return h
}

// stateBytes is room for the state of a long run.
const stateBytes = 64 << 20

// interpose puts a link between a server and each other one.
func (w *world) interpose(t testing.TB, h *host) {
	t.Helper()
	file := h.Home(".ssh/config")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	config := string(text)
	for _, other := range w.hosts {
		if other == h {
			continue
		}
		l, err := newLink(h.Name, other.Name, "127.0.0.1:"+strconv.Itoa(other.Port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.close)
		w.links = append(w.links, l)
		port := fmt.Sprintf("\tPort %d\n", other.Port)
		if strings.Count(config, port) != 1 {
			t.Fatalf("%s has not one line %q", file, port)
		}
		config = strings.Replace(config, port, fmt.Sprintf("\tPort %d\n", l.port()), 1)
	}
	if err := os.WriteFile(file, []byte(config), 0); err != nil { // it stays whose it is
		t.Fatal(err)
	}
}

// try marks what is about to be broken on the server; false when it is broken already.
func (h *host) try(what string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken[what] {
		return false
	}
	h.broken[what] = true
	return true
}

func (h *host) mended(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.broken, what)
}

// run runs a program as the server's unix user.
func (h *host) run(limit time.Duration, argv ...string) result { return h.feed(limit, "", argv...) }

func (h *host) feed(limit time.Duration, stdin string, argv ...string) result {
	return execute(limit, stdin, func(ctx context.Context) *exec.Cmd { return h.Command(ctx, argv...) })
}

// git runs git in a repository as the server's unix user.
func (h *host) git(repo, stdin string, args ...string) result {
	return h.feed(2*time.Minute, stdin, append([]string{"git", "--git-dir=" + h.RepoDir(repo)}, args...)...)
}

// refs reads all refs of a repository; err tells what git warns about, too.
func (h *host) refs(repo string) (map[string]string, error) {
	r := h.git(repo, "", "for-each-ref", "--format=%(objectname) %(refname)")
	if r.status != 0 || r.stderr != "" {
		return nil, fmt.Errorf("refs of %s on %s: %s", repo, h.Name, r)
	}
	refs := map[string]string{}
	for line := range strings.Lines(r.stdout) {
		oid, ref, _ := strings.Cut(strings.TrimSpace(line), " ")
		refs[ref] = oid
	}
	return refs, nil
}

// supervise keeps `mirror-shell serve` running, as an init system does.
func (h *host) supervise(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(h.daemonLog(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	h.daemon.stop, h.daemon.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(h.daemon.done)
		defer log.Close()
		for h.serveOnce(log) {
			select {
			case <-h.daemon.stop:
				return
			case <-time.After(restartAfter):
			}
		}
	}()
}

const restartAfter = 300 * time.Millisecond

func (h *host) daemonLog() string { return filepath.Join(filepath.Dir(h.Home()), "daemon.log") }

// serveOnce runs one daemon until it ends; false when it was told to.
func (h *host) serveOnce(log *os.File) bool {
	cmd := h.Command(context.Background(), "mirror-shell", "serve")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(log, "faults:", err)
		return true
	}
	h.setDaemon(cmd.Process.Pid, nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	told := false
	select {
	case <-ended:
	case <-h.daemon.stop:
		told = true
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(daemonPatience):
			cmd.Process.Kill()
			<-ended
		}
	}
	h.setDaemon(0, cmd.ProcessState)
	return !told
}

// daemonPatience is how long a daemon may take to end.
const daemonPatience = 30 * time.Second

func (h *host) setDaemon(pid int, state *os.ProcessState) {
	h.daemon.Lock()
	defer h.daemon.Unlock()
	h.daemon.pid, h.daemon.last = pid, state
}

func (h *host) daemonPID() int {
	h.daemon.Lock()
	defer h.daemon.Unlock()
	return h.daemon.pid
}

// endSupervision ends the daemon as an init system does, and returns how it ended,
// nil when there was none.
func (h *host) endSupervision() *os.ProcessState {
	if h.daemon.stop == nil {
		return nil
	}
	close(h.daemon.stop)
	<-h.daemon.done
	h.daemon.stop = nil
	return h.daemon.last
}

// process is one of the unix user's.
type process struct {
	pid  int
	name string
	args []string
}

func (p process) String() string { return fmt.Sprintf("%d %s %q", p.pid, p.name, p.args) }

// processes lists what the server's unix user runs, zombies aside.
func (h *host) processes() []process {
	var list []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var stat syscall.Stat_t
		if syscall.Stat(dir, &stat) != nil || int(stat.Uid) != h.uid {
			continue
		}
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil || strings.Contains(string(status), "\nState:\tZ") {
			continue
		}
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		name, _ := os.ReadFile(filepath.Join(dir, "comm"))
		pid, _ := strconv.Atoi(filepath.Base(dir))
		list = append(list, process{pid, strings.TrimSpace(string(name)), strings.Split(strings.Trim(string(line), "\x00"), "\x00")})
	}
	return list
}

// is reports whether a process is a worker.
func (p process) worker() bool {
	for _, arg := range p.args {
		if (arg == "serve" || arg == "drain") && (p.name == "mirrord" || p.name == "mirror-shell") {
			return true
		}
	}
	return false
}

// session reports whether a process is sshd's, for somebody's connection.
func (p process) session() bool { return strings.HasPrefix(p.name, "sshd") }
