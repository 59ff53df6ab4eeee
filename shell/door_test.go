package shell

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// addrConn is a connection of which only the address matters.
type addrConn struct {
	net.Conn
	addr net.Addr
}

func (c addrConn) RemoteAddr() net.Addr          { return c.addr }
func (c addrConn) SetDeadline(t time.Time) error { return nil }
func (c addrConn) Close() error                  { return nil }

func from(ip string) addrConn {
	return addrConn{addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}
}

func TestDoorRoom(t *testing.T) {
	d := &door{limits: limits{connections: 6, share: 3, waiting: 4, waitingShare: 2, handshake: time.Minute}, conns: map[*doorConn]struct{}{}}
	var out *doorConn
	enter := func(ip, want string) *doorConn {
		t.Helper()
		var c *doorConn
		var reason string
		if c, out, reason = d.enter(from(ip)); reason != want {
			t.Fatalf("%s: %q, want %q", ip, reason, want)
		}
		if out != nil {
			out.Close()
		}
		return c
	}
	gone := func(want *doorConn) {
		t.Helper()
		if out != want {
			t.Fatalf("%+v gave way, want %+v", out, want)
		}
	}
	const noLogin = "too many connections from this address that have not logged in"
	a1, a2 := enter("192.0.2.1", ""), enter("192.0.2.1", "")
	enter("192.0.2.1", noLogin)
	b1 := enter("2001:db8::1", "")
	b2 := enter("2001:db8::ffff:1", "") // the same network
	enter("2001:db8::2", noLogin)
	gone(nil)
	c1 := enter("192.0.2.3", "") // four wait: of those who have most, the oldest
	gone(a1)
	for _, c := range []*doorConn{a2, b1, c1} {
		if !d.login(c, "alice") {
			t.Fatal("alice has her share")
		}
	}
	if d.login(b2, "alice") || !d.login(b2, "bob") {
		t.Fatal("shares of keys")
	}
	a3, _ := enter("192.0.2.1", ""), enter("192.0.2.1", "")
	enter("192.0.2.1", "too many connections from this address")
	enter("192.0.2.9", "") // six are open
	gone(a3)
	for c := range d.conns {
		if c.holder == "" && !d.login(c, "carol") {
			t.Fatal("carol")
		}
	}
	enter("192.0.2.7", "too many connections")
	gone(nil)
	d.closed = true
	enter("192.0.2.8", "the server stops")
}

func TestAddressOf(t *testing.T) {
	for ip, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:1:2:3::4": "2001:db8:1:2::/64",
	} {
		if got := addressOf(&net.TCPAddr{IP: net.ParseIP(ip)}); got != want {
			t.Errorf("%s: %s, want %s", ip, got, want)
		}
	}
	if got := addressOf(&net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}); got != "fe80::/64" {
		t.Error(got)
	}
	if got := addressOf(&net.UnixAddr{Name: "/run/x", Net: "unix"}); got != "/run/x" {
		t.Error(got)
	}
}

// dialFrom opens a connection from an address of the loopback network.
func dialFrom(t testing.TB, ip, to string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: 10 * time.Second}
	conn, err := dialer.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Strangers who say nothing, from one address and from many: alice gets in, and
// the log stays short.
func TestServerStrangersTakeNoPlace(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(func(l *limits) { l.connections, l.share, l.waiting, l.waitingShare = 12, 6, 8, 4 }))
	early := w.client("alice")
	if out, _, _ := output(t, early, "info"); out == "" {
		t.Fatal("no answer")
	}
	for range 30 {
		dialFrom(t, "127.0.0.2", w.addr)
	}
	eventually(t, "refusals", func() bool { return strings.Contains(w.log.String(), "from this address that have not logged in") })
	if out, _, _ := output(t, w.client("alice"), "info"); out == "" {
		t.Error("no answer beside one stranger")
	}
	for i := range 200 {
		dialFrom(t, fmt.Sprintf("127.0.1.%d", i+1), w.addr)
	}
	for range 5 {
		c := w.client("alice")
		if out, _, _ := output(t, c, "info"); out == "" {
			t.Error("no answer beside many strangers")
		}
		c.Close()
	}
	if out, _, _ := output(t, early, "info"); out == "" {
		t.Error("a connection that is logged in suffers")
	}
	lines := strings.Count(w.log.String(), "msg=\"ssh connection")
	if lines == 0 || lines > throttleBurst+5 {
		t.Errorf("%d lines of strangers in the log", lines)
	}
}

// Whoever has a key gets no more than the share of connections with it, from
// however many addresses.
func TestServerShareOfAKey(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(func(l *limits) { l.connections, l.share = 8, 3 }))
	login := func(name, ip string) (*ssh.Client, string, error) {
		banner := ""
		conn, chans, reqs, err := ssh.NewClientConn(dialFrom(t, ip, w.addr), w.addr, &ssh.ClientConfig{
			User: "x", Auth: []ssh.AuthMethod{ssh.PublicKeys(w.signers[name])}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
			BannerCallback: func(message string) error { banner = message; return nil },
		})
		if err != nil {
			return nil, banner, err
		}
		return ssh.NewClient(conn, chans, reqs), banner, nil
	}
	var open []*ssh.Client
	for i := range 3 {
		c, _, err := login("eve", fmt.Sprintf("127.0.0.%d", i+2))
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, banner, err := login("eve", "127.0.0.9"); err == nil || banner != "fatal: too many connections with this key\n" {
		t.Errorf("%v, banner %q", err, banner)
	}
	c, _, err := login("alice", "127.0.0.9")
	if err != nil {
		t.Fatal(err)
	}
	if out, _, _ := output(t, c, "info"); out == "" {
		t.Error("alice suffers")
	}
	open[0].Close()
	eventually(t, "a connection after another ended", func() bool {
		c, _, err := login("eve", "127.0.0.9")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// Guessing: a connection ends after ten keys that are not known.
func TestServerAuthAttempts(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	var wrong []ssh.Signer
	for i := range 12 {
		wrong = append(wrong, w.newSigner(fmt.Sprintf("wrong%d", i)))
	}
	if c, err := w.dial(append(wrong, w.signers["alice"])...); err == nil {
		c.Close()
		t.Error("the thirteenth key was tried")
	}
	if _, err := w.dial(append(wrong[:5:5], w.signers["alice"])...); err != nil {
		t.Error(err)
	}
}

// A session on which nothing moves ends, and so does a connection without any.
func TestServerIdle(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(func(l *limits) { l.idle = 2 * time.Second }))
	w.bare("ip1")
	c := w.client("alice")
	sess, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sess.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := sess.Start("git-receive-pack 'ip1'"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	c.Wait()
	if d := time.Since(start); d < 1500*time.Millisecond || d > 15*time.Second {
		t.Errorf("closed after %v", d)
	}
	c = w.client("alice")
	output(t, c, "info")
	start = time.Now()
	c.Wait()
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("without a session: closed after %v", d)
	}
}

// Requests as large as the protocol carries, and many of them, cost no memory.
func TestServerHugeRequests(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	c := w.client("alice")
	out, stderr, status := output(t, c, "info "+strings.Repeat("x", 200<<10))
	if status != 1 || out != "" || !strings.HasPrefix(stderr, "fatal: command of ") || len(stderr) > 500 {
		t.Errorf("status %d, %.200q, %.200q", status, out, stderr)
	}
	sess, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	large := strings.Repeat("x", 200<<10)
	for i := range 200 {
		if err := sess.Setenv(fmt.Sprintf("X%d", i), large); err == nil {
			t.Fatal("a variable was accepted")
		}
	}
	sess.Setenv("GIT_PROTOCOL", large) // one is kept, until it is seen to be none
	if err := sess.Setenv("GIT_PROTOCOL", large); err == nil {
		t.Error("a second GIT_PROTOCOL was accepted")
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d bytes more are held", grown)
	}
	if err := sess.Run("info"); err != nil {
		t.Error(err)
	}
}

func TestThrottle(t *testing.T) {
	var buf bytes.Buffer
	var th throttle
	for range 1000 {
		th.log(slog.New(slog.NewTextHandler(&buf, nil)), slog.LevelInfo, "again")
	}
	if n := strings.Count(buf.String(), "\n"); n != throttleBurst {
		t.Errorf("%d lines", n)
	}
	now := th.since
	if _, ok := th.take(now.Add(throttleEvery - 1)); ok {
		t.Error("too early")
	}
	if left, ok := th.take(now.Add(throttleEvery)); !ok || left != 1000-throttleBurst+1 {
		t.Errorf("%d, %v", left, ok)
	}
	if _, ok := th.take(now.Add(throttleEvery + 1)); ok {
		t.Error("a second line")
	}
	for i := range throttleBurst {
		if _, ok := th.take(now.Add(time.Hour)); !ok {
			t.Errorf("line %d after an hour", i)
		}
	}
	if _, ok := th.take(now.Add(-time.Hour)); ok {
		t.Error("a clock that goes back gives lines")
	}
}
