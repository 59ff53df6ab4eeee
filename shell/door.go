package shell

import (
	"net"
	"net/netip"
	"sync"
	"time"

	gliderssh "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"
)

// limits of the built-in server. The defaults are generous for people and mean
// to whoever opens connections for their own sake.
type limits struct {
	connections int // at a time
	// share is how many of them one address may have, and one key: half, so
	// that nobody can use up all alone.
	share int
	// waiting is how many have not logged in yet, waitingShare how many of
	// these come from one address: a stranger costs no more than that.
	waiting, waitingShare int
	sessions              int           // at a time on one connection
	handshake             time.Duration // from accept to the first session: time to type a passphrase
	idle                  time.Duration // git itself says something every few seconds
	linger                time.Duration // how long a program may outlive its client
}

var defaultLimits = limits{
	connections: 256, share: 128,
	waiting: 128, waitingShare: 32,
	sessions:  10, // as stock sshd's MaxSessions
	handshake: time.Minute,
	idle:      10 * time.Minute,
	linger:    10 * time.Second,
}

// door is the listener of the built-in server. It knows every connection, logged
// in or not, so that all of them can be counted, limited, closed and waited for.
type door struct {
	net.Listener
	limits limits
	// refused is told of every connection that is closed for want of room.
	refused func(from net.Addr, reason string)

	mu     sync.Mutex
	closed bool
	conns  map[*doorConn]struct{}
	// work counts open connections and running sessions. Nothing is added once
	// closed is set, which makes it sound to Wait then.
	work sync.WaitGroup
}

// Accept returns the next connection for which there is room.
func (d *door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, out, reason := d.enter(conn)
		if out != nil {
			d.refused(out.RemoteAddr(), "it had not logged in, and others want its place")
			out.Close()
		}
		if c != nil {
			return c, nil
		}
		d.refused(conn.RemoteAddr(), reason)
		conn.Close()
	}
}

// enter admits a connection, for which another one may have to be closed, or
// says why not.
func (d *door) enter(conn net.Conn) (c, out *doorConn, reason string) {
	c = &doorConn{Conn: conn, door: d, address: addressOf(conn.RemoteAddr()), since: time.Now()}
	c.until = c.since.Add(d.limits.handshake)
	d.mu.Lock()
	defer d.mu.Unlock()
	if out, reason = d.room(c.address); reason != "" {
		return nil, nil, reason
	}
	conn.SetDeadline(c.until)
	d.conns[c] = struct{}{}
	d.work.Add(1)
	return c, out, ""
}

// room decides whether one more connection from an address can be admitted. When
// the places are taken, one that has not logged in gives way, and not the
// newcomer: else whoever has addresses enough would hold the places for as long as a
// login may take, with one packet each. Who is quick to log in is hardly ever hit.
func (d *door) room(address string) (out *doorConn, reason string) {
	same, waiting, sameWaiting := 0, 0, map[string]int{}
	for c := range d.conns {
		if c.address == address {
			same++
		}
		if c.holder == "" {
			waiting++
			sameWaiting[c.address]++
		}
	}
	full := len(d.conns) >= d.limits.connections
	switch {
	case d.closed:
		return nil, "the server stops"
	case same >= d.limits.share:
		return nil, "too many connections from this address"
	case sameWaiting[address] >= d.limits.waitingShare:
		return nil, "too many connections from this address that have not logged in"
	case full && waiting == 0:
		return nil, "too many connections"
	case full || waiting >= d.limits.waiting:
		return d.longestWaiting(sameWaiting), ""
	}
	return nil, ""
}

// longestWaiting is the oldest connection that has not logged in, from the
// address that has most of them.
func (d *door) longestWaiting(waiting map[string]int) *doorConn {
	var found *doorConn
	for c := range d.conns {
		if c.holder != "" {
			continue
		}
		if found == nil || waiting[c.address] > waiting[found.address] ||
			waiting[c.address] == waiting[found.address] && c.since.Before(found.since) {
			found = c
		}
	}
	return found
}

// addressOf is what counts as one address: of IPv6 the network of 64 bits, which
// is the least that anybody gets.
func addressOf(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return addr.String()
	}
	ip, _ := netip.AddrFromSlice(tcp.IP)
	ip = ip.Unmap().WithZone("")
	if prefix, err := ip.Prefix(64); ip.Is6() && err == nil {
		return prefix.String()
	}
	return ip.String()
}

// login gives a connection to who has proved to hold the key, unless that key
// has its share already.
func (d *door) login(c *doorConn, key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	same := 0
	for other := range d.conns {
		if other.holder == key {
			same++
		}
	}
	if same >= d.limits.share {
		return false
	}
	c.holder = key
	return true
}

// Close closes the listener and every connection.
func (d *door) Close() error {
	err := d.Listener.Close()
	d.mu.Lock()
	d.closed = true
	var conns []*doorConn
	for c := range d.conns {
		conns = append(conns, c)
	}
	d.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	return err
}

// doorConn is one connection. Until its first session starts it is held to one
// deadline, however often the library moves its idle deadline: a client that
// sends a byte a minute would keep its place for ever.
type doorConn struct {
	net.Conn
	door    *door
	address string // see addressOf
	since   time.Time
	holder  string // the key that logged in, "" before; guarded by the door

	mu       sync.Mutex
	until    time.Time // zero: a session has started
	channels int       // open session channels, with a command or not
	sessions int       // running commands, whose channel may be closed already
}

type doorConnKey struct{}

// introduce lets the callbacks that only get the connection's context find it.
func (d *door) introduce(ctx gliderssh.Context, conn net.Conn) net.Conn {
	ctx.SetValue(doorConnKey{}, conn)
	return conn
}

func doorConnOf(ctx gliderssh.Context) *doorConn { return ctx.Value(doorConnKey{}).(*doorConn) }

func (c *doorConn) Close() error {
	err := c.Conn.Close()
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	if _, open := c.door.conns[c]; open {
		delete(c.door.conns, c)
		c.door.work.Done()
	}
	return err
}

func (c *doorConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.until.IsZero() && (t.IsZero() || t.After(c.until)) {
		t = c.until
	}
	return c.Conn.SetDeadline(t)
}

// openChannel serves one session channel, and refuses those above the limit:
// also a channel on which nothing is ever asked costs memory.
func (d *door) openChannel(srv *gliderssh.Server, conn *ssh.ServerConn, newChan ssh.NewChannel, ctx gliderssh.Context) {
	c := doorConnOf(ctx)
	if !c.count(&c.channels) {
		newChan.Reject(ssh.ResourceShortage, "too many sessions on this connection")
		return
	}
	defer c.discount(&c.channels)
	gliderssh.DefaultSessionHandler(srv, conn, sessionChannel{newChan}, ctx)
}

// startSession allows a command to run, and endSession must follow it.
func (d *door) startSession(ctx gliderssh.Context) bool {
	c := doorConnOf(ctx)
	if !c.count(&c.sessions) {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		c.discount(&c.sessions)
		return false
	}
	d.work.Add(1)
	c.loggedIn()
	return true
}

func (d *door) endSession(ctx gliderssh.Context) {
	c := doorConnOf(ctx)
	c.discount(&c.sessions)
	d.work.Done()
}

func (c *doorConn) count(n *int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *n >= c.door.limits.sessions {
		return false
	}
	*n++
	return true
}

func (c *doorConn) discount(n *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n--
}

func (c *doorConn) loggedIn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.until.IsZero() {
		c.until = time.Time{}
		c.Conn.SetDeadline(time.Now().Add(c.door.limits.idle))
	}
}

// sessionChannel refuses, before the library sees them, all requests of a
// session but those for a command and for git's protocol version. The library
// would answer yes to agent forwarding, and collect a client's environment
// without end.
type sessionChannel struct{ ssh.NewChannel }

func (n sessionChannel) Accept() (ssh.Channel, <-chan *ssh.Request, error) {
	ch, in, err := n.NewChannel.Accept()
	if err != nil {
		return nil, nil, err
	}
	out := make(chan *ssh.Request)
	go func() { // ends with the channel, and so does the library's loop over out
		defer close(out)
		versions := 0
		for req := range in {
			switch req.Type {
			case "exec", "shell":
			case "env":
				var v struct{ Name, Value string }
				if ssh.Unmarshal(req.Payload, &v) != nil || v.Name != "GIT_PROTOCOL" || versions > 0 {
					req.Reply(false, nil)
					continue
				}
				versions++
			default:
				req.Reply(false, nil)
				continue
			}
			out <- req
		}
	}()
	return ch, out, nil
}
