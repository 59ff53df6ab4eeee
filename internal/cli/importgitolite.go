package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mirror-shell/internal/durable"
	"mirror-shell/internal/git"
	"mirror-shell/internal/gitolite"
	"mirror-shell/internal/proc"
	"mirror-shell/mirrorcfg"
)

// ImportCmd is import-gitolite [--write].
type ImportCmd struct {
	DryRun         bool   `short:"n" help:"Print what would be done, and change nothing. This is the default."`
	Write          bool   `help:"Do it. Nothing that is there is changed or removed."`
	AuthorizedKeys string `help:"File to read and edit (default: ~/.ssh/authorized_keys)." default:"~/.ssh/authorized_keys" placeholder:"FILE"`
}

// importing is one run of import-gitolite: what it finds is printed, and done where
// write is set.
type importing struct {
	*Program
	write  bool
	server *mirrorcfg.Server
	two    bool         // gitolite 2
	rc     *gitolite.RC // nil for gitolite 2
	todo   int          // what was done, or would be
	failed bool
	conf   []string // the same as lines for gitolite.conf
}

// importGitolite turns gitolite's own mirroring into ours. It only ever adds: a value
// that is set already stays, and differences are told.
func (p *Program) importGitolite(ctx context.Context) error {
	if p.Import.Write && p.Import.DryRun {
		return Usage{"--write does it, --dry-run does not: give one of them"}
	}
	i := &importing{Program: p, write: p.Import.Write}
	if err := i.configuration(ctx); err != nil {
		return err
	}
	if err := i.repositories(ctx); err != nil {
		return err
	}
	if err := i.keys(); err != nil {
		return err
	}
	i.advice()
	if i.failed {
		return Exit(1)
	}
	return nil
}

// say prints one thing that is done, or would be.
func (i *importing) say(what string, args ...any) {
	i.todo++
	verb := "would "
	if i.write {
		verb = ""
	}
	fmt.Fprintf(i.Stdout, verb+what+"\n", args...)
}

// warn prints what a person has to look at.
func (i *importing) warn(what string, args ...any) {
	i.failed = true
	fmt.Fprintf(i.Stdout, "look at this: "+what+"\n", args...)
}

// configuration finds gitolite's name for this server, and writes ours when there is none.
func (i *importing) configuration(ctx context.Context) error {
	home, err := os.UserHomeDir()
	if err != nil {
		return err
	}
	rcFile := filepath.Join(home, ".gitolite.rc")
	text, err := gitolite.ReadRC(rcFile)
	if err != nil {
		return err
	}
	hostname := text.Hostname
	if i.two = text.Two; !i.two {
		if i.rc, err = gitolite.Load(ctx); err != nil {
			return err
		}
		if i.rc.Hostname != "" {
			hostname = i.rc.Hostname
		}
	}
	base := text.RepoBase
	if base != "" && !filepath.IsAbs(base) {
		base = filepath.Join(home, base)
	}
	i.server, err = i.Server()
	switch {
	case err == nil:
		if base != "" && filepath.Clean(base) != i.server.RepoBase {
			i.warn("the repositories are in %s by %s, and in %s by repo_base in %s: let both name one directory", base, rcFile, i.server.RepoBase, i.server.File)
		}
		if hostname != "" && hostname != i.server.Hostname {
			i.warn("this server is %s in %s, and %s in %s: let both name it alike", hostname, rcFile, i.server.Hostname, i.server.File)
		}
		return nil
	case !errors.Is(err, mirrorcfg.ErrNoConfig):
		return err
	case hostname == "":
		return fmt.Errorf("%s does not name this server (HOSTNAME, in version 2 $GL_HOSTNAME): write %s with hostname = \"…\" first",
			rcFile, filepath.Join(home, ".config/mirror-shell/config.toml"))
	}
	return i.newConfiguration(filepath.Join(home, ".config/mirror-shell/config.toml"), hostname, base)
}

// newConfiguration writes a configuration where there is none. base is where gitolite 2 has
// the repositories, "" for where we look for them anyway.
func (i *importing) newConfiguration(file, hostname, base string) error {
	if i.Config != "" {
		file = i.Config
	}
	text := fmt.Sprintf("hostname = %q\n", hostname)
	if i.rc != nil {
		text += fmt.Sprintf("repo_base = %q\n\n[gitolite]\nprograms = %q\n", i.rc.RepoBase, i.rc.Programs)
	} else if base != "" {
		text += fmt.Sprintf("repo_base = %q\n", base)
	}
	var err error
	if i.server, err = mirrorcfg.Parse(file, text); err != nil {
		return err
	}
	i.say("write %s:\n  %s", file, strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  "))
	if !i.write {
		return nil
	}
	if err := durable.MakeDirs(filepath.Dir(file)); err != nil {
		return err
	}
	if err := durable.Create(file, []byte(text)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// repositories turns options into git config. Those of gitolite 2 are our keys already.
func (i *importing) repositories(ctx context.Context) error {
	names, err := i.server.Repositories()
	if err != nil {
		i.warn("%v", err)
	}
	var options map[string]gitolite.Options
	if !i.two {
		if options, err = gitolite.MirrorOptions(ctx, names); err != nil {
			return err
		}
	}
	mirrored := 0
	for _, name := range names {
		cfg, repo, err := i.server.OpenRepo(ctx, name)
		if err != nil {
			i.warn("%s: %v", name, proc.OneLine(err.Error(), 300))
			continue
		}
		keys, err := options[name].Keys()
		if err != nil {
			i.warn("%s: %v", name, err)
			continue
		}
		if cfg.Master != "" || len(keys) > 0 {
			mirrored++
		}
		if options[name].Stranded() && cfg.Master == "" {
			i.warn("%s: it has copies and no master: gitolite serves it to nobody, and here it is not mirrored and users may push to it: set gitolite.mirror.master", name)
		}
		if err := i.repository(ctx, name, repo, keys); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	fmt.Fprintf(i.Stdout, "%d of %d repositories are mirrored\n", mirrored, len(names))
	return nil
}

func (i *importing) repository(ctx context.Context, name string, repo git.Repo, keys map[string]string) error {
	entries, err := repo.Config(ctx, `^gitolite\.mirror\.`)
	if err != nil {
		return err
	}
	now := map[string]string{}
	for _, e := range entries {
		now[strings.ToLower(e.Key)] = e.Value
	}
	var conf []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		conf = append(conf, fmt.Sprintf("    config %s = %s", key, keys[key]))
		old, set := now[strings.ToLower(key)]
		switch {
		case set && strings.Join(strings.Fields(old), " ") == keys[key]:
		case set:
			i.warn("%s: %s is %q, and stays: by gitolite's options it would be %q", name, key, old, keys[key])
		default:
			i.say("set in %s: %s = %s", name, key, keys[key])
			if i.write {
				if err := repo.SetConfig(ctx, key, keys[key]); err != nil {
					return err
				}
			}
		}
	}
	if len(conf) > 0 {
		i.conf = append(append(i.conf, "repo "+name), conf...)
	}
	return nil
}

// keys lets the servers in that gitolite lets in.
func (i *importing) keys() error {
	keys, err := i.Program.keys(i.Import.AuthorizedKeys)
	if err != nil {
		return err
	}
	peers, err := keys.ForeignPeers()
	if err != nil {
		i.warn("%v", err)
	}
	for _, peer := range peers {
		if peer.Ours {
			continue
		}
		i.say("let peer %s in with the key of line %d of %s, %s", peer.Name, peer.Line, keys.Path, peer.Fingerprint)
		if !i.write {
			continue
		}
		if _, _, err := keys.Import(peer); err != nil {
			return err
		}
	}
	return nil
}

// advice is what cannot be done here, because gitolite would undo it or it is not ours.
func (i *importing) advice() {
	if len(i.conf) > 0 {
		fmt.Fprintf(i.Stdout, "For gitolite.conf, so that it also holds for repositories that gitolite makes anew (needs GIT_CONFIG_KEYS => 'gitolite\\.mirror\\..*',):\n  %s\n",
			strings.Join(i.conf, "\n  "))
	}
	switch {
	case i.todo == 0:
		fmt.Fprintln(i.Stdout, "there is nothing to import that is not here already")
	case !i.write:
		fmt.Fprintf(i.Stdout, "nothing was changed; to do these %d things: mirror-shell import-gitolite --write\n", i.todo)
	case i.two:
		fmt.Fprintln(i.Stdout, "next: remove gitolite's own post-receive hook for mirroring, then mirror-shell install-hooks --all, and mirror-shell doctor")
	default:
		fmt.Fprintln(i.Stdout, "next: take 'Mirroring' out of ENABLE in ~/.gitolite.rc, then mirror-shell install-hooks --gitolite, and mirror-shell doctor\n"+
			"gitolite warns of the servers' keys, which stand twice now: remove keydir/server-*.pub from gitolite-admin when all servers have ours")
	}
}
