package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"mirror-shell/hooks"
	"mirror-shell/internal/git"
	"mirror-shell/internal/gitolite"
	"mirror-shell/internal/inbox"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
	"mirror-shell/shell"
)

// forced serves one ssh session of a peer or a user.
func (p *Program) forced(ctx context.Context) error {
	dropClientEnvironment()
	// A client that closes its end must not end us between two steps, nor keep us from
	// telling the audit log how it ended. Whom we become gets the signal's default again.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	server, err := p.Server()
	if err != nil {
		// The client learns that it is not their fault; the administrator, who
		// may be the client, learns what is.
		fmt.Fprintf(p.Stderr, "fatal: this server cannot work, please tell its administrator: %v\n", err)
		return Exit(1)
	}
	s := p.session(server)
	s.HooksInstalled, s.InstallHooks = hooks.Installed, p.InstallHooksIn
	s.BeginPush = func(ctx context.Context, push shell.Push, commands []sendpack.Command) ([]string, func(), error) {
		return p.beginPush(ctx, s, push, commands)
	}
	return p.serve(ctx, s)
}

// session is one ssh session as sshd describes it, with its logs.
func (p *Program) session(server *mirrorcfg.Server) *shell.Session {
	log := slog.New(slog.DiscardHandler)
	if file, err := server.OpenLog(); err == nil {
		log = slog.New(slog.NewTextHandler(file, nil)) // open for as long as the session
	} else {
		fmt.Fprintf(p.Stderr, "mirror-shell: the log cannot be written: %v\n", err)
	}
	s := &shell.Session{
		Server: server, Mirrord: p.Sibling("mirrord"),
		Command: os.Getenv("SSH_ORIGINAL_COMMAND"), GitProtocol: os.Getenv("GIT_PROTOCOL"), From: os.Getenv("SSH_CONNECTION"),
		Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Log: log, Exec: shell.ExecReplace,
	}
	if server.Log.Audit {
		s.Audit, s.Key = server.AppendAudit, shell.KeyFromSSHD(os.Getenv("SSH_USER_AUTH"))
	}
	return s
}

// InstallHooksIn puts our hooks into a repository.
func (p *Program) InstallHooksIn(ctx context.Context, repo git.Repo) error {
	server, err := p.Server()
	if err != nil {
		return err
	}
	if err := gitolite.LinkHooks(server, repo); err != nil {
		return err
	}
	_, err = hooks.Install(ctx, repo, p.Programs)
	return err
}

// beginPush does what our hooks would do in a push by the verb mirror-push. Where
// there are none but ours, git is told to run none.
func (p *Program) beginPush(ctx context.Context, s *shell.Session, push shell.Push, commands []sendpack.Command) ([]string, func(), error) {
	duties := hooks.MirrorPush{Server: s.Server, Config: push.Config, Repo: push.Repo, Peer: push.Peer, Programs: p.Programs,
		Warn: func(what string, err error) {
			s.Log.Error(what, "error", err, "repository", push.Config.Name, "peer", push.Peer)
			fmt.Fprintf(s.Stderr, "mirror-shell: %s: %s: %v\n", s.Server.Hostname, what, err)
		}}
	alone, err := duties.Begin(ctx, commands)
	if err != nil || !alone {
		duties.Close()
		return nil, nil, err
	}
	return []string{"-c", "core.hooksPath=" + os.DevNull}, duties.Done, nil
}

// dropClientEnvironment forgets what a client could have sent, were sshd told to
// accept it: with a GIT_EXEC_PATH of theirs git would run their programs. The
// configuration file is named by the forced command itself, if at all.
func dropClientEnvironment() {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		ours := strings.HasPrefix(name, "MIRROR_SHELL_") || strings.HasPrefix(name, "GIT_") && name != "GIT_PROTOCOL"
		if ours || strings.HasPrefix(name, "XDG_") || strings.HasPrefix(name, "GL_") || name == "TMPDIR" {
			os.Unsetenv(name)
		}
	}
}

func (p *Program) serve(ctx context.Context, s *shell.Session) error {
	if p.Command == "peer" {
		peer, err := shell.NewPeer(p.Peer.Name)
		if err != nil {
			return err
		}
		return exitWith(s.ServePeer(ctx, peer))
	}
	user, err := shell.NewUser(p.User.Name)
	if err != nil {
		return err
	}
	return exitWith(s.ServeUser(ctx, user))
}

func exitWith(status int) error {
	if status == 0 {
		return nil
	}
	return Exit(status)
}

// requestPush queues a push in the background. An empty list is silent, and
// exit status 1: cron asks for every repository.
func (p *Program) requestPush(ctx context.Context) error {
	server, peers, err := p.PushTargets(ctx)
	if err != nil {
		return err
	}
	if len(peers) == 0 {
		return Exit(1)
	}
	event := inbox.Event{Repository: p.RequestPush.Repo, Peers: peers, Origin: inbox.OriginExplicit}
	if !slices.ContainsFunc(p.RequestPush.Targets, func(w string) bool { return !mirrorcfg.IsKey(w) }) {
		event.Origin = inbox.OriginList
	}
	_, err = hooks.Enqueue(server, p.Programs, event, p.Stderr)
	return err
}

// PushTargets expands what request-push was asked for, and puts the
// repository's name into its clean form. On a repository that this server is not
// the master of, every list is empty, and a peer named is an error.
func (p *Program) PushTargets(ctx context.Context) (*mirrorcfg.Server, []string, error) {
	cmd := &p.RequestPush
	server, err := p.Server()
	if err != nil {
		return nil, nil, err
	}
	cfg, _, err := server.OpenRepo(ctx, cmd.Repo)
	if err != nil {
		return nil, nil, err
	}
	cmd.Repo = cfg.Name
	if len(cmd.Targets) == 0 {
		cmd.Targets = []string{mirrorcfg.SlavesKey}
	}
	if role := cfg.Role(server.Hostname); role != mirrorcfg.Master {
		for _, word := range cmd.Targets {
			if !mirrorcfg.IsKey(word) {
				return nil, nil, fmt.Errorf("%s is not the master of %s (%s here)%s", server.Hostname, cfg.Name, role, pushFrom(cfg))
			}
		}
		return server, nil, nil
	}
	if err := checkPeers(ctx, server, cfg, cmd.Targets); err != nil {
		return nil, nil, err
	}
	peers, err := cfg.Expand(server.Hostname, cmd.Targets...)
	return server, peers, err
}

func pushFrom(cfg *mirrorcfg.Repo) string {
	if cfg.Master == "" {
		return ": set gitolite.mirror.master first"
	}
	return ": run it on " + cfg.Master
}

func (p *Program) keys(file string) (shell.AuthorizedKeys, error) {
	command := []string{p.Sibling("mirror-shell")}
	if p.Config != "" || os.Getenv(mirrorcfg.EnvConfig) != "" {
		// The forced command must find the configuration without our help.
		config, err := mirrorcfg.Locate(p.Config)
		if err != nil {
			return shell.AuthorizedKeys{}, err
		}
		command = append(command, "--config", config)
	}
	if rest, ok := strings.CutPrefix(file, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return shell.AuthorizedKeys{}, err
		}
		file = filepath.Join(home, rest)
	}
	return shell.AuthorizedKeys{Path: file, Command: command}, nil
}

func (p *Program) addKey(kind shell.KeyKind, cmd AddKeyCmd) error {
	keys, err := p.keys(cmd.AuthorizedKeys)
	if err != nil {
		return err
	}
	entry, changed, err := keys.Add(kind, cmd.File)
	if err != nil {
		return err
	}
	what := "already there"
	if changed {
		what = "added"
	}
	fmt.Fprintf(p.Stdout, "%s %s %s: %s %s in %s\n", kind, entry.Name, what, entry.Type, entry.Fingerprint, keys.Path)
	return nil
}

func (p *Program) removeKey(kind shell.KeyKind, cmd NameCmd) error {
	keys, err := p.keys(cmd.AuthorizedKeys)
	if err != nil {
		return err
	}
	removed, err := keys.Remove(kind, cmd.Name)
	for _, e := range removed {
		fmt.Fprintf(p.Stdout, "%s %s removed: %s %s from %s\n", kind, e.Name, e.Type, e.Fingerprint, keys.Path)
		if e.Source != "" {
			fmt.Fprintf(p.Stderr, "mirror-shell: it came from %s in the mirror map's repository, and comes back with the next push there: remove it there, too\n", e.Source)
		}
	}
	return err
}

func (p *Program) listKeys() error {
	keys, err := p.keys(p.ListKeys.AuthorizedKeys)
	if err != nil {
		return err
	}
	entries, err := keys.List()
	if err != nil {
		return err
	}
	if p.ListKeys.JSON {
		if entries == nil {
			entries = []shell.KeyEntry{}
		}
		return json.NewEncoder(p.Stdout).Encode(entries)
	}
	for _, e := range entries {
		origin := ""
		if e.Source != "" {
			origin = "\tfrom " + e.Source + " in the mirror map's repository"
		}
		fmt.Fprintf(p.Stdout, "%s\t%s\t%s\t%s %s%s\n", e.Kind, e.Name, e.File, e.Type, e.Fingerprint, origin)
	}
	return nil
}

// installHooks goes on after a repository that fails: one broken repository
// must not keep the others unprotected.
func (p *Program) installHooks(ctx context.Context) error {
	cmd := p.InstallHooks
	if cmd.Gitolite {
		if cmd.All || len(cmd.Repositories) > 0 {
			return Usage{"--gitolite is for all repositories: name none"}
		}
		return p.installGitoliteHooks(ctx)
	}
	if cmd.All == (len(cmd.Repositories) > 0) {
		return Usage{"name repositories, or give --all"}
	}
	server, err := p.Server()
	if err != nil {
		return err
	}
	err = p.installSelected(ctx, server, cmd.Repositories)
	switch {
	case cmd.All && server.Gitolite.Programs != "":
		fmt.Fprintln(p.Stdout, "Repositories that gitolite makes from now on get the hooks by mirror-shell install-hooks --gitolite, once.")
	case cmd.All:
		fmt.Fprint(p.Stdout, futureHooks(p.Programs))
	}
	return err
}

// installSelected installs the hooks in the repositories that match, and says what it did.
func (p *Program) installSelected(ctx context.Context, server *mirrorcfg.Server, patterns []string) error {
	names, err := server.Select(patterns)
	errs := []error{err}
	changed := 0
	for _, name := range names {
		_, repo, err := server.Find(name)
		if err == nil {
			var changes []string
			changes, err = hooks.Install(ctx, repo, p.Programs)
			for _, line := range changes {
				fmt.Fprintln(p.Stdout, line)
			}
			if len(changes) > 0 {
				changed++
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			fmt.Fprintf(p.Stderr, "mirror-shell: %s: %v\n", name, err)
		}
	}
	fmt.Fprintf(p.Stdout, "%d of %d repositories changed\n", changed, len(names))
	if errors.Join(errs...) != nil {
		if err != nil {
			return err
		}
		return Exit(1)
	}
	return nil
}

// futureHooks says how repositories made later get their hooks.
func futureHooks(programs string) string {
	return fmt.Sprintf(`Repositories that are made from now on get the hooks from git's template:
  mkdir -p ~/.config/mirror-shell/template/hooks
  ln -s %[1]s/pre-receive %[1]s/post-receive ~/.config/mirror-shell/template/hooks/
  git config --global init.templateDir ~/.config/mirror-shell/template
or run this again after making one.
`, programs)
}
