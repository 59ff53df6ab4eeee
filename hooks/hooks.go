// Package hooks is what git runs in a mirrored repository when somebody pushes.
//
//	pre-receive    decides the role once more, whatever way the push came: on a
//	               slave only the master's mirror push passes, and what it would
//	               destroy is kept first (package rescue)
//	post-receive   on the master, writes one durable event to the inbox, wakes
//	               the worker, tells the user, and waits for the peers that the
//	               repository declares synchronous; on every server, applies the
//	               mirror map when that is what was pushed
//
// Both stand in the user's way, so they do little: one git process for the
// repository's configuration, and the server's configuration, a file. An administrator's own hook that was there before
// (HOOK.next, see Install) runs after ours, in our place and with our untouched
// standard input.
package hooks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
)

// Hook is one run of a hook by git.
type Hook struct {
	Path     string   // os.Args[0]: where in the repository the hook stands
	Dir      string   // the repository: git's working directory for hooks
	Programs string   // directory of our programs
	Peer     string   // the pushing peer, "" for everybody else
	Stdin    *os.File // is left as it is, or made readable again, for the next hook
	Stderr   io.Writer
	// Exec replaces this process with the next hook; it returns only on failure.
	Exec func(path string, argv, env []string) error
}

// New returns the hook that this process is.
func New() (*Hook, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return nil, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	// A front end may start git with an empty environment. Without HOME neither
	// the account's git config, which may name the master of every repository,
	// nor our own configuration would be found: a slave would look local.
	if os.Getenv("HOME") == "" {
		if u, err := user.Current(); err == nil && u.HomeDir != "" {
			os.Setenv("HOME", u.HomeDir)
		}
	}
	if started(os.Args[0]) {
		leaveGitea()
	}
	return &Hook{
		Path: os.Args[0], Dir: dir, Programs: filepath.Dir(self),
		Peer: pushingPeer(), Stdin: os.Stdin, Stderr: os.Stderr, Exec: syscall.Exec,
	}, nil
}

// pushingPeer is the peer whose mirror push it is. Our sessions for peers set no GL_USER;
// gitolite always does, and passes on what else a client had sshd accept.
func pushingPeer() string {
	if os.Getenv("GL_USER") != "" {
		return ""
	}
	return os.Getenv(mirrorcfg.EnvPeer)
}

// Main runs the hook that run stands for and exits.
func Main(run func(*Hook, context.Context) int) {
	h, err := New()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mirror-shell:", err)
		os.Exit(1)
	}
	os.Exit(run(h, context.Background()))
}

// PreReceive refuses what may not be pushed here. A repository that is not
// mirrored is left alone, even when the server is not configured; a mirrored
// one is closed until it can be told who its master is.
func (h *Hook) PreReceive(ctx context.Context) int {
	if why := refset.WhyRestoring(h.Dir); why != "" {
		return h.fatal(nil, fmt.Errorf("push refused: %s", why))
	}
	cfg, server, err := h.load(ctx)
	if cfg == nil {
		return h.fatal(nil, fmt.Errorf("push refused: %w", err))
	}
	if cfg.Master == "" {
		return h.next("pre-receive")
	}
	if err != nil {
		return h.fatal(nil, fmt.Errorf("push refused: %s has a master, but whether this server is it cannot be told: %w", cfg.Name, err))
	}
	err = decidePush(server.Hostname, cfg, h.Peer)
	if err == nil {
		err = h.receive(ctx, server, cfg)
	}
	if err != nil {
		return h.fatal(server, err)
	}
	return h.next("pre-receive")
}

// decidePush returns why a push to a mirrored repository is refused: peer is
// the authenticated peer that pushes, "" for a user, however they came in.
func decidePush(hostname string, cfg *mirrorcfg.Repo, peer string) error {
	role := cfg.Role(hostname)
	switch {
	case peer == "" && role == mirrorcfg.Slave:
		return errors.New(cfg.NotMaster(hostname))
	case peer != "" && role == mirrorcfg.Master:
		return fmt.Errorf("%s <==//== %s mirror-push rejected: %s is the master of %s", hostname, peer, hostname, cfg.Name)
	case peer != "" && peer != cfg.Master:
		return fmt.Errorf("%s <==//== %s mirror-push rejected: the master of %s is %s", hostname, peer, cfg.Name, cfg.Master)
	}
	return nil
}

// load loads both configurations, the server's while git reads the repository's, and
// gives the repository its full name. Cfg is nil when the repository's cannot be had; with
// another error, which does not matter to one that is not mirrored, the server is nil.
func (h *Hook) load(ctx context.Context) (cfg *mirrorcfg.Repo, server *mirrorcfg.Server, err error) {
	answer := mirrorcfg.AskRepo(ctx, filepath.Base(h.Dir), git.Repo{Dir: h.Dir})
	server, name, unknown := h.server()
	if cfg, err = answer(); err != nil {
		return nil, nil, err
	}
	if unknown != nil {
		return cfg, nil, unknown
	}
	cfg.Name = name
	return cfg, server, nil
}

// server loads the server's configuration and returns the repository's full name.
func (h *Hook) server() (*mirrorcfg.Server, string, error) {
	server, err := mirrorcfg.Load("")
	if err != nil {
		return nil, "", err
	}
	name, err := server.NameOf(h.Dir)
	if err != nil {
		return nil, "", err
	}
	return server, name, nil
}

// PostReceive queues the push for the repository's peers. The push itself has
// been stored by now: whatever fails here is told to the user and to the log.
func (h *Hook) PostReceive(ctx context.Context) int {
	status := 0
	cfg, server, err := h.load(ctx)
	if cfg != nil && cfg.Master == "" {
		if server != nil { // one without a configuration has no mirror map
			status = h.applyMap(ctx, server, cfg)
		}
		return max(h.next("post-receive"), status)
	}
	if err != nil {
		status = h.notQueued(nil, strings.TrimSuffix(filepath.Base(h.Dir), ".git"), err)
	} else if cfg.Role(server.Hostname) == mirrorcfg.Master {
		status = h.queue(ctx, server, cfg)
	} else if h.Peer == cfg.Master {
		// What we knew of other servers from a time when we were the master must
		// not decide what may be overwritten there when we are it again.
		err := errors.Join(refset.Remove(h.Dir), h.received(server))
		if err != nil { // the master is right to call its push a success
			logError(server, "mirror push not recorded", err, "repository", cfg.Name)
		}
	}
	if err == nil {
		status = max(status, h.applyMap(ctx, server, cfg))
	}
	if next := h.next("post-receive"); next != 0 {
		return next
	}
	return status
}

// queue writes the event and waits for synchronous peers.
func (h *Hook) queue(ctx context.Context, server *mirrorcfg.Server, cfg *mirrorcfg.Repo) int {
	// A list that cannot be expanded does not take the other along.
	peers, badSlaves := cfg.Expand(server.Hostname, mirrorcfg.SlavesKey)
	synchronous, badSync := cfg.Expand(server.Hostname, mirrorcfg.SyncKey)
	for _, peer := range synchronous {
		if !slices.Contains(peers, peer) {
			peers = append(peers, peer)
		}
	}
	status := 0
	err := errors.Join(badSlaves, badSync)
	switch {
	case err != nil && len(peers) > 0:
		status = h.fatal(server, fmt.Errorf("the push is stored, but queued only for %s: %w: correct the git config on %s",
			strings.Join(peers, " "), err, server.Hostname))
	case err != nil:
		return h.notQueued(server, cfg.Name, err)
	case len(peers) == 0:
		return 0
	}
	id, err := Enqueue(server, h.Programs, inbox.Event{Repository: cfg.Name, Peers: peers, Origin: inbox.OriginList}, h.Stderr)
	if err != nil {
		return h.notQueued(server, cfg.Name, err)
	}
	h.behind(server, cfg.Name, peers)
	if len(synchronous) > 0 {
		status = max(status, h.await(ctx, server, id, cfg.Name, synchronous))
	}
	return status
}

// notQueued says what did not happen and how to make up for it. Server is nil
// when it is not known.
func (h *Hook) notQueued(server *mirrorcfg.Server, repo string, err error) int {
	hostname := "this server"
	if server != nil {
		hostname = server.Hostname
	}
	return h.fatal(server, fmt.Errorf("the push is stored, but NOT queued for mirroring: %w: when that is mended, run on %s: mirror-shell request-push %s",
		err, hostname, repo))
}

// awaitGrace is for a mirrord that does not keep to its own time.
const awaitGrace = 10 * time.Second

// await waits until the worker is done with the synchronous peers, or has
// failed, or stall_timeout is over. Mirrord prints the results.
func (h *Hook) await(ctx context.Context, server *mirrorcfg.Server, event, repo string, peers []string) int {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(server.Worker.StallTimeout)+awaitGrace)
	defer cancel()
	argv := append([]string{filepath.Join(h.Programs, "mirrord"), "--config", server.File, "await", "--event", event,
		"--timeout", time.Duration(server.Worker.StallTimeout).String(), "--", repo}, peers...)
	cmd := proc.Command(ctx, proc.Env(), argv...)
	cmd.Stdout, cmd.Stderr = h.Stderr, h.Stderr
	if err := cmd.Run(); err != nil {
		if proc.ExitCode(err) < 0 {
			return h.fatal(server, fmt.Errorf("the push is queued, but cannot be waited for: %w", err))
		}
		return 1
	}
	return 0
}

// Enqueue writes one event to the inbox, wakes the worker and tells people on
// stderr, in this order: `(JOB&) frodo ==== (ip1) ===> sam gollum`. It returns
// the event's ID, which is the JOB. An error means that nothing was queued. A
// worker that cannot be woken is told, and is no error: the event is safe, and
// the next worker takes it.
func Enqueue(server *mirrorcfg.Server, programs string, event inbox.Event, stderr io.Writer) (id string, err error) {
	event.Time = time.Now()
	if id, err = inbox.New(server.StateDir).Put(event); err != nil {
		return "", err
	}
	err = Wake(server, programs)
	fmt.Fprintf(stderr, "(%s&) %s ==== (%s) ===> %s\n", id, server.Hostname, event.Repository, strings.Join(event.Peers, " "))
	notWoken(server, err, stderr)
	return id, nil
}

// EnqueueAll is Enqueue for many repositories, of which people are told of the
// first most, and 0 is all. An event that cannot be written is part of the error, and stops no other one.
func EnqueueAll(server *mirrorcfg.Server, programs string, events []inbox.Event, most int, stderr io.Writer) error {
	var problems []error
	queued := 0
	for _, event := range events {
		event.Time = time.Now()
		id, err := inbox.New(server.StateDir).Put(event)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: not queued for %s: %w", event.Repository, strings.Join(event.Peers, " "), err))
			continue
		}
		if queued++; most == 0 || queued <= most {
			fmt.Fprintf(stderr, "(%s&) %s ==== (%s) ===> %s\n", id, server.Hostname, event.Repository, strings.Join(event.Peers, " "))
		}
	}
	if over := queued - most; most > 0 && over > 0 {
		fmt.Fprintf(stderr, "and %d more repositories are queued\n", over)
	}
	if queued > 0 {
		notWoken(server, Wake(server, programs), stderr)
	}
	return errors.Join(problems...)
}

func notWoken(server *mirrorcfg.Server, err error, stderr io.Writer) {
	if err != nil {
		fmt.Fprintf(stderr, "mirror-shell: queued, but no worker could be started: %v\n", err)
		logError(server, "worker not started", err)
	}
}

// Wake tells the running worker, or starts one that leaves when it is done. It
// is detached in every way: a child that kept the hook's standard error open
// would hold the user's push for its whole life.
func Wake(server *mirrorcfg.Server, programs string) error {
	err := inbox.Wake(server.StateDir)
	if !errors.Is(err, inbox.ErrNoWorker) {
		return err
	}
	cmd := exec.Command(filepath.Join(programs, "mirrord"), "--config", server.File, "drain")
	cmd.Env, cmd.Dir = proc.Env(), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startAlone(cmd); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// next goes on with the administrator's own hook, if there is one.
func (h *Hook) next(name string) int {
	if started(h.Path) {
		return 0 // Gitea's script runs what else there is
	}
	path := filepath.Join(filepath.Dir(h.Path), name+nextSuffix)
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	if err == nil && (info.Mode()&0o111 == 0 || isOurs(path)) {
		// The first is how git treats a hook that is not executable; ours under
		// that name, by a mistake in copying, would run itself for ever.
		return 0
	}
	if err == nil {
		err = h.Exec(path, append([]string{path}, os.Args[1:]...), os.Environ())
	}
	return h.fatal(nil, fmt.Errorf("hook %s: %w", path, err))
}

// fatal tells the log, where there is one, and the user. In this order: writing
// to a user who hung up ends the process.
func (h *Hook) fatal(server *mirrorcfg.Server, err error) int {
	if server != nil {
		logError(server, "hook", err, "repository", h.Dir, "peer", h.Peer)
	}
	fmt.Fprintf(h.Stderr, "fatal: %s\n", proc.OneLine(err.Error(), 1000))
	return 1
}

func logError(server *mirrorcfg.Server, message string, err error, args ...any) {
	file, openErr := server.OpenLog()
	if openErr != nil {
		return // the user has been told; there is nobody else
	}
	defer file.Close()
	slog.New(slog.NewTextHandler(file, nil)).Error(message, append(args, "error", err)...)
}
