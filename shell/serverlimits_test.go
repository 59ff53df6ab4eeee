package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"
)

// closes reads until the server hangs up and returns after how long.
func closes(t *testing.T, conn net.Conn, start time.Time) time.Duration {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection stays: %v", err)
	}
	return time.Since(start)
}

func TestServerSlowHandshake(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(func(l *limits) { l.handshake = 2 * time.Second }))
	start := time.Now()
	silent, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	slow, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a byte now and then moves the idle deadline, not this one
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				slow.Write([]byte("SSH-2.0-slow_and_long_enough_for_the_whole_test_____"[i%20 : i%20+1]))
			}
		}
	}()
	loggedIn := w.client("alice") // but never asks for anything
	busy := w.client("alice")
	if _, _, status := output(t, busy, "info"); status != 0 {
		t.Fatal(status)
	}
	for name, conn := range map[string]net.Conn{"silent": silent, "slow": slow} {
		if d := closes(t, conn, start); d < 1500*time.Millisecond || d > 12*time.Second {
			t.Errorf("%s: closed after %v", name, d)
		}
	}
	loggedIn.Wait()
	if d := time.Since(start); d > 12*time.Second {
		t.Errorf("logged in without a session: closed after %v", d)
	}
	time.Sleep(300 * time.Millisecond)
	if out, _, _ := output(t, busy, "info"); out == "" {
		t.Error("a connection that was used is closed")
	}
}

func TestServerSessionLimit(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	w.bare("ip1")
	c := w.client("alice")
	var open []*ssh.Session
	for i := range defaultLimits.sessions {
		sess, err := c.NewSession()
		if err != nil {
			t.Fatalf("session %d: %v", i+1, err)
		}
		if _, err := sess.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // the others ask for nothing, and count too
			if err := sess.Start("git-upload-pack 'ip1'"); err != nil {
				t.Fatal(err)
			}
		}
		open = append(open, sess)
	}
	for range 3 {
		if _, err := c.NewSession(); err == nil {
			t.Fatal("one session too many")
		}
	}
	if out, _, _ := output(t, w.client("alice"), "info"); out == "" {
		t.Error("another connection suffers")
	}
	open[0].Close()
	open[1].Close()
	eventually(t, "a session after others ended", func() bool {
		sess, err := c.NewSession()
		if err == nil {
			sess.Close()
		}
		return err == nil
	})
}

// Channels closed at once leave programs behind for a while: those count.
func TestServerRunningLimit(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(func(l *limits) { l.sessions = 3; l.linger = 10 * time.Second }))
	w.Users.Exec = []string{w.script("sleep", "echo >>"+w.dir+"/started\nexec sleep 1\n")}
	w.bare("ip1")
	c := w.client("alice")
	for range 20 {
		if sess, err := c.NewSession(); err == nil {
			sess.Start("git-upload-pack 'ip1'")
			sess.Close()
		}
	}
	eventually(t, "started", func() bool { return exists(w.dir + "/started") })
	time.Sleep(200 * time.Millisecond)
	if data, _ := os.ReadFile(w.dir + "/started"); len(data) > 3 {
		t.Errorf("%d programs run", len(data))
	}
	eventually(t, "a session again", func() bool {
		sess, err := c.NewSession()
		if err != nil {
			return false
		}
		defer sess.Close()
		return sess.Run("info") == nil
	})
}

func TestServerConnectionLimit(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(func(l *limits) { l.connections = 2 }))
	first, second := w.client("alice"), w.client("sam")
	start := time.Now()
	third, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if d := closes(t, third, start); d > 10*time.Second {
		t.Errorf("closed after %v", d)
	}
	if out, _, _ := output(t, second, "info"); out == "" {
		t.Error("an earlier connection suffers")
	}
	first.Close()
	eventually(t, "a connection after another ended", func() bool {
		c, err := w.dial(w.signers["alice"])
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// A program that ends without reading its input ends the session, whatever the
// client still means to send.
func TestServerUnreadInput(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	w.Users.Exec = []string{w.script("program", "echo said; exit 3\n")}
	w.bare("ip1")
	sess, err := w.client("alice").NewSession()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := sess.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for err := error(nil); err == nil; {
			_, err = stdin.Write(make([]byte, 1<<16))
		}
	}()
	var out bytes.Buffer
	sess.Stdout = &out
	if err := sess.Start("git-receive-pack 'ip1'"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- sess.Wait() }()
	select {
	case err := <-done:
		var exit *ssh.ExitError
		if !errors.As(err, &exit) || exit.ExitStatus() != 3 || out.String() != "said\n" {
			t.Errorf("%v, %q", err, out.String())
		}
	case <-time.After(4 * time.Second): // os/exec gives up after five
		t.Fatal("the session hangs")
	}
}

// pktLine frames one line of git's protocol.
func pktLine(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

func TestServerClientGoneInMiddleOfPush(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(func(l *limits) { l.linger = 5 * time.Second }))
	bare := w.bare("ip1")
	pid := filepath.Join(w.dir, "pid")
	w.Users.Exec = []string{w.script("program", "echo $$ >"+pid+"\nexec git receive-pack "+bare+"\n")}
	work := filepath.Join(w.dir, "work")
	testGit(t, "", "init", "-q", "-b", "main", work)
	oid := testCommit(t, work, strings.Repeat("random enough ", 1000))
	pack, err := exec.Command("git", "-C", work, "pack-objects", "--all", "--stdout", "-q").Output()
	if err != nil {
		t.Fatal(err)
	}
	c := w.client("alice")
	sess, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := sess.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := sess.Start("git-receive-pack 'ip1'"); err != nil {
		t.Fatal(err)
	}
	command := strings.Repeat("0", 40) + " " + oid + " refs/heads/main\x00 report-status\n"
	fmt.Fprint(stdin, pktLine(command)+"0000")
	stdin.Write(pack[:len(pack)/2])
	eventually(t, "the program started", func() bool { return exists(pid) })
	time.Sleep(100 * time.Millisecond) // into the pack
	c.Close()

	eventually(t, "the program ended", func() bool {
		text, _ := os.ReadFile(pid)
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n > 0 && syscall.Kill(n, 0) == syscall.ESRCH
	})
	if refs := testGit(t, bare, "for-each-ref"); refs != "" {
		t.Errorf("refs: %s", refs)
	}
	left, err := filepath.Glob(bare + "/objects/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if base := filepath.Base(path); base != "info" && base != "pack" {
			t.Errorf("left behind: %s", path)
		}
	}
}

// A push that came whole is finished, hooks included, though the client does not
// wait for the answer: else the slaves would learn of it from a later sweep only.
func TestServerClientGoneDuringHook(t *testing.T) {
	needSSH(t)
	w := newSSHWorld(t, "", testLimits(func(l *limits) { l.linger = 10 * time.Second }))
	bare := w.bare("ip1")
	hook := fmt.Sprintf("#!/bin/sh\ntouch %[1]s/started\nsleep 1\necho told >&2\ntouch %[1]s/finished\n", w.dir)
	if err := os.WriteFile(bare+"/hooks/post-receive", []byte(hook), 0o700); err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(w.dir, "work")
	testGit(t, "", "init", "-q", "-b", "main", work)
	oid := testCommit(t, work, "one")
	_, env := w.openSSH("alice")
	push := exec.Command("git", "push", "-q", "frodo:ip1", "main")
	push.Dir, push.Env = work, env
	push.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	defer push.Wait()
	defer syscall.Kill(-push.Process.Pid, syscall.SIGKILL)
	eventually(t, "the hook started", func() bool { return exists(w.dir + "/started") })
	syscall.Kill(-push.Process.Pid, syscall.SIGKILL) // git and ssh
	eventually(t, "the hook finished", func() bool { return exists(w.dir + "/finished") })
	if got := testGit(t, bare, "rev-parse", "main"); got != oid {
		t.Errorf("main is %s, want %s", got, oid)
	}
}

// Serve ends when told to, with sessions running, connections that have not
// logged in, and nothing left behind.
func TestServerStop(t *testing.T) {
	before := goleak.IgnoreCurrent()
	w := newSSHWorld(t, "", testLimits(nil))
	pid := filepath.Join(w.dir, "pid")
	w.Users.Exec = []string{w.script("program", "echo $$ >"+pid+"\nexec sleep 60\n")}
	w.bare("ip1")
	half, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	c := w.client("alice")
	sess, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sess.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := sess.Start("git-upload-pack 'ip1'"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client("sam").NewSession(); err != nil { // asks for nothing
		t.Fatal(err)
	}
	eventually(t, "the program started", func() bool { text, _ := os.ReadFile(pid); return len(text) > 1 })
	start := time.Now()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 8*time.Second {
		t.Errorf("it took %v", d)
	}
	text, _ := os.ReadFile(pid)
	if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || syscall.Kill(n, 0) != syscall.ESRCH {
		t.Errorf("process %s lives on", text)
	}
	closes(t, half, start)
	c.Close()
	goleak.VerifyNone(t, before)
}

// A context that ends before, or while, the server begins.
func TestServerStopsBeforeStart(t *testing.T) {
	s := newTestServer(t, "")
	for i := range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		if i%2 == 0 {
			cancel()
		}
		done := make(chan error, 1)
		server := &SSHServer{Server: s.Server, Log: slog.New(slog.DiscardHandler)}
		go func() { done <- server.Serve(ctx, l) }()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Serve goes on")
		}
	}
}

// Clients that come and go while the server stops: the race detector watches.
func TestServerStopUnderLoad(t *testing.T) {
	before := goleak.IgnoreCurrent()
	w := newSSHWorld(t, "", testLimits(nil))
	var clients sync.WaitGroup
	ended := make(chan struct{})
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
				}
				c, err := w.dial(w.signers["alice"])
				if err != nil {
					continue
				}
				for range 3 {
					if sess, err := c.NewSession(); err == nil {
						sess.Run("info")
					}
				}
				c.Close()
			}
		})
	}
	time.Sleep(400 * time.Millisecond)
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	close(ended)
	clients.Wait()
	goleak.VerifyNone(t, before)
}

func TestServeFails(t *testing.T) {
	s := newTestServer(t, "")
	serve := func(ctx context.Context) error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		err = (&SSHServer{Server: s.Server, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
		if conn, dialErr := net.Dial("tcp", l.Addr().String()); dialErr == nil {
			conn.Close()
			t.Error("the listener is still open")
		}
		return err
	}
	if err := os.MkdirAll(s.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.StateDir, "ssh_host_ed25519_key")
	if err := os.WriteFile(file, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := serve(t.Context()); err == nil || !strings.Contains(err.Error(), "host key "+file) {
		t.Errorf("%v", err)
	}
	if data, _ := os.ReadFile(file); string(data) != "garbage" {
		t.Error("a host key that cannot be read was replaced")
	}
}

func TestHostKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	file := filepath.Join(dir, "ssh_host_ed25519_key")
	var wg sync.WaitGroup
	prints := make([]string, 8)
	for i := range prints {
		wg.Go(func() {
			key, err := HostKey(file)
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = ssh.FingerprintSHA256(key.PublicKey())
		})
	}
	wg.Wait()
	for _, p := range prints {
		if p != prints[0] {
			t.Errorf("several keys: %q", prints)
			break
		}
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	key, err := HostKey(file)
	if err != nil || ssh.FingerprintSHA256(key.PublicKey()) != prints[0] {
		t.Errorf("not reused: %v", err)
	}
	if key.PublicKey().Type() != ssh.KeyAlgoED25519 {
		t.Error(key.PublicKey().Type())
	}
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := HostKey(dir + "/file/key"); err == nil {
		t.Error("a host key below a file")
	}
}
