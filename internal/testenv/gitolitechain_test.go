package testenv_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// chainConf is gitolite.conf on frodo, the master.
const chainConf = `
repo ip1
    RW+ main = alice
    RW+ topic/ = alice
    -   = alice
    config gitolite.mirror.master = frodo
    config gitolite.mirror.slaves = sam gollum
    config gitolite.mirror.redirectOK = sam gollum
repo wild/..*
    C = alice
    RW+ = CREATOR
    R = READERS
    config gitolite.mirror.master = frodo
    config gitolite.mirror.slaves = sam gollum
`

// copyConf is gitolite.conf on gollum, which has gitolite's own mirroring.
const copyConf = `
repo ip1
    RW+ = alice
    option mirror.master = frodo
    option mirror.copies = gollum
    option mirror.redirectOK = gollum
repo wild/..*
    C = alice
    RW+ = CREATOR
    R = READERS
    option mirror.master = frodo
    option mirror.copies = gollum
`

// chain is three servers that let alice in, and what was typed at them.
type chain struct {
	t             *testing.T
	frodo, gollum *testenv.Gitolite // with mirror-shell, and without
	sam           *testenv.Server   // without gitolite
	alice         pusher
	typed         strings.Builder
}

// A master with gitolite and mirror-shell, a slave with mirror-shell alone, and one with
// gitolite alone. With -v the test shows the session.
func TestGitoliteChain(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	c.pushes()
	c.redirects()
	c.wild()
	for _, s := range []*testenv.Server{c.frodo.Host(), c.sam} {
		r := c.at(s, "mirror-shell", "doctor")
		if r.Status != 0 || strings.Contains(r.Stdout, "warn ") {
			t.Errorf("doctor on %s: %s", s.Name, r)
		}
	}
	t.Logf("the session:\n%s", c.typed.String())
}

func newChain(t *testing.T) *chain {
	env := testenv.New(t, "sam")
	c := &chain{t: t, sam: env.Server(t, "sam"), frodo: env.Gitolites(t, "frodo")[0], gollum: env.Gitolites(t, "gollum")[0]}
	c.alice = newPusher(t, env.AddUser(t, "alice"))
	c.frodo.HostMirrorShell(t, "")
	c.frodo.PeerWith(t, c.sam)
	c.frodo.PeerWithGitolite(t, c.gollum)
	c.gollum.AddConf(t, copyConf, c.alice.Client)
	c.sam.Configure(t, "[accept]\ncreate = [\"wild/**\"]\n")
	env.CreateRepo(t, "ip1", map[string]string{"master": "frodo", "redirectOK": "sam"})
	c.frodo.AddConf(t, chainConf, c.alice.Client)
	for _, s := range []*testenv.Server{c.frodo.Host(), c.sam} {
		s.Serve(t)
		t.Cleanup(func() { s.StopServe(t) })
	}
	return c
}

// at runs a command at a server, and keeps it and its output for the session.
func (c *chain) at(s *testenv.Server, argv ...string) testenv.Result {
	c.t.Helper()
	r := s.Run(c.t, argv...)
	c.keep(s.Name, strings.ReplaceAll(strings.Join(argv, " "), s.Home(), "~"), strings.ReplaceAll(r.Stdout+r.Stderr, s.Home(), "~"))
	return r
}

// by runs a command as alice in her clone, and demands that it ends with that status and
// says the text.
func (c *chain) by(status int, want string, argv ...string) {
	c.t.Helper()
	r := c.alice.Run(c.t, c.alice.work, argv...)
	c.keep("alice", strings.Join(argv, " "), r.Stdout+r.Stderr)
	if (r.Status != 0) != (status != 0) || !strings.Contains(r.Stdout+r.Stderr, want) {
		c.t.Fatalf("%q: %swithout %q", argv, r, want)
	}
}

var blanks = regexp.MustCompile(`[ \t]+\n`)

func (c *chain) keep(who, command, output string) {
	output = strings.ReplaceAll(output, "\x1b[K", "")
	if output != "" && !strings.HasSuffix(output, "\n") {
		output += "\n"
	}
	fmt.Fprintf(&c.typed, "%s$ %s\n%s", who, command, blanks.ReplaceAllString(output, "\n"))
}

// commit makes a commit in alice's clone.
func (c *chain) commit(message string) {
	c.t.Helper()
	c.by(0, "", "git", "commit", "-q", "--allow-empty", "-m", message)
}

// arrives waits until all three have alice's last commit in that branch.
func (c *chain) arrives(branch string) {
	c.t.Helper()
	oid := strings.TrimSpace(c.alice.Git(c.t, c.alice.work, "rev-parse", "HEAD"))
	for _, s := range []*testenv.Server{c.frodo.Host(), c.sam, c.gollum.Host()} {
		has(c.t, s, "ip1", branch, oid)
		c.at(s, "git", "-C", "repositories/ip1.git", "for-each-ref", "--format=%(objectname:short) %(refname) %(subject)")
	}
}

func (c *chain) pushes() {
	c.commit("one")
	c.by(0, "frodo ==== (ip1) ===> sam gollum", "git", "push", "frodo:ip1", "HEAD:refs/heads/main")
	c.arrives("main")
}

// redirects pushes through each slave. What gitolite on frodo forbids alice in one branch
// is forbidden on these ways, too, whatever the slave would allow.
func (c *chain) redirects() {
	for _, way := range []struct{ name, says string }{
		{"sam", "sam ==== alice (ip1) ===> frodo"},
		{"gollum", "frodo ==== (ip1) ===> sam gollum"},
	} {
		c.commit("through " + way.name)
		c.by(0, way.says, "git", "push", way.name+":ip1", "HEAD:refs/heads/topic/"+way.name)
		c.arrives("topic/" + way.name)
		c.by(1, "DENIED by refs/.*", "git", "push", way.name+":ip1", "HEAD:refs/heads/forbidden")
	}
	for _, s := range []*testenv.Server{c.frodo.Host(), c.sam, c.gollum.Host()} {
		if text := s.RefText(c.t, "ip1"); strings.Contains(text, "forbidden") {
			c.t.Errorf("%s has a forbidden branch:\n%s", s.Name, text)
		}
	}
	log := c.frodo.Host().MustRun(c.t, "sh", "-c", "cat .gitolite/logs/*")
	for _, branch := range []string{"main", "topic/sam", "topic/gollum"} {
		if !regexp.MustCompile(`\tupdate\tip1\talice\t.*refs/heads/` + branch + `\t`).MatchString(log) {
			c.t.Errorf("gitolite on frodo has not seen alice's push to %s:\n%s", branch, log)
		}
	}
}

// wild has alice create a repository by a push, and later let others read it.
func (c *chain) wild() {
	slaves := []*testenv.Server{c.sam, c.gollum.Host()}
	c.by(0, "frodo ==== (wild/a) ===> sam gollum", "git", "push", "frodo:wild/a", "HEAD:refs/heads/main")
	for _, s := range slaves {
		if !testenv.Poll(func() bool { _, err := os.Stat(s.RepoDir("wild/a") + "/refs/heads/main"); return err == nil }) {
			c.t.Fatalf("the wild repository is not created on %s", s.Name)
		}
		has(c.t, s, "wild/a", "main", strings.TrimSpace(c.alice.Git(c.t, c.alice.work, "rev-parse", "HEAD")))
	}
	c.by(0, "", "ssh", "frodo", "perms", "wild/a", "+", "READERS", "bob")
	c.at(c.frodo.Host(), "mirror-shell", "sync")
	for _, s := range slaves {
		for file, want := range map[string]string{"gl-creator": "alice", "gl-perms": "READERS bob\n"} {
			if r := c.at(s, "cat", "repositories/wild/a.git/"+file); r.Stdout != want {
				c.t.Errorf("%s on %s is %q", file, s.Name, r)
			}
		}
	}
	c.at(c.frodo.Host(), "mirror-shell", "status")
}
