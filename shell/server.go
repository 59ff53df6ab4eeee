package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"time"

	gliderssh "github.com/gliderlabs/ssh"
	"golang.org/x/crypto/ssh"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// SSHServer is the built-in ssh server: the same keys, requests and decisions as
// under sshd, for machines without one.
type SSHServer struct {
	Server  *mirrorcfg.Server
	Keys    AuthorizedKeys
	Mirrord string
	Log     *slog.Logger
	// Audit is as in Session. What strangers do is told to it, too, not too often.
	Audit func(line []byte) error
	// InstallHooks is Session's.
	InstallHooks func(context.Context, git.Repo) error

	limits limits // the zero value stands for defaultLimits

	strangers throttle // of lines about connections that come to nothing
	troubles  throttle // of lines about authorized_keys
}

// keyExtension holds the authenticated key in a connection's permissions. The
// key callback also sees keys that are only offered: what it stores elsewhere is
// not proof of anything.
const keyExtension = "mirror-shell-key"

// Serve serves l until ctx ends, then closes what is open and waits for it.
func (s *SSHServer) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	hostKey, err := HostKey(filepath.Join(s.Server.StateDir, "ssh_host_ed25519_key"))
	if err != nil {
		return err
	}
	limits := s.bounds()
	d := &door{Listener: l, limits: limits, conns: map[*doorConn]struct{}{}, refused: func(from net.Addr, reason string) {
		s.stranger(slog.LevelWarn, "ssh connection closed", from, reason)
	}}
	server := &gliderssh.Server{
		HostSigners:            []gliderssh.Signer{hostKey},
		Version:                "mirror-shell",
		IdleTimeout:            limits.idle,
		PublicKeyHandler:       s.authenticate,
		ServerConfigCallback:   d.serverConfig,
		ConnCallback:           d.introduce,
		PtyCallback:            func(gliderssh.Context, gliderssh.Pty) bool { return false },
		SubsystemHandlers:      map[string]gliderssh.SubsystemHandler{},
		RequestHandlers:        map[string]gliderssh.RequestHandler{}, // nothing is forwarded
		ChannelHandlers:        map[string]gliderssh.ChannelHandler{"session": d.openChannel},
		SessionRequestCallback: func(sess gliderssh.Session, _ string) bool { return d.startSession(sess.Context()) },
		Handler: func(sess gliderssh.Session) {
			defer d.endSession(sess.Context())
			sess.Exit(s.session(ctx, sess))
		},
		ConnectionFailedCallback: func(conn net.Conn, err error) {
			s.stranger(slog.LevelInfo, "ssh connection failed", conn.RemoteAddr(), proc.OneLine(err.Error(), 300))
		},
	}
	// The library's own Close is not enough: it forgets that it was called when
	// Serve comes after it, and does not know connections before their login.
	defer context.AfterFunc(ctx, func() { d.Close() })()
	err = server.Serve(d)
	d.Close()
	d.work.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *SSHServer) bounds() limits {
	if s.limits == (limits{}) {
		return defaultLimits
	}
	return s.limits
}

// serverConfig sets what the library would leave to defaults, among which are
// signatures with SHA-1. AES-GCM costs the least on today's processors.
func (d *door) serverConfig(ctx gliderssh.Context) *ssh.ServerConfig {
	config := &ssh.ServerConfig{MaxAuthTries: 10, PublicKeyAuthAlgorithms: ssh.SupportedAlgorithms().PublicKeyAuths}
	// Called once a client has proved to hold a key that authenticate accepts.
	config.VerifiedPublicKeyCallback = func(_ ssh.ConnMetadata, key ssh.PublicKey, permissions *ssh.Permissions, _ string) (*ssh.Permissions, error) {
		if !d.login(doorConnOf(ctx), string(key.Marshal())) {
			reason := "too many connections with this key"
			return nil, &ssh.BannerError{Err: errors.New(reason), Message: "fatal: " + reason + "\n"}
		}
		return permissions, nil
	}
	config.Ciphers = []string{"aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"}
	return config
}

// authenticate lets in the keys of peers and users and remembers, for this key
// alone, which it was.
func (s *SSHServer) authenticate(ctx gliderssh.Context, key gliderssh.PublicKey) bool {
	_, ok, err := s.Keys.Lookup(key)
	if err != nil {
		s.troubles.log(s.Log, slog.LevelError, "authorized keys cannot be read", "error", err)
	}
	ctx.Permissions().Permissions = &ssh.Permissions{Extensions: map[string]string{keyExtension: string(key.Marshal())}}
	return ok && err == nil
}

// session serves one command.
func (s *SSHServer) session(ctx context.Context, sess gliderssh.Session) int {
	entry, err := s.identity(sess)
	if err != nil {
		fmt.Fprintf(sess.Stderr(), "fatal: %v\n", err)
		s.stranger(slog.LevelError, "ssh session without identity", sess.RemoteAddr(), err.Error())
		return 1
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(sess.Context(), cancel)()
	session := &Session{
		Server: s.Server, Mirrord: s.Mirrord, Command: sess.RawCommand(), From: sess.RemoteAddr().String(),
		Stdin: sess, Stdout: sess, Stderr: sess.Stderr(), Log: s.Log, InstallHooks: s.InstallHooks,
		Audit: s.Audit, Key: entry.Fingerprint,
	}
	session.Exec = func(ctx context.Context, env []string, argv ...string) (int, error) {
		env = append(env, connection(sess)) // gitolite-shell works with no session that lacks it
		return session.child(ctx, s.bounds().linger, env, argv...)
	}
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

// connection is the variable that sshd sets: addresses and ports of client and server.
func connection(sess gliderssh.Session) string {
	var words []string
	for _, addr := range []net.Addr{sess.RemoteAddr(), sess.LocalAddr()} {
		host, port, err := net.SplitHostPort(addr.String())
		if err != nil {
			host, port = addr.String(), "0"
		}
		words = append(words, host, port)
	}
	return "SSH_CONNECTION=" + strings.Join(words, " ")
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
//
// When ctx ends, because the client went away or the server stops, the program's
// streams end with the connection. That is all that sshd does too, and what git
// is made for: a push that came whole is finished, hooks included, and any other
// comes to nothing. Only what still runs after linger is ended.
func (s *Session) child(ctx context.Context, linger time.Duration, env []string, argv ...string) (int, error) {
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(linger):
			end()
		case <-running.Done():
		}
	})()
	cmd := proc.Command(running, env, argv...)
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
