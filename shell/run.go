package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/gitolite"
	"mirror-shell/internal/lazyregexp"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/repos"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// Session is one authenticated client with its streams.
type Session struct {
	Server *mirrorcfg.Server
	// Mirrord is the path of the worker program, which runs foreground pushes.
	Mirrord     string
	GitProtocol string // the client's GIT_PROTOCOL
	Command     string // SSH_ORIGINAL_COMMAND
	From        string // the client's address, for the log
	Stdin       io.Reader
	Stdout      io.Writer
	Stderr      io.Writer
	Log         *slog.Logger
	// Audit adds one line to the audit log. Where it is nil or fails, Log gets what
	// the line would have said.
	Audit func(line []byte) error
	Key   string // fingerprint of the client's key, for the audit log; "": not known
	// Exec runs a program as the rest of the session and returns its exit
	// status. Under sshd it replaces this process and does not return.
	Exec func(ctx context.Context, env []string, argv ...string) (int, error)

	// BeginPush does the hooks' part of a push by the verb mirror-push; see PushTaker.
	// Where it is nil, git runs the hooks.
	BeginPush func(context.Context, Push, []sendpack.Command) (settings []string, done func(), err error)
	// HooksInstalled reports whether git would run our hooks in a repository.
	HooksInstalled func(context.Context, git.Repo) (bool, error)
	// InstallHooks puts our hooks into a repository that a master creates; where it is nil,
	// none is created.
	InstallHooks func(context.Context, git.Repo) error

	patience time.Duration // for the authorize command; 0: authorizeTimeout
	trail    trail

	looked time.Time   // when the repository's configuration was read
	opened fs.FileInfo // its directory then, nil for none
}

// Push is a push of the master that was allowed.
type Push struct {
	Config *mirrorcfg.Repo
	Repo   git.Repo
	Peer   string
}

// ServePeer carries out the command of a peer and returns the exit status.
func (s *Session) ServePeer(ctx context.Context, peer Peer) (status int) {
	who := "peer " + peer.name
	s.trail.peer = peer.name
	defer s.auditEnd(&status)
	req, facts, repo, err := s.prepare(ctx)
	if err != nil {
		if req.Verb == UploadPack && req.Repo != "" { // the error would say that the repository exists
			err = hidden{DecidePeer(Facts{Hostname: facts.Hostname}, peer, req).Message, err}
		}
		return s.refuse(who, err)
	}
	if facts.Renamed != "" && !s.knows(ctx, peer, facts.Renamed) {
		facts.Renamed = ""
	}
	d := DecidePeer(facts, peer, req)
	env := []string{mirrorcfg.EnvPeer + "=" + peer.name}
	if d.User.name != "" { // a redirected push is the user's, and has the user's rights
		env = []string{mirrorcfg.EnvUser + "=" + d.User.name}
	} else if req.Verb == ReceivePack || req.Verb == MirrorPush {
		env = append(env, s.Server.Gitolite.Environ()...)
	}
	return s.run(ctx, who, d, req, facts, repo, env, peer.name)
}

// ServeUser carries out the command of a user and returns the exit status.
func (s *Session) ServeUser(ctx context.Context, user User) (status int) {
	who := "user " + user.name
	s.trail.user = user.name
	defer s.auditEnd(&status)
	req, facts, repo, err := s.prepare(ctx)
	if err != nil {
		if req.Repo != "" { // the error says that the repository exists
			if denied := s.authorize(ctx, Decision{Access: Read, User: user}, req); denied != nil {
				err = hidden{denied.Error(), err}
			}
		}
		return s.refuse(who, err)
	}
	env := []string{mirrorcfg.EnvUser + "=" + user.name}
	if facts.Repo == nil && facts.Renamed != "" {
		if told, ok := s.renamedFor(ctx, user, req, facts.Renamed); ok {
			return s.refuse(who, told)
		}
	}
	return s.run(ctx, who, DecideUser(facts, user, req), req, facts, repo, env, user.name)
}

// prepare parses the command and looks up what the decision needs. With an
// error, Request.Repo is "" when the command is to blame, and else the name of
// the repository that is.
func (s *Session) prepare(ctx context.Context) (Request, Facts, git.Repo, error) {
	req, err := Parse(s.Command)
	s.trail.request = req
	if err != nil || req.Repo == "" {
		return req, Facts{Hostname: s.Server.Hostname}, git.Repo{}, err
	}
	s.looked = time.Now()
	s.opened, _ = s.stat(req) // before the configuration is read
	facts, repo, err := s.look(ctx, req)
	return req, facts, repo, err
}

// look finds out what a decision about a repository depends on.
func (s *Session) look(ctx context.Context, req Request) (Facts, git.Repo, error) {
	facts := Facts{Hostname: s.Server.Hostname, Gitolite: s.Server.Gitolite.Programs != ""}
	cfg, repo, err := s.Server.OpenRepo(ctx, req.Repo)
	if errors.Is(err, mirrorcfg.ErrNoRepo) {
		facts.Renamed = repos.NewName(s.Server, req.Repo)
		repo, err = git.Repo{}, nil
	}
	facts.Repo = cfg
	if err == nil {
		err = s.lookFurther(ctx, req, &facts)
	}
	return facts, repo, err
}

// hidden is an error of which the client is told less than the log.
type hidden struct {
	told  string
	cause error
}

func (h hidden) Error() string { return h.told }
func (h hidden) Unwrap() error { return h.cause }

// refuse tells the client and the log, and returns exit status 1.
func (s *Session) refuse(who string, reason error) int {
	s.auditRefused(who, reason) // first: the client may be gone
	fmt.Fprintf(s.Stderr, "fatal: %s\n", proc.OneLine(reason.Error(), 400))
	return 1
}

func (s *Session) run(ctx context.Context, who string, d Decision, req Request, facts Facts, repo git.Repo, env []string, name string) int {
	if err := s.authorize(ctx, d, req); err != nil {
		return s.refuse(who, err)
	}
	if d.Action == Refuse {
		return s.refuse(who, errors.New(d.Message))
	}
	s.auditAllowed(who, d) // first: who does not read what we say ends or holds us
	if d.Message != "" {
		fmt.Fprintln(s.Stderr, d.Message)
	}
	switch d.Action {
	case Greet:
		return s.greet(ctx, name, d.User, req)
	case SetMeta:
		return s.told(who, s.setMeta(ctx, Peer{d.Host}, req))
	case TakeWild:
		return s.told(who, s.takeWild(ctx, req, Peer{d.Host}, facts.Repo != nil))
	case CreateRepo:
		return s.told(who, s.create(ctx, d.Host, req.Repo))
	case DeleteRepo:
		return s.told(who, s.delete(ctx, d.Host, req.Repo))
	case RenameRepo:
		return s.told(who, s.rename(ctx, d.Host, req))
	case TellDone:
		return s.told(who, s.done(Done{Done: d.Done}))
	case TellKnown:
		return s.told(who, s.tellKnown(ctx, repo))
	case TellRescued:
		return s.told(who, s.tellRescued(ctx, repo))
	case Redirect:
		redirected := Request{Verb: RedirectedPush, User: d.User.name, Repo: req.Repo}
		return s.exec(ctx, who, proc.Env(), s.redirect(d.Host, redirected)...)
	case Digests:
		return s.exec(ctx, who, proc.Env(), s.Mirrord, "--config", s.Server.File, "mirror-digest", "--", d.Host)
	case TakePush:
		if err := s.takePush(ctx, Push{facts.Repo, repo, d.Host}, req, proc.Env(append(env, s.gitEnv(req)...)...)); err != nil {
			return s.refuse(who, err)
		}
		return 0
	case PushNow:
		return s.exec(ctx, who, proc.Env(), s.Mirrord, "--config", s.Server.File, "request-push", "--fg", "--", req.Repo, d.Host)
	}
	return s.runGit(ctx, who, d, req, facts.Repo, repo, env)
}

// aliveMissed is how many questions of ssh's may stay without an answer.
const aliveMissed = 3

// redirect is the command that passes a push on. It takes our place, and nobody
// watches it: a master that accepts the connection and then is silent would keep
// the user waiting for ever, and ssh running here long after the user has gone.
func (s *Session) redirect(host string, r Request) []string {
	seconds := max(aliveMissed, int(time.Duration(s.Server.Worker.StallTimeout)/time.Second))
	return slices.Insert(proc.SSH(host, r.Command()), 1,
		fmt.Sprintf("-oConnectTimeout=%d", seconds),
		fmt.Sprintf("-oServerAliveInterval=%d", seconds/aliveMissed),
		fmt.Sprintf("-oServerAliveCountMax=%d", aliveMissed))
}

// gitProtocol is what a client's GIT_PROTOCOL may look like.
var gitProtocol = lazyregexp.New(`^[a-z0-9=:.-]{1,64}$`)

// runGit hands the session to git, or to the program that [users] exec names.
func (s *Session) runGit(ctx context.Context, who string, d Decision, req Request, cfg *mirrorcfg.Repo, repo git.Repo, env []string) int {
	env = append(env, s.gitEnv(req)...)
	if gitProtocol.MatchString(s.GitProtocol) {
		env = append(env, "GIT_PROTOCOL="+s.GitProtocol)
	}
	verb := req.Verb
	if verb == RedirectedPush {
		verb = ReceivePack
	}
	if d.User.name != "" {
		env = append(env, "GL_USER="+d.User.name)
		if cmd := s.Server.Users.Exec; len(cmd) > 0 {
			env = append(env, "SSH_ORIGINAL_COMMAND="+Request{Verb: verb, Repo: req.Repo}.Command())
			env = append(env, settingsEnv(s.fsck())...)
			return s.exec(ctx, who, proc.Env(env...), append(append([]string{}, cmd...), d.User.name)...)
		}
	}
	argv := gitArgs(verb, repo.Dir, d.User.name == "")
	if verb == ReceivePack {
		if why := refset.WhyRestoring(repo.Dir); why != "" { // before anything is uploaded, and where no hooks are, too
			return s.refuse(who, fmt.Errorf("%s: push refused: %s", s.Server.Hostname, why))
		}
		argv = slices.Insert(argv, 1, s.fsck()...)
	}
	if verb == ReceivePack && d.User.name == "" {
		settings, err := mirrorHooks(s.Server, cfg, repo)
		if err != nil {
			return s.refuse(who, err)
		}
		argv = slices.Insert(argv, 1, settings...)
	}
	if d.AnyObject { // with version 2 of the protocol, everybody may; a server need not take that
		argv = slices.Insert(argv, 1, "-c", "uploadpack.allowAnySHA1InWant=true")
	}
	return s.exec(ctx, who, proc.Env(env...), argv...)
}

// told is the exit status of what a session did itself.
func (s *Session) told(who string, err error) int {
	if err != nil {
		return s.refuse(who, err)
	}
	return 0
}

// takePush takes a push of the master without showing refs first.
func (s *Session) takePush(ctx context.Context, push Push, req Request, env []string) error {
	taker := PushTaker{Config: push.Config, Repo: push.Repo, Host: s.Server.Hostname, Stderr: s.Stderr, Env: env, Settings: s.fsck()}
	taker.Still = func(ctx context.Context) error { return s.still(ctx, Peer{push.Peer}, req) }
	taker.Begin = func(ctx context.Context, commands []sendpack.Command) (settings []string, done func(), err error) {
		if s.BeginPush != nil {
			if settings, done, err = s.BeginPush(ctx, push, commands); err != nil || len(settings) > 0 {
				return settings, done, err
			}
		}
		settings, err = mirrorHooks(s.Server, push.Config, push.Repo)
		return settings, done, err
	}
	if HasNote(s.Server, req.Repo) {
		taker.After = func(ctx context.Context) string { return Note(ctx, s.Server, req.Repo, push.Repo) }
		taker.HeadFirst = true
	}
	return taker.Serve(ctx, s.Stdin, s.Stdout)
}

// mirrorHooks are the settings for git by which a mirror push does not run gitolite's
// update hook.
func mirrorHooks(server *mirrorcfg.Server, cfg *mirrorcfg.Repo, repo git.Repo) ([]string, error) {
	dir, err := gitolite.MirrorHooks(server, cfg, repo)
	if err != nil || dir == "" {
		return nil, err
	}
	return []string{"-c", "core.hooksPath=" + dir}, nil
}

// gitEnv is what the hooks of a push find in their environment.
func (s *Session) gitEnv(req Request) []string {
	return []string{mirrorcfg.EnvConfig + "=" + s.Server.File, "GL_REPO=" + req.Repo}
}

// mirrorReceive is the git command that takes a mirror push, with more settings
// ("-c", "NAME=VALUE", …).
func mirrorReceive(dir string, settings ...string) []string {
	argv := gitArgs(ReceivePack, dir, true)
	return slices.Insert(argv, 1, settings...)
}

// gitArgs is the git command for a verb. Rescued commits are hidden from
// everybody. A mirror push is not bound by rules that are meant for users: with
// denyNonFastForwards (which `git init --shared` sets) a slave would refuse a
// rewritten branch for ever.
func gitArgs(verb Verb, dir string, peer bool) []string {
	argv := []string{"git", "-c", "transfer.hideRefs=refs/mirror"}
	switch verb {
	case ReceivePack:
		if peer {
			argv = append(argv, "-c", "receive.denyNonFastForwards=false", "-c", "receive.denyDeletes=false",
				"-c", "receive.denyDeleteCurrent=ignore")
		}
		return append(argv, "receive-pack", "--", dir)
	case UploadPack:
		return append(argv, "upload-pack", "--strict", "--", dir)
	}
	return append(argv, "upload-archive", dir) // takes no "--"; dir begins with a slash
}

func (s *Session) exec(ctx context.Context, who string, env []string, argv ...string) int {
	status, err := s.Exec(ctx, env, argv...)
	if err != nil {
		return s.refuse(who, fmt.Errorf("%s: cannot run %s: %w", s.Server.Hostname, filepath.Base(argv[0]), err))
	}
	return status
}

// authorizeTimeout bounds the authorize command: a session that waits for it
// holds a connection.
const authorizeTimeout = 30 * time.Second

// authorize asks the administrator's command whether the user may. It is asked
// on the slave and on the master for a redirected push: each has its say.
func (s *Session) authorize(ctx context.Context, d Decision, req Request) error {
	cmd := s.Server.Users.Authorize
	if d.Access == NoAccess || len(cmd) == 0 {
		return nil
	}
	allowed, err := s.ask(ctx, cmd, d.User, d.Access, req.Repo)
	if allowed {
		return nil
	}
	denied := notForUser(s.Server.Hostname, d.User, req).Message
	if err != nil {
		return hidden{denied, fmt.Errorf("authorize command: %w", err)}
	}
	return errors.New(denied)
}

// ask runs the authorize command. Only exit status 0 allows; an error is a
// command that could not be run or was ended.
func (s *Session) ask(ctx context.Context, cmd []string, user User, access Access, repo string) (bool, error) {
	timeout := s.patience
	if timeout == 0 {
		timeout = authorizeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	argv := append(append([]string{}, cmd...), user.name, string(access), repo)
	_, err := proc.Run(proc.Command(ctx, proc.Env(mirrorcfg.EnvConfig+"="+s.Server.File), argv...))
	if proc.ExitCode(err) > 0 {
		return false, nil
	}
	return err == nil, err
}

// ExecReplace replaces this process, so that nothing of ours stays between sshd
// and git. It returns only when that failed.
func ExecReplace(_ context.Context, env []string, argv ...string) (int, error) {
	path, err := lookPath(argv[0])
	if err != nil {
		return 1, err
	}
	return 1, sysExec(path, argv, env)
}
