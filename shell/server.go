package shell

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	gliderssh "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"

	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// Limits of the built-in server. They are generous for people and mean to
// whoever opens connections for their own sake.
const (
	handshakeTimeout  = 20 * time.Second // from accept to the first session
	idleTimeout       = 10 * time.Minute // git itself says something every few seconds
	maxConnections    = 256
	maxSessionsPerSSH = 10 // as stock sshd's MaxSessions
)

// SSHServer is the built-in ssh server: the same keys, requests and decisions as
// under sshd, for machines without one.
type SSHServer struct {
	Server  *mirrorcfg.Server
	Keys    AuthorizedKeys
	Mirrord string
	Log     *slog.Logger
}

// keyExtension holds the authenticated key in a connection's permissions. The
// key callback also sees keys that are only offered: what it stores elsewhere is
// not proof of anything.
const keyExtension = "mirror-shell-key"

// Serve serves l until ctx ends, then closes what is open and waits for it.
func (s *SSHServer) Serve(ctx context.Context, l net.Listener) error {
	hostKey, err := HostKey(filepath.Join(s.Server.StateDir, "ssh_host_ed25519_key"))
	if err != nil {
		return err
	}
	var sessions sync.WaitGroup
	server := &gliderssh.Server{
		HostSigners:                   []gliderssh.Signer{hostKey},
		Version:                       "mirror-shell",
		IdleTimeout:                   idleTimeout,
		PublicKeyHandler:              s.authenticate,
		ServerConfigCallback:          serverConfig,
		ConnCallback:                  func(c gliderssh.Context, conn net.Conn) net.Conn { return newGuardedConn(c, conn) },
		PtyCallback:                   func(gliderssh.Context, gliderssh.Pty) bool { return false },
		LocalPortForwardingCallback:   nil, // nothing is forwarded
		ReversePortForwardingCallback: nil,
		SubsystemHandlers:             map[string]gliderssh.SubsystemHandler{},
		RequestHandlers:               map[string]gliderssh.RequestHandler{},
		ChannelHandlers:               map[string]gliderssh.ChannelHandler{"session": gliderssh.DefaultSessionHandler},
		SessionRequestCallback:        func(sess gliderssh.Session, _ string) bool { return admit(sess.Context()) },
		Handler: func(sess gliderssh.Session) {
			sessions.Add(1)
			defer sessions.Done()
			defer leave(sess.Context())
			sess.Exit(s.session(ctx, sess))
		},
		ConnectionFailedCallback: func(conn net.Conn, err error) {
			s.Log.Info("ssh connection failed", "from", conn.RemoteAddr(), "error", err)
		},
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err = server.Serve(&limitListener{Listener: l, slots: make(chan struct{}, maxConnections)})
	sessions.Wait()
	if ctx.Err() != nil || errors.Is(err, gliderssh.ErrServerClosed) {
		return nil
	}
	return err
}

// serverConfig sets what the library would leave to defaults. AES-GCM costs the
// least on today's processors.
func serverConfig(gliderssh.Context) *ssh.ServerConfig {
	config := &ssh.ServerConfig{MaxAuthTries: 10}
	config.Ciphers = []string{"aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"}
	return config
}

// authenticate lets in the keys of peers and users and remembers, for this key
// alone, which it was.
func (s *SSHServer) authenticate(ctx gliderssh.Context, key gliderssh.PublicKey) bool {
	_, ok, err := s.Keys.Lookup(key)
	if err != nil {
		s.Log.Error("authorized keys cannot be read", "error", err)
	}
	ctx.Permissions().Permissions = &ssh.Permissions{Extensions: map[string]string{keyExtension: string(key.Marshal())}}
	return ok && err == nil
}

// session serves one command.
func (s *SSHServer) session(ctx context.Context, sess gliderssh.Session) int {
	entry, err := s.identity(sess)
	if err != nil {
		fmt.Fprintf(sess.Stderr(), "fatal: %v\n", err)
		s.Log.Error("ssh session without identity", "from", sess.RemoteAddr(), "error", err)
		return 1
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(sess.Context(), cancel)()
	session := &Session{
		Server: s.Server, Mirrord: s.Mirrord, Command: sess.RawCommand(), From: sess.RemoteAddr().String(),
		Stdin: sess, Stdout: sess, Stderr: sess.Stderr(), Log: s.Log,
	}
	session.Exec = session.child
	for _, v := range sess.Environ() {
		if value, ok := strings.CutPrefix(v, "GIT_PROTOCOL="); ok {
			session.GitProtocol = value
		}
	}
	if entry.Kind == KeyPeer {
		peer, err := NewPeer(entry.Name)
		if err != nil {
			return session.refuse("key "+entry.File, err)
		}
		return session.ServePeer(ctx, peer)
	}
	user, err := NewUser(entry.Name)
	if err != nil {
		return session.refuse("key "+entry.File, err)
	}
	return session.ServeUser(ctx, user)
}

// identity looks up the key that proved itself.
func (s *SSHServer) identity(sess gliderssh.Session) (KeyEntry, error) {
	conn, ok := sess.Context().Value(gliderssh.ContextKeyConn).(*ssh.ServerConn)
	if !ok || conn.Permissions == nil {
		return KeyEntry{}, errors.New("connection is not authenticated")
	}
	key, err := ssh.ParsePublicKey([]byte(conn.Permissions.Extensions[keyExtension]))
	if err != nil {
		return KeyEntry{}, fmt.Errorf("authenticated key: %w", err)
	}
	entry, ok, err := s.Keys.Lookup(key)
	if err == nil && !ok {
		err = errors.New("key is not authorized any more")
	}
	return entry, err
}

// child runs a program for a session that cannot become it. Standard input goes
// through a pipe of its own: a program that does not read it all must not keep
// the session open until the client hangs up.
func (s *Session) child(ctx context.Context, env []string, argv ...string) (int, error) {
	cmd := proc.Command(ctx, env, argv...)
	cmd.Stdout, cmd.Stderr = s.Stdout, s.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	go func() {
		io.Copy(stdin, s.Stdin)
		stdin.Close()
	}()
	if code := proc.ExitCode(cmd.Wait()); code >= 0 {
		return code, nil
	}
	return 1, nil // ended by a signal
}

// connState counts the sessions of a connection and knows its transport.
type connState struct {
	conn     *guardedConn
	sessions atomic.Int32
}

type connStateKey struct{}

// admit allows one more session on the connection, whose first one also ends the
// time that a handshake may take.
func admit(ctx gliderssh.Context) bool {
	state, ok := ctx.Value(connStateKey{}).(*connState)
	if !ok || state.sessions.Add(1) > maxSessionsPerSSH {
		return false
	}
	state.conn.admitted()
	return true
}

func leave(ctx gliderssh.Context) {
	if state, ok := ctx.Value(connStateKey{}).(*connState); ok {
		state.sessions.Add(-1)
	}
}

// guardedConn holds a connection to one deadline until a session was admitted,
// however often the library moves its idle deadline: a client that sends a byte
// a minute would keep a slot for ever.
type guardedConn struct {
	net.Conn
	mu    sync.Mutex
	until time.Time // zero: admitted
}

func newGuardedConn(ctx gliderssh.Context, conn net.Conn) *guardedConn {
	g := &guardedConn{Conn: conn, until: time.Now().Add(handshakeTimeout)}
	conn.SetDeadline(g.until)
	ctx.SetValue(connStateKey{}, &connState{conn: g})
	return g
}

func (g *guardedConn) SetDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.until.IsZero() && (t.IsZero() || t.After(g.until)) {
		t = g.until
	}
	return g.Conn.SetDeadline(t)
}

func (g *guardedConn) admitted() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until = time.Time{}
	g.Conn.SetDeadline(time.Now().Add(idleTimeout))
}

// limitListener closes connections beyond its slots at once.
type limitListener struct {
	net.Listener
	slots chan struct{}
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			conn.Close()
		}
	}
}

type limitConn struct {
	net.Conn
	release func()
}

func (c *limitConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// HostKey reads the server's host key and makes it (ed25519, 0600) when there is
// none. Two servers that start at once agree on one.
func HostKey(file string) (ssh.Signer, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeHostKey(file); err != nil {
			return nil, fmt.Errorf("make host key: %w", err)
		}
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("host key %s: %w", file, err)
	}
	return signer, nil
}

func makeHostKey(file string) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "mirror-shell host key")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(file), ".hostkey-")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(pem.EncodeToMemory(block))
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
