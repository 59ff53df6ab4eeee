package hooks

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/git"
	"mirror-shell/internal/inbox"
)

// programs is a directory with the real hooks and a mirrord that only tells how
// it was called: this test binary under that name.
var programs string

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "mirrord" {
		os.Exit(fakeMirrord(os.Args[1:]))
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	for key, value := range map[string]string{
		"GIT_CONFIG_NOSYSTEM": "1",
		"GIT_AUTHOR_NAME":     "Alice", "GIT_AUTHOR_EMAIL": "alice@example.org",
		"GIT_COMMITTER_NAME": "Alice", "GIT_COMMITTER_EMAIL": "alice@example.org",
	} {
		os.Setenv(key, value)
	}
	dir, err := os.MkdirTemp("", "mirror-shell-hooks-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs = dir
	build := exec.Command("go", "build", "-o", dir, "mirror-shell/cmd/pre-receive", "mirror-shell/cmd/post-receive")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, "mirrord"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// call is how mirrord was called.
type call struct {
	Args  []string
	Env   []string
	Dir   string
	Fds   map[string]string // number → what it is
	Inbox []string          // the events that were there
	Alone bool              // it leads a session of its own
}

// fakeMirrord writes a call beside the configuration file, as mirrord-drain or
// mirrord-await, and then does what the files sleep-VERB and exit-VERB there say.
func fakeMirrord(args []string) int {
	if len(args) < 3 || args[0] != "--config" {
		return 90
	}
	dir, verb := filepath.Dir(args[1]), args[2]
	sid, _ := unix.Getsid(0)
	c := call{Args: args, Env: os.Environ(), Fds: map[string]string{}, Alone: sid == os.Getpid()}
	c.Dir, _ = os.Getwd()
	for fd := range 100 {
		if target, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err == nil {
			c.Fds[strconv.Itoa(fd)] = target
		}
	}
	c.Inbox, _ = inbox.New(filepath.Join(dir, "state")).List()
	data, _ := json.Marshal(c)
	file := filepath.Join(dir, "mirrord-"+verb)
	if os.WriteFile(file+".tmp", data, 0o600) != nil || os.Rename(file+".tmp", file) != nil {
		return 91
	}
	number := func(what string) int {
		text, _ := os.ReadFile(filepath.Join(dir, what+"-"+verb))
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n
	}
	time.Sleep(time.Duration(number("sleep")) * time.Second)
	if verb == "await" {
		fmt.Fprintln(os.Stderr, "gollum: equal")
	}
	return number("exit")
}

// world is a server, frodo, and a clone with one commit to push from.
type world struct {
	t        testing.TB
	home     string // $HOME of whoever pushes, and of the server
	config   string // the server's configuration
	programs string
	work     string
	oid      string // of work's main
}

func newWorld(t testing.TB) *world {
	t.Helper()
	home, err := os.MkdirTemp("", "mirror-shell-hooks-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, home) })
	if home, err = filepath.EvalSymlinks(home); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, home: home, config: filepath.Join(home, ".config/mirror-shell/config.toml"), programs: programs, work: filepath.Join(home, "work")}
	w.write(w.config, fmt.Sprintf("hostname = \"frodo\"\nrepo_base = %q\nstate_dir = %q\n", home+"/repositories", w.state()), 0o600)
	w.git("", "init", "-q", "-b", "main", w.work)
	w.git(w.work, "commit", "-q", "--allow-empty", "-m", "one")
	w.oid = w.git(w.work, "rev-parse", "main")
	return w
}

// removeAll removes a directory in which a mirrord that a hook started may still
// be writing its record.
func removeAll(t testing.TB, dir string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := os.RemoveAll(dir)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
	}
}

// state is beside the configuration, where the fake mirrord looks.
func (w *world) state() string { return filepath.Join(filepath.Dir(w.config), "state") }

func (w *world) write(file, text string, mode os.FileMode) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		w.t.Fatal(err)
	}
}

// env is what the pusher's processes get: more wins over it.
func (w *world) env(more ...string) []string {
	env := []string{"HOME=" + w.home, "PATH=" + os.Getenv("PATH"), "GIT_CONFIG_NOSYSTEM=1"}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "GIT_AUTHOR_") || strings.HasPrefix(v, "GIT_COMMITTER_") {
			env = append(env, v)
		}
	}
	return append(env, more...)
}

func (w *world) git(dir string, args ...string) string {
	w.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env = dir, w.env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// bare makes a repository with our hooks and the config "key=value", below
// gitolite.mirror., and returns its directory.
func (w *world) bare(name string, config ...string) string {
	w.t.Helper()
	dir := filepath.Join(w.home, "repositories", name+".git")
	w.git("", "init", "-q", "--bare", "-b", "main", dir)
	for _, c := range config {
		key, value, _ := strings.Cut(c, "=")
		w.git(dir, "config", "gitolite.mirror."+key, value)
	}
	w.install(dir)
	return dir
}

func (w *world) install(dir string) []string {
	w.t.Helper()
	changes, err := Install(w.t.Context(), git.Repo{Dir: dir}, w.programs)
	if err != nil {
		w.t.Fatal(err)
	}
	return changes
}

// push pushes main by file path and returns what the user sees.
func (w *world) push(dir string, env ...string) (string, error) {
	w.t.Helper()
	cmd := exec.Command("git", "push", dir, "main")
	cmd.Dir, cmd.Env = w.work, w.env(env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// pushed checks that the push stands.
func (w *world) pushed(dir, out string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("push: %v\n%s", err, out)
	}
	if got := w.git(dir, "rev-parse", "main"); got != w.oid {
		w.t.Fatalf("main is %s, want %s", got, w.oid)
	}
}

// refused checks that the push was refused for this reason, and stored nothing.
func (w *world) refused(dir, out string, err error, why string) {
	w.t.Helper()
	if err == nil || !strings.Contains(out, "remote: fatal: ") || !strings.Contains(out, why) {
		w.t.Errorf("push: %v, want a refusal with %q\n%s", err, why, out)
	}
	if refs := w.git(dir, "for-each-ref"); refs != "" {
		w.t.Errorf("refs: %s", refs)
	}
	if events := w.events(); len(events) > 0 {
		w.t.Errorf("events: %v", events)
	}
}

// events reads the inbox.
func (w *world) events() []inbox.Event {
	w.t.Helper()
	box := inbox.New(w.state())
	names, err := box.List()
	if err != nil {
		return nil // state_dir is in the way
	}
	var events []inbox.Event
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(box.Dir(), name))
		if err != nil {
			w.t.Fatal(err)
		}
		var e inbox.Event
		if err := json.Unmarshal(data, &e); err != nil {
			w.t.Fatal(err)
		}
		e.ID = strings.TrimSuffix(name[20:], ".json")
		events = append(events, e)
	}
	return events
}

// called waits for mirrord to have been called.
func (w *world) called(verb string) call {
	w.t.Helper()
	file := filepath.Join(filepath.Dir(w.config), "mirrord-"+verb)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		data, err := os.ReadFile(file)
		if err == nil {
			var c call
			if err := json.Unmarshal(data, &c); err != nil {
				w.t.Fatal(err)
			}
			return c
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("mirrord %s was not called", verb)
		}
	}
}

// ownPrograms is a copy of the programs that a test may change.
func (w *world) ownPrograms(names ...string) {
	w.t.Helper()
	dir := filepath.Join(w.home, "programs")
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(programs, name))
		if err != nil {
			w.t.Fatal(err)
		}
		w.write(filepath.Join(dir, name), string(data), 0o700)
	}
	w.programs = dir
}
