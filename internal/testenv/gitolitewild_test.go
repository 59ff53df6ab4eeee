package testenv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// wildConf is gitolite.conf on frodo, the master.
const wildConf = `
repo wild/..*
    C = alice
    RW+ = CREATOR
    R = READERS
    config gitolite.mirror.master = frodo
    config gitolite.mirror.slaves = gollum
repo all/..*
    C = alice
    RW+ = CREATOR
    R = READERS
    config gitolite.mirror.master = frodo
    config gitolite.mirror.slaves = gollum
`

// wildCopyConf is gitolite.conf on gollum. Who it lets create the ones is alice, and the others anybody.
const wildCopyConf = `
repo wild/..*
    C = alice
    RW+ = CREATOR
    R = READERS
    option mirror.master = frodo
    option mirror.copies = gollum
repo all/..*
    C = @all
    RW+ = CREATOR
    R = READERS
    option mirror.master = frodo
    option mirror.copies = gollum
`

// wildWorld is a gitolite with mirror-shell, and a copy that has gitolite alone.
type wildWorld struct {
	t             *testing.T
	frodo, gollum *testenv.Gitolite
	alice         pusher
}

// A wild repository that alice creates on frodo comes to gollum as hers, with those whom she
// lets in, and so do changes of these.
func TestGitoliteWild(t *testing.T) {
	t.Parallel()
	w := newWildWorld(t)
	w.refused()
	w.created("all/a")
	w.changed("wild/r")
	w.madeAnew("wild/r")
	w.odd()
	if r := w.frodo.Host().Run(t, "mirror-shell", "doctor"); !strings.Contains(r.Stdout, "it knows us as server-frodo; refs travel to it, and creator and permissions of wild repositories") {
		t.Errorf("doctor: %s", r)
	}
}

func newWildWorld(t *testing.T) *wildWorld {
	env := testenv.New(t)
	w := &wildWorld{t: t, frodo: env.Gitolites(t, "frodo")[0], gollum: env.Gitolites(t, "gollum")[0]}
	w.alice = newPusher(t, env.Client(t, "alice"))
	w.frodo.HostMirrorShell(t, "")
	w.frodo.PeerWithGitolite(t, w.gollum)
	w.frodo.AddConf(t, wildConf, w.alice.Client)
	w.frodo.Host().Serve(t)
	t.Cleanup(func() { w.frodo.Host().StopServe(t) })
	return w
}

func (w *wildWorld) push(repo string) {
	w.t.Helper()
	w.alice.Git(w.t, w.alice.work, "commit", "-q", "--allow-empty", "-m", repo)
	w.alice.Git(w.t, w.alice.work, "push", "-q", "frodo:"+repo, "HEAD:refs/heads/main")
}

// perms changes who may do what on frodo, and has it sent.
func (w *wildWorld) perms(repo, op, who string) {
	w.t.Helper()
	if r := w.alice.Run(w.t, w.alice.work, "ssh", "frodo", "perms", repo, op, "READERS", who); r.Status != 0 {
		w.t.Fatal(r)
	}
	w.frodo.Host().MustRun(w.t, "mirror-shell", "sync", repo)
}

func (w *wildWorld) arrives(repo string) {
	w.t.Helper()
	oid := strings.TrimSpace(w.alice.Git(w.t, w.alice.work, "rev-parse", "HEAD"))
	if !testenv.Poll(func() bool {
		text, _ := os.ReadFile(filepath.Join(w.gollum.RepoDir(repo), "refs/heads/main")) // which may be under construction
		return strings.TrimSpace(string(text)) == oid
	}) {
		w.t.Fatalf("%s does not come to gollum: %s", repo, w.frodo.Host().MustRun(w.t, "mirror-shell", "status", repo))
	}
}

// has demands content of a file of a repository on gollum.
func (w *wildWorld) has(repo, file, want string) {
	w.t.Helper()
	if text, _ := os.ReadFile(filepath.Join(w.gollum.RepoDir(repo), file)); string(text) != want {
		w.t.Errorf("%s of %s on gollum is %q, want %q", file, repo, text, want)
	}
}

// shows waits until status says something, and demands that it does not say something else.
func (w *wildWorld) shows(repo, want, not string) {
	w.t.Helper()
	got := ""
	if !testenv.Poll(func() bool {
		got = w.frodo.Host().MustRun(w.t, "mirror-shell", "status", repo) + // which cuts what is long
			strings.ReplaceAll(w.frodo.Host().MustRun(w.t, "mirror-shell", "status", "--json", repo), `\"`, `"`)
		return strings.Contains(got, want)
	}) || not != "" && strings.Contains(got, not) {
		w.t.Fatalf("status is\n%swithout %q, or with %q", got, want, not)
	}
}

// refused: gollum's administrator does not know of wild repositories yet.
func (w *wildWorld) refused() {
	w.push("wild/r")
	w.shows("wild/r", "FATAL: gollum: 'wild/r' is local: for wild/r gitolite.conf on gollum needs `C = alice`, `option mirror.master = frodo`, `option mirror.copies = gollum`", "")
	w.gollum.AddConf(w.t, strings.Replace(wildCopyConf, "C = alice", "C = bob", 1), w.alice.Client)
	w.frodo.Host().Run(w.t, "mirror-shell", "sync", "wild/r")
	w.shows("wild/r", "for wild/r gitolite.conf on gollum needs `C = alice`; a", "")
	w.gollum.AddConf(w.t, "\nrepo wild/..*\n    option bypass-creator-check = 1\n")
	w.frodo.Host().MustRun(w.t, "mirror-shell", "sync", "wild/r")
	w.arrives("wild/r")
	w.has("wild/r", "gl-creator", "alice")
	w.shows("wild/r", " ok ", "gl-")
}

func (w *wildWorld) created(repo string) {
	w.push(repo)
	w.arrives(repo)
	w.has(repo, "gl-creator", "alice")
	w.has(repo, "gl-perms", "")
}

func (w *wildWorld) changed(repo string) {
	w.perms(repo, "+", "bob")
	w.has(repo, "gl-perms", "READERS bob\n")
	w.perms(repo, "+", "carol")
	w.has(repo, "gl-perms", "READERS bob\nREADERS carol\n")
	w.perms(repo, "-", "carol")
	w.has(repo, "gl-perms", "READERS bob\n")
	w.shows(repo, "HEAD was not sent: gollum has not enabled gitolite's symbolic-ref", "gl-")
}

// madeAnew: a copy that is gone comes back with all of that.
func (w *wildWorld) madeAnew(repo string) {
	if err := os.RemoveAll(w.gollum.RepoDir(repo)); err != nil {
		w.t.Fatal(err)
	}
	w.push(repo)
	w.arrives(repo)
	w.has(repo, "gl-creator", "alice")
	w.has(repo, "gl-perms", "READERS bob\n")
}

// odd: what users have written into these files, by gitolite or around it.
func (w *wildWorld) odd() {
	put := func(repo, file, text string) {
		w.t.Helper()
		name := filepath.Join(w.frodo.RepoDir(repo), file)
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			w.t.Fatal(err)
		}
	}
	sync := func(repo string) { w.frodo.Host().MustRun(w.t, "mirror-shell", "sync", repo) }
	put("wild/r", "gl-perms", "READERS bob $(touch pwned)\n")
	sync("wild/r")
	w.shows("wild/r", `gl-perms were not sent: "READERS bob $(touch pwned)" is not a role`, "")
	w.has("wild/r", "gl-perms", "READERS bob\n")
	put("wild/r", "gl-perms", "# whoever\n@READERS = bob  carol\nGARDENERS dave\n")
	sync("wild/r")
	w.shows("wild/r", "gollum says: Invalid role 'GARDENERS': add it to ROLES in ~/.gitolite.rc on gollum", "")
	put("wild/r", "gl-perms", "# whoever\n@READERS = bob  carol\n")
	sync("wild/r")
	w.has("wild/r", "gl-perms", "READERS   bob  carol\n")
	for _, creator := range []string{"bob", "x;touch pwned"} {
		put("wild/r", "gl-creator", creator)
		sync("wild/r")
		w.shows("wild/r", "gl-creator", "")
		w.has("wild/r", "gl-creator", "alice")
		w.has("wild/r", "gl-perms", "READERS   bob  carol\n")
	}
	w.frodo.Host().Git(w.t, "wild/r", "update-ref", "refs/heads/other", "refs/heads/main")
	sync("wild/r") // the refs travel all the same
	if refs := w.gollum.Host().Refs(w.t, "wild/r"); refs["refs/heads/other"] == "" {
		w.t.Errorf("gollum has %v", refs)
	}
	put("wild/r", "gl-creator", "alice")
	sync("wild/r")
	w.shows("wild/r", " ok ", "gl-")
	if _, err := os.Stat(w.gollum.Host().Home("pwned")); err == nil {
		w.t.Error("a shell on gollum has run what a user wrote")
	}
}
