package testenv_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// hostedConf is gitolite.conf on frodo, and so on sam.
const hostedConf = `
repo gitolite-admin ip1 closed wild/..*
    config gitolite.mirror.master = frodo
    config gitolite.mirror.slaves = sam
repo ip1
    RW+ main = alice
    RW+ topic/ = alice
    -   = alice
    RW+ = @all
    config gitolite.mirror.redirectOK = sam
repo closed
    RW+ = alice
repo wild/..*
    C = alice
    RW+ = CREATOR
`

// Two servers on which gitolite decides what users may do and mirror-shell does the
// mirroring, of gitolite-admin, too.
func TestGitoliteHosts(t *testing.T) {
	t.Parallel()
	env := testenv.New(t, "gollum")
	alice := env.Client(t, "alice")
	frodo, sam := env.Gitolites(t, "frodo")[0], env.Gitolites(t, "sam")[0]
	for _, g := range []*testenv.Gitolite{frodo, sam} {
		g.HostMirrorShell(t, "[accept]\ncreate = [\"wild/**\"]\n")
		g.Introduce(t, alice)
	}
	frodo.PeerWith(t, sam.Host())
	frodo.AddConf(t, hostedConf, alice)
	frodo.Host().Serve(t)
	defer frodo.Host().StopServe(t)

	// sam takes over frodo's gitolite-admin, in place of its own.
	sam.Host().Git(t, "gitolite-admin", "config", "gitolite.mirror.master", "frodo")
	r := frodo.Host().Run(t, "mirror-shell", "sync", "gitolite-admin")
	if r.Status != 1 || !strings.Contains(r.Stderr+r.Stdout, "held") {
		t.Fatalf("a gitolite-admin of another history: %s", r)
	}
	frodo.Host().MustRun(t, "mirror-shell", "approve", "gitolite-admin", "sam")
	hasKey := func(g *testenv.Gitolite, repo, want string) bool {
		r := g.Host().Run(t, "git", "--git-dir="+g.RepoDir(repo), "config", "gitolite.mirror.master")
		return strings.TrimSpace(r.Stdout) == want
	}
	if !testenv.Poll(func() bool { return hasKey(sam, "ip1", "frodo") }) {
		t.Fatal("sam does not compile frodo's gitolite.conf")
	}
	keys := sam.Host().Home(".ssh/authorized_keys")
	text, err := os.ReadFile(keys)
	if err != nil || !strings.Contains(string(text), "gitolite-shell alice\"") || !strings.Contains(string(text), "mirror-shell:peer:frodo.pub") {
		t.Fatalf("sam's authorized_keys, %v:\n%s", err, text)
	}

	// Users come by gitolite-shell; the rest is mirror-shell's.
	work := alice.Dir + "/work"
	alice.Git(t, alice.Dir, "init", "-q", work)
	push := func(url, ref string) testenv.Result {
		t.Helper()
		alice.Git(t, work, "commit", "-q", "--allow-empty", "-m", ref)
		return alice.Run(t, work, "git", "push", url, "HEAD:refs/heads/"+ref)
	}
	arrives := func(repo string) {
		t.Helper()
		if !testenv.Poll(func() bool { return frodo.Host().RefText(t, repo) == sam.Host().RefText(t, repo) }) {
			t.Fatalf("%s on frodo:\n%son sam:\n%s", repo, frodo.Host().RefText(t, repo), sam.Host().RefText(t, repo))
		}
	}
	expect := func(r testenv.Result, status int, text string) {
		t.Helper()
		if (r.Status != 0) != (status != 0) || !strings.Contains(r.Stderr, text) {
			t.Errorf("%swithout %q", r, text)
		}
	}
	expect(push("frodo:ip1", "main"), 0, "frodo ==== (ip1) ===> sam")
	arrives("ip1")
	expect(push("sam:ip1", "topic/one"), 0, "sam ==== alice (ip1) ===> frodo")
	arrives("ip1")
	expect(push("sam:ip1", "forbidden"), 1, "DENIED by refs/.*")
	expect(push("frodo:ip1", "forbidden"), 1, "DENIED by refs/.*")
	expect(push("sam:closed", "main"), 1, "fatal: sam is not the master of closed, please push to frodo")
	if strings.Contains(frodo.Host().RefText(t, "ip1"), "forbidden") {
		t.Error("a forbidden branch was created")
	}
	// Over http gitolite tells the reason, since our standard error is the web server's.
	overHTTP := func(repo string) string {
		return sam.Host().Run(t, "env", "REMOTE_USER=alice", "REMOTE_ADDR=127.0.0.1", "REQUEST_METHOD=GET", "GIT_HTTP_EXPORT_ALL=1", "SERVER_NAME=sam", "SERVER_PORT=80",
			"REQUEST_URI=/git/"+repo+".git/info/refs?service=git-receive-pack", "PATH_INFO=/"+repo+".git/info/refs", "QUERY_STRING=service=git-receive-pack",
			"GIT_PROJECT_ROOT="+sam.Host().Home("repositories"), "GITOLITE_HTTP_HOME="+sam.Host().Home(), "/usr/share/gitolite3/gitolite-shell").Stdout
	}
	for repo, want := range map[string]string{"closed": "ERR FATAL: sam is not the master of closed, please push to frodo", "ip1": "ERR FATAL: mirror-shell: pushes over http cannot be redirected, please push over ssh"} {
		if out := overHTTP(repo); !strings.Contains(out, want) {
			t.Errorf("a push to %s over http, without %q:\n%s", repo, want, out)
		}
	}
	// A log that cannot be written is said to the web server's log, and stops nobody.
	log := filepath.Join(sam.Host().StateDir(), "mirror-shell.log")
	if err := errors.Join(os.Rename(log, log+".1"), os.Mkdir(log, 0o700)); err != nil {
		t.Fatal(err)
	}
	if out := overHTTP("testing"); strings.Contains(out, "ERR ") || !strings.Contains(out, "report-status") {
		t.Errorf("a push to a local repository over http, without a log:\n%s", out)
	}
	if out := overHTTP("closed"); !strings.Contains(out, "ERR FATAL: sam is not the master of closed, please push to frodo") {
		t.Errorf("a refused push over http, without a log:\n%s", out)
	}
	if err := errors.Join(os.Remove(log), os.Rename(log+".1", log)); err != nil {
		t.Fatal(err)
	}
	// Nobody can push to what git cannot read the settings of, and that is told.
	config := filepath.Join(sam.RepoDir("closed"), "config")
	whole, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, []byte("[core"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	expect(push("sam:closed", "main"), 1, "fatal: ")
	if err := os.WriteFile(config, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	// The audit log has what came in by gitolite-shell, too.
	for want, g := range map[string]*testenv.Gitolite{
		`"event":"command","server":"frodo",.*"user":"alice","program":"gitolite-shell","from":"127.0.0.1:[0-9]+","verb":"git-receive-pack","repository":"ip1","result":"allowed"}`: frodo,
		`"user":"alice",.*"repository":"closed","result":"refused","reason":"sam is not the master of closed, please push to frodo"}`:                                               sam,
		`"user":"alice",.*"repository":"closed","result":"refused","reason":"push refused: configuration of closed: git config: `:                                                   sam,
		`"user":"alice",.*"repository":"ip1","result":"refused","reason":"mirror-shell: pushes over http cannot be redirected, `:                                                    sam,
	} {
		audit, err := os.ReadFile(filepath.Join(g.Host().StateDir(), "audit.log"))
		if err != nil || !regexp.MustCompile(want).Match(audit) {
			t.Errorf("the audit log of %s, %v, is without %s:\n%s", g.Name, err, want, audit)
		}
	}
	// Without the trigger the hook refuses.
	rc, err := os.ReadFile(sam.Host().Home(".gitolite.rc"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sam.Host().Home(".gitolite.rc"), []byte(strings.Replace(string(rc), "PRE_GIT", "NO_PRE_GIT", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(push("sam:closed", "main"), 1, "remote: fatal: sam is not the master of closed, please push to frodo")
	// A program that cannot be started is named with the reason, once.
	broken := strings.Replace(string(rc), "MIRROR_SHELL => '", "MIRROR_SHELL => '/nowhere", 1)
	if err := os.WriteFile(sam.Host().Home(".gitolite.rc"), []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	r = push("sam:closed", "main")
	expect(r, 1, "mirror-shell: No such file or directory")
	if strings.Contains(r.Stderr, "WARNING") {
		t.Errorf("perl warns, too: %s", r)
	}
	if err := os.WriteFile(sam.Host().Home(".gitolite.rc"), []byte(strings.Replace(string(rc), "PRE_GIT", "NO_PRE_GIT", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	// … and believes no environment: sshd here accepts what it should not.
	expect(alice.Run(t, work, "env", "MIRROR_SHELL_PEER=frodo", "git", "-c", "core.sshCommand=ssh -o SendEnv=MIRROR_SHELL_PEER", "push", "sam:closed", "HEAD:refs/heads/main"),
		1, "remote: fatal: sam is not the master of closed, please push to frodo")
	if r := sam.Host().Run(t, "mirror-shell", "doctor"); !strings.Contains(r.Stdout, "PRE_GIT in ~/.gitolite.rc does not have MirrorShell::pre_git") {
		t.Errorf("doctor: %s", r)
	}
	if err := os.WriteFile(sam.Host().Home(".gitolite.rc"), rc, 0o600); err != nil {
		t.Fatal(err)
	}

	// A repository made later, on both; its hooks are ours.
	frodo.AddConf(t, "\nrepo later\n    RW+ = alice\n    config gitolite.mirror.master = frodo\n    config gitolite.mirror.slaves = sam\n")
	if !testenv.Poll(func() bool { return hasKey(sam, "later", "frodo") }) {
		t.Fatal("the new repository does not come to sam")
	}
	expect(push("frodo:later", "main"), 0, "frodo ==== (later) ===> sam")
	arrives("later")
	expect(push("sam:later", "main"), 1, "fatal: sam is not the master")
	// A wild one is created on sam, too, with its creator, and is gitolite's there.
	expect(push("frodo:wild/a", "main"), 0, "frodo ==== (wild/a) ===> sam")
	if !testenv.Poll(func() bool { _, err := os.Stat(sam.RepoDir("wild/a")); return err == nil }) {
		t.Fatal("the wild repository is not created on sam")
	}
	arrives("wild/a")
	alice.Git(t, work, "ls-remote", "--exit-code", "sam:wild/a")
	expect(push("sam:wild/a", "main"), 1, "fatal: sam is not the master of wild/a")
	if got := strings.TrimSpace(sam.Host().Git(t, "wild/a", "config", "gitolite.mirror.slaves")); got != "sam" {
		t.Errorf("gitolite.conf is not applied to it on sam: slaves = %q", got)
	}

	// gitolite's update hook, slow for many refs, does not run in a mirror push.
	if out := sam.Host().MustRun(t, "sh", "-c", "cat .gitolite/logs/*"); strings.Contains(out, "bypass") {
		t.Errorf("gitolite's update hook has run:\n%s", out)
	}

	// A gitolite-admin that sam cannot compile comes there all the same: doctor tells.
	if err := os.WriteFile(sam.Host().Home(".gitolite.rc"), []byte(strings.Replace(string(rc), "GIT_CONFIG_KEYS", "NO_KEYS", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	frodo.AddConf(t, "\nrepo notes\n    RW+ = alice\n")
	arrives("gitolite-admin")
	stale := func(g *testenv.Gitolite) bool {
		return strings.Contains(g.Host().Run(t, "mirror-shell", "doctor").Stdout, "fail  gitolite: gitolite has not compiled what was pushed to gitolite-admin")
	}
	if !testenv.Poll(func() bool { return stale(sam) }) || stale(frodo) {
		t.Error("doctor does not see which gitolite has not compiled its configuration")
	}
	// And so does the master's status, where whoever made the change is.
	noted := func() bool {
		return strings.Contains(frodo.Host().Run(t, "mirror-shell", "status", "gitolite-admin").Stdout, "sam: gitolite there has not compiled it")
	}
	if !testenv.Poll(noted) {
		t.Errorf("status does not tell: %s", frodo.Host().Run(t, "mirror-shell", "status", "gitolite-admin"))
	}
	if frodo.Host().MustRun(t, "mirror-shell", "sync", "gitolite-admin"); !noted() {
		t.Error("a comparison takes the note away though nothing is mended")
	}
	if err := os.WriteFile(sam.Host().Home(".gitolite.rc"), rc, 0o600); err != nil {
		t.Fatal(err)
	}
	sam.Host().MustRun(t, "gitolite", "setup")
	if frodo.Host().MustRun(t, "mirror-shell", "sync", "gitolite-admin"); noted() {
		t.Error("a comparison keeps the note though it is mended")
	}
	frodo.AddConf(t, "\nrepo notes2\n    RW+ = alice\n")
	if !testenv.Poll(func() bool { return !noted() }) {
		t.Error("what is mended is still told")
	}

	if out := sam.Host().MustRun(t, "mirror-shell", "install-hooks", "--all"); !strings.Contains(out, "install-hooks --gitolite") || strings.Contains(out, "templateDir") {
		t.Errorf("install-hooks --all beside gitolite: %s", out)
	}
	for _, g := range []*testenv.Gitolite{frodo, sam} {
		if r := g.Host().Run(t, "mirror-shell", "doctor"); !strings.Contains(r.Stdout, "ok    gitolite: ") || !strings.Contains(r.Stdout, "ok    hooks: ") {
			t.Errorf("doctor on %s: %s", g.Name, r)
		}
	}
}
