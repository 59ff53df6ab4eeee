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

// hosts are two servers on which gitolite decides what users may do, and a user.
type hosts struct {
	t          *testing.T
	frodo, sam *testenv.Gitolite
	alice      pusher
	rc         []byte // sam's gitolite.rc
}

// Two servers on which gitolite decides what users may do and mirror-shell does the
// mirroring, of gitolite-admin, too.
func TestGitoliteHosts(t *testing.T) {
	t.Parallel()
	h := newHosts(t)
	h.takesOver()
	h.users()
	h.http()
	h.unreadable()
	h.audited()
	h.withoutTrigger()
	h.later()
	h.notCompiled()
	if out := h.sam.Host().MustRun(t, "mirror-shell", "install-hooks", "--all"); !strings.Contains(out, "install-hooks --gitolite") || strings.Contains(out, "templateDir") {
		t.Errorf("install-hooks --all beside gitolite: %s", out)
	}
	for _, g := range []*testenv.Gitolite{h.frodo, h.sam} {
		if r := g.Host().Run(t, "mirror-shell", "doctor"); !strings.Contains(r.Stdout, "ok    gitolite: ") || !strings.Contains(r.Stdout, "ok    hooks: ") {
			t.Errorf("doctor on %s: %s", g.Name, r)
		}
	}
}

func newHosts(t *testing.T) *hosts {
	env := testenv.New(t, "gollum")
	h := &hosts{t: t, alice: newPusher(t, env.Client(t, "alice")), frodo: env.Gitolites(t, "frodo")[0], sam: env.Gitolites(t, "sam")[0]}
	for _, g := range []*testenv.Gitolite{h.frodo, h.sam} {
		g.HostMirrorShell(t, "[accept]\ncreate = [\"wild/**\"]\n")
		g.Introduce(t, h.alice.Client)
	}
	h.frodo.PeerWith(t, h.sam.Host())
	h.frodo.AddConf(t, hostedConf, h.alice.Client)
	h.frodo.Host().Serve(t)
	t.Cleanup(func() { h.frodo.Host().StopServe(t) })
	var err error
	if h.rc, err = os.ReadFile(h.sam.Host().Home(".gitolite.rc")); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hosts) push(url, ref string) testenv.Result {
	h.t.Helper()
	h.alice.Git(h.t, h.alice.work, "commit", "-q", "--allow-empty", "-m", ref)
	return h.alice.Run(h.t, h.alice.work, "git", "push", url, "HEAD:refs/heads/"+ref)
}

func (h *hosts) arrives(repo string) {
	h.t.Helper()
	if !testenv.Poll(func() bool { return h.frodo.Host().RefText(h.t, repo) == h.sam.Host().RefText(h.t, repo) }) {
		h.t.Fatalf("%s on frodo:\n%son sam:\n%s", repo, h.frodo.Host().RefText(h.t, repo), h.sam.Host().RefText(h.t, repo))
	}
}

func (h *hosts) expect(r testenv.Result, status int, text string) {
	h.t.Helper()
	if (r.Status != 0) != (status != 0) || !strings.Contains(r.Stderr, text) {
		h.t.Errorf("%swithout %q", r, text)
	}
}

// compiles waits until sam has what frodo's gitolite.conf says of a repository, and reports whether that came.
func (h *hosts) compiles(repo string) bool {
	return testenv.Poll(func() bool {
		r := h.sam.Host().Run(h.t, "git", "--git-dir="+h.sam.RepoDir(repo), "config", "gitolite.mirror.master")
		return strings.TrimSpace(r.Stdout) == "frodo"
	})
}

// setRC gives sam its gitolite.rc with old replaced by new; as it was when both are "".
func (h *hosts) setRC(old, new string) {
	h.t.Helper()
	if err := os.WriteFile(h.sam.Host().Home(".gitolite.rc"), []byte(strings.Replace(string(h.rc), old, new, 1)), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// takesOver: sam takes frodo's gitolite-admin, in place of its own.
func (h *hosts) takesOver() {
	h.sam.Host().Git(h.t, "gitolite-admin", "config", "gitolite.mirror.master", "frodo")
	r := h.frodo.Host().Run(h.t, "mirror-shell", "sync", "gitolite-admin")
	if r.Status != 1 || !strings.Contains(r.Stderr+r.Stdout, "held") {
		h.t.Fatalf("a gitolite-admin of another history: %s", r)
	}
	h.frodo.Host().MustRun(h.t, "mirror-shell", "approve", "gitolite-admin", "sam")
	if !h.compiles("ip1") {
		h.t.Fatal("sam does not compile frodo's gitolite.conf")
	}
	keys := h.sam.Host().Home(".ssh/authorized_keys")
	text, err := os.ReadFile(keys)
	if err != nil || !strings.Contains(string(text), "gitolite-shell alice\"") || !strings.Contains(string(text), "mirror-shell:peer:frodo.pub") {
		h.t.Fatalf("sam's authorized_keys, %v:\n%s", err, text)
	}
}

// users come by gitolite-shell; the rest is mirror-shell's.
func (h *hosts) users() {
	h.expect(h.push("frodo:ip1", "main"), 0, "frodo ==== (ip1) ===> sam")
	h.arrives("ip1")
	h.expect(h.push("sam:ip1", "topic/one"), 0, "sam ==== alice (ip1) ===> frodo")
	h.arrives("ip1")
	h.expect(h.push("sam:ip1", "forbidden"), 1, "DENIED by refs/.*")
	h.expect(h.push("frodo:ip1", "forbidden"), 1, "DENIED by refs/.*")
	h.expect(h.push("sam:closed", "main"), 1, "fatal: sam is not the master of closed, please push to frodo")
	if strings.Contains(h.frodo.Host().RefText(h.t, "ip1"), "forbidden") {
		h.t.Error("a forbidden branch was created")
	}
}

// overHTTP returns what alice's git gets from sam at the beginning of a push over http.
func (h *hosts) overHTTP(repo string) string {
	return h.sam.Host().Run(h.t, "env", "REMOTE_USER=alice", "REMOTE_ADDR=127.0.0.1", "REQUEST_METHOD=GET", "GIT_HTTP_EXPORT_ALL=1", "SERVER_NAME=sam", "SERVER_PORT=80",
		"REQUEST_URI=/git/"+repo+".git/info/refs?service=git-receive-pack", "PATH_INFO=/"+repo+".git/info/refs", "QUERY_STRING=service=git-receive-pack",
		"GIT_PROJECT_ROOT="+h.sam.Host().Home("repositories"), "GITOLITE_HTTP_HOME="+h.sam.Host().Home(), "/usr/share/gitolite3/gitolite-shell").Stdout
}

// http: gitolite tells the reason there, since our standard error is the web server's.
func (h *hosts) http() {
	for repo, want := range map[string]string{"closed": "ERR FATAL: sam is not the master of closed, please push to frodo", "ip1": "ERR FATAL: mirror-shell: pushes over http cannot be redirected, please push over ssh"} {
		if out := h.overHTTP(repo); !strings.Contains(out, want) {
			h.t.Errorf("a push to %s over http, without %q:\n%s", repo, want, out)
		}
	}
	// A log that cannot be written is said to the web server's log, and stops nobody.
	log := filepath.Join(h.sam.Host().StateDir(), "mirror-shell.log")
	if err := errors.Join(os.Rename(log, log+".1"), os.Mkdir(log, 0o700)); err != nil {
		h.t.Fatal(err)
	}
	if out := h.overHTTP("testing"); strings.Contains(out, "ERR ") || !strings.Contains(out, "report-status") {
		h.t.Errorf("a push to a local repository over http, without a log:\n%s", out)
	}
	if out := h.overHTTP("closed"); !strings.Contains(out, "ERR FATAL: sam is not the master of closed, please push to frodo") {
		h.t.Errorf("a refused push over http, without a log:\n%s", out)
	}
	if err := errors.Join(os.Remove(log), os.Rename(log+".1", log)); err != nil {
		h.t.Fatal(err)
	}
}

// unreadable: nobody can push to what git cannot read the settings of, and that is told.
func (h *hosts) unreadable() {
	config := filepath.Join(h.sam.RepoDir("closed"), "config")
	whole, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, []byte("[core"), 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.expect(h.push("sam:closed", "main"), 1, "fatal: ")
	if err := os.WriteFile(config, whole, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// audited: the audit log has what came in by gitolite-shell, too.
func (h *hosts) audited() {
	for want, g := range map[string]*testenv.Gitolite{
		`"event":"command","server":"frodo",.*"user":"alice","program":"gitolite-shell","from":"127.0.0.1:[0-9]+","verb":"git-receive-pack","repository":"ip1","result":"allowed"}`: h.frodo,
		`"user":"alice",.*"repository":"closed","result":"refused","reason":"sam is not the master of closed, please push to frodo"}`:                                               h.sam,
		`"user":"alice",.*"repository":"closed","result":"refused","reason":"push refused: configuration of closed: git config: `:                                                   h.sam,
		`"user":"alice",.*"repository":"ip1","result":"refused","reason":"mirror-shell: pushes over http cannot be redirected, `:                                                    h.sam,
	} {
		audit, err := os.ReadFile(filepath.Join(g.Host().StateDir(), "audit.log"))
		if err != nil || !regexp.MustCompile(want).Match(audit) {
			h.t.Errorf("the audit log of %s, %v, is without %s:\n%s", g.Name, err, want, audit)
		}
	}
}

// withoutTrigger: the hook refuses then.
func (h *hosts) withoutTrigger() {
	h.setRC("PRE_GIT", "NO_PRE_GIT")
	h.expect(h.push("sam:closed", "main"), 1, "remote: fatal: sam is not the master of closed, please push to frodo")
	// A program that cannot be started is named with the reason, once.
	h.setRC("MIRROR_SHELL => '", "MIRROR_SHELL => '/nowhere")
	r := h.push("sam:closed", "main")
	h.expect(r, 1, "mirror-shell: No such file or directory")
	if strings.Contains(r.Stderr, "WARNING") {
		h.t.Errorf("perl warns, too: %s", r)
	}
	h.setRC("PRE_GIT", "NO_PRE_GIT")
	// … and believes no environment: sshd here accepts what it should not.
	h.expect(h.alice.Run(h.t, h.alice.work, "env", "MIRROR_SHELL_PEER=frodo", "git", "-c", "core.sshCommand=ssh -o SendEnv=MIRROR_SHELL_PEER", "push", "sam:closed", "HEAD:refs/heads/main"),
		1, "remote: fatal: sam is not the master of closed, please push to frodo")
	if r := h.sam.Host().Run(h.t, "mirror-shell", "doctor"); !strings.Contains(r.Stdout, "PRE_GIT in ~/.gitolite.rc does not have MirrorShell::pre_git") {
		h.t.Errorf("doctor: %s", r)
	}
	h.setRC("", "")
}

// later: a repository made later, on both; its hooks are ours.
func (h *hosts) later() {
	h.frodo.AddConf(h.t, "\nrepo later\n    RW+ = alice\n    config gitolite.mirror.master = frodo\n    config gitolite.mirror.slaves = sam\n")
	if !h.compiles("later") {
		h.t.Fatal("the new repository does not come to sam")
	}
	h.expect(h.push("frodo:later", "main"), 0, "frodo ==== (later) ===> sam")
	h.arrives("later")
	h.expect(h.push("sam:later", "main"), 1, "fatal: sam is not the master")
	// A wild one is created on sam, too, with its creator, and is gitolite's there.
	h.expect(h.push("frodo:wild/a", "main"), 0, "frodo ==== (wild/a) ===> sam")
	if !testenv.Poll(func() bool { _, err := os.Stat(h.sam.RepoDir("wild/a")); return err == nil }) {
		h.t.Fatal("the wild repository is not created on sam")
	}
	h.arrives("wild/a")
	h.alice.Git(h.t, h.alice.work, "ls-remote", "--exit-code", "sam:wild/a")
	h.expect(h.push("sam:wild/a", "main"), 1, "fatal: sam is not the master of wild/a")
	if got := strings.TrimSpace(h.sam.Host().Git(h.t, "wild/a", "config", "gitolite.mirror.slaves")); got != "sam" {
		h.t.Errorf("gitolite.conf is not applied to it on sam: slaves = %q", got)
	}

	// gitolite's update hook, slow for many refs, does not run in a mirror push.
	if out := h.sam.Host().MustRun(h.t, "sh", "-c", "cat .gitolite/logs/*"); strings.Contains(out, "bypass") {
		h.t.Errorf("gitolite's update hook has run:\n%s", out)
	}
}

// notCompiled: a gitolite-admin that sam cannot compile comes there all the same. Doctor tells, and so does the
// master's status, where whoever made the change is.
func (h *hosts) notCompiled() {
	h.setRC("GIT_CONFIG_KEYS", "NO_KEYS")
	h.frodo.AddConf(h.t, "\nrepo notes\n    RW+ = alice\n")
	h.arrives("gitolite-admin")
	stale := func(g *testenv.Gitolite) bool {
		return strings.Contains(g.Host().Run(h.t, "mirror-shell", "doctor").Stdout, "fail  gitolite: gitolite has not compiled what was pushed to gitolite-admin")
	}
	if !testenv.Poll(func() bool { return stale(h.sam) }) || stale(h.frodo) {
		h.t.Error("doctor does not see which gitolite has not compiled its configuration")
	}
	noted := func() bool {
		return strings.Contains(h.frodo.Host().Run(h.t, "mirror-shell", "status", "gitolite-admin").Stdout, "sam: gitolite there has not compiled it")
	}
	if !testenv.Poll(noted) {
		h.t.Errorf("status does not tell: %s", h.frodo.Host().Run(h.t, "mirror-shell", "status", "gitolite-admin"))
	}
	if h.frodo.Host().MustRun(h.t, "mirror-shell", "sync", "gitolite-admin"); !noted() {
		h.t.Error("a comparison takes the note away though nothing is mended")
	}
	h.setRC("", "")
	h.sam.Host().MustRun(h.t, "gitolite", "setup")
	if h.frodo.Host().MustRun(h.t, "mirror-shell", "sync", "gitolite-admin"); noted() {
		h.t.Error("a comparison keeps the note though it is mended")
	}
	h.frodo.AddConf(h.t, "\nrepo notes2\n    RW+ = alice\n")
	if !testenv.Poll(func() bool { return !noted() }) {
		h.t.Error("what is mended is still told")
	}
}
