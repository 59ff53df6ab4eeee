package testenv_test

import (
	"os"
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// pusher is a person with a clone, to whom it does not matter who answers.
type pusher struct {
	*testenv.Client
	work string
}

func newPusher(t *testing.T, c *testenv.Client) pusher {
	t.Helper()
	p := pusher{c, c.Dir + "/work"}
	c.Git(t, c.Dir, "init", "-q", p.work)
	return p
}

// push makes a commit, pushes it, and demands that what comes back has the text; a text
// that begins with "!" is one of a refusal. It returns the commit.
func (p pusher) push(t *testing.T, url, branch, want string) string {
	t.Helper()
	p.Git(t, p.work, "commit", "-q", "--allow-empty", "-m", url+" "+branch)
	r := p.Run(t, p.work, "git", "push", url, "+HEAD:refs/heads/"+branch)
	text, refused := strings.CutPrefix(want, "!")
	if (r.Status != 0) != refused || !strings.Contains(r.Stderr, text) {
		t.Fatalf("%swithout %q", r, want)
	}
	return strings.TrimSpace(p.Git(t, p.work, "rev-parse", "HEAD"))
}

// has waits until a branch has that commit.
func has(t *testing.T, s *testenv.Server, repo, branch, oid string) {
	t.Helper()
	if !testenv.Poll(func() bool {
		r := s.Run(t, "git", "--git-dir="+s.RepoDir(repo), "rev-parse", "-q", "--verify", "refs/heads/"+branch)
		return strings.TrimSpace(r.Stdout) == oid
	}) {
		t.Fatalf("%s on %s does not get %s at %s:\n%s", repo, s.Name, oid, branch, s.RefText(t, repo))
	}
}

// A gitolite with its own mirroring pushes to us, and users' pushes are redirected in both
// directions.
func TestGitoliteAsMaster(t *testing.T) {
	t.Parallel()
	env := testenv.New(t, "sam")
	alice, sam := newPusher(t, env.AddUser(t, "alice")), env.Server(t, "sam")
	gl := env.Gitolites(t, "gl-frodo")[0]
	gl.AddPeer(t, sam)
	sam.MustRun(t, "mirror-shell", "add-peer", gl.PublicKey())
	gl.AddConf(t, `
repo ip1
    RW+ = alice
    - refs/heads/secret = bob
    option mirror.master = gl-frodo
    option mirror.copies = sam
    option mirror.redirectOK = all
repo ip2
    RW+ = alice
    option mirror.master = sam
    option mirror.copies = gl-frodo
    option mirror.redirectOK = gl-frodo
repo ip3
    RW+ = alice
    option mirror.master = gl-frodo
repo wild/..*
    C = alice
    RW+ = CREATOR
    RW = WRITERS
    option mirror.master = gl-frodo
    option mirror.copies = sam
`, alice.Client)
	sam.Configure(t, "[accept]\ncreate = [\"wild/accepted\"]\n")
	env.CreateRepo(t, "ip1", map[string]string{"master": "gl-frodo", "redirectOK": "sam"}, "sam")
	env.CreateRepo(t, "ip2", map[string]string{"master": "sam", "slaves": "gl-frodo", "redirectOK": "true"}, "sam")
	env.CreateRepo(t, "ip3", map[string]string{"master": "gl-frodo", "redirectOK": "sam"}, "sam")
	sam.Serve(t)
	defer sam.StopServe(t)

	if r := gl.Host().Run(t, "ssh", "sam", "info"); r.Stdout != "Hello gl-frodo, I am sam.\n" {
		t.Errorf("sam greets gl-frodo: %s", r)
	}
	has(t, sam, "ip1", "main", alice.push(t, "gl-frodo:ip1", "main", "new branch"))
	has(t, sam, "ip1", "topic", alice.push(t, "sam:ip1", "topic", "sam ==== alice (ip1) ===> gl-frodo"))
	// What its push --mirror deletes and rewrites is deleted and rewritten here, too.
	alice.Git(t, alice.work, "push", "-q", "gl-frodo:ip1", ":refs/heads/topic")
	if !testenv.Poll(func() bool { return !strings.Contains(sam.RefText(t, "ip1"), "topic") }) {
		t.Error("the deletion does not come to sam")
	}
	alice.Git(t, alice.work, "checkout", "-q", "--orphan", "other")
	has(t, sam, "ip1", "main", alice.push(t, "gl-frodo:ip1", "main", "forced update"))

	has(t, gl.Host(), "ip2", "main", alice.push(t, "sam:ip2", "main", "sam ==== (ip2) ===> gl-frodo"))
	has(t, sam, "ip2", "topic", alice.push(t, "gl-frodo:ip2", "topic", "sam ==== (ip2) ===> gl-frodo"))
	has(t, gl.Host(), "ip2", "topic", strings.TrimSpace(alice.Git(t, alice.work, "rev-parse", "HEAD")))

	// It creates its wild repositories here, with creator and permissions, if it may.
	has(t, sam, "wild/accepted", "main", alice.push(t, "gl-frodo:wild/accepted", "main", "new branch"))
	if r := alice.Run(t, alice.Dir, "ssh", "gl-frodo", "perms", "wild/accepted", "+", "WRITERS", "bob"); r.Status != 0 {
		t.Fatal(r)
	}
	has(t, sam, "wild/accepted", "topic", alice.push(t, "gl-frodo:wild/accepted", "topic", "new branch"))
	for file, want := range map[string]string{"gl-creator": "alice", "gl-perms": "WRITERS bob\n"} {
		if got := sam.MustRun(t, "cat", sam.RepoDir("wild/accepted")+"/"+file); got != want {
			t.Errorf("%s is %q", file, got)
		}
	}
	alice.push(t, "gl-frodo:wild/other", "main", "new branch")
	if !testenv.Poll(func() bool {
		log := gl.Host().MustRun(t, "sh", "-c", "cat .gitolite/logs/* repositories/wild/other.git/gl-copy-sam.status 2>&1 || true")
		return strings.Contains(log, "mirror-push rejected: wild/other does not exist here")
	}) {
		t.Error("gl-frodo is not told why its copy is refused")
	}
	if _, err := os.Stat(sam.RepoDir("wild/other")); err == nil {
		t.Error("sam lets gl-frodo create what it may not")
	}

	// Its refusals are shown as what they are.
	alice.push(t, "sam:ip3", "main", "!gl-frodo: 'sam' is not a valid copy for 'ip3'")
	gl.Host().MustRun(t, "git", "ls-remote", "sam:ip2") // a copy may read what is its own
	if r := gl.Host().Run(t, "git", "ls-remote", "sam:other"); r.Status == 0 {
		t.Errorf("a peer reads what is not: %s", r)
	}
}

// Two servers with gitolite's own mirroring become two with ours.
func TestImportGitolite(t *testing.T) {
	t.Parallel()
	env := testenv.New(t, "gollum")
	alice := newPusher(t, env.Client(t, "alice"))
	hosts := env.Gitolites(t, "frodo", "sam")
	for _, g := range hosts {
		g.AddConf(t, `
repo ip1
    RW+ = alice
    option mirror.master = frodo
    option mirror.copies-1 = sam
    option mirror.copies.nosync.2 = gollum
    option mirror.redirectOK = sam merry
`, alice.Client)
	}
	frodo, sam := hosts[0].Host(), hosts[1].Host()
	has(t, sam, "ip1", "main", alice.push(t, "frodo:ip1", "main", ""))

	for _, g := range hosts {
		s := g.Host()
		config, rc := s.Home(".config/mirror-shell/config.toml"), s.Home(".gitolite.rc")
		if err := os.Remove(config); err != nil {
			t.Fatal(err)
		}
		authorized, _ := os.ReadFile(s.Home(".ssh/authorized_keys"))
		dry := s.MustRun(t, "mirror-shell", "import-gitolite")
		for _, want := range []string{"would write " + config, `hostname = "` + s.Name + `"`, "would set in ip1: gitolite.mirror.slaves = sam\n", "would let peer ",
			"would set in ip1: gitolite.mirror.redirectOK = sam\n",
			"    config gitolite.mirror.nosync = gollum", "nothing was changed; to do these 6 things"} {
			if !strings.Contains(dry, want) {
				t.Errorf("on %s, without %q:\n%s", s.Name, want, dry)
			}
		}
		if now, _ := os.ReadFile(s.Home(".ssh/authorized_keys")); string(now) != string(authorized) {
			t.Error("a dry run has changed authorized_keys")
		}
		if _, err := os.Stat(config); err == nil {
			t.Error("a dry run has written the configuration")
		}
		s.MustRun(t, "mirror-shell", "import-gitolite", "--write")
		if out := s.MustRun(t, "mirror-shell", "import-gitolite"); !strings.Contains(out, "there is nothing to import that is not here already") {
			t.Errorf("again: %s", out)
		}
		if text, _ := os.ReadFile(rc); !strings.Contains(string(text), "'Mirroring',") {
			t.Error("gitolite's configuration was changed")
		}
	}
	for _, g := range hosts {
		g.HostMirrorShell(t, "")
	}
	if got := frodo.MustRun(t, "ssh", "sam", "info"); got != "Hello frodo, I am sam.\n" {
		t.Errorf("sam greets frodo: %s", got)
	}
	has(t, sam, "ip1", "main", alice.push(t, "frodo:ip1", "main", "frodo ==== (ip1) ===> sam"))
	has(t, sam, "ip1", "topic", alice.push(t, "sam:ip1", "topic", "sam ==== alice (ip1) ===> frodo"))
	// gitolite goes on managing its keys, and ours stay, when its own of the same servers go.
	bob, err := os.ReadFile(env.Client(t, "bob").PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	hosts[1].Admin(t, map[string]string{"keydir/server-frodo.pub": "", "keydir/bob.pub": string(bob)})
	if got := frodo.MustRun(t, "ssh", "sam", "info"); got != "Hello frodo, I am sam.\n" {
		t.Errorf("sam greets frodo: %s", got)
	}
}
