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
		g.AddUser(t, alice)
		g.AddConf(t, mirrored)
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
