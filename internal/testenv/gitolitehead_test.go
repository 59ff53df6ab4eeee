package testenv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// headCopyConf is gitolite.conf on gollum, and headRules is what it needs for HEAD and the
// description to travel.
const (
	headCopyConf = `
repo ip1
    RW+ = alice
    option mirror.master = frodo
    option mirror.copies = gollum
`
	headRules = `
repo ip1
    RW = server-frodo
    option writer-is-owner = 1
`
)

// headWorld is a master, and a copy that has gitolite alone.
type headWorld struct {
	t      *testing.T
	frodo  *testenv.Server
	gollum *testenv.Gitolite
	alice  pusher
}

// Default branches and descriptions come to a gitolite as soon as its administrator has done what
// status says, a renamed default branch whose old name is deleted included.
func TestGitoliteHead(t *testing.T) {
	t.Parallel()
	env := testenv.New(t, "frodo")
	w := &headWorld{t: t, frodo: env.Server(t, "frodo"), gollum: env.Gitolites(t, "gollum")[0], alice: newPusher(t, env.AddUser(t, "alice"))}
	w.gollum.AddPeer(t, w.frodo)
	w.gollum.AddConf(t, headCopyConf, w.alice.Client)
	env.CreateRepo(t, "ip1", map[string]string{"master": "frodo", "slaves": "gollum"}, "frodo")
	w.describe("The ring: 10% gold\n")
	w.frodo.Serve(t)
	defer w.frodo.StopServe(t)
	w.refused()
	w.permitted()
	w.renamed()
	w.odd()
}

func (w *headWorld) describe(text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.frodo.RepoDir("ip1"), "description"), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// push commits to a branch, and deletes others.
func (w *headWorld) push(branch string, gone ...string) {
	w.t.Helper()
	w.alice.Git(w.t, w.alice.work, "commit", "-q", "--allow-empty", "-m", branch)
	w.alice.Git(w.t, w.alice.work, append([]string{"push", "-q", "frodo:ip1", "HEAD:refs/heads/" + branch}, gone...)...)
}

// shows waits until status says all of that.
func (w *headWorld) shows(wants ...string) {
	w.t.Helper()
	got := ""
	for _, want := range wants {
		if !testenv.Poll(func() bool {
			got = w.frodo.MustRun(w.t, "mirror-shell", "status", "--json", "ip1")
			return strings.Contains(got, want)
		}) {
			w.t.Fatalf("status is\n%swithout %q", got, want)
		}
	}
}

// has demands of gollum its branches, and what they say HEAD and the description are there.
func (w *headWorld) has(head, description string, branches ...string) {
	w.t.Helper()
	host := w.gollum.Host()
	if got := strings.TrimSpace(host.Git(w.t, "ip1", "symbolic-ref", "HEAD")); got != "refs/heads/"+head {
		w.t.Errorf("HEAD on gollum is %s, want %s", got, head)
	}
	text, _ := os.ReadFile(filepath.Join(w.gollum.RepoDir("ip1"), "description"))
	if !strings.HasPrefix(string(text), description) {
		w.t.Errorf("the description on gollum is %q, want %q", text, description)
	}
	refs := host.Refs(w.t, "ip1")
	for _, branch := range branches {
		if refs["refs/heads/"+branch] == "" || len(refs) != len(branches)+1 { // and HEAD
			w.t.Errorf("gollum has %v, want %q", refs, branches)
		}
	}
}

const noHeadThere = "HEAD was not sent: gollum has not enabled gitolite's symbolic-ref: add 'symbolic-ref' to ENABLE in ~/.gitolite.rc there, and for ip1 `RW = server-frodo` to its gitolite.conf"

// refused: gollum's gitolite is as it comes. What it does not take keeps no ref back but the one
// that its HEAD protects.
func (w *headWorld) refused() {
	w.push("master") // as gollum's HEAD is
	w.shows(noHeadThere,
		"description was not taken: gollum says: you are not authorized: for ip1 gitolite.conf there needs `RW = server-frodo`, `option writer-is-owner = 1`")
	w.has("master", "Unnamed repository", "master")
	w.frodo.Git(w.t, "ip1", "symbolic-ref", "HEAD", "refs/heads/trunk")
	w.push("trunk", ":master")
	w.shows("refs/heads/master (deletion of the current branch prohibited): HEAD points to it there: "+noHeadThere, "or, on gollum, git symbolic-ref HEAD refs/heads/trunk")
	w.has("master", "Unnamed repository", "master", "trunk")
	if r := w.frodo.Run(w.t, "mirror-shell", "doctor"); !strings.Contains(r.Stdout, "HEAD does not: for it 'symbolic-ref' has to be in ENABLE of ~/.gitolite.rc there, and `RW = server-frodo` in its gitolite.conf") {
		w.t.Errorf("doctor: %s", r)
	}
}

// permitted: the administrator has done what status says.
func (w *headWorld) permitted() {
	rc := w.gollum.Host().Home(".gitolite.rc")
	text := strings.Replace(readText(w.t, rc), "            'help',\n", "            'help',\n            'symbolic-ref',\n", 1)
	if err := os.WriteFile(rc, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.frodo.Run(w.t, "mirror-shell", "sync", "ip1")
	w.shows("HEAD was not taken: gollum says: You are not authorised: for ip1 gitolite.conf there needs `RW = server-frodo`")
	w.gollum.AddConf(w.t, headRules)
	w.frodo.MustRun(w.t, "mirror-shell", "request-push", "ip1", "-fg", "gollum") // and it asks for the description again
	w.has("trunk", "The ring: 10% gold", "trunk")
	w.shows(`"state":"ok"`)
	if got := w.frodo.MustRun(w.t, "mirror-shell", "status", "ip1"); strings.Contains(got, "HEAD") || strings.Contains(got, "description") {
		w.t.Errorf("status: %s", got)
	}
	if r := w.frodo.Run(w.t, "mirror-shell", "doctor"); !strings.Contains(r.Stdout, "HEAD where its gitolite.conf has `RW = server-frodo`, the description where it also has `option writer-is-owner = 1`") {
		w.t.Errorf("doctor: %s", r)
	}
}

// renamed: now it goes in one push, and what is changed without any goes with a sync.
func (w *headWorld) renamed() {
	w.describe("Of power\n")
	w.frodo.Git(w.t, "ip1", "symbolic-ref", "HEAD", "refs/heads/next")
	w.push("next", ":trunk")
	if !testenv.Poll(func() bool { return w.gollum.Host().Refs(w.t, "ip1")["refs/heads/trunk"] == "" }) {
		w.t.Fatal(w.frodo.MustRun(w.t, "mirror-shell", "status", "ip1"))
	}
	w.shows(`"state":"ok"`)
	w.has("next", "Of power", "next")
	w.alice.Git(w.t, w.alice.work, "push", "-q", "frodo:ip1", "HEAD:refs/heads/other")
	w.shows(`"state":"ok"`)
	sent := func() int {
		return strings.Count(w.gollum.Host().MustRun(w.t, "sh", "-c", "cat .gitolite/logs/*"), "SOC=symbolic-ref ip1 HEAD ")
	}
	before := sent()
	w.frodo.Git(w.t, "ip1", "symbolic-ref", "HEAD", "refs/heads/other")
	w.describe("To rule\n")
	w.frodo.MustRun(w.t, "mirror-shell", "sync", "ip1")
	w.has("other", "To rule", "next", "other")
	if out := w.frodo.MustRun(w.t, "mirror-shell", "sync", "ip1"); !strings.HasPrefix(out, "1 copies compared: 1 equal, 0 pushed, 0 failures") {
		w.t.Errorf("sync says %q", out)
	}
	if n := sent() - before; n != 1 {
		w.t.Errorf("HEAD was sent %d times", n)
	}
}

// odd: what gitolite's commands cannot say stays here, and nothing runs it.
func (w *headWorld) odd() {
	w.describe("x; touch $HOME/pwned `touch pwned` $(touch pwned)\n")
	w.frodo.MustRun(w.t, "mirror-shell", "sync", "ip1")
	w.shows("description was not sent: gitolite's command takes letters, digits and")
	w.frodo.Git(w.t, "ip1", "symbolic-ref", "HEAD", "refs/heads/x;touch$IFS'pwned'")
	w.frodo.MustRun(w.t, "mirror-shell", "sync", "ip1")
	w.shows("HEAD was not sent: gitolite's command takes letters, digits and")
	w.has("other", "To rule", "next", "other")
	if _, err := os.Stat(w.gollum.Host().Home("pwned")); err == nil {
		w.t.Error("a shell on gollum has run what a user wrote")
	}
}

func readText(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
