package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"mirror-shell/internal/proc"
)

// reach makes a connection the way OpenSSH would.
func (h *keptHost) reach(ctx context.Context) (carrier, error) {
	settings, err := h.resolve(ctx, h.name)
	if err != nil {
		return nil, err
	}
	timeout := h.opt.DialTimeout
	if seconds, err := strconv.Atoi(settings.one("connecttimeout")); err == nil && seconds > 0 {
		timeout = time.Duration(seconds) * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s: look at the network and the firewalls", timeout))
	defer cancel()
	way := decideRoute(settings)
	if !way.openSSH {
		var made *keptConn
		if made, way, err = h.dialHere(ctx, settings); made != nil || err != nil {
			return made, err
		}
	}
	return h.startMaster(ctx, settings, way.reason)
}

// dialHere makes a connection in this process; it returns neither that nor an
// error when only the ssh program can.
func (h *keptHost) dialHere(ctx context.Context, settings sshSettings) (*keptConn, route, error) {
	known := readKnownHosts(h.name, settings)
	if known.fallback.openSSH {
		return nil, known.fallback, nil
	}
	keys := findCredentials(ctx, settings)
	defer keys.close()
	if way := keys.route(); way.openSSH {
		return nil, way, nil
	}
	conn, err := dialTCP(ctx, settings)
	if err != nil {
		return nil, route{}, err
	}
	wire := newWire(conn)
	made, err := h.handshake(ctx, wire, settings, keys, known)
	if err == nil {
		return made, route{}, nil
	}
	wire.Close()
	var none *ssh.AlgorithmNegotiationError
	if errors.As(err, &none) {
		return nil, withOpenSSH("%v", err), nil
	}
	return nil, route{}, h.explainHandshake(ctx, err, settings, keys, known)
}

var networks = map[string]string{"inet": "tcp4", "inet6": "tcp6"}

func dialTCP(ctx context.Context, settings sshSettings) (net.Conn, error) {
	dialer := net.Dialer{}
	if ip := net.ParseIP(settings.one("bindaddress")); ip != nil {
		dialer.LocalAddr = &net.TCPAddr{IP: ip}
	}
	network := networks[settings.one("addressfamily")]
	if network == "" {
		network = "tcp"
	}
	conn, err := dialer.DialContext(ctx, network, settings.address())
	if err == nil {
		return conn, nil
	}
	var dns *net.DNSError
	host, port := settings.one("hostname"), settings.one("port")
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("connect to %s port %s: %w", host, port, context.Cause(ctx))
	case errors.As(err, &dns):
		return nil, fmt.Errorf("the name %s is not known: correct HostName in ssh_config, or the name service: %w", host, err)
	}
	return nil, fmt.Errorf("connect to %s port %s: start sshd there, or correct HostName and Port in ssh_config: %w", host, port, err)
}

// handshake speaks ssh over wire until we are let in.
func (h *keptHost) handshake(ctx context.Context, wire *wire, settings sshSettings, keys *credentials, known *knownHosts) (*keptConn, error) {
	unhook := context.AfterFunc(ctx, func() { wire.Close() })
	allowed := settings.algorithms()
	config := &ssh.ClientConfig{
		Config:            ssh.Config{Ciphers: allowed.ciphers, MACs: allowed.macs, KeyExchanges: allowed.kex},
		User:              settings.one("user"),
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(keys.signers...)},
		HostKeyCallback:   known.check,
		HostKeyAlgorithms: known.algorithms(),
		ClientVersion:     "SSH-2.0-mirror-shell",
	}
	client, channels, requests, err := ssh.NewClientConn(wire, settings.address(), config)
	if err != nil {
		unhook()
		return nil, err
	}
	if !unhook() { // ctx has ended, and the wire is closed
		client.Close()
		return nil, context.Cause(ctx)
	}
	k := &keptConn{all: h.Connections, host: h.name, client: client, wire: wire, gone: make(chan struct{}), env: settings.environment(proc.Env("LC_ALL=C"))}
	if !h.spawn(func() { k.serve(channels, requests) }) {
		client.Close()
		return nil, errClosed
	}
	return k, nil
}

// explainHandshake says in one line why we were not let in, and what to do.
func (h *keptHost) explainHandshake(ctx context.Context, err error, settings sshSettings, keys *credentials, known *knownHosts) error {
	who := settings.one("user") + "@" + settings.address()
	switch {
	case known.refused != nil:
		return known.refused
	case ctx.Err() != nil:
		return fmt.Errorf("log in to %s: %w", who, context.Cause(ctx))
	case strings.Contains(err.Error(), "unable to authenticate"), strings.Contains(err.Error(), "Too many authentication failures"):
		notes := ""
		if len(keys.notes) > 0 {
			notes = "; " + strings.Join(keys.notes, "; ")
		}
		return fmt.Errorf("%s refuses our keys (%s): add one of them there%s: %w", who, list(keys.names), notes, err)
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%s closed the connection before we were let in: look at MaxStartups and the log there: %w", who, err)
	}
	return fmt.Errorf("log in to %s: %w", who, err)
}

// wire is the connection below ssh. It remembers when the peer last said
// anything, which any byte proves: the answer to a question may queue behind
// megabytes.
type wire struct {
	net.Conn
	heard  atomic.Int64 // since the process started, in nanoseconds
	broken atomic.Pointer[error]
	once   sync.Once
	err    error
}

var started = time.Now()

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn}
	w.hear()
	return w
}

func (w *wire) hear()                 { w.heard.Store(int64(time.Since(started))) }
func (w *wire) silent() time.Duration { return time.Since(started) - time.Duration(w.heard.Load()) }

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.hear()
	}
	if err != nil {
		w.broken.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (w *wire) Close() error {
	w.once.Do(func() { w.err = w.Conn.Close() })
	return w.err
}

// keptConn is a connection in this process.
type keptConn struct {
	all    *Connections
	host   string
	client ssh.Conn
	wire   *wire
	env    [][2]string
	gone   chan struct{} // closed when the connection has ended

	mu  sync.Mutex
	why error // of the end, nil before
}

func (k *keptConn) alive() bool {
	select {
	case <-k.gone:
		return false
	default:
		return k.ended() == nil && k.wire.broken.Load() == nil
	}
}

// ended returns why the connection has ended, nil when it has not.
func (k *keptConn) ended() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.why
}

// errIdle ends connections that nobody uses.
var errIdle = errors.New("the connection was not used any more")

// shut implements carrier. It does not wait.
func (k *keptConn) shut(why error) {
	if why == nil {
		why = errIdle
	}
	k.mu.Lock()
	if k.why == nil {
		k.why = why
	}
	k.mu.Unlock()
	k.wire.Close() // and not client.Close, which would say goodbye and may block
}

// serve does what a connection needs, until it ends.
func (k *keptConn) serve(channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { ssh.DiscardRequests(requests) })
	all.Go(func() {
		for channel := range channels {
			_ = channel.Reject(ssh.Prohibited, "nothing is forwarded") // fails when the connection has ended
		}
	})
	all.Go(func() {
		err := k.client.Wait()
		k.shut(fmt.Errorf("the connection to %s was lost: %w", k.host, err))
		close(k.gone)
	})
	all.Go(k.keepAlive)
}

// keepAlive asks a peer that is silent for a sign of life, as OpenSSH's
// ServerAliveInterval does, and gives up after three intervals.
func (k *keptConn) keepAlive() {
	interval := k.all.opt.KeepAlive
	look := time.NewTicker(max(interval/4, time.Millisecond))
	defer look.Stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	answered := make(chan struct{}, 1)
	answered <- struct{}{}
	for {
		select {
		case <-k.gone:
			return
		case <-k.all.ctx.Done():
			k.shut(errClosed)
			<-k.gone
			return
		case <-look.C:
		}
		silent := k.wire.silent()
		if silent >= 3*interval {
			k.shut(fmt.Errorf("%s was silent for %s, and did not answer when asked", k.host, silent.Round(time.Second)))
			continue
		}
		if silent < interval {
			continue
		}
		select {
		case <-answered:
			// The question itself may block, on a connection that is full.
			asking.Go(func() {
				_, _, _ = k.client.SendRequest("keepalive@openssh.com", true, nil) // any answer will do
				answered <- struct{}{}
			})
		default:
		}
	}
}
