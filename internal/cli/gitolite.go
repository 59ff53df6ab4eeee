package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mirror-shell/hooks"
	"mirror-shell/internal/git"
	"mirror-shell/internal/gitolite"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
	"mirror-shell/shell"
)

// WhereCmd is gitolite-where USER DIR REPO.
type WhereCmd struct {
	User string `arg:"" help:"Who pushes."`
	Dir  string `arg:"" help:"The repository's directory."`
	Repo string `arg:"" help:"The repository's name."`
}

// gitoliteWhere tells gitolite's trigger where a user's push belongs: one line, "here"
// or "redirect"; or the reason for a refusal on standard error, and exit status 1.
// gitolite has authenticated the user, and has found that they may write. It is as the hook
// is: a repository that is not mirrored is left alone, however broken our configuration is.
func (p *Program) gitoliteWhere(ctx context.Context) error {
	cmd := p.Where
	server, unknown := p.Server()
	refuse := func(err error) error {
		if server != nil {
			p.session(server).AuditPush(cmd.User, cmd.Repo, err)
		}
		fmt.Fprintf(p.Stderr, "fatal: %s\n", proc.OneLine(err.Error(), 400))
		return Exit(1)
	}
	user, err := shell.NewUser(cmd.User)
	if err != nil {
		return refuse(err)
	}
	cfg, err := mirrorcfg.LoadRepo(ctx, cmd.Repo, git.Repo{Dir: cmd.Dir})
	switch {
	case err != nil:
		return refuse(fmt.Errorf("push refused: %w", err))
	case unknown != nil && cfg.Master == "":
		fmt.Fprintln(p.Stdout, "here")
		return nil
	case unknown != nil:
		return refuse(fmt.Errorf("push refused: %s has a master, but whether this server is it cannot be told: %w", cmd.Repo, unknown))
	}
	d := shell.DecideUser(shell.Facts{Hostname: server.Hostname, Repo: cfg}, user, shell.Request{Verb: shell.ReceivePack, Repo: cmd.Repo})
	switch d.Action {
	case shell.RunGit:
		p.session(server).AuditPush(cmd.User, cmd.Repo, nil)
		fmt.Fprintln(p.Stdout, "here")
	case shell.Redirect: // it becomes a session of ours, which tells of it
		if os.Getenv("REQUEST_URI") != "" {
			return refuse(errors.New("mirror-shell: pushes over http cannot be redirected, please push over ssh"))
		}
		fmt.Fprintln(p.Stdout, "redirect")
	default:
		return refuse(errors.New(d.Message))
	}
	return nil
}

// installGitoliteHooks puts our hooks where gitolite takes those for all repositories
// from, and has gitolite link them into the repositories. gitolite unlinks hooks of these
// names that a repository has of its own: they get their second name before.
func (p *Program) installGitoliteHooks(ctx context.Context) error {
	server, err := p.Server()
	if err != nil {
		return err
	}
	rc, err := gitolite.Load(ctx)
	if err != nil {
		return err
	}
	if rc.LocalCode == "" {
		return errors.New(`LOCAL_CODE is not set in ~/.gitolite.rc: uncomment LOCAL_CODE => "$ENV{HOME}/local", there, and run this again`)
	}
	if filepath.Clean(rc.RepoBase) != server.RepoBase {
		return fmt.Errorf("gitolite's repositories are in %s, and repo_base in %s is %s: let both name one directory", rc.RepoBase, server.File, server.RepoBase)
	}
	if err := displaced(server, rc.HooksDir(), true); err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	changes, err := hooks.InstallInto(rc.HooksDir(), p.Programs)
	for _, line := range changes {
		fmt.Fprintln(p.Stdout, line)
	}
	if err != nil {
		return err
	}
	result := p.installSelected(ctx, server, nil)
	if err := displaced(server, rc.HooksDir(), false); err != nil {
		return errors.Join(result, fmt.Errorf("gitolite was not asked to link the hooks: %w", err))
	}
	if err := rc.PropagateHooks(ctx); err != nil {
		return errors.Join(result, err)
	}
	fmt.Fprintf(p.Stdout, "gitolite has linked the hooks in %s into all repositories, and links them into those that it makes\n", rc.HooksDir())
	for _, problem := range rc.Problems(server, p.Sibling("mirror-shell"), true) {
		fmt.Fprintf(p.Stdout, "still to do: %s: %s\n", problem.Detail, problem.Do)
	}
	return result
}

// displaced is an error that names hooks of repositories' own which gitolite would unlink when
// it links those in common into all of them; kept as hooks.Displaced has it. gitolite does
// not ask whether we take what is there for a repository.
func displaced(server *mirrorcfg.Server, common string, kept bool) error {
	names, others, err := server.Survey()
	if err != nil {
		return err
	}
	var gone []string
	look := func(dir string, kept bool) error {
		hooks, err := hooks.Displaced(common, filepath.Join(dir, "hooks"), kept)
		for _, name := range hooks {
			gone = append(gone, filepath.Join(dir, "hooks", name))
		}
		return err
	}
	for _, name := range names {
		_, repo, err := server.Find(name)
		if err == nil {
			err = look(repo.Dir, kept)
		}
		if err != nil {
			return err
		}
	}
	for _, other := range others {
		if err := look(filepath.Join(server.RepoBase, other.Path), false); err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return fmt.Errorf("gitolite would unlink these hooks, for files of the same names in %s, or of those under which ours keep what was there before: %s: "+
		"move them away, and have the file in %[1]s do what they do (GL_REPO is the repository's name there), then run this again",
		common, proc.OneLine(strings.Join(gone, ", "), 1000))
}

// GitoliteProblems looks at gitolite's configuration, on a server where gitolite manages
// the repositories; here is false on others.
func GitoliteProblems(ctx context.Context, server *mirrorcfg.Server, programs string) (problems []gitolite.Problem, here bool, err error) {
	if server.Gitolite.Programs == "" {
		// The admin repository is what every host of gitolite has, and nobody else.
		_, err := os.Stat(filepath.Join(server.RepoBase, "gitolite-admin.git/gl-conf"))
		if err != nil || !gitolite.Available() {
			return nil, false, nil
		}
	}
	rc, err := gitolite.Load(ctx)
	if err != nil {
		return nil, true, err
	}
	hidden, err := hidesRescued(ctx, server)
	if err != nil {
		return nil, true, err
	}
	if !hidden {
		problems = append(problems, gitolite.Problem{Detail: "those who come through gitolite-shell see rescued commits, below refs/mirror/",
			Do: "git config --global transfer.hideRefs refs/mirror", Warning: true})
	}
	installed := rc.LocalCode != "" && hooks.InstalledIn(rc.HooksDir())
	return append(problems, rc.Problems(server, filepath.Join(programs, "mirror-shell"), installed)...), true, nil
}

// hidesRescued reports whether git hides refs/mirror/ in a session that is not ours, by
// what holds for gitolite-admin, which every host of gitolite has.
func hidesRescued(ctx context.Context, server *mirrorcfg.Server) (bool, error) {
	_, repo, err := server.Find("gitolite-admin")
	if err != nil {
		return true, nil // then it is not this that is wrong
	}
	entries, err := repo.Config(ctx, `^(transfer|uploadpack)\.hiderefs$`)
	return slices.ContainsFunc(entries, func(e git.ConfigEntry) bool { return strings.TrimSuffix(e.Value, "/") == "refs/mirror" }), err
}
