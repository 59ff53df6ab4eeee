package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

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
