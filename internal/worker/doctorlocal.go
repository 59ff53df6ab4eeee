package worker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mirror-shell/hooks"
	"mirror-shell/internal/cli"
	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/queue"
	"mirror-shell/internal/refset"
	"mirror-shell/mirrorcfg"
	"mirror-shell/shell"
)

// askTimeout leaves a peer time to ask us back.
const askTimeout = 30 * time.Second

// examineServer looks at the configuration, the programs and the directories.
func (c *command) examineServer(ctx context.Context) []Finding {
	findings := []Finding{{"hostname", ok, fmt.Sprintf("%s (%s)", c.server.Hostname, c.server.File), ""}}
	if info, err := os.Stat(c.server.File); err == nil && info.Mode()&0o022 != 0 {
		findings = append(findings, Finding{"configuration", fail, "others may write to " + c.server.File, "chmod go-w " + c.server.File})
	}
	findings = append(findings, gitVersion(ctx), sshVersion(ctx), loginShell(ctx))
	findings = append(findings, directory("repo_base", c.server.RepoBase, 0o022), directory("state_dir", c.server.StateDir, 0o077))
	if cli.RefuseRoot(c.server) == nil {
		findings = append(findings, auditLog(c.server))
	}
	for _, name := range []string{"mirrord", "pre-receive", "post-receive"} {
		if _, err := os.Stat(c.Sibling(name)); err != nil {
			findings = append(findings, Finding{"programs", fail, err.Error(), "install all four programs into one directory"})
		}
	}
	return append(findings, c.examineCommands()...)
}

func gitVersion(ctx context.Context) Finding {
	version, err := git.Version(ctx)
	if err != nil {
		return Finding{"git", fail, proc.OneLine(err.Error(), 200), "install git"}
	}
	return Finding{"git", ok, version, ""}
}

func sshVersion(ctx context.Context) Finding {
	text, err := proc.Run(proc.Command(ctx, proc.Env(), "ssh", "-V")) // it writes to stderr
	if err != nil {
		return Finding{"ssh", fail, proc.OneLine(err.Error(), 200), "install the OpenSSH client"}
	}
	return Finding{"ssh", ok, proc.OneLine(text, 80), ""}
}

// plainShells run a forced command as it is written.
var plainShells = []string{"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh", "busybox"}

// loginShell: sshd runs forced commands through the account's login shell.
func loginShell(ctx context.Context) Finding {
	var out bytes.Buffer
	cmd := proc.Command(ctx, proc.Env(), "getent", "passwd", strconv.Itoa(os.Getuid()))
	cmd.Stdout = &out
	_, err := proc.Run(cmd)
	fields := strings.Split(strings.TrimSpace(out.String()), ":")
	if err != nil || len(fields) < 7 {
		return Finding{"login shell", warn, "the account's entry cannot be read", "see that its login shell is /bin/sh or another plain one"}
	}
	login := fields[6]
	if !slices.Contains(plainShells, filepath.Base(login)) {
		return Finding{"login shell", fail, login + " does not run forced commands as they are", "chsh -s /bin/sh " + fields[0]}
	}
	return Finding{"login shell", ok, login, ""}
}

// directory must be there, ours, writable, and closed to others by mask.
func directory(key, dir string, mask fs.FileMode) Finding {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && key == "state_dir":
		return Finding{key, ok, dir + " does not exist yet and is made when it is needed", ""}
	case err != nil:
		return Finding{key, fail, err.Error(), "create it, or correct " + key + " in the configuration"}
	case !info.IsDir():
		return Finding{key, fail, dir + " is not a directory", "correct " + key + " in the configuration"}
	}
	if stat, isUnix := info.Sys().(*syscall.Stat_t); isUnix && int(stat.Uid) != os.Getuid() {
		return Finding{key, fail, fmt.Sprintf("%s belongs to uid %d, we run as %d", dir, stat.Uid, os.Getuid()), "run doctor as the hosting user, or chown the directory"}
	}
	probe, err := os.CreateTemp(dir, ".doctor-")
	if err != nil {
		return Finding{key, fail, err.Error(), "make it writable; look for a full disk or a read-only file system"}
	}
	_, err = probe.Write(make([]byte, 4096)) // an empty file needs no room
	err = errors.Join(err, probe.Close(), os.Remove(probe.Name()))
	if err != nil {
		return Finding{key, fail, proc.OneLine(err.Error(), 300), "make room on its disk"}
	}
	if open := info.Mode() & mask; open != 0 {
		return Finding{key, fail, fmt.Sprintf("%s has mode %04o", dir, info.Mode().Perm()), fmt.Sprintf("chmod %04o %s", info.Mode().Perm()&^mask, dir)}
	}
	return Finding{key, ok, dir, ""}
}

// examineRepositories reads every repository's configuration, checks its hooks,
// and returns the peers that any of them names.
func (c *command) examineRepositories(ctx context.Context) ([]Finding, map[string]bool) {
	peers := map[string]bool{}
	names, notServed, err := c.server.Survey()
	var findings []Finding
	if err != nil {
		findings = append(findings, Finding{"repositories", fail, proc.OneLine(err.Error(), 300), "make repo_base and everything below it readable for this user"})
	}
	for _, d := range notServed {
		findings = append(findings, Finding{"repository " + proc.OneLine(d.Path, 200), fail, "it is neither mirrored nor backed up: " + proc.OneLine(d.Reason.Error(), 300),
			"rename it or mend it, or move it out of repo_base"})
	}
	findings = append(findings, c.leftByRestores(names)...)
	counts := map[mirrorcfg.Role]int{}
	var unhooked []string
	for _, name := range names {
		cfg, repo, err := c.server.OpenRepo(ctx, name)
		if err != nil {
			findings = append(findings, Finding{"repository " + name, fail, proc.OneLine(err.Error(), 300), "correct its git config"})
			continue
		}
		if refset.StaleRestoring(repo.Dir) {
			findings = append(findings, Finding{"repository " + name, warn, "a restore was killed as it was going to replace it; pushes are taken again",
				"restore it again, or remove " + refset.RestoringFile(repo.Dir)})
		}
		role := cfg.Role(c.server.Hostname)
		counts[role]++
		if role == mirrorcfg.Local {
			continue
		}
		findings = append(findings, c.addPeers(cfg, role, peers)...)
		if installed, err := hooks.Installed(ctx, repo); err != nil || !installed {
			unhooked = append(unhooked, name)
		}
	}
	detail := fmt.Sprintf("%d master, %d slave, %d local", counts[mirrorcfg.Master], counts[mirrorcfg.Slave], counts[mirrorcfg.Local])
	findings = append(findings, Finding{"repositories", ok, detail, ""})
	if len(unhooked) > 0 {
		return append(findings, Finding{"hooks", fail, fmt.Sprintf("not installed in %d mirrored repositories: %s", len(unhooked), few(unhooked)), "mirror-shell install-hooks --all"}), peers
	}
	return append(findings, Finding{"hooks", ok, "installed in every mirrored repository", ""}), peers
}

// addPeers adds the peers of a repository, and finds lists that cannot be expanded.
func (c *command) addPeers(cfg *mirrorcfg.Repo, role mirrorcfg.Role, peers map[string]bool) []Finding {
	if role == mirrorcfg.Slave {
		peers[cfg.Master] = true
		return nil
	}
	var findings []Finding
	for _, key := range cfg.Lists() {
		list, err := cfg.Expand(c.server.Hostname, key)
		if err != nil {
			findings = append(findings, Finding{"repository " + cfg.Name, fail, proc.OneLine(err.Error(), 300), "correct its git config"})
		}
		for _, peer := range list {
			peers[peer] = true
		}
	}
	return findings
}

// examineKeys looks at authorized_keys and returns the peers it lets in.
func (c *command) examineKeys() ([]Finding, map[string]bool) {
	peers := map[string]bool{}
	home, err := os.UserHomeDir()
	if err != nil {
		return []Finding{{"keys", fail, err.Error(), "set HOME"}}, peers
	}
	file := filepath.Join(home, ".ssh/authorized_keys")
	entries, err := shell.AuthorizedKeys{Path: file}.List()
	if err != nil {
		return []Finding{{"keys", fail, proc.OneLine(err.Error(), 300), "correct " + file}}, peers
	}
	users := 0
	for _, e := range entries {
		if e.Kind == shell.KeyPeer {
			peers[e.Name] = true
		} else {
			users++
		}
	}
	findings := []Finding{{"keys", ok, fmt.Sprintf("peers that may come in: %d, keys of users: %d", len(peers), users), ""}}
	for _, path := range []string{home, filepath.Dir(file), file} {
		if info, err := os.Stat(path); err == nil && info.Mode()&0o022 != 0 {
			findings = append(findings, Finding{"keys", fail, "others may write to " + path + ": sshd ignores the keys", "chmod go-w " + path})
		}
	}
	if matches, _ := filepath.Glob(filepath.Join(home, ".ssh/id_*")); len(matches) == 0 {
		findings = append(findings, Finding{"keys", warn, "no key of this server in ~/.ssh", "ssh-keygen -t ed25519, unless ~/.ssh/config names a key elsewhere"})
	}
	return findings, peers
}

// examineWorker: what guarantees retries is a daemon or a timer.
func (c *command) examineWorker(ctx context.Context) []Finding {
	var findings []Finding
	if q, err := openQueue(ctx, c.server); errors.Is(err, queue.ErrNoRoom) {
		findings = append(findings, Finding{"queue", fail, proc.OneLine(err.Error(), 300), "nothing is wrong with the database"})
	} else if err != nil {
		findings = append(findings, Finding{"queue", fail, proc.OneLine(err.Error(), 300), "mend or move away the database, then run mirror-shell sync"})
	} else {
		q.Close()
		findings = append(findings, Finding{"queue", ok, "jobs table can be opened", ""})
	}
	warnings := c.inboxWarnings()
	for _, text := range warnings {
		findings = append(findings, Finding{"inbox", fail, text, ""})
	}
	if len(warnings) == 0 {
		findings = append(findings, Finding{"inbox", ok, "nothing is stuck", ""})
	}
	holder, running, err := queue.WorkerHolder(c.server.StateDir)
	switch {
	case err != nil:
		return append(findings, Finding{"worker", fail, proc.OneLine(err.Error(), 300), "make state_dir readable"})
	case running && holder.Kind == queue.KindServe:
		return append(findings, c.examineServing(holder))
	}
	if where := timer(ctx); where != "" {
		return append(findings, Finding{"worker", ok, "started by " + where, ""})
	}
	return append(findings, Finding{"worker", fail, "neither mirror-shell serve nor a timer for drain runs: a failed push would not be tried again",
		"run mirror-shell serve as a service, or mirror-shell drain from cron every few minutes"})
}

// examineServing looks at the daemon: it has read the configuration at its start, and a peer that was
// written into it since is a host alias to it that nobody knows.
func (c *command) examineServing(holder queue.Holder) Finding {
	detail := "runs: " + holder.String()
	since := queue.WorkerSince(c.server.StateDir)
	if info, err := os.Stat(c.server.File); err == nil && !since.IsZero() && info.ModTime().After(since) {
		return Finding{"worker", warn, detail + ", which began before " + c.server.File + " was changed last, and does not know of that",
			"restart it, under systemd as root by: systemctl restart mirrord"}
	}
	return Finding{"worker", ok, detail, ""}
}

// timer returns where something starts our worker regularly, "" for nowhere.
func timer(ctx context.Context) string {
	sources := map[string][]byte{}
	var table bytes.Buffer
	cmd := proc.Command(ctx, proc.Env(), "crontab", "-l")
	cmd.Stdout = &table
	if _, err := proc.Run(cmd); err == nil {
		sources["the user's crontab"] = table.Bytes()
	}
	files, _ := filepath.Glob("/etc/cron.*/*")
	for _, file := range append(files, "/etc/crontab") {
		if data, err := os.ReadFile(file); err == nil {
			sources[file] = data
		}
	}
	for where, data := range sources {
		if startsWorker(data) {
			return where
		}
	}
	for _, unit := range []string{"mirror-shell-drain.timer", "mirror-shell-sync.timer"} {
		for _, scope := range [][]string{{"systemctl"}, {"systemctl", "--user"}} {
			if _, err := proc.Run(proc.Command(ctx, proc.Env(), append(scope, "is-active", "--quiet", unit)...)); err == nil {
				return unit
			}
		}
	}
	return ""
}

// startsWorker reports whether a crontab has a line, not a comment, that runs
// the worker.
func startsWorker(crontab []byte) bool {
	lines := bufio.NewScanner(bytes.NewReader(crontab))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "#") || !strings.Contains(line, "mirror") {
			continue
		}
		words := strings.Fields(line)
		for i, word := range words {
			program := filepath.Base(word)
			if (program == "mirror-shell" || program == "mirrord") && slices.ContainsFunc(words[i+1:], func(w string) bool { return w == "drain" || w == "sync" }) {
				return true
			}
		}
	}
	return false
}

func few(names []string) string {
	if len(names) > 3 {
		return strings.Join(names[:3], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}
