package peer

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

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

// fakeServer is an ssh server with faults of its own, in the place of sshd.
func fakeServer(t testing.TB, s *sshd, serve func(*ssh.ServerConn, ssh.NewChannel)) {
	t.Helper()
	key, err := ssh.ParsePrivateKey([]byte(read(t, s.dir+"/host_ed25519")))
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	config.AddHostKey(key)
	serveConns(t, s.listen(t), func(conn net.Conn) {
		server, channels, requests, err := ssh.NewServerConn(conn, config)
		if err != nil {
			return
		}
		var discard sync.WaitGroup
		defer discard.Wait()
		discard.Go(func() { ssh.DiscardRequests(requests) })
		for channel := range channels {
			serve(server, channel)
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
			fakeServer(t, s, func(_ *ssh.ServerConn, nc ssh.NewChannel) { test.serve(nc) })
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
	fakeServer(t, s, func(server *ssh.ServerConn, nc ssh.NewChannel) {
		ch, requests, err := nc.Accept()
		if err != nil {
			return
		}
		for r := range requests {
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
	c := keep(t, s, Options{})
	for range 50 {
		if got := say(t, c, "true"); got != "done" {
			t.Errorf("%q", got)
		}
	}
}
