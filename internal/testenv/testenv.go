// Package testenv gives tests a small world of real servers: OpenSSH on
// loopback, one unix user for each server, our programs as they are installed,
// and people with keys of their own. Only tests and benchmarks import it.
//
// # The world
//
// New makes an Env. Everything is below one temporary directory that all users
// can enter:
//
//	clients/alice/        key, ssh_config and gitconfig of a person
//	servers/frodo/sshd/   configuration, host key and output of frodo's sshd
//	servers/frodo/home/   home of frodo's unix user: repositories/, .ssh/,
//	                      .config/mirror-shell/config.toml, .local/state/mirror-shell/
//
// Every server knows every other one by its host name, as a host alias in its
// ssh_config with a pinned host key, and as a peer by `mirror-shell add-peer`.
// Nothing is set up behind the product's back that an administrator would do
// with a command of the product.
//
// Unix users need root: without it, New skips the test. Their names begin with
// "msh-" and this process's id. Users of a test process that was killed are
// removed by the next one.
//
// # Scripts
//
// RunScripts runs testscripts in such a world, with commands that make a script
// read like a session at several terminals; see script.go.
package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Timeout bounds every wait for something that has to happen. It is long,
// because it only costs time when something is wrong.
const Timeout = 60 * time.Second

// pollEvery is the pause between looks at something that has to happen.
const pollEvery = 50 * time.Millisecond

// Env is a set of servers on this machine that know each other.
type Env struct {
	Root     string // its directory
	Programs string // directory of our four programs
	Servers  []*Server

	mu      sync.Mutex
	clients map[string]*Client
}

// environments numbers the Envs of this process.
var environments atomic.Int32

// New starts a server for each name, each a peer of all others, and ends them
// with the test. When the test failed, it shows their logs.
func New(t testing.TB, names ...string) *Env {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes a unix user for each server and starts sshd for them")
	}
	e := &Env{Programs: Programs(t), Root: worldDir(t), clients: map[string]*Client{}}
	t.Cleanup(func() { e.close(t) })
	removeAbandoned(t)
	number := environments.Add(1)
	for _, name := range names {
		account := addAccount(t, number, name, filepath.Join(e.Root, "servers", name, "home"))
		e.Servers = append(e.Servers, newServer(t, e, name, account))
	}
	for _, s := range e.Servers {
		s.StartSSH(t)
	}
	for _, s := range e.Servers {
		s.writeSSHConfig(t)
		for _, peer := range e.Servers {
			if peer != s {
				s.MustRun(t, "mirror-shell", "add-peer", peer.PublicKey())
			}
		}
	}
	e.writeWorld(t)
	return e
}

// Server returns the server of that name.
func (e *Env) Server(t testing.TB, name string) *Server {
	t.Helper()
	for _, s := range e.Servers {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no server %q", name)
	return nil
}

// pick returns the servers of those names, all when there is none.
func (e *Env) pick(t testing.TB, names []string) []*Server {
	t.Helper()
	if len(names) == 0 {
		return e.Servers
	}
	var servers []*Server
	for _, name := range names {
		servers = append(servers, e.Server(t, name))
	}
	return servers
}

// close ends everything, in the order in which a machine goes down, and removes
// it.
func (e *Env) close(t testing.TB) {
	if t.Failed() {
		e.logState(t)
	}
	for _, s := range e.Servers {
		s.endServe(t)
		s.StopSSH(t)
	}
	for _, s := range e.Servers {
		s.account.remove(t)
		s.UnfillState(t)
	}
	if err := os.RemoveAll(e.Root); err != nil {
		t.Errorf("remove the environment: %v", err)
	}
}

// maxLog is how much of a log's end is worth showing.
const maxLog = 6 << 10

// logState shows the logs of all servers.
func (e *Env) logState(t testing.TB) {
	for _, s := range e.Servers {
		for _, file := range s.logs() {
			data, err := os.ReadFile(file)
			if err != nil || len(bytes.TrimSpace(data)) == 0 {
				continue
			}
			if over := len(data) - maxLog; over > 0 {
				data = data[over:]
			}
			t.Logf("%s, %s:\n%s", s.Name, filepath.Base(file), data)
		}
	}
}

// CreateRepo makes a bare repository on the servers named, all when none is, with the
// same configuration of mirroring on each: keys without "gitolite.mirror.".
func (e *Env) CreateRepo(t testing.TB, repo string, config map[string]string, servers ...string) {
	t.Helper()
	for _, s := range e.pick(t, servers) {
		s.createRepo(t, repo, config, nil)
	}
}

// WaitEqual waits until the repository has the same refs and the same HEAD on
// the servers named (all when none is), refs below refs/mirror/ aside.
func (e *Env) WaitEqual(t testing.TB, repo string, servers ...string) {
	t.Helper()
	picked := e.pick(t, servers)
	var last string
	equal := Poll(func() bool {
		first := picked[0].RefText(t, repo)
		last = picked[0].Name + ":\n" + first
		for _, s := range picked[1:] {
			if text := s.RefText(t, repo); text != first {
				last += s.Name + ":\n" + text
				return false
			}
		}
		return true
	})
	if equal {
		return
	}
	for _, s := range picked {
		t.Logf("%s$ mirror-shell status\n%s", s.Name, s.Run(t, "mirror-shell", "status"))
	}
	t.Fatalf("%s is not equal after %s:\n%s", repo, Timeout, last)
}

// Poll calls ok until it returns true, and reports whether it did in Timeout.
func Poll(ok func() bool) bool {
	for deadline := time.Now().Add(Timeout); ; time.Sleep(pollEvery) {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// Result is how a program ended.
type Result struct {
	Stdout, Stderr string
	Status         int // exit status, -1 when a signal ended it
}

func (r Result) String() string {
	return fmt.Sprintf("%s%s[exit status %d]", r.Stdout, r.Stderr, r.Status)
}

// run runs a prepared command. Only a command that cannot be started is a
// failure of the test.
func run(t testing.TB, cmd *exec.Cmd) Result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// mustRun runs a prepared command and returns its standard output; anything but
// exit status 0 is a failure of the test.
func mustRun(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	r := run(t, cmd)
	if r.Status != 0 {
		t.Fatalf("%s\n%s", strings.Join(cmd.Args, " "), r)
	}
	return r.Stdout
}

// dirPrefix begins the names of all directories of this package, this process's
// id follows.
const dirPrefix = "mirror-shell-test-"

// worldParents are the directories that may hold ours.
func worldParents() []string { return []string{os.TempDir(), "/tmp", "/var/tmp"} }

// worldDir returns a new temporary directory that every unix user can enter,
// which those of the testing package are not.
func worldDir(t testing.TB) string {
	t.Helper()
	var problems []error
	for _, parent := range worldParents() {
		if err := passable(parent); err != nil {
			problems = append(problems, err)
			continue
		}
		dir, err := os.MkdirTemp(parent, fmt.Sprintf("%s%d-", dirPrefix, os.Getpid()))
		if err == nil {
			err = os.Chmod(dir, 0o755)
		}
		if err == nil {
			return dir
		}
		problems = append(problems, err)
	}
	t.Fatalf("no directory that other users can enter: %v", errors.Join(problems...))
	return ""
}

// passable reports why other users cannot enter dir.
func passable(dir string) error {
	for ; dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("%s has mode %v", dir, info.Mode())
		}
	}
	return nil
}

// writeFile writes a file that belongs to uid and gid.
func writeFile(t testing.TB, file string, mode os.FileMode, uid, gid int, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, uid, gid); err != nil {
		t.Fatal(err)
	}
}
