package peer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// sshd is a real one on loopback, whose only user is the one who runs the test.
type sshd struct {
	dir   string
	port  int
	extra string // configuration
	user  string
	cmd   *exec.Cmd
}

func makeKey(t testing.TB, kind string) (crypto.Signer, ssh.PublicKey) {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "ecdsa":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, public
}

// writeKeyFile writes a private key, encrypted when there is a passphrase, and
// returns its public line.
func writeKeyFile(t testing.TB, file, kind, passphrase string) string {
	t.Helper()
	key, public := makeKey(t, kind)
	writeKeyTo(t, file, key, passphrase)
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}

func writeKeyTo(t testing.TB, file string, key crypto.Signer, passphrase string) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(pem.EncodeToMemory(block)))
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newSSHD(t testing.TB, extra string) *sshd {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s := &sshd{dir: t.TempDir(), port: l.Addr().(*net.TCPAddr).Port, extra: extra, user: me.Username}
	known := ""
	for _, kind := range []string{"ed25519", "ecdsa"} {
		known += fmt.Sprintf("[127.0.0.1]:%d %s\n", s.port, writeKeyFile(t, s.dir+"/host_"+kind, kind, ""))
	}
	write(t, s.dir+"/known_hosts", known)
	write(t, s.dir+"/authorized_keys", writeKeyFile(t, s.dir+"/id", "ed25519", "")+"\n")
	s.start(t)
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("sshd:\n%s", read(t, s.dir+"/log"))
		}
	})
	return s
}

func (s *sshd) start(t testing.TB) {
	t.Helper()
	_ = os.MkdirAll("/run/sshd", 0o755) // only root needs it, and may
	write(t, s.dir+"/sshd_config", fmt.Sprintf(`ListenAddress 127.0.0.1
Port %d
HostKey %[2]s/host_ecdsa
HostKey %[2]s/host_ed25519
PidFile none
AuthorizedKeysFile %[2]s/authorized_keys
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
PrintLastLog no
MaxStartups 1000
LogLevel VERBOSE
AcceptEnv LC_*
# A deeper shell: bash reads its start files for sshd's otherwise, and those may be slow.
SetEnv SHLVL=5
%s
`, s.port, s.dir, s.extra))
	s.cmd = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", s.dir+"/sshd_config")
	log, err := os.OpenFile(s.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd.Stderr = log // a file, which its children may keep open
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "sshd listens", func() bool {
		conn, err := net.Dial("tcp", s.address())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (s *sshd) address() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

func (s *sshd) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// logins counts the connections that were let in.
func (s *sshd) logins() int { return s.logged("Accepted publickey") }

func (s *sshd) logged(text string) int {
	data, _ := os.ReadFile(s.dir + "/log")
	return strings.Count(string(data), text)
}

// config writes an ssh_config with the host frodo; lines before those that it
// has itself win.
func (s *sshd) config(t testing.TB, lines string) string {
	t.Helper()
	file := s.dir + "/ssh_config"
	write(t, file, fmt.Sprintf("Host frodo\n%s\nHostName 127.0.0.1\nPort %d\nUser %s\nIdentityFile %s/id\nIdentitiesOnly yes\nIdentityAgent none\n"+
		"UserKnownHostsFile %s/known_hosts\nGlobalKnownHostsFile /dev/null\nSendEnv LC_*\n", lines, s.port, s.user, s.dir, s.dir))
	return file
}

// via sends the host frodo through a forwarder.
func (s *sshd) via(t testing.TB, lines string) *forwarder {
	t.Helper()
	f := newForwarder(t, s.address())
	s.config(t, fmt.Sprintf("%s\nPort %d\nHostKeyAlias [127.0.0.1]:%d", lines, f.port(), s.port))
	write(t, s.dir+"/known_hosts", strings.ReplaceAll(read(t, s.dir+"/known_hosts"), fmt.Sprintf("[127.0.0.1]:%d", s.port), "real"))
	s.config(t, fmt.Sprintf("%s\nPort %d\nHostKeyAlias real", lines, f.port()))
	return f
}

func read(t testing.TB, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
