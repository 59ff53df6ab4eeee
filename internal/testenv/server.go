package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Server is one host: a unix user, its sshd, and mirror-shell set up for it.
type Server struct {
	Name string // its hostname, and the others' alias for it
	Port int    // of its sshd, on 127.0.0.1; the same after a restart

	env     *Env
	account Account
	hostKey string // public, as in known_hosts

	mu    sync.Mutex
	sshd  *child
	serve *child

	filled bool // see FillState
}

// newServer writes the files of a server; nothing runs yet.
func newServer(t testing.TB, e *Env, name string, account Account) *Server {
	t.Helper()
	s := &Server{Name: name, env: e, account: account}
	for _, dir := range []string{".ssh", ".config", ".config/mirror-shell", "repositories"} {
		s.mkdir(t, dir)
	}
	public := writeKey(t, s.keyFile(), name, account.UID, account.GID)
	writeFile(t, s.PublicKey(), 0o644, 0, 0, public)
	s.prepareSSH(t)
	s.Configure(t, "")
	s.write(t, ".gitconfig", 0o644, "[user]\n\tname = "+name+"\n\temail = "+name+"@example.com\n[init]\n\tdefaultBranch = main\n")
	return s
}

// Home returns a path below the home directory of the server's unix user.
func (s *Server) Home(elem ...string) string {
	return filepath.Join(append([]string{s.account.Home}, elem...)...)
}

// stateDir is the default state_dir, below the home directory.
const stateDir = ".local/state/mirror-shell"

// StateDir is the server's state_dir.
func (s *Server) StateDir() string { return s.Home(stateDir) }

// RepoDir is the directory of a repository.
func (s *Server) RepoDir(repo string) string { return s.Home("repositories", repo+".git") }

// keyFile is the server's private key.
func (s *Server) keyFile() string { return s.Home(".ssh", "id_"+s.Name) }

// PublicKey is the server's public key, in a file that everybody can read and
// named as add-peer wants it.
func (s *Server) PublicKey() string { return filepath.Join(s.dir(), s.Name+".pub") }

func (s *Server) mkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(s.Home(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(s.Home(dir), s.account.UID, s.account.GID); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) write(t testing.TB, file string, mode os.FileMode, text string) {
	t.Helper()
	writeFile(t, s.Home(file), mode, s.account.UID, s.account.GID, text)
}

// Configure writes the server's configuration: its hostname, short times, and
// more lines of TOML. A table [worker] in them replaces ours.
func (s *Server) Configure(t testing.TB, more string) {
	t.Helper()
	text := fmt.Sprintf("hostname = %q\n", s.Name)
	if !strings.Contains(more, "[worker]") {
		more += "\n[worker]\nretry_max = \"1s\"\n"
	}
	s.write(t, ".config/mirror-shell/config.toml", 0o600, text+more)
}

// Command prepares a program that runs as the server's unix user in its home
// directory, as an administrator logged in there would start it.
func (s *Server) Command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.lookPath(argv[0]), argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Dir, cmd.Env = s.account.Home, s.account.environ(s.env.Programs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.account.credential()}
	return cmd
}

// lookPath finds our programs where the user's PATH has them.
func (s *Server) lookPath(name string) string {
	if own := s.env.program(name); !strings.Contains(name, "/") {
		if _, err := os.Stat(own); err == nil {
			return own
		}
	}
	return name
}

// Run runs a program as the server's unix user and returns how it ended.
func (s *Server) Run(t testing.TB, argv ...string) Result {
	t.Helper()
	return run(t, s.Command(context.Background(), argv...))
}

// MustRun runs a program as the server's unix user and returns its standard
// output. The test fails when the exit status is not 0.
func (s *Server) MustRun(t testing.TB, argv ...string) string {
	t.Helper()
	return mustRun(t, s.Command(context.Background(), argv...))
}

// Git runs git in a repository of the server and returns its standard output.
func (s *Server) Git(t testing.TB, repo string, args ...string) string {
	t.Helper()
	return s.MustRun(t, append([]string{"git", "--git-dir=" + s.RepoDir(repo)}, args...)...)
}

// CreateRepo makes a bare repository with our hooks. Keys of config are without
// "gitolite.mirror."; none makes it a local repository.
func (s *Server) CreateRepo(t testing.TB, repo string, config map[string]string) {
	t.Helper()
	s.createRepo(t, repo, config, nil)
}

func (s *Server) createRepo(t testing.TB, repo string, config map[string]string, initArgs []string) {
	t.Helper()
	dir := s.RepoDir(repo)
	if _, err := os.Stat(dir); err == nil {
		t.Fatalf("%s exists on %s already", repo, s.Name)
	}
	s.MustRun(t, append(append([]string{"git", "init", "-q", "--bare"}, initArgs...), "--", dir)...)
	file, err := os.OpenFile(filepath.Join(dir, "config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(mirrorSection(config)); err != nil {
		t.Fatal(err)
	}
	s.MustRun(t, "mirror-shell", "install-hooks", repo)
}

// mirrorSection is config as text of a git config file.
func mirrorSection(config map[string]string) string {
	var lines []string
	for key, value := range config {
		value = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value)
		lines = append(lines, fmt.Sprintf("\t%s = \"%s\"\n", key, value))
	}
	sort.Strings(lines)
	return "[gitolite \"mirror\"]\n" + strings.Join(lines, "")
}

// RefText returns the refs of a repository as lines "OID NAME", sorted, and
// where HEAD points, refs below refs/mirror/ left out.
func (s *Server) RefText(t testing.TB, repo string) string {
	t.Helper()
	text := ""
	for line := range strings.Lines(s.Git(t, repo, "for-each-ref", "--format=%(objectname) %(refname)")) {
		if !strings.Contains(line, " refs/mirror/") {
			text += line
		}
	}
	head := s.Run(t, "git", "--git-dir="+s.RepoDir(repo), "symbolic-ref", "-q", "HEAD")
	return text + "HEAD -> " + strings.TrimSpace(head.Stdout) + "\n"
}

// Refs returns the refs of a repository, name to object id, refs below refs/mirror/ left out,
// and under "HEAD" what HEAD points to.
func (s *Server) Refs(t testing.TB, repo string) map[string]string {
	t.Helper()
	refs := map[string]string{}
	for line := range strings.Lines(s.RefText(t, repo)) {
		value, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if value == "HEAD" {
			value, name = strings.TrimPrefix(name, "-> "), "HEAD"
		}
		refs[name] = value
	}
	return refs
}

// Serve starts `mirror-shell serve` and waits until it works.
func (s *Server) Serve(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serve != nil && s.serve.running() {
		t.Fatalf("serve runs on %s already", s.Name)
	}
	cmd := s.Command(context.Background(), "mirror-shell", "serve")
	s.serve = startChild(t, cmd, s.serveLog())
	ready := Poll(func() bool {
		// The worker's lock says who has it.
		holder, _ := os.ReadFile(filepath.Join(s.StateDir(), "worker.lock"))
		return !s.serve.running() || strings.HasPrefix(string(holder), strconv.Itoa(cmd.Process.Pid)+" ")
	})
	if !ready || !s.serve.running() {
		s.env.logState(t)
		t.Fatalf("serve does not start on %s", s.Name)
	}
}

// StopServe ends serve as an init system does, and checks that it ends well.
func (s *Server) StopServe(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serve == nil || !s.serve.running() {
		t.Fatalf("serve does not run on %s", s.Name)
	}
	if state := s.serve.end(syscall.SIGTERM); !state.Success() {
		t.Errorf("serve on %s ended with %v after SIGTERM", s.Name, state)
	}
}

// KillServe ends serve with SIGKILL.
func (s *Server) KillServe(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serve == nil || !s.serve.running() {
		t.Fatalf("serve does not run on %s", s.Name)
	}
	s.serve.end(syscall.SIGKILL)
}

func (s *Server) endServe(t testing.TB) {
	s.mu.Lock()
	running := s.serve != nil && s.serve.running()
	s.mu.Unlock()
	if running {
		s.StopServe(t)
	}
}

func (s *Server) serveLog() string { return filepath.Join(s.dir(), "serve.log") }

// dir is the server's directory beside its unix user's home.
func (s *Server) dir() string { return filepath.Join(s.env.Root, "servers", s.Name) }

func (s *Server) logs() []string {
	return []string{filepath.Join(s.StateDir(), "mirror-shell.log"), filepath.Join(s.StateDir(), "audit.log"), s.serveLog(), s.sshdLog()}
}
