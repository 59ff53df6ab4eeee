package queue

import (
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// onBoth runs a test over SQLite and over PostgreSQL, side by side: most of a test's time is waiting. open
// asks the test's name which it is.
func onBoth(t *testing.T, test func(*testing.T)) {
	for _, name := range []string{"sqlite", "postgres"} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t) })
	}
}

// onBothInTurn is for tests that change what is not their own.
func onBothInTurn(t *testing.T, test func(*testing.T)) {
	t.Run("sqlite", test)
	t.Run("postgres", test)
}

func onPostgres(t testing.TB) bool { return slices.Contains(strings.Split(t.Name(), "/"), "postgres") }

// fewer is n, or less where a test takes its time with a database server.
func fewer(t testing.TB, n, onServer int) int {
	if onPostgres(t) {
		return onServer
	}
	return n
}

// server is a PostgreSQL server that belongs to this test process: Debian's programs, run as the user
// postgres because they refuse to run as root, on a directory and a port of its own.
type server struct {
	dir  string
	bin  string
	port int
	as   *syscall.Credential
	cmd  *exec.Cmd
}

const serverPassword = "sEcret@of/the server"

// shared is started by the first test that needs it and stopped by TestMain.
var shared struct {
	once    sync.Once
	server  *server
	missing string // why there is none
	err     error

	mu      sync.Mutex
	schemas map[string]string // by state directory
}

// needServer returns the shared server, or skips the test where there can be none.
func needServer(t testing.TB) *server {
	t.Helper()
	shared.once.Do(func() { shared.server, shared.missing, shared.err = newServer() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	if shared.missing != "" {
		t.Skip("no PostgreSQL: " + shared.missing)
	}
	return shared.server
}

func stopShared() {
	if s := shared.server; s != nil {
		s.stop()
		_ = os.RemoveAll(s.dir)
	}
}

func newServer() (s *server, missing string, err error) {
	programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	account, uerr := user.Lookup("postgres")
	switch {
	case len(programs) == 0:
		return nil, "/usr/lib/postgresql/*/bin/initdb is not installed (Debian's package postgresql)", nil
	case os.Getuid() != 0 || uerr != nil:
		return nil, "the tests must run as root, to start it as the user postgres", nil
	}
	uid, _ := strconv.Atoi(account.Uid)
	gid, _ := strconv.Atoi(account.Gid)
	dir, err := os.MkdirTemp("", "queue-postgres-")
	if err != nil {
		return nil, "", err
	}
	s = &server{dir: dir, bin: filepath.Dir(programs[len(programs)-1]), as: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	secret := filepath.Join(dir, "password")
	err = errors.Join(os.Chown(dir, uid, gid), os.WriteFile(secret, []byte(serverPassword), 0o644))
	if err == nil {
		_, err = s.command("initdb", "-D", s.data(), "-U", "postgres", "--no-sync", "--no-locale", "-E", "UTF8",
			"--auth-local=trust", "--auth-host=scram-sha-256", "--pwfile="+secret).Output()
	}
	if err == nil {
		s.port, err = freePort()
	}
	if err == nil {
		err = s.start()
	}
	if err != nil {
		said, _ := os.ReadFile(s.log())
		os.RemoveAll(dir)
		return nil, "", fmt.Errorf("start PostgreSQL: %w\n%s", err, said)
	}
	return s, "", nil
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }
func (s *server) log() string  { return filepath.Join(s.dir, "log") }

func (s *server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir, cmd.Env = s.dir, []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	// SIGINT is its fast shutdown: it does not outlive a test process that is killed.
	cmd.SysProcAttr = &unix.SysProcAttr{Credential: s.as, Pdeathsig: unix.SIGINT, Setpgid: true}
	return cmd
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// start returns when the server answers.
func (s *server) start() error {
	s.cmd = s.command("postgres", "-D", s.data(), "-p", strconv.Itoa(s.port), "-k", s.dir, "-c", "listen_addresses=127.0.0.1",
		"-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off", "-c", "shared_buffers=32MB")
	log, err := os.OpenFile(s.log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log // a file needs no goroutine, which would look like a leak
	if err := s.cmd.Start(); err != nil {
		return err
	}
	db, _, err := openPostgres(s.url(""))
	if err != nil {
		return err
	}
	defer db.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = db.Ping(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// stop waits until the server is gone, by force if it must be.
func (s *server) stop() {
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.cmd.Wait() }()
	_ = s.cmd.Process.Signal(unix.SIGINT)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		_ = unix.Kill(-s.cmd.Process.Pid, unix.SIGKILL)
		<-ended
	}
}

// url is over the unix socket, where no password is asked for.
func (s *server) url(schema string) string {
	v := url.Values{"host": {s.dir}, "port": {strconv.Itoa(s.port)}, "user": {"postgres"}}
	if schema != "" {
		v.Set("search_path", schema)
	}
	return "postgres:///postgres?" + v.Encode()
}

// tcpURL asks for the password.
func (s *server) tcpURL(password string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password), Host: fmt.Sprint("127.0.0.1:", s.port), Path: "/postgres"}
	return u.String()
}

// databaseURL is the [queue] url of a state directory: each has a schema of its own.
func databaseURL(t testing.TB, dir string) string {
	t.Helper()
	if !onPostgres(t) {
		return ""
	}
	s := needServer(t)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.schemas == nil {
		shared.schemas = map[string]string{}
	}
	schema, ok := shared.schemas[dir]
	if !ok {
		schema = fmt.Sprint("t", len(shared.schemas))
		shared.schemas[dir] = schema
		s.exec(t, "CREATE SCHEMA "+schema)
	}
	return s.url(schema)
}

func (s *server) exec(t testing.TB, text string) {
	t.Helper()
	db, err := sql.Open("pgx", s.url(""))
	if err == nil {
		_, err = db.Exec(text)
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}
