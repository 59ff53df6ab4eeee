package peer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
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

// keep returns Connections that are closed, and have left nothing behind, at
// the test's end.
func keep(t testing.TB, s *sshd, opt Options) *Connections {
	t.Helper()
	if opt.ConfigFile == "" {
		opt.ConfigFile = s.dir + "/ssh_config"
	}
	running := goleak.IgnoreCurrent()
	c := NewConnections(opt)
	t.Cleanup(func() {
		c.Close()
		if _, ok := t.(*testing.B); ok { // which keeps several
			return
		}
		if err := goleak.Find(running); err != nil {
			t.Error(err)
		}
	})
	return c
}

// forwarder passes TCP connections on until it is told to cut or to hang them.
type forwarder struct {
	net.Listener
	target   string
	accepted atomic.Int32
	hold     atomic.Bool // new connections get no further

	mu    sync.Mutex
	pairs []*pair
}

type pair struct {
	in, out net.Conn
	hang    atomic.Bool
}

func newForwarder(t testing.TB, target string) *forwarder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forwarder{Listener: l, target: target}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			f.accepted.Add(1)
			out, err := net.Dial("tcp", f.target)
			if err != nil {
				in.Close()
				continue
			}
			p := &pair{in: in, out: out}
			p.hang.Store(f.hold.Load())
			f.mu.Lock()
			f.pairs = append(f.pairs, p)
			f.mu.Unlock()
			all.Go(func() { p.pass(in, out) })
			all.Go(func() { p.pass(out, in) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.cut()
		all.Wait()
	})
	return f
}

func (p *pair) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if p.hang.Load() {
			if err != nil {
				return
			}
			continue // swallow it
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (f *forwarder) port() int { return f.Addr().(*net.TCPAddr).Port }

// cut closes all connections.
func (f *forwarder) cut() { f.each(func(p *pair) { p.in.Close(); p.out.Close() }) }

// hang lets all connections stand and passes nothing on.
func (f *forwarder) hang() { f.each(func(p *pair) { p.hang.Store(true) }) }

func (f *forwarder) each(do func(*pair)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pairs {
		do(p)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 30 s: %s", what)
		}
	}
}

// run runs a command on frodo with input, and returns its output, what it wrote
// to its standard error, and how it ended.
func run(ctx context.Context, c Transport, command, input string) (string, string, error) {
	var stderr bytes.Buffer
	s, err := c.Open(ctx, "frodo", command, &stderr)
	if err != nil {
		return "", "", err
	}
	var wrote sync.WaitGroup
	wrote.Go(func() {
		_, _ = io.WriteString(s, input)
		_ = s.CloseWrite()
	})
	out, readErr := io.ReadAll(s)
	err = s.Wait()
	wrote.Wait()
	return string(out), stderr.String(), errors.Join(err, readErr)
}

// say runs a command that must go well.
func say(t testing.TB, c Transport, command string) string {
	t.Helper()
	out, _, err := run(t.Context(), c, command, "")
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimSpace(out)
}

// mustFail runs a command that must find frodo unreachable, and wants each of
// the texts in the error, which is one line.
func mustFail(t testing.TB, c Transport, texts ...string) {
	t.Helper()
	_, _, err := run(t.Context(), c, "true", "")
	if !errors.Is(err, ErrUnreachable) {
		t.Fatalf("not unreachable: %v", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in: %v", text, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("several lines: %v", err)
	}
	t.Log(err)
}

// status is what proc.ExitCode is to find.
func status(err error) int {
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

func TestConnectionsRunCommands(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	c := keep(t, s, Options{})
	out, stderr, err := run(t.Context(), c, "cat; echo oops >&2; exit 3", "hello")
	if out != "hello" || stderr != "oops\n" || status(err) != 3 || errors.Is(err, ErrUnreachable) {
		t.Errorf("%q %q %v", out, stderr, err)
	}
	if want := "ssh: exit status 3: oops"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	big := strings.Repeat("0123456789abcdef", 4<<20) // 64 MiB, many windows
	if out, _, err := run(t.Context(), c, "cat", big); err != nil || out != big {
		t.Errorf("%d bytes came back, %v", len(out), err)
	}
	if got := say(t, c, "echo $LC_ALL"); got != "C" {
		t.Errorf("LC_ALL is %q", got)
	}
	// Input that nobody reads, and output after the end of input.
	if out, _, err := run(t.Context(), c, "exec <&-; echo done", big); err != nil || out != "done\n" {
		t.Errorf("%q %v", out, err)
	}
	if out, _, err := run(t.Context(), c, "wc -c; head -c 3000000 /dev/zero | wc -c; exit 255", "1234"); strings.Join(strings.Fields(out), " ") != "4 3000000" || status(err) != 255 || errors.Is(err, ErrUnreachable) {
		t.Errorf("%q %v", out, err)
	}
	if s.logins() != 1 {
		t.Errorf("%d connections", s.logins())
	}
	if how, err := c.Describe(t.Context(), "frodo"); err != nil || !strings.Contains(how, "in this process") {
		t.Errorf("%s, %v", how, err)
	}
}

// OpenSSH's own implementation is the measure for what an end looks like; but for a
// command that a signal ended, which ssh tells like a lost connection, and we know better.
func TestConnectionsEndLikeOpenSSH(t *testing.T) {
	s := newSSHD(t, "")
	config := s.config(t, "ProxyUseFdpass no")
	c := keep(t, s, Options{})
	shim := t.TempDir()
	real, err := exec.LookPath("ssh")
	if err != nil {
		t.Fatal(err)
	}
	write(t, shim+"/ssh", "#!/bin/sh\nexec "+real+" -F "+config+" \"$@\"\n")
	if err := os.Chmod(shim+"/ssh", 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", shim+":"+os.Getenv("PATH"))
	for _, command := range []string{"true", "exit 1", "echo a; echo b >&2; exit 77", "nosuchcommand 2>/dev/null"} {
		wantOut, wantStderr, want := run(t.Context(), OpenSSH{}, command, "")
		out, stderr, err := run(t.Context(), c, command, "")
		if out != wantOut || stderr != wantStderr || errors.Is(err, ErrUnreachable) != errors.Is(want, ErrUnreachable) {
			t.Errorf("%s: %q %q %v, with OpenSSH %q %q %v", command, out, stderr, err, wantOut, wantStderr, want)
		}
		if !errors.Is(want, ErrUnreachable) && (status(err) != status(want) || fmt.Sprint(err) != fmt.Sprint(want)) {
			t.Errorf("%s: %v, with OpenSSH %v", command, err, want)
		}
	}
}

func TestConnectionsShareRoom(t *testing.T) {
	s := newSSHD(t, "MaxSessions 2")
	s.config(t, "")
	c := keep(t, s, Options{ChannelsPerHost: 4})
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			out, _, err := run(t.Context(), c, fmt.Sprintf("touch %[1]s/%[2]d; ls %[1]s | wc -l; sleep 0.05; rm %[1]s/%[2]d", dir, i), "")
			n, _ := strconv.Atoi(strings.TrimSpace(out))
			if err != nil || n < 1 || n > 4 {
				t.Errorf("%d at a time, %v", n, err)
			}
		})
	}
	all.Wait()
	// Two connections of two sessions each make four.
	if n := s.logins(); n < 2 || n > 3 {
		t.Errorf("%d connections", n)
	}
}

func TestConnectionsSurviveRestart(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	c := keep(t, s, Options{})
	stream, err := c.Open(t.Context(), "frodo", "echo $PPID; cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 20)
	n, _ := stream.Read(line)
	session, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	if err := syscall.Kill(session, syscall.SIGKILL); err != nil { // sshd's process for the connection
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, stream)
	if err := stream.Wait(); !errors.Is(err, ErrUnreachable) || status(err) >= 0 {
		t.Errorf("%v", err)
	}
	mustFail(t, c, "connect to 127.0.0.1 port", "connection refused", "start sshd there")
	s.start(t)
	say(t, c, "true")
	say(t, c, "true")
	if n := s.logins(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestConnectionCut(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	c := keep(t, s, Options{})
	for range 3 {
		dialled := f.accepted.Load()
		stream, err := c.Open(t.Context(), "frodo", "cat /dev/zero", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, stream, 5<<20); err != nil {
			t.Fatal(err)
		}
		f.cut()
		_, _ = io.Copy(io.Discard, stream)
		if err := stream.Wait(); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%v", err)
		}
		say(t, c, "true")
		if n := f.accepted.Load() - dialled; n > 2 {
			t.Errorf("%d connections", n)
		}
	}
	f.cut()
	f.Close()
	mustFail(t, c, "connection refused")
}

func TestConnectionHangs(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	c := keep(t, s, Options{KeepAlive: 200 * time.Millisecond, DialTimeout: time.Second})
	stream, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // silence of the command alone is none of the connection
	f.hang()
	began := time.Now()
	_, _ = io.Copy(io.Discard, stream)
	err = stream.Wait()
	if took := time.Since(began); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "silent") || took > 15*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
	// A connection that has died unnoticed costs one more dial, not two.
	say(t, c, "true")
	dialled := f.accepted.Load()
	f.hang()
	say(t, c, "true")
	if n := f.accepted.Load() - dialled; n != 1 {
		t.Errorf("%d dials", n)
	}
	// When that fails too, this is the end, for everyone who waits.
	f.hang()
	f.hold.Store(true)
	dialled = f.accepted.Load()
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { mustFail(t, c, "no answer within 1s") })
	}
	all.Wait()
	if n := f.accepted.Load() - dialled; n < 1 || n > 4 { // four had a channel, and six waited
		t.Errorf("%d dials", n)
	}
}

func TestDialsAreShared(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	f.hold.Store(true)
	c := keep(t, s, Options{DialTimeout: time.Second})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { mustFail(t, c, "no answer within 1s") })
	}
	all.Wait()
	if n := f.accepted.Load(); n != 1 {
		t.Errorf("%d dials", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := run(ctx, c, "true", ""); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

func TestHostKeys(t *testing.T) {
	s := newSSHD(t, "")
	good := read(t, s.dir+"/known_hosts")
	lines := strings.SplitAfter(good, "\n") // ed25519, ecdsa
	name, _, _ := strings.Cut(good, " ")
	_, ed, _ := strings.Cut(lines[0], " ")
	_, stranger := makeKey(t, "ed25519")
	other := string(ssh.MarshalAuthorizedKey(stranger))
	hashed := exec.Command("ssh-keygen", "-H", "-f", s.dir+"/hashed")
	write(t, s.dir+"/hashed", lines[0])
	if out, err := hashed.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, test := range []struct {
		name, known, config string
		errors              []string // none when the host is to be known
	}{
		{"both keys", good, "", nil},
		{"ed25519 alone", lines[0], "", nil},
		{"ecdsa alone", lines[1], "", nil},
		{"hashed", read(t, s.dir+"/hashed"), "", nil},
		{"one of two", name + " " + other + lines[0], "", nil},
		{"wildcard", "127.0.0.* " + ed, "", nil},
		{"alias", "frodo.shire " + ed, "HostKeyAlias frodo.shire", nil},
		{"alias of another", "frodo.shire " + other, "HostKeyAlias frodo.shire", []string{"has changed", "/known_hosts:1", "ssh-keygen -R 'frodo.shire'"}},
		{"nobody", "", "", []string{"the host key of frodo", "is not known", "ssh frodo once"}},
		{"nobody, nobody asks", "", "StrictHostKeyChecking yes", []string{"is not known"}},
		{"changed", "# comment\n" + name + " " + other, "", []string{"has changed", "/known_hosts:2", "ssh-keygen -R '" + name + "'"}},
		{"negated", "127.0.0.*,!127.0.0.1 " + ed, "", []string{"is not known"}},
		{"revoked", good + "@revoked * " + ed, "HostKeyAlgorithms ssh-ed25519", []string{"revoked", "/known_hosts:3"}},
		{"an authority's key is no host's", "@cert-authority " + name + " " + ed, "HostKeyAlgorithms ssh-ed25519", []string{"is not known"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			write(t, s.dir+"/known_hosts", test.known)
			s.config(t, test.config)
			c := keep(t, s, Options{})
			if test.errors != nil {
				mustFail(t, c, test.errors...)
				return
			}
			say(t, c, "true")
			if how, err := c.Describe(t.Context(), "frodo"); err != nil || !strings.Contains(how, "in this process") {
				t.Errorf("%s, %v", how, err)
			}
		})
	}
}

// Lines that OpenSSH skips and the library does not make it OpenSSH's to judge.
func TestKnownHostsWithStrangeLines(t *testing.T) {
	s := newSSHD(t, "")
	write(t, s.dir+"/known_hosts", "frodo ssh-unknown AAAA\n"+read(t, s.dir+"/known_hosts"))
	s.config(t, "")
	c := keep(t, s, Options{})
	say(t, c, "true")
	if how, err := c.Describe(t.Context(), "frodo"); err != nil || !strings.Contains(how, "with the ssh program") || !strings.Contains(how, "known_hosts:1") {
		t.Errorf("%s, %v", how, err)
	}
}

func TestHostCertificate(t *testing.T) {
	s := newSSHD(t, "")
	ca := writeKeyFile(t, s.dir+"/ca", "ed25519", "")
	public, err := ssh.ParsePrivateKey([]byte(read(t, s.dir+"/host_ed25519")))
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.dir+"/host_ed25519.pub", string(ssh.MarshalAuthorizedKey(public.PublicKey())))
	if out, err := exec.Command("ssh-keygen", "-s", s.dir+"/ca", "-I", "frodo", "-h", "-n", "frodo.shire", s.dir+"/host_ed25519.pub").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.stop()
	s.extra = "HostCertificate " + s.dir + "/host_ed25519-cert.pub"
	s.start(t)
	write(t, s.dir+"/known_hosts", "@cert-authority *.shire "+ca+"\n")
	s.config(t, "HostKeyAlias frodo.shire")
	say(t, keep(t, s, Options{}), "true")
	s.config(t, "HostKeyAlias sam.shire")
	mustFail(t, keep(t, s, Options{}), "the host key of frodo", "not accepted")
	s.config(t, "HostKeyAlias frodo.shire\nCASignatureAlgorithms rsa-sha2-512")
	mustFail(t, keep(t, s, Options{}), "CASignatureAlgorithms")
}

// startAgent serves an agent with the keys on a socket.
func startAgent(t testing.TB, keys ...crypto.Signer) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, key := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(t.TempDir(), "a")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { l.Close() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				_ = agent.ServeAgent(ring, conn)
			})
		}
	})
	return socket
}

func TestKeys(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	mine := read(t, s.dir+"/authorized_keys")
	locked, lockedPublic := makeKey(t, "ed25519")
	writeKeyTo(t, s.dir+"/locked", locked, "secret")
	lockedLine := string(ssh.MarshalAuthorizedKey(lockedPublic))
	rsaLine := writeKeyFile(t, s.dir+"/rsa", "rsa", "")
	write(t, s.dir+"/locked.only.pub", lockedLine)
	strangers := make([]crypto.Signer, 7) // one more than sshd listens to
	for i := range strangers {
		strangers[i], _ = makeKey(t, "ed25519")
	}
	agents := map[string]string{"": "none", "locked": startAgent(t, locked), "full": startAgent(t, append(strangers, locked)...)}
	for _, test := range []struct {
		name, authorized, identity, agent, config string
		errors                                    []string
		openSSH                                   bool
	}{
		{name: "file", authorized: mine, identity: "id"},
		{name: "rsa", authorized: rsaLine, identity: "rsa"},
		{name: "rsa with one signature", authorized: rsaLine, identity: "rsa", config: "PubkeyAcceptedAlgorithms rsa-sha2-256"},
		{name: "not authorised", authorized: rsaLine, identity: "id", errors: []string{s.user + "@127.0.0.1:", "refuses our keys", s.dir + "/id", "add one"}},
		{name: "none authorised", authorized: "", identity: "id", errors: []string{"refuses our keys"}},
		{name: "encrypted", authorized: lockedLine, identity: "locked", openSSH: true, errors: []string{"no key can be used", "locked is encrypted and not in the agent", "ssh-add"}},
		{name: "encrypted and in the agent", authorized: lockedLine, identity: "locked", agent: "locked"},
		{name: "named by its public half", authorized: lockedLine, identity: "locked.only", agent: "locked"},
		{name: "the agent's that no file names", authorized: lockedLine, identity: "id", agent: "locked", config: "IdentitiesOnly no"},
		{name: "the same, identities only", authorized: lockedLine, identity: "id", agent: "locked", errors: []string{"refuses our keys"}},
		{name: "the file names which of the agent's goes first", authorized: lockedLine, identity: "locked", agent: "full", config: "IdentitiesOnly no"},
		{name: "the agent's others are too many", authorized: mine, identity: "id", agent: "full", config: "IdentitiesOnly no", errors: []string{"refuses our keys"}},
		{name: "the same, identities only, well", authorized: mine, identity: "id", agent: "full"},
		{name: "no such file", authorized: mine, identity: "nothing", openSSH: true, errors: []string{"no key can be used"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			write(t, s.dir+"/authorized_keys", test.authorized)
			s.config(t, "")
			text := strings.Replace(read(t, s.dir+"/ssh_config"), "IdentityFile "+s.dir+"/id\n", "IdentityFile "+s.dir+"/"+test.identity+"\n", 1)
			text = strings.Replace(text, "IdentityAgent none", "IdentityAgent "+agents[test.agent], 1)
			write(t, s.dir+"/ssh_config", strings.Replace(text, "Host frodo\n", "Host frodo\n"+test.config+"\n", 1))
			c := keep(t, s, Options{})
			if test.errors != nil {
				mustFail(t, c, test.errors...)
			} else {
				say(t, c, "true")
			}
			want := "in this process"
			if test.openSSH {
				want = "with the ssh program"
			}
			if how, err := c.Describe(t.Context(), "frodo"); err != nil || !strings.Contains(how, want) {
				t.Errorf("%s, %v", how, err)
			}
		})
	}
	t.Run("a file that others can read", func(t *testing.T) {
		write(t, s.dir+"/authorized_keys", mine)
		s.config(t, "")
		if err := os.Chmod(s.dir+"/id", 0o644); err != nil {
			t.Fatal(err)
		}
		mustFail(t, keep(t, s, Options{}), "chmod 600")
	})
}

func TestAnotherWay(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	gate := s.dir + "/gate_config"
	write(t, gate, read(t, s.dir+"/ssh_config"))
	s.config(t, "ProxyCommand ssh -F "+gate+" -W %h:%p frodo")
	running := goleak.IgnoreCurrent()
	c := NewConnections(Options{ConfigFile: s.dir + "/ssh_config", ControlDir: t.TempDir()})
	defer c.Close()
	if how, err := c.Describe(t.Context(), "frodo"); err != nil || !strings.Contains(how, "(proxycommand ssh -F") {
		t.Errorf("%s, %v", how, err)
	}
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if out, stderr, err := run(t.Context(), c, "cat; echo oops >&2; exit 3", "hello"); out != "hello" || stderr != "oops\n" || status(err) != 3 || err.Error() != "ssh: exit status 3: oops" {
				t.Errorf("%q %q %v", out, stderr, err)
			}
		})
	}
	all.Wait()
	big := strings.Repeat("0123456789abcdef", 1<<20)
	if out, _, err := run(t.Context(), c, "cat", big); err != nil || out != big {
		t.Errorf("%d bytes came back, %v", len(out), err)
	}
	if n := s.logins(); n != 2 { // one to the gate, one through it
		t.Errorf("%d connections", n)
	}
	c.mu.Lock()
	sockets := c.sockets
	c.mu.Unlock()
	if info, err := os.Stat(sockets); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}

	// A command whose context ends, and others that go on.
	ctx, cancel := context.WithCancel(t.Context())
	given, err := c.Open(ctx, "frodo", "sleep 30", nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := given.Read(make([]byte, 1)); err == nil {
		t.Error("read something")
	}
	if err := given.Wait(); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Errorf("%v", err)
	}
	say(t, c, "true")

	// A master that was killed.
	pids, _ := exec.Command("ssh", "-F", s.dir+"/ssh_config", "-O", "check", "-oControlPath="+sockets+"/1", "frodo").CombinedOutput()
	var pid int
	if _, err := fmt.Sscanf(string(pids), "Master running (pid=%d)", &pid); err != nil {
		t.Fatalf("%s: %v", pids, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	say(t, c, "true")
	if n := s.logins(); n != 4 {
		t.Errorf("%d connections", n)
	}

	running2, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := running2.Wait(); !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(sockets); err == nil {
		t.Error("the sockets are still there")
	}
	eventually(t, "no connection is left", func() bool {
		return s.logged("Connection closed by")+s.logged("Received disconnect from") >= 3
	})
	if err := goleak.Find(running); err != nil {
		t.Error(err)
	}
}

func TestUnreachableAnotherWay(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "ProxyCommand echo no way >&2; exit 1")
	c := keep(t, s, Options{})
	mustFail(t, c, "exit status 255", "the ssh program is used for frodo: proxycommand")
	s.config(t, "Nonsense yes")
	mustFail(t, c, "nonsense", "correct ssh_config")
}

func TestContextEndsCommand(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	c := keep(t, s, Options{})
	other, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, hang := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := c.Open(ctx, "frodo", "sleep 60", nil)
		if err != nil {
			t.Fatal(err)
		}
		if hang {
			f.hang()
		}
		var ended sync.WaitGroup
		ended.Go(func() { // fills the window, and more
			if _, err := stream.Write(make([]byte, 8<<20)); !errors.Is(err, context.Canceled) {
				t.Errorf("write: %v", err)
			}
		})
		ended.Go(func() {
			if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
				t.Errorf("read: %v", err)
			}
		})
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		cancel()
		ended.Wait()
		if err := stream.Wait(); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if hang {
			return
		}
		if _, err := io.WriteString(other, "still here"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 10)
		if _, err := io.ReadFull(other, got); err != nil || string(got) != "still here" {
			t.Errorf("%q %v", got, err)
		}
	}
}

// sshd does not close the channel of a program that does not read. The room
// comes back nevertheless.
func TestGivenUpCommandsDoNotKeepTheirRoom(t *testing.T) {
	s := newSSHD(t, "MaxSessions 2")
	s.config(t, "")
	c := keep(t, s, Options{ChannelsPerHost: 2})
	other, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		stream, err := c.Open(ctx, "frodo", "sleep 30", nil)
		if err != nil {
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				time.Sleep(closeGrace) // the last one's room
				continue
			}
			t.Fatal(err)
		}
		_, _ = stream.Write(make([]byte, 8<<20))
		_ = stream.Wait()
		cancel()
	}
	say(t, c, "true")
	if _, err := io.WriteString(other, "still here"); err != nil {
		t.Fatal(err)
	}
	_ = other.CloseWrite()
	if got, err := io.ReadAll(other); err != nil || string(got) != "still here" || other.Wait() != nil {
		t.Errorf("%q %v", got, err)
	}
}

func TestConnectionsClose(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	c := keep(t, s, Options{})
	var streams []Stream
	for range 3 {
		stream, err := c.Open(t.Context(), "frodo", "cat /dev/zero", nil) // which nobody reads
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	c.Close()
	for _, stream := range streams {
		_, _ = io.Copy(io.Discard, stream) // ends
		if err := stream.Wait(); !errors.Is(err, ErrUnreachable) {
			t.Errorf("%v", err)
		}
	}
	mustFail(t, c, "closed")
	c.Close()
}

func TestCloseDuringDial(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	f.hold.Store(true)
	c := keep(t, s, Options{})
	failed := make(chan error)
	go func() {
		_, _, err := run(t.Context(), c, "true", "")
		failed <- err
	}()
	eventually(t, "somebody dials", func() bool { return f.accepted.Load() == 1 })
	c.Close()
	if err := <-failed; !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	s := newSSHD(t, "")
	f := s.via(t, "")
	c := keep(t, s, Options{IdleTimeout: 300 * time.Millisecond})
	stream, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond) // in use, however quiet
	_ = stream.CloseWrite()
	_, _ = io.Copy(io.Discard, stream)
	if err := stream.Wait(); err != nil {
		t.Fatal(err)
	}
	say(t, c, "true")
	if n := f.accepted.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	eventually(t, "the connection is closed", func() bool {
		h, _ := c.host("frodo")
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.lanes) == 0
	})
	say(t, c, "true")
	if n := f.accepted.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestConfigurationChanges(t *testing.T) {
	s, other := newSSHD(t, ""), newSSHD(t, "")
	s.config(t, "")
	c := keep(t, s, Options{})
	say(t, c, "true")
	running, err := c.Open(t.Context(), "frodo", "cat", nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(checkEvery)
	write(t, s.dir+"/ssh_config", read(t, other.config(t, "")))
	say(t, c, "true")
	if n := other.logins(); n != 1 {
		t.Errorf("%d connections to the new place", n)
	}
	_, _ = io.WriteString(running, "goes on")
	_ = running.CloseWrite()
	if got, err := io.ReadAll(running); string(got) != "goes on" || err != nil || running.Wait() != nil {
		t.Errorf("%q %v", got, err)
	}
}

// listen takes the place of sshd, which has been stopped.
func (s *sshd) listen(t testing.TB) (l net.Listener) {
	t.Helper()
	eventually(t, "the port is free", func() bool {
		var err error
		l, err = net.Listen("tcp", s.address())
		return err == nil
	})
	return l
}

// fakeServer is an ssh server with faults of its own.
func fakeServer(t testing.TB, s *sshd, serve func(ssh.NewChannel)) {
	t.Helper()
	key, err := ssh.ParsePrivateKey([]byte(read(t, s.dir+"/host_ed25519")))
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	config.AddHostKey(key)
	l := s.listen(t)
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { l.Close() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				_, channels, requests, err := ssh.NewServerConn(conn, config)
				if err != nil {
					return
				}
				all.Go(func() { ssh.DiscardRequests(requests) })
				for channel := range channels {
					serve(channel)
				}
			})
		}
	})
}

func TestServersWithFaults(t *testing.T) {
	// accept takes the channel and, with end, the command.
	accept := func(taken bool, end func(ssh.Channel)) func(ssh.NewChannel) {
		return func(nc ssh.NewChannel) {
			ch, requests, err := nc.Accept()
			if err != nil {
				return
			}
			for r := range requests {
				if r.Type == "exec" {
					_ = r.Reply(taken, nil)
					if end != nil {
						end(ch)
					}
					if taken {
						ch.Close()
					}
				}
			}
		}
	}
	for _, test := range []struct {
		name  string
		serve func(ssh.NewChannel)
		text  string
	}{
		{"refuses every session", func(nc ssh.NewChannel) { _ = nc.Reject(ssh.Prohibited, "open failed") }, "refuses every session"},
		{"refuses commands", accept(false, nil), "takes no command"},
		{"no exit status", accept(true, func(ch ssh.Channel) { _, _ = ch.Write([]byte("x")) }), "without an exit status"},
		{"signal", accept(true, func(ch ssh.Channel) {
			_, _ = ch.Stderr().Write([]byte("it hurts\n"))
			_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(&struct {
				Name       string
				Dumped     bool
				Text, Lang string
			}{"KILL\n", false, "", ""}))
		}), "signal KILL ended the command on frodo: it hurts"},
		{"nonsense for an exit status", accept(true, func(ch ssh.Channel) { _, _ = ch.SendRequest("exit-status", false, []byte{1}) }), "without an exit status"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSSHD(t, "")
			s.config(t, "")
			s.stop()
			fakeServer(t, s, test.serve)
			if test.name == "signal" { // that was the command alone
				if _, _, err := run(t.Context(), keep(t, s, Options{}), "true", ""); errors.Is(err, ErrUnreachable) || err == nil || !strings.Contains(err.Error(), test.text) {
					t.Errorf("%v", err)
				}
				return
			}
			mustFail(t, keep(t, s, Options{}), test.text)
		})
	}
}

// A server that hangs up after each command costs a dial each, and no failure.
func TestServerHangsUpAfterEachCommand(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	s.stop()
	key, err := ssh.ParsePrivateKey([]byte(read(t, s.dir+"/host_ed25519")))
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(key)
	l := s.listen(t)
	var all sync.WaitGroup
	defer all.Wait()
	defer l.Close()
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				server, channels, requests, err := ssh.NewServerConn(conn, config)
				if err != nil {
					return
				}
				all.Go(func() { ssh.DiscardRequests(requests) })
				ch, more, err := (<-channels).Accept()
				if err != nil {
					return
				}
				for r := range more {
					if r.Type == "exec" {
						_ = r.Reply(true, nil)
						_, _ = ch.Write([]byte("done"))
						_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
						ch.Close()
					}
				}
				// We have closed the channel too. Sooner, what we say would be
				// answered with a reset, and a reset drops what we have not read.
				server.Close()
			})
		}
	})
	c := keep(t, s, Options{})
	for range 50 {
		if got := say(t, c, "true"); got != "done" {
			t.Errorf("%q", got)
		}
	}
}

func TestSocketsDirectoryIsShort(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 20))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	c := NewConnections(Options{ControlDir: long})
	defer c.Close()
	path, err := c.newSocket()
	if err != nil || len(path)+17 > 107 || strings.HasPrefix(path, long) {
		t.Errorf("%s, %v", path, err)
	}
	if left, _ := os.ReadDir(long); len(left) != 0 {
		t.Errorf("%v", left)
	}
}

// While pushes have taken all that they may, questions are still answered: each
// push may need one before it can end.
func TestPushesLeaveRoom(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	repo := t.TempDir() + "/r.git"
	if out, err := exec.Command("git", "init", "-q", "--bare", repo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := keep(t, s, Options{ChannelsPerHost: 3, PushesPerHost: 2})
	push := func(ctx context.Context) (Stream, error) {
		return c.Open(ctx, "frodo", "git-receive-pack '"+repo+"'", io.Discard)
	}
	end := func(p Stream) {
		t.Helper()
		io.WriteString(p, "0000")
		p.CloseWrite()
		io.Copy(io.Discard, p)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
	one, err := push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two, err := push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := push(soon); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third push: %v", err)
	}
	if got := say(t, c, "echo answer"); got != "answer" {
		t.Errorf("a question: %q", got)
	}
	end(one)
	three, err := push(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	end(two)
	end(three)
}
