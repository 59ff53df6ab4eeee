package testenv_test

import (
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// mirrored is gitolite.conf's entry of a repository whose master is gl-frodo.
const mirrored = `
repo ip1
    RW+ = alice
    option mirror.master = gl-frodo
    option mirror.copies = gl-sam gl-gollum
    config gitolite.mirror.hourly = legolas
`

// TestGitolite shows that the hosts of gitolite mirror to each other, and that
// they are what tests with mirror-shell beside or behind them need.
func TestGitolite(t *testing.T) {
	t.Parallel()
	env := testenv.New(t, "frodo")
	alice := env.AddUser(t, "alice")
	hosts := env.Gitolites(t, "gl-frodo", "gl-sam", "gl-gollum")
	for _, g := range hosts {
		g.AddConf(t, mirrored, alice)
	}
	master := hosts[0]

	work := alice.Dir + "/work"
	alice.Git(t, alice.Dir, "clone", "-q", master.URL("ip1"), work)
	alice.Git(t, work, "commit", "-q", "--allow-empty", "-m", "one")
	alice.Git(t, work, "push", "-q", "origin", "HEAD:refs/heads/main")
	want := strings.TrimSpace(alice.Git(t, work, "rev-parse", "HEAD"))
	for _, g := range hosts {
		if !testenv.Poll(func() bool { return g.Host().Refs(t, "ip1")["refs/heads/main"] == want }) {
			t.Errorf("%s does not get alice's push:\n%s", g.Name, g.Host().RefText(t, "ip1"))
		}
	}
	if got := strings.TrimSpace(master.Host().Git(t, "ip1", "config", "gitolite.mirror.hourly")); got != "legolas" {
		t.Errorf("gitolite.mirror.hourly is %q in the repository's config", got)
	}

	r := alice.Run(t, work, "git", "push", hosts[1].URL("ip1"), "HEAD:refs/heads/other")
	if r.Status == 0 || !strings.Contains(r.Stderr, "pushing 'ip1' to copy 'gl-sam' not allowed") {
		t.Errorf("a user's push to a copy: %s", r)
	}

	frodo := env.Server(t, "frodo")
	hosts[1].AddPeer(t, frodo)
	if r := frodo.Run(t, "ssh", "gl-sam", "info"); !strings.Contains(r.Stdout, "hello server-frodo, this is ") {
		t.Errorf("gl-sam greets frodo: %s", r)
	}
	frodo.MustRun(t, "mirror-shell", "add-peer", hosts[1].PublicKey())
	if r := hosts[1].Host().Run(t, "ssh", "frodo", "info"); r.Stdout != "Hello gl-sam, I am frodo.\n" {
		t.Errorf("frodo greets gl-sam: %s", r)
	}
}

// A copy of gitolite's is pushed to, looked at and asked for what only it has,
// although no mirror-shell is there; and its refusal is shown as what it is.
func TestGitoliteAsCopy(t *testing.T) {
	t.Parallel()
	env := testenv.New(t, "frodo")
	alice, frodo := env.AddUser(t, "alice"), env.Server(t, "frodo")
	gl := env.Gitolites(t, "gl-sam")[0]
	gl.AddPeer(t, frodo)
	env.CreateRepo(t, "ip1", map[string]string{"master": "frodo", "slaves": "gl-sam"}, "frodo")
	gl.AddConf(t, "\nrepo ip1\n    RW+ = alice\n    option mirror.master = elsewhere\n    option mirror.copies = gl-sam\n")
	work := alice.Dir + "/work"
	alice.Git(t, alice.Dir, "init", "-q", work)
	push := func(message string) string {
		t.Helper()
		alice.Git(t, work, "commit", "-q", "--allow-empty", "-m", message)
		alice.Git(t, work, "push", "-q", "frodo:ip1", "HEAD:refs/heads/main")
		return strings.TrimSpace(alice.Git(t, work, "rev-parse", "HEAD"))
	}
	arrives := func(oid string) {
		t.Helper()
		if !testenv.Poll(func() bool { return gl.Host().Refs(t, "ip1")["refs/heads/main"] == oid }) {
			t.Fatalf("gl-sam does not get %s:\n%s", oid, frodo.MustRun(t, "mirror-shell", "status", "ip1"))
		}
	}
	shows := func(want string) {
		t.Helper()
		got := ""
		if !testenv.Poll(func() bool {
			got = frodo.MustRun(t, "mirror-shell", "status", "ip1")
			return strings.Contains(got, want)
		}) {
			t.Fatalf("status is\n%swithout %q", got, want)
		}
	}
	frodo.Serve(t)
	defer frodo.StopServe(t)

	one := push("one")
	shows("'frodo' is not the master for 'ip1'")
	gl.AddConf(t, "\nrepo ip1\n    option mirror.master = frodo\n")
	arrives(one)
	shows("(HEAD was not sent: gl-sam has not enabled gitolite's symbolic-ref")
	if out := frodo.MustRun(t, "mirror-shell", "sync", "ip1"); !strings.HasPrefix(out, "1 copies compared: 1 equal, 0 pushed, 0 failures") {
		t.Errorf("sync says %q", out)
	}

	// A commit that was made there is fetched before it is overwritten.
	host := gl.Host()
	only := strings.TrimSpace(host.Git(t, "ip1", "commit-tree", "-p", one, "-m", "only here", one+"^{tree}"))
	host.Git(t, "ip1", "update-ref", "refs/heads/main", only)
	arrives(push("two"))
	shows(" ok ")
	if out := frodo.MustRun(t, "mirror-shell", "rescued", "ip1"); !strings.Contains(out, "gl-sam/") || !strings.Contains(out, "only here") {
		t.Errorf("rescued: %s", out)
	}
}
