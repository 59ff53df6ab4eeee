package faults

import (
	"io"
	"net"
	"sync"
	"time"
)

// link is the network from one server to another: a TCP proxy in front of the other's sshd,
// which one server alone uses.
type link struct {
	from, to string
	listener net.Listener
	target   string

	mu      sync.Mutex
	changed *sync.Cond
	mode    linkMode
	left    int64 // bytes until everything is cut; negative: no limit
	conns   map[net.Conn]bool
}

type linkMode int

const (
	linkPasses  linkMode = iota
	linkRefuses          // new connections are closed at once
	linkHangs            // new connections are accepted, and nothing else ever happens on them
	linkStalls           // nothing moves, neither on old connections nor on new ones
)

// newLink listens on a port of 127.0.0.1 for connections to target.
func newLink(from, to, target string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{from: from, to: to, listener: listener, target: target, left: -1, conns: map[net.Conn]bool{}}
	l.changed = sync.NewCond(&l.mu)
	go l.serve()
	return l, nil
}

func (l *link) port() int { return l.listener.Addr().(*net.TCPAddr).Port }

// set changes the mode. A stall that ends lets what was held back arrive.
func (l *link) set(mode linkMode) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mode = mode
	l.changed.Broadcast()
}

// cut ends all connections once n more bytes have passed, and returns how many
// connections there are. With 0 they end now.
func (l *link) cut(n int64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := len(l.conns) / 2
	if l.left = n; n == 0 {
		l.left = -1
		l.endAll()
	}
	return count
}

// armed reports whether bytes are counted for a cut that has not come yet.
func (l *link) armed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left >= 0
}

func (l *link) disarm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = -1
}

// endAll needs mu.
func (l *link) endAll() {
	for c := range l.conns {
		c.Close()
	}
}

func (l *link) close() {
	l.listener.Close()
	l.set(linkRefuses)
	l.cut(0)
}

func (l *link) serve() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		mode := l.mode
		l.mu.Unlock()
		switch mode {
		case linkRefuses:
			client.Close()
		case linkHangs:
			go l.hang(client)
		default:
			go l.join(client)
		}
	}
}

// hang keeps a connection until the other side has had enough.
func (l *link) hang(client net.Conn) {
	l.add(client)
	io.Copy(io.Discard, client)
	l.drop(client)
}

// add has connections take part in cuts.
func (l *link) add(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.conns[c] = true
	}
}

func (l *link) drop(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		delete(l.conns, c)
		c.Close()
	}
}

func (l *link) join(client net.Conn) {
	server, err := net.DialTimeout("tcp", l.target, 5*time.Second)
	if err != nil {
		client.Close()
		return
	}
	l.add(client, server)
	var both sync.WaitGroup
	both.Go(func() { l.carry(server, client) })
	both.Go(func() { l.carry(client, server) })
	both.Wait()
	l.drop(client, server)
}

// carry copies one direction, in pieces small enough to stop between them.
func (l *link) carry(to, from net.Conn) {
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		n, open := l.take(n)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				from.Close()
				return
			}
		}
		if !open {
			l.cut(0)
			return
		}
		if err != nil {
			to.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

// take waits while the link stalls, and returns how many of n bytes may pass; open is
// false when that was all.
func (l *link) take(n int) (may int, open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.mode == linkStalls {
		l.changed.Wait()
	}
	if l.left >= 0 && int64(n) >= l.left {
		n, l.left = int(l.left), -1
		return n, false
	}
	if l.left >= 0 {
		l.left -= int64(n)
	}
	return n, true
}
