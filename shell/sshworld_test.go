package shell

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// sshWorld is frodo's built-in server on loopback.
type sshWorld struct {
	testServer
	addr    string
	keys    AuthorizedKeys
	log     *lockedBuffer
	stop    func() error // ends Serve and returns its error; may be called twice
	signers map[string]ssh.Signer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newSSHWorld serves with the peer sam and the users alice and eve.
func newSSHWorld(t testing.TB, toml string, limit limits) *sshWorld {
	t.Helper()
	s := newTestServer(t, toml)
	w := &sshWorld{testServer: s, log: &lockedBuffer{}, signers: map[string]ssh.Signer{},
		keys: AuthorizedKeys{Path: s.dir + "/authorized_keys"}}
	w.allow(KeyPeer, "sam")
	w.allow(KeyUser, "alice")
	w.allow(KeyUser, "eve")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	server := &SSHServer{Server: s.Server, Keys: w.keys, Mirrord: "/nowhere/mirrord", Log: slog.New(slog.NewTextHandler(w.log, nil)), limits: limit}
	if strings.Contains(toml, "audit = true") { // else the log has everything
		server.Audit = s.AppendAudit
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	w.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("Serve goes on")
		}
	})
	t.Cleanup(func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	return w
}

// testLimits are the defaults, with a shorter wait for what will not end.
func testLimits(change func(*limits)) limits {
	limit := defaultLimits
	limit.linger = 200 * time.Millisecond
	if change != nil {
		change(&limit)
	}
	return limit
}

// newSigner makes a key, and the file of its private half for OpenSSH.
func (w *sshWorld) newSigner(name string) ssh.Signer {
	w.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "id_"+name), pem.EncodeToMemory(block), 0o600); err != nil {
		w.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		w.t.Fatal(err)
	}
	w.signers[name] = signer
	return signer
}

func (w *sshWorld) allow(kind KeyKind, name string) {
	w.t.Helper()
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(w.newSigner(name).PublicKey())))
	w.addLine(ourKeyLine(string(kind), name, name+".pub", key))
}

func (w *sshWorld) addLine(line string) {
	w.t.Helper()
	f, err := os.OpenFile(w.keys.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, strings.TrimSpace(line)+"\n"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *sshWorld) dial(signers ...ssh.Signer) (*ssh.Client, error) {
	return ssh.Dial("tcp", w.addr, &ssh.ClientConfig{
		User: "whoever", Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 10 * time.Second,
	})
}

func (w *sshWorld) client(name string) *ssh.Client {
	w.t.Helper()
	c, err := w.dial(w.signers[name])
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// output runs a command and returns stdout, stderr and the exit status.
func output(t testing.TB, c *ssh.Client, command string) (stdout, stderr string, status int) {
	t.Helper()
	sess, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	var out, errs bytes.Buffer
	sess.Stdout, sess.Stderr = &out, &errs
	err = sess.Run(command)
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitStatus()
	} else if err != nil {
		t.Fatalf("%s: %v (stderr %q)", command, err, errs.String())
	}
	return out.String(), errs.String(), status
}

// openSSH is the environment in which git and ssh reach frodo as name.
func (w *sshWorld) openSSH(name string) (config string, env []string) {
	w.t.Helper()
	_, port, _ := net.SplitHostPort(w.addr)
	hostKey, err := HostKey(filepath.Join(w.StateDir, "ssh_host_ed25519_key"))
	if err != nil {
		w.t.Fatal(err)
	}
	known := filepath.Join(w.dir, "known_hosts")
	line := fmt.Sprintf("[127.0.0.1]:%s %s", port, ssh.MarshalAuthorizedKey(hostKey.PublicKey()))
	if err := os.WriteFile(known, []byte(line), 0o600); err != nil {
		w.t.Fatal(err)
	}
	config = filepath.Join(w.dir, "ssh_config_"+name)
	text := fmt.Sprintf("Host frodo\n HostName 127.0.0.1\n Port %s\n User x\n IdentityFile %s\n IdentitiesOnly yes\n IdentityAgent none\n"+
		" UserKnownHostsFile %s\n GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n BatchMode yes\n",
		port, filepath.Join(w.dir, "id_"+name), known)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return config, append(os.Environ(), "GIT_SSH_COMMAND=ssh -F "+config)
}

func (w *sshWorld) git(name, dir string, args ...string) (string, error) {
	w.t.Helper()
	_, env := w.openSSH(name)
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env = dir, env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func needSSH(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("no OpenSSH client")
	}
}

// eventually waits for what another process does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }
