// Package gitolite knows the gitolite 3 that manages the repositories of this account:
// it asks gitolite's own program what its configuration is, and changes nothing
// but the hooks.
//
// What it deals with, by gitolite's names:
//
//	~/.gitolite.rc    a Perl hash, read by asking `gitolite query-rc`
//	GL_BINDIR         the directory of gitolite-shell
//	GL_ADMIN_BASE     ~/.gitolite: the checked-out conf/ and keydir/ of gitolite-admin
//	LOCAL_CODE        the administrator's own directory: lib/, hooks/common/, …
//
// Every file in LOCAL_CODE/hooks/common is linked into the hooks of every repository,
// when one is made and by `gitolite setup --hooks-only`; a file of the same name
// that a repository has of its own is unlinked then. gitolite itself has the hooks update
// (everywhere, for its access rules) and post-update (in gitolite-admin), and
// leaves pre-receive and post-receive to others, which are ours.
package gitolite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// Trigger is what PRE_GIT in gitolite's configuration must have for pushes to be redirected.
const Trigger = "MirrorShell::pre_git"

// mirroringTrigger is in PRE_GIT when 'Mirroring' is in ENABLE: gitolite's own mirroring.
const mirroringTrigger = "Mirroring::pre_git"

// RC is what we need of gitolite's configuration.
type RC struct {
	Programs      string   // GL_BINDIR
	RepoBase      string   // GL_REPO_BASE
	AdminBase     string   // GL_ADMIN_BASE
	LocalCode     string   // LOCAL_CODE, "" when it is not set
	Hostname      string   // HOSTNAME, "" when it is not set
	GitConfigKeys string   // GIT_CONFIG_KEYS: regular expressions, separated by spaces
	PreGit        []string // PRE_GIT
	Program       string   // MIRROR_SHELL, "" when it is not set
}

// Available reports whether gitolite's command is in PATH.
func Available() bool {
	_, err := exec.LookPath("gitolite")
	return err == nil
}

// Load asks gitolite for its configuration.
func Load(ctx context.Context) (*RC, error) {
	if !Available() {
		return nil, fmt.Errorf("gitolite is not in PATH: install gitolite 3, or run this as its account")
	}
	rc := &RC{}
	for name, value := range map[string]*string{"GL_BINDIR": &rc.Programs, "GL_REPO_BASE": &rc.RepoBase, "GL_ADMIN_BASE": &rc.AdminBase,
		"LOCAL_CODE": &rc.LocalCode, "HOSTNAME": &rc.Hostname, "GIT_CONFIG_KEYS": &rc.GitConfigKeys, "MIRROR_SHELL": &rc.Program} {
		lines, err := query(ctx, name)
		if err != nil {
			return nil, err
		}
		*value = strings.Join(lines, "\n")
	}
	var err error
	rc.PreGit, err = query(ctx, "PRE_GIT")
	return rc, err
}

// query returns the value of one variable of gitolite's, a line for each element of a
// list; nothing when it is not set.
func query(ctx context.Context, name string) ([]string, error) {
	out, err := run(ctx, nil, "query-rc", name)
	if proc.ExitCode(err) == 1 && strings.TrimSpace(out) == "" {
		return nil, nil // gitolite's way to say that it is not set
	}
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSpace(out), "\n"), nil
}

// run runs gitolite's command and returns its output, which is there with an error, too.
func run(ctx context.Context, stdin *strings.Reader, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C"), append([]string{"gitolite"}, args...)...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	cmd.Stdout = &out
	if _, err := proc.Run(cmd); err != nil {
		return out.String(), fmt.Errorf("gitolite %s: %w", args[0], err)
	}
	return out.String(), nil
}

// HooksDir is where hooks for all repositories belong.
func (rc *RC) HooksDir() string { return filepath.Join(rc.LocalCode, "hooks/common") }

// PropagateHooks makes gitolite link the hooks into all repositories.
func (rc *RC) PropagateHooks(ctx context.Context) error {
	_, err := run(ctx, nil, "setup", "--hooks-only")
	return err
}

// Problem is something in gitolite's configuration that keeps us from working.
type Problem struct {
	Detail, Do string
	Warning    bool // only a part of it does not work
}

// Problems judges gitolite's configuration against ours. hooksInstalled says whether
// our hooks are in HooksDir.
func (rc *RC) Problems(server *mirrorcfg.Server, program string, hooksInstalled bool) []Problem {
	var found []Problem
	add := func(warning bool, detail, do string) { found = append(found, Problem{detail, do, warning}) }
	if server.Gitolite.Programs != rc.Programs {
		add(false, "gitolite.programs is "+quote(server.Gitolite.Programs)+" in "+server.File,
			fmt.Sprintf("write [gitolite] programs = %q there: without it a peer's push meets gitolite's access rules for users", rc.Programs))
	}
	if filepath.Clean(rc.RepoBase) != server.RepoBase {
		add(false, "gitolite's repositories are in "+rc.RepoBase+", and repo_base is "+server.RepoBase, "let both name one directory")
	}
	if rc.Hostname != "" && rc.Hostname != server.Hostname {
		add(true, "this server is "+rc.Hostname+" in ~/.gitolite.rc, and "+server.Hostname+" in "+server.File+": %HOSTNAME in gitolite.conf is another server's",
			fmt.Sprintf("write HOSTNAME => '%s', in ~/.gitolite.rc, then gitolite setup", server.Hostname))
	}
	if rc.LocalCode == "" {
		add(false, "LOCAL_CODE is not set in ~/.gitolite.rc", `uncomment LOCAL_CODE => "$ENV{HOME}/local", then mirror-shell install-hooks --gitolite`)
	} else if !hooksInstalled {
		add(false, "our hooks are not in "+rc.HooksDir()+": repositories that gitolite makes have none", "mirror-shell install-hooks --gitolite")
	}
	if !allowsKey(rc.GitConfigKeys) {
		add(true, "GIT_CONFIG_KEYS in ~/.gitolite.rc does not allow gitolite.mirror.*", `write GIT_CONFIG_KEYS => 'gitolite\.mirror\..*', to set these keys in gitolite.conf`)
	}
	if !hasTrigger(rc.PreGit, Trigger) {
		add(true, "PRE_GIT in ~/.gitolite.rc does not have "+Trigger+": pushes to a slave are refused, and not redirected",
			copyTrigger+"LOCAL_CODE, and write PRE_GIT => ['"+Trigger+"'],")
	} else if _, err := os.Stat(filepath.Join(rc.LocalCode, triggerFile)); rc.LocalCode != "" && errors.Is(err, fs.ErrNotExist) {
		add(false, filepath.Join(rc.LocalCode, triggerFile)+" is not there, and PRE_GIT names it: gitolite refuses every user's clone and push",
			copyTrigger+rc.LocalCode)
	} else if started := rc.starts(); !sameFile(started, program) {
		add(false, "gitolite starts "+started+", and this is "+program, fmt.Sprintf("write MIRROR_SHELL => '%s', in ~/.gitolite.rc", program))
	}
	if admin := filepath.Join(rc.RepoBase, AdminRepo+".git"); neverCheckedOut(admin) {
		add(false, "gitolite has never checked out "+admin+", as after a restore: its rules and keys are not in force",
			fmt.Sprintf("git --git-dir=%s --work-tree=%s checkout -f, and only then gitolite setup, which would make a commit there of what is in %[2]s now", admin, rc.AdminBase))
	} else if stale, err := rc.stale(); err != nil {
		add(false, "gitolite has not compiled its configuration: "+err.Error(), "gitolite setup")
	} else if stale != "" {
		add(false, "gitolite has not compiled what was pushed to gitolite-admin: "+stale+" is newer than "+filepath.Join(rc.AdminBase, compiled)+": the old rules and keys are in force",
			"gitolite setup, which says what is wrong")
	}
	if hasTrigger(rc.PreGit, mirroringTrigger) {
		add(true, "'Mirroring' is enabled in ~/.gitolite.rc: what has gitolite's own mirroring options is pushed by gitolite, too, and by its git push --mirror",
			"take it out of ENABLE when mirror-shell import-gitolite has nothing left to import")
	}
	return found
}

// copyTrigger says how the trigger comes to where LOCAL_CODE is; that follows.
const copyTrigger = "copy contrib/gitolite/lib (of the Debian package: /usr/share/mirror-shell/gitolite/lib) to "

// triggerFile is the trigger, below LOCAL_CODE.
const triggerFile = "lib/Gitolite/Triggers/MirrorShell.pm"

// usualPrograms are where the trigger looks for mirror-shell unless it is told.
var usualPrograms = [2]string{"/usr/local/bin/mirror-shell", "/usr/bin/mirror-shell"}

// starts is the mirror-shell that the trigger starts.
func (rc *RC) starts() string {
	if rc.Program != "" {
		return rc.Program
	}
	if info, err := os.Stat(usualPrograms[0]); err == nil && info.Mode()&0o111 != 0 {
		return usualPrograms[0]
	}
	return usualPrograms[1]
}

// sameFile reports whether two paths lead to one file: the Debian package has links in
// /usr/bin.
func sameFile(a, b string) bool {
	if a == b {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

func quote(s string) string {
	if s == "" {
		return "not set"
	}
	return s
}

// allowsKey reports whether GIT_CONFIG_KEYS has a pattern for our keys. The patterns are
// Perl's, so this is a guess, by how they are written and by the one that allows all.
func allowsKey(patterns string) bool {
	for pattern := range strings.FieldsSeq(patterns) {
		if pattern == ".*" || strings.HasPrefix(strings.ReplaceAll(pattern, `\`, ""), "gitolite.mirror") || strings.HasPrefix(pattern, "gitolite.*") {
			return true
		}
	}
	return false
}

func hasTrigger(triggers []string, trigger string) bool {
	for _, t := range triggers {
		if name, _, _ := strings.Cut(strings.TrimSpace(t), " "); name == trigger || name == "Gitolite::Triggers::"+trigger {
			return true
		}
	}
	return false
}
