package testenv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// TestBesideGitea is a Gitea on frodo with our hooks beside its own, as the
// README says how to.
func TestBesideGitea(t *testing.T) {
	t.Parallel()
	env := testenv.New(t, "frodo", "sam")
	frodo, sam := env.Server(t, "frodo"), env.Server(t, "sam")
	alice := env.Client(t, "alice")

	// Repositories that Gitea makes later get our hooks from its template.
	template := ".config/mirror-shell/template/hooks"
	for _, hook := range []string{"pre-receive", "post-receive"} {
		frodo.MustRun(t, "mkdir", "-p", template+"/"+hook+".d")
		frodo.MustRun(t, "ln", "-s", filepath.Join(env.Programs, hook), template+"/"+hook+".d/mirror-shell")
	}
	gitea := frodo.StartGitea(t)
	gitea.AddUser(t, alice)
	frodo.Serve(t)
	gitea.CreateRepo(t, "alice", "IP1") // on disk it is in lower case
	if out := frodo.MustRun(t, "mirror-shell", "install-hooks", "alice/ip1"); !strings.Contains(out, "0 of 1 repositories changed") {
		t.Errorf("the template is of no use: %s", out)
	}
	sam.CreateRepo(t, "alice/ip1", map[string]string{"master": "frodo"})
	frodo.Git(t, "alice/ip1", "config", "gitolite.mirror.master", "frodo")
	frodo.Git(t, "alice/ip1", "config", "gitolite.mirror.slaves", "sam")

	// Pushes over ssh and HTTP, and a commit in the browser.
	work := filepath.Join(alice.Dir, "work")
	alice.Git(t, alice.Dir, "init", "-q", work)
	alice.Git(t, work, "commit", "-q", "--allow-empty", "-m", "one")
	push := func(url, ref, want string, ok bool) {
		t.Helper()
		r := alice.Run(t, work, "git", "push", url, "main:refs/heads/"+ref)
		if (r.Status == 0) != ok || !strings.Contains(r.Stderr, want) {
			t.Errorf("push to %s: want %q: %s", url, want, r)
		}
	}
	const queued = "frodo ==== (alice/ip1) ===> sam"
	push(gitea.SSH("alice/IP1"), "main", queued, true)
	env.WaitEqual(t, "alice/ip1")
	push(gitea.HTTP("alice", "alice/IP1"), "http", queued, true)
	env.WaitEqual(t, "alice/ip1")
	gitea.MustAPI(t, "POST", "/repos/alice/IP1/contents/file.txt", map[string]any{"content": "eA==", "message": "in the browser", "branch": "main"}, nil)
	env.WaitEqual(t, "alice/ip1")
	if log := sam.Git(t, "alice/ip1", "log", "--format=%s", "main"); !strings.Contains(log, "in the browser") {
		t.Errorf("sam has %s", log)
	}
	var branch struct{ Name string }
	gitea.MustAPI(t, "GET", "/repos/alice/IP1/branches/http", nil, &branch) // Gitea's own hook has run, too

	// Gitea writes its hooks anew, and ours stay.
	script := filepath.Join(frodo.RepoDir("alice/ip1"), "hooks/post-receive")
	before, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	gitea.CLI(t, "admin", "regenerate", "hooks")
	if after, err := os.ReadFile(script); err != nil || string(after) != string(before) {
		t.Errorf("%v: the hook was %s and is %s", err, before, after)
	}
	push(gitea.SSH("alice/IP1"), "again", queued, true)
	env.WaitEqual(t, "alice/ip1")

	// One that was there before, and doctor.
	for _, hook := range []string{"pre-receive", "post-receive"} {
		if err := os.Remove(filepath.Join(frodo.RepoDir("alice/ip1"), "hooks", hook+".d", "mirror-shell")); err != nil {
			t.Fatal(err)
		}
	}
	if r := frodo.Run(t, "mirror-shell", "doctor"); r.Status != 1 || !strings.Contains(r.Stdout, "fail  hooks: not installed in 1 mirrored repositories: alice/ip1") {
		t.Errorf("doctor: %s", r)
	}
	if out := frodo.MustRun(t, "mirror-shell", "install-hooks", "--all"); !strings.Contains(out, "hooks/post-receive.d/mirror-shell -> ") {
		t.Errorf("install-hooks: %s", out)
	}
	if out := frodo.MustRun(t, "mirror-shell", "doctor"); !strings.Contains(out, "ok    hooks: installed") {
		t.Errorf("doctor: %s", out)
	}
	push(gitea.SSH("alice/IP1"), "third", queued, true)

	// A repository whose master is another server takes no pushes of people.
	env.WaitEqual(t, "alice/ip1")
	frodo.Git(t, "alice/ip1", "config", "gitolite.mirror.master", "sam")
	const refused = "fatal: frodo is not the master of alice/ip1, please push to sam"
	push(gitea.SSH("alice/IP1"), "refused", refused, false)
	push(gitea.HTTP("alice", "alice/IP1"), "refused", refused, false)
	status := gitea.API(t, "POST", "/repos/alice/IP1/contents/other.txt", map[string]any{"content": "eA==", "message": "x", "branch": "main"}, nil)
	if status < 300 {
		t.Errorf("a commit in the browser: %d", status)
	}

	// Nor does Gitea let a mirror push in, which it would not know the branches of.
	sam.Git(t, "alice/ip1", "config", "gitolite.mirror.master", "sam")
	sam.Git(t, "alice/ip1", "branch", "new", "main")
	if r := sam.Run(t, "mirror-shell", "request-push", "alice/ip1", "-fg", "frodo"); r.Status != 1 || !strings.Contains(r.String(), "Gitea environment not set") {
		t.Errorf("a mirror push: %s", r)
	}

	// The account's own git config counts, though Gitea's git does not read it.
	frodo.Git(t, "alice/ip1", "config", "--unset", "gitolite.mirror.master")
	frodo.MustRun(t, "git", "config", "--global", "gitolite.mirror.master", "sam")
	push(gitea.SSH("alice/IP1"), "refused", refused, false)
}
