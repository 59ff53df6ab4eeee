package testenv_test

import (
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// The day a server with gitolite dies: it is made to serve again from a vault, with the rules and keys of then.
func TestGitoliteDisaster(t *testing.T) {
	t.Parallel()
	g := testenv.New(t).Gitolites(t, "frodo")[0]
	host := g.Host()
	vault := "[peer.vault]\nkind = \"backup\"\nurl = \"" + host.Home("vault") + "\"\n"
	g.HostMirrorShell(t, vault)
	g.Admin(t, map[string]string{"conf/gitolite.conf": "repo gitolite-admin\n    RW+ = gitolite-administrator\nrepo ip1\n    RW+ = alice\n"})
	before := host.Git(t, "gitolite-admin", "rev-parse", "master")
	host.MustRun(t, "mirror-shell", "backup")

	host.MustRun(t, "sh", "-c", "rm -r repositories .gitolite .gitolite.rc local .local .ssh/authorized_keys")
	host.MustRun(t, "mkdir", "repositories")
	host.MustRun(t, "mirror-shell", "restore", "--all", "--in-place")
	host.MustRun(t, "mkdir", "-p", ".gitolite/logs")
	host.MustRun(t, "sh", "-c", "gitolite print-default-rc >.gitolite.rc")
	doctor := func() string {
		t.Helper()
		return host.Run(t, "mirror-shell", "doctor").Stdout
	}
	// gitolite setup needs a key now, and with one it makes a commit of empty rules.
	advice := "git --git-dir=" + host.RepoDir("gitolite-admin") + " --work-tree=" + host.Home(".gitolite") + " checkout -f"
	if got := doctor(); !strings.Contains(got, "fail  gitolite: gitolite has never checked out") || !strings.Contains(got, "→ "+advice) {
		t.Errorf("before:\n%s", got)
	}
	host.MustRun(t, strings.Fields(advice)...)
	host.MustRun(t, "gitolite", "setup")
	g.HostMirrorShell(t, vault)
	if got := doctor(); strings.Contains(got, "fail  gitolite") {
		t.Errorf("after:\n%s", got)
	}
	if after := host.Git(t, "gitolite-admin", "rev-parse", "master"); after != before {
		t.Errorf("gitolite-admin is %s, was %s", after, before)
	}
	if got := host.Run(t, "gitolite", "access", "ip1", "alice", "W"); got.Status != 0 {
		t.Errorf("alice cannot write: %s", got)
	}
	if got := host.MustRun(t, "cat", ".ssh/authorized_keys"); !strings.Contains(got, "gitolite-shell gitolite-administrator") {
		t.Errorf("the administrator's key is not there:\n%s", got)
	}
}
