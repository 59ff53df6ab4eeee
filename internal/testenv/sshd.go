package testenv

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

// writeKey makes a new ed25519 key in a file that belongs to uid and gid, and
// returns its public line.
func writeKey(t testing.TB, file, comment string, uid, gid int) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, 0o600, uid, gid, string(pem.EncodeToMemory(block)))
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + " " + comment + "\n"
}

// sshdConfig is the configuration of a server's sshd, whose only user is the
// server's. It lets clients send more of an environment than a careful
// administrator would: that must not get them anything. What it sets makes the
// tests independent of this machine. The key exchange is not the default one,
// which takes 90 ms more of a login.
const sshdConfig = `ListenAddress 127.0.0.1
Port %d
HostKey %s
PidFile none
AllowUsers %s
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
PrintLastLog no
MaxStartups 1000
KexAlgorithms curve25519-sha256
LogLevel VERBOSE
ExposeAuthInfo yes
AcceptEnv GIT_* GL_* MIRROR_SHELL_PEER MIRROR_SHELL_USER
SetEnv GIT_CONFIG_NOSYSTEM=1 PATH=%s
`

// prepareSSH makes the host key and the configuration of the server's sshd.
func (s *Server) prepareSSH(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(s.sshdDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	// Privilege separation's empty directory, which a service file would make.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	s.hostKey = writeKey(t, filepath.Join(s.sshdDir(), "host_key"), s.Name, 0, 0)
	s.Port = freePort(t)
	s.writeSSHDConfig(t)
}

func (s *Server) sshdDir() string { return filepath.Join(s.dir(), "sshd") }
func (s *Server) sshdLog() string { return filepath.Join(s.sshdDir(), "log") }

func (s *Server) writeSSHDConfig(t testing.TB) {
	t.Helper()
	dir := s.sshdDir()
	text := fmt.Sprintf(sshdConfig, s.Port, filepath.Join(dir, "host_key"), s.account.Name, searchPath(""))
	if hasPenalties() {
		text += "PerSourcePenalties no\n" // all clients come from one address
	}
	writeFile(t, filepath.Join(dir, "config"), 0o600, 0, 0, text)
}

// hasPenalties reports whether sshd (since 9.8) locks addresses out after
// failures.
func hasPenalties() bool {
	out, _ := exec.Command("ssh", "-V").CombinedOutput()
	match := regexp.MustCompile(`OpenSSH_(\d+)\.(\d+)`).FindSubmatch(out)
	if match == nil {
		return false
	}
	major, _ := strconv.Atoi(string(match[1]))
	minor, _ := strconv.Atoi(string(match[2]))
	return major > 9 || major == 9 && minor >= 8
}

// freePort picks a port below those that the kernel gives to outgoing
// connections: it must be free again when sshd is started a second time.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + mathrand.IntN(12000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port for sshd")
	return 0
}

// findSSHD returns sshd's full path, which sshd insists on.
func findSSHD(t testing.TB) string {
	t.Helper()
	for _, path := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath("sshd")
	if err != nil {
		t.Fatal("sshd is not here: install openssh-server, or run .ci/setup")
	}
	return path
}

// StartSSH starts the server's sshd and waits until it listens. When another
// process has taken the port in the meantime, a server that nobody knows yet
// moves to another one.
func (s *Server) StartSSH(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sshd != nil && s.sshd.running() {
		t.Fatalf("sshd runs on %s already", s.Name)
	}
	_, err := os.Stat(s.Home(".ssh/config"))
	for tries := 5; ; tries-- {
		if s.tryStartSSH(t) {
			return
		}
		if err == nil || tries == 0 {
			s.env.logState(t)
			t.Fatalf("sshd does not start on %s", s.Name)
		}
		s.Port = freePort(t)
		s.writeSSHDConfig(t)
	}
}

func (s *Server) tryStartSSH(t testing.TB) bool {
	t.Helper()
	said, _ := os.ReadFile(s.sshdLog())
	s.sshd = startChild(t, exec.Command(findSSHD(t), "-D", "-e", "-f", filepath.Join(s.sshdDir(), "config")), s.sshdLog())
	listens := false
	Poll(func() bool {
		text, _ := os.ReadFile(s.sshdLog())
		listens = bytes.Contains(text[min(len(said), len(text)):], []byte("Server listening on"))
		return listens || !s.sshd.running()
	})
	return listens && s.sshd.running()
}

// StopSSH ends the server's sshd, if it runs, and its connections with it, as
// when a machine goes down.
func (s *Server) StopSSH(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sshd != nil && s.sshd.running() {
		connections := descendants(s.sshd.cmd.Process.Pid)
		s.sshd.end(syscall.SIGTERM)
		for _, pid := range connections {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// descendants are the processes that came from pid and have not lost their
// parents since.
func descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		data, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		var parent int
		_, rest, _ := strings.Cut(string(data[bytes.LastIndexByte(data, ')')+1:]), " ")
		if fields := strings.Fields(rest); len(fields) > 1 {
			parent, _ = strconv.Atoi(fields[1])
		}
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		children[parent] = append(children[parent], child)
	}
	found := children[pid]
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found
}

// writeSSHConfig gives the server's unix user the other servers' aliases.
func (s *Server) writeSSHConfig(t testing.TB) {
	t.Helper()
	known := s.Home(".ssh/known_hosts")
	s.write(t, ".ssh/known_hosts", 0o600, s.env.knownHosts())
	s.write(t, ".ssh/config", 0o600, s.env.sshConfig(s.keyFile(), known))
}

// knownHosts pins the host key of every server to its name.
func (e *Env) knownHosts() string {
	text := ""
	for _, s := range e.Servers {
		text += s.Name + " " + s.hostKey
	}
	return text
}

// sshConfig makes every server's name an alias. A name that is no server's is a
// host that refuses connections, rather than one that the network is asked for.
func (e *Env) sshConfig(identity, knownHosts string) string {
	text := ""
	for _, s := range e.Servers {
		text += fmt.Sprintf("Host %s\n\tHostName 127.0.0.1\n\tPort %d\n\tUser %s\n\tHostKeyAlias %s\n", s.Name, s.Port, s.account.Name, s.Name)
	}
	return text + fmt.Sprintf("Host *\n\tHostName 127.0.0.1\n\tPort 1\n\tIdentityFile %s\n\tIdentitiesOnly yes\n\tUserKnownHostsFile %s\n"+
		"\tGlobalKnownHostsFile /dev/null\n\tStrictHostKeyChecking yes\n\tPasswordAuthentication no\n", identity, knownHosts)
}
