package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Client is a person, or an attacker, with a key: not a unix user of any server.
// Its programs run as root, which they do not notice.
type Client struct {
	Name string
	Dir  string // clients/NAME
	env  *Env
}

// Client returns the client of that name, and makes it when it is new. Its key
// is not known to any server.
func (e *Env) Client(t testing.TB, name string) *Client {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.clients[name]; c != nil {
		return c
	}
	c := &Client{Name: name, Dir: clientDir(e.Root, name), env: e}
	ssh, err := exec.LookPath("ssh")
	if err == nil {
		err = os.MkdirAll(filepath.Join(c.Dir, "bin"), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	key, known := filepath.Join(c.Dir, "key"), filepath.Join(c.Dir, "known_hosts")
	writeFile(t, c.PublicKey(), 0o644, 0, 0, writeKey(t, key, name, 0, 0))
	writeFile(t, known, 0o644, 0, 0, e.knownHosts())
	config := filepath.Join(c.Dir, "ssh_config")
	writeFile(t, config, 0o644, 0, 0, e.sshConfig(key, known))
	// ssh finds its configuration by the unix user, and all clients are one.
	writeFile(t, filepath.Join(c.Dir, "bin/ssh"), 0o755, 0, 0, fmt.Sprintf("#!/bin/sh\nexec %s -F '%s' \"$@\"\n", ssh, config))
	writeFile(t, filepath.Join(c.Dir, "gitconfig"), 0o644, 0, 0,
		"[user]\n\tname = "+name+"\n\temail = "+name+"@example.com\n[init]\n\tdefaultBranch = main\n[advice]\n\tpushUpdateRejected = false\n")
	e.clients[name] = c
	return c
}

// AddUser makes a client and adds its key on the servers named, all when
// none is, with `mirror-shell add-user`.
func (e *Env) AddUser(t testing.TB, name string, servers ...string) *Client {
	t.Helper()
	return e.add(t, "add-user", name, servers)
}

// AddPeer makes a client whose key is that of a peer on the servers named, all
// when none is: an attacker who has another server's key, or a server that has
// no more than a key.
func (e *Env) AddPeer(t testing.TB, name string, servers ...string) *Client {
	t.Helper()
	return e.add(t, "add-peer", name, servers)
}

func (e *Env) add(t testing.TB, command, name string, servers []string) *Client {
	t.Helper()
	c := e.Client(t, name)
	for _, s := range e.pick(t, servers) {
		s.MustRun(t, "mirror-shell", command, c.PublicKey())
	}
	return c
}

func clientDir(root, name string) string { return filepath.Join(root, "clients", name) }

// PublicKey is the client's public key file, NAME.pub.
func (c *Client) PublicKey() string { return filepath.Join(c.Dir, c.Name+".pub") }

// Command prepares a program that the client runs in dir. Its ssh, which git
// runs too, uses the client's key and knows the servers by their names.
func (c *Client) Command(ctx context.Context, dir string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if argv[0] == "ssh" {
		cmd.Path = filepath.Join(c.Dir, "bin/ssh")
	}
	cmd.Dir, cmd.Env = dir, clientEnviron(c.Dir, c.env.Programs)
	return cmd
}

// clientEnviron is the environment of the client with its files in dir.
func clientEnviron(dir, programs string) []string {
	return []string{
		"HOME=" + dir, "USER=client", "LOGNAME=client", "LC_ALL=C",
		"PATH=" + filepath.Join(dir, "bin") + ":" + searchPath(programs),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + filepath.Join(dir, "gitconfig"), "GIT_TERMINAL_PROMPT=0",
	}
}

// Run runs a program as the client and returns how it ended.
func (c *Client) Run(t testing.TB, dir string, argv ...string) Result {
	t.Helper()
	return run(t, c.Command(context.Background(), dir, argv...))
}

// Git runs git as the client in dir and returns its standard output; the test
// fails when the exit status is not 0.
func (c *Client) Git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	return mustRun(t, c.Command(context.Background(), dir, append([]string{"git"}, args...)...))
}
