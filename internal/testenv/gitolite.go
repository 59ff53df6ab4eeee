package testenv

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Gitolite is a host of gitolite 3, as the distribution packages it: a unix user
// whose keys and repositories gitolite manages, with an sshd of its own and with
// mirroring switched on. It is a rival in benchmarks, and in tests a foreign peer
// or a server that mirror-shell is put in front of: the unix user also has a key,
// an empty mirror-shell configuration, and our programs in its PATH.
//
// Each host has a gitolite-admin of its own, which an administrator changes by
// pushes. There is nothing else by which a test changes gitolite's state.
type Gitolite struct {
	Name string // gitolite's HOSTNAME, and the alias by which everybody knows it

	env   *Env
	host  *Server // its unix user and sshd; none of Env.Servers
	admin *Client
	clone string // the administrator's clone of gitolite-admin
}

// Gitolites starts a gitolite host for each name, each a peer of all others: its
// key is server-NAME there, and its name an ssh alias. Names must differ from
// those of servers. The hosts end with the test.
//
// Servers that exist by now are ssh aliases, too; AddPeer makes the way back.
func (e *Env) Gitolites(t testing.TB, names ...string) []*Gitolite {
	t.Helper()
	if _, err := exec.LookPath("gitolite"); err != nil {
		t.Fatal("gitolite is not here: install gitolite3, or run .ci/setup")
	}
	number := environments.Add(1)
	admin := e.Client(t, "gitolite-administrator")
	var hosts []*Gitolite
	for _, name := range names {
		account := addAccount(t, number, name, filepath.Join(e.Root, "servers", name, "home"))
		t.Cleanup(func() { account.remove(t) })
		g := &Gitolite{Name: name, env: e, host: newServer(t, e, name, account), admin: admin}
		g.host.StartSSH(t)
		t.Cleanup(func() { g.end(t) })
		hosts = append(hosts, g)
	}
	for _, g := range hosts {
		g.setUp(t)
		g.Introduce(t, admin)
		known := g.host.Home(".ssh/known_hosts")
		g.host.write(t, ".ssh/known_hosts", 0o600, e.knownHosts())
		g.host.write(t, ".ssh/config", 0o600, e.sshConfig(g.host.keyFile(), known))
	}
	for _, g := range hosts {
		keys := map[string]string{}
		for _, other := range hosts {
			if other != g {
				other.introduceTo(t, g.host)
				keys[serverKey(other.Name)] = readFile(t, other.PublicKey())
			}
		}
		if len(keys) > 0 {
			g.Admin(t, keys)
		}
	}
	return hosts
}

// serverKey is where gitolite-admin has the key of a peer.
func serverKey(name string) string { return "keydir/server-" + name + ".pub" }

// gitoliteRC is what is changed in gitolite's default configuration: old, new.
var gitoliteRC = [][2]string{
	{`# HOSTNAME `, `HOSTNAME `},
	{`# 'Mirroring',`, `'Mirroring',`},
	{`# 'mirror',`, `'mirror',`},
	{`=>  '',`, `=>  'gitolite\.mirror\..*',`}, // GIT_CONFIG_KEYS
}

// setUp is what an administrator does on a new host.
func (g *Gitolite) setUp(t testing.TB) {
	t.Helper()
	// Its hooks know no branch of gitolite-admin but master.
	g.host.write(t, ".gitconfig", 0o644, "[user]\n\tname = "+g.Name+"\n\temail = "+g.Name+"@example.com\n[init]\n\tdefaultBranch = master\n")
	g.host.mkdir(t, ".gitolite")
	g.host.mkdir(t, ".gitolite/logs") // print-default-rc fails when it cannot log
	rc := g.host.MustRun(t, "gitolite", "print-default-rc")
	for _, change := range append(gitoliteRC, [2]string{`"foo"`, `'` + g.Name + `'`}) {
		if strings.Count(rc, change[0]) != 1 {
			t.Fatalf("gitolite's default configuration does not have %q once:\n%s", change[0], rc)
		}
		rc = strings.Replace(rc, change[0], change[1], 1)
	}
	g.host.write(t, ".gitolite.rc", 0o600, rc)
	g.host.MustRun(t, "gitolite", "setup", "-pk", g.admin.PublicKey())
}

// end stops sshd and, when the test has failed, shows gitolite's log.
func (g *Gitolite) end(t testing.TB) {
	g.host.StopSSH(t)
	if !t.Failed() {
		return
	}
	logs, _ := filepath.Glob(g.host.Home(".gitolite/logs/*.log"))
	for _, file := range append(logs, g.host.sshdLog()) {
		text, _ := os.ReadFile(file)
		t.Logf("%s, %s:\n%s", g.Name, filepath.Base(file), text[max(0, len(text)-maxLog):])
	}
}

// Admin changes gitolite-admin by a push, after which gitolite has done what it
// says. Files are paths below conf/ and keydir/ with their new content; "" removes one.
func (g *Gitolite) Admin(t testing.TB, files map[string]string) {
	t.Helper()
	dir := g.adminDir(t)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if files[name] == "" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			continue
		}
		writeFile(t, file, 0o644, 0, 0, files[name])
	}
	g.admin.Git(t, dir, "add", "--all")
	g.admin.Git(t, dir, "commit", "-q", "--allow-empty", "-m", "change")
	// A mistake in gitolite.conf is no failure of the push: the commit is stored.
	r := g.admin.Run(t, dir, "git", "push", "-q", "origin", "HEAD:refs/heads/master")
	if r.Status != 0 || strings.Contains(r.Stderr, "FATAL") || strings.Contains(r.Stderr, "WARNING") {
		t.Fatalf("%s does not like its gitolite-admin:\n%s", g.Name, r)
	}
}

// AddConf appends to gitolite.conf, as Admin does, and with the same push, which takes
// gitolite seconds, does what AddUser does for each of the people.
func (g *Gitolite) AddConf(t testing.TB, text string, people ...*Client) {
	t.Helper()
	const conf = "conf/gitolite.conf"
	files := map[string]string{conf: readFile(t, filepath.Join(g.adminDir(t), conf)) + text}
	for _, c := range people {
		g.Introduce(t, c)
		files["keydir/"+c.Name+".pub"] = readFile(t, c.PublicKey())
	}
	g.Admin(t, files)
}

// adminDir is the administrator's clone of gitolite-admin.
func (g *Gitolite) adminDir(t testing.TB) string {
	t.Helper()
	if g.clone == "" {
		g.clone = filepath.Join(g.admin.Dir, "admin-of-"+g.Name)
		g.admin.Git(t, g.admin.Dir, "clone", "-q", g.URL("gitolite-admin"), g.clone)
	}
	return g.clone
}

// AddUser gives a person's key to gitolite, under the person's name, and the
// host's name to the person's ssh. Who may do what is in gitolite.conf.
func (g *Gitolite) AddUser(t testing.TB, c *Client) {
	t.Helper()
	g.Introduce(t, c)
	g.Admin(t, map[string]string{"keydir/" + c.Name + ".pub": readFile(t, c.PublicKey())})
}

// AddPeer gives a server's key to gitolite, as server-NAME, and the host's name
// to the server's ssh: the server can then be the mirror.master of repositories
// here. For pushes the other way, the server needs `mirror-shell add-peer` with
// PublicKey.
func (g *Gitolite) AddPeer(t testing.TB, s *Server) {
	t.Helper()
	g.introduceTo(t, s)
	g.Admin(t, map[string]string{serverKey(s.Name): readFile(t, s.PublicKey())})
}

// Introduce makes the host's name an alias for a person.
func (g *Gitolite) Introduce(t testing.TB, c *Client) {
	t.Helper()
	g.makeAlias(t, filepath.Join(c.Dir, "ssh_config"), filepath.Join(c.Dir, "known_hosts"), 0o644, Account{})
}

// introduceTo makes the host's name an alias for a server's unix user.
func (g *Gitolite) introduceTo(t testing.TB, s *Server) {
	t.Helper()
	g.makeAlias(t, s.Home(".ssh/config"), s.Home(".ssh/known_hosts"), 0o600, s.account)
}

// makeAlias puts the host before everything else in an ssh_config, whose last
// lines stand for all hosts that are not known.
func (g *Gitolite) makeAlias(t testing.TB, config, knownHosts string, mode os.FileMode, owner Account) {
	t.Helper()
	alias := fmt.Sprintf("Host %s\n\tHostName 127.0.0.1\n\tPort %d\n\tUser %s\n\tHostKeyAlias %s\n", g.Name, g.host.Port, g.host.account.Name, g.Name)
	if text := readFile(t, config); !strings.Contains(text, alias) {
		writeFile(t, config, mode, owner.UID, owner.GID, alias+text)
		writeFile(t, knownHosts, mode, owner.UID, owner.GID, readFile(t, knownHosts)+g.Name+" "+g.host.hostKey)
	}
}

// URL is the address of a repository for everybody who knows the host.
func (g *Gitolite) URL(repo string) string { return g.Name + ":" + repo }

// RepoDir is the directory of a repository.
func (g *Gitolite) RepoDir(repo string) string { return g.host.RepoDir(repo) }

// PublicKey is the public key of the host itself, in a file named as
// `mirror-shell add-peer` wants it.
func (g *Gitolite) PublicKey() string { return g.host.PublicKey() }

// Host is the host as a unix user with an sshd, for what has nothing to do with
// gitolite: running programs, looking at refs, stopping sshd. Its repositories
// and authorized_keys are gitolite's.
func (g *Gitolite) Host() *Server { return g.host }

func readFile(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
