package shell

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

// testRepo makes a repository's configuration of "key=value" words.
func testRepo(t testing.TB, name string, config ...string) *mirrorcfg.Repo {
	t.Helper()
	var entries []git.ConfigEntry
	for _, c := range config {
		key, value, _ := strings.Cut(c, "=")
		entries = append(entries, git.ConfigEntry{Key: "gitolite.mirror." + key, Value: value})
	}
	repo, err := mirrorcfg.ParseRepo(name, entries)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func testPeer(t testing.TB, name string) Peer {
	t.Helper()
	p, err := NewPeer(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func testUser(t testing.TB, name string) User {
	t.Helper()
	u, err := NewUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// The repositories as frodo sees them.
func frodosRepos(t testing.TB) map[string]*mirrorcfg.Repo {
	repos := map[string]*mirrorcfg.Repo{}
	for name, config := range map[string][]string{
		"mine":     {"master=frodo", "slaves=sam gollum", "nightly=gitolite.mirror.hourly gimli", "hourly=legolas"},
		"open":     {"master=frodo", "slaves=sam gollum", "redirectOK=true", "nightly=gimli"},
		"some":     {"master=frodo", "slaves=sam gollum", "redirectOK=gollum rosie"},
		"dots":     {"master=frodo", "slaves=saXm", "nightly=go.lum", "redirectOK=saXm"},
		"dots2":    {"master=frodo", "slaves=sa.m", "redirectOK=sa.m"},
		"broken":   {"master=frodo", "slaves=gitolite.mirror.missing sam", "redirectOK=true"},
		"cycle":    {"master=frodo", "slaves=gitolite.mirror.a", "a=gitolite.mirror.slaves sam", "redirectOK=true"},
		"sams":     {"master=sam", "slaves=frodo gollum", "redirectOK=true"},
		"gollums":  {"master=gollum", "slaves=frodo sam"},
		"gollums2": {"master=gollum", "slaves=frodo sam", "redirectOK=frodo"},
		"gollums3": {"master=gollum", "slaves=frodo sam", "redirectOK=sam Frodo fro"},
		"local":    {"slaves=sam", "nightly=gollum", "redirectOK=true"},
		"local2":   {"master=local", "slaves=sam", "redirectOK=sam"},
		"plain":    {},
	} {
		repos[name] = testRepo(t, name, config...)
	}
	return repos
}

func parsed(t testing.TB, command string) Request {
	t.Helper()
	req, err := Parse(command)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// userFields lets go-cmp look into User.
var userFields = cmp.AllowUnexported(User{})

func TestDecidePeer(t *testing.T) {
	repos := frodosRepos(t)
	no := func(message string) Decision { return Decision{Message: message} }
	push := func(from, repo string) Decision {
		return Decision{Action: RunGit, Message: "frodo <=== (" + repo + ") ==== " + from}
	}
	alices := Decision{Action: RunGit, Access: Write, User: User{"alice"}}
	for _, c := range []struct {
		peer, command string
		want          Decision
	}{
		{"sam", "", Decision{Action: Greet}},
		{"sam", "info", Decision{Action: Greet}},
		{"nobody", "info --json", Decision{Action: Greet}},
		{"sam", "info --back", Decision{Action: Greet}},

		// git-receive-pack: the master, on a slave.
		{"sam", "git-receive-pack 'sams'", push("sam", "sams")},
		{"gollum", "git-receive-pack 'gollums'", push("gollum", "gollums")},
		{"sam", "git-receive-pack 'gollums'", no("frodo <==//== sam mirror-push rejected: the master of gollums is gollum")},
		{"gollum", "git-receive-pack 'sams'", no("frodo <==//== gollum mirror-push rejected: the master of sams is sam")},
		{"sam", "git-receive-pack 'mine'", no("frodo <==//== sam mirror-push rejected: frodo is the master of mine")},
		{"frodo", "git-receive-pack 'mine'", no("frodo <==//== frodo mirror-push rejected: frodo is the master of mine")},
		{"sam", "git-receive-pack 'local'", no("frodo <==//== sam mirror-push rejected: local is local")},
		{"sam", "git-receive-pack 'local2'", no("frodo <==//== sam mirror-push rejected: local2 is local")},
		{"local", "git-receive-pack 'local2'", no("frodo <==//== local mirror-push rejected: local2 is local")},
		{"sam", "git-receive-pack 'gone'", no("frodo <==//== sam mirror-push rejected: gone does not exist here: create it, and set gitolite.mirror.master = sam (git init --bare gone.git; git -C gone.git config gitolite.mirror.master sam; mirror-shell install-hooks gone), or let sam do it: in the server configuration of frodo, under [accept], create = [\"gone\"]")},
		{"sa.m", "git-receive-pack 'sams'", no("frodo <==//== sa.m mirror-push rejected: the master of sams is sam")},
		{"SAM", "git-receive-pack 'sams'", no("frodo <==//== SAM mirror-push rejected: the master of sams is sam")},
		{"sam2", "git-receive-pack 'sams'", no("frodo <==//== sam2 mirror-push rejected: the master of sams is sam")},

		// mirror-meta: the same.
		{"sam", "mirror-meta 'sams'", Decision{Action: SetMeta, Host: "sam"}},
		{"gollum", "mirror-meta 'sams'", no("frodo <==//== gollum mirror-push rejected: the master of sams is sam")},
		{"sam", "mirror-meta 'mine'", no("frodo <==//== sam mirror-push rejected: frodo is the master of mine")},
		{"sam", "mirror-meta 'local'", no("frodo <==//== sam mirror-push rejected: local is local")},
		{"sam", "mirror-known 'sams'", Decision{Action: TellKnown}},
		{"gollum", "mirror-known 'sams'", no("frodo <==//== gollum mirror-push rejected: the master of sams is sam")},
		{"sam", "mirror-known 'mine'", no("frodo <==//== sam mirror-push rejected: frodo is the master of mine")},
		{"sam", "mirror-rescued 'sams'", Decision{Action: TellRescued}},
		{"gollum", "mirror-rescued 'sams'", no("frodo <==//== gollum mirror-push rejected: the master of sams is sam")},
		{"sam", "mirror-rescued 'local'", no("frodo <==//== sam mirror-push rejected: local is local")},
		{"sam", "mirror-meta 'gone'", no("frodo <==//== sam mirror-push rejected: gone does not exist here: create it, and set gitolite.mirror.master = sam (git init --bare gone.git; git -C gone.git config gitolite.mirror.master sam; mirror-shell install-hooks gone), or let sam do it: in the server configuration of frodo, under [accept], create = [\"gone\"]")},

		// git-upload-pack: the master, and whoever is in a list.
		{"sam", "git-upload-pack 'sams'", Decision{Action: RunGit, AnyObject: true}},
		{"gollum", "git-upload-pack 'sams'", Decision{Action: RunGit}},
		{"sam", "git-upload-pack 'mine'", Decision{Action: RunGit}},
		{"gimli", "git-upload-pack 'mine'", Decision{Action: RunGit}},
		{"legolas", "git-upload-pack 'mine'", Decision{Action: RunGit}},
		{"saXm", "git-upload-pack 'dots'", Decision{Action: RunGit}},
		{"go.lum", "git-upload-pack 'dots'", Decision{Action: RunGit}},
		{"sa.m", "git-upload-pack 'dots'", no("frodo ==//==> sa.m fetch rejected: dots is not mirrored to sa.m")},
		{"gollum", "git-upload-pack 'dots'", no("frodo ==//==> gollum fetch rejected: dots is not mirrored to gollum")},
		{"saXm", "git-upload-pack 'dots2'", no("frodo ==//==> saXm fetch rejected: dots2 is not mirrored to saXm")},
		{"merry", "git-upload-pack 'mine'", no("frodo ==//==> merry fetch rejected: mine is not mirrored to merry")},
		{"rosie", "git-upload-pack 'some'", no("frodo ==//==> rosie fetch rejected: some is not mirrored to rosie")}, // redirectOK is no list
		{"sam", "git-upload-pack 'local'", no("frodo ==//==> sam fetch rejected: local is not mirrored to sam")},
		{"gollum", "git-upload-pack 'local'", no("frodo ==//==> gollum fetch rejected: local is not mirrored to gollum")},
		{"sam", "git-upload-pack 'local2'", no("frodo ==//==> sam fetch rejected: local2 is not mirrored to sam")},
		{"sam", "git-upload-pack 'plain'", no("frodo ==//==> sam fetch rejected: plain is not mirrored to sam")},
		{"sam", "git-upload-pack 'gone'", no("frodo ==//==> sam fetch rejected: gone is not mirrored to sam")},
		{"sam", "git-upload-pack 'broken'", no("frodo ==//==> sam fetch rejected: broken is not mirrored to sam")},

		// request-push: the slaves only, on the master.
		{"sam", "request-push mine", Decision{Action: PushNow, Host: "sam"}},
		{"gollum", "request-push mine", Decision{Action: PushNow, Host: "gollum"}},
		{"saXm", "request-push dots", Decision{Action: PushNow, Host: "saXm"}},
		{"gimli", "request-push mine", no("frodo ==//==> gimli refused: not in slave list of mine")},
		{"legolas", "request-push mine", no("frodo ==//==> legolas refused: not in slave list of mine")},
		{"merry", "request-push mine", no("frodo ==//==> merry refused: not in slave list of mine")},
		{"frodo", "request-push mine", no("frodo ==//==> frodo refused: not in slave list of mine")},
		{"sa.m", "request-push dots", no("frodo ==//==> sa.m refused: not in slave list of dots")},
		{"saXm", "request-push dots2", no("frodo ==//==> saXm refused: not in slave list of dots2")},
		{"sam", "request-push broken", no("frodo ==//==> sam refused: not in slave list of broken")},
		{"sam", "request-push cycle", no("frodo ==//==> sam refused: not in slave list of cycle")},
		{"sam", "request-push sams", no("frodo ==//==> sam refused: the master of sams is sam")},
		{"sam", "request-push gollums", no("frodo ==//==> sam refused: the master of gollums is gollum")},
		{"sam", "request-push local", no("frodo ==//==> sam refused: not in slave list of local")},
		{"sam", "request-push gone", no("frodo ==//==> sam refused: not in slave list of gone")},

		// Redirected pushes: a slave that redirectOK allows, on the master.
		{"sam", "USER=alice SOC=git-receive-pack 'open'", alices},
		{"gollum", "USER=alice SOC=git-receive-pack 'some'", alices},
		{"rosie", "USER=alice SOC=git-receive-pack 'some'", alices}, // need not be a slave
		{"saXm", "USER=alice SOC=git-receive-pack 'dots'", alices},
		{"gimli", "USER=alice SOC=git-receive-pack 'open'", no("frodo <==//== gimli redirected push rejected: gimli may not redirect pushes to open")}, // true means slaves
		{"sam", "USER=alice SOC=git-receive-pack 'some'", no("frodo <==//== sam redirected push rejected: sam may not redirect pushes to some")},
		{"sam", "USER=alice SOC=git-receive-pack 'mine'", no("frodo <==//== sam redirected push rejected: sam may not redirect pushes to mine")},
		{"frodo", "USER=alice SOC=git-receive-pack 'open'", no("frodo <==//== frodo redirected push rejected: frodo may not redirect pushes to open")},
		{"sa.m", "USER=alice SOC=git-receive-pack 'dots'", no("frodo <==//== sa.m redirected push rejected: sa.m may not redirect pushes to dots")},
		{"saXm", "USER=alice SOC=git-receive-pack 'dots2'", no("frodo <==//== saXm redirected push rejected: saXm may not redirect pushes to dots2")},
		{"sam", "USER=alice SOC=git-receive-pack 'broken'", no("frodo <==//== sam redirected push rejected: sam may not redirect pushes to broken")},
		{"sam", "USER=alice SOC=git-receive-pack 'cycle'", no("frodo <==//== sam redirected push rejected: sam may not redirect pushes to cycle")},
		// Never redirected again, though frodo would redirect a user's push to sam.
		{"gollum", "USER=alice SOC=git-receive-pack 'sams'", no("frodo <==//== gollum redirected push rejected: frodo is not the master of sams")},
		{"sam", "USER=alice SOC=git-receive-pack 'sams'", no("frodo <==//== sam redirected push rejected: sam and frodo take each other for the master of sams: let gitolite.mirror.master name the same server on both")},
		{"sam", "USER=alice SOC=git-receive-pack 'local'", no("frodo <==//== sam redirected push rejected: local is local")},
		{"sam", "USER=alice SOC=git-receive-pack 'local2'", no("frodo <==//== sam redirected push rejected: local2 is local")},
		{"sam", "USER=alice SOC=git-receive-pack 'gone'", no("frodo <==//== sam redirected push rejected: gone does not exist here")},

		{"sam", "git-upload-archive 'sams'", no("frodo <==//== sam: a peer may not send git-upload-archive")},
	} {
		req := parsed(t, c.command)
		got := DecidePeer(Facts{Hostname: "frodo", Repo: repos[req.Repo]}, testPeer(t, c.peer), req)
		if diff := cmp.Diff(c.want, got, userFields); diff != "" {
			t.Errorf("%s: %s: %s", c.peer, c.command, diff)
		}
	}
}

func TestDecideUser(t *testing.T) {
	repos := frodosRepos(t)
	alice := testUser(t, "alice")
	run := func(a Access) Decision { return Decision{Action: RunGit, Access: a, User: alice} }
	no := func(message string) Decision { return Decision{Message: message} }
	slave := func(message string) Decision { return Decision{Message: message, Access: Read, User: alice} }
	unknown := no("frodo: repository gone is not here, or is not for alice")
	for _, c := range []struct {
		command string
		want    Decision
	}{
		{"", Decision{Action: Greet, User: alice}},
		{"info", Decision{Action: Greet, User: alice}},
		{"info --json", Decision{Action: Greet, User: alice}},
		{"info --back", no("frodo: info --back is for peers")},

		{"git-upload-pack 'mine'", run(Read)},
		{"git-upload-pack 'sams'", run(Read)},
		{"git-upload-pack 'local'", run(Read)},
		{"git-upload-pack 'plain'", run(Read)},
		{"git-upload-pack 'gone'", unknown},
		{"git-upload-archive 'mine'", run(Read)},
		{"git-upload-archive 'sams'", run(Read)},
		{"git-upload-archive 'gone'", unknown},

		{"git-receive-pack 'mine'", run(Write)},
		{"git-receive-pack 'local'", run(Write)},
		{"git-receive-pack 'local2'", run(Write)},
		{"git-receive-pack 'plain'", run(Write)},
		{"git-receive-pack 'gone'", unknown},
		{"git-receive-pack 'gollums'", slave("frodo is not the master of gollums, please push to gollum")},
		{"git-receive-pack 'gollums3'", slave("frodo is not the master of gollums3, please push to gollum")},
		{"git-receive-pack 'sams'", Decision{Action: Redirect, Message: "frodo ==== alice (sams) ===> sam", Host: "sam", Access: Write, User: alice}},
		{"git-receive-pack 'gollums2'", Decision{Action: Redirect, Message: "frodo ==== alice (gollums2) ===> gollum", Host: "gollum", Access: Write, User: alice}},

		// What only peers may send.
		{"USER=bob SOC=git-receive-pack 'open'", no("frodo: alice may not send USER=: push and fetch with git, or send info")},
		{"USER=alice SOC=git-receive-pack 'open'", no("frodo: alice may not send USER=: push and fetch with git, or send info")},
		{"USER=bob SOC=git-receive-pack 'gone'", no("frodo: alice may not send USER=: push and fetch with git, or send info")},
		{"request-push mine", no("frodo: alice may not send request-push: push and fetch with git, or send info")},
		{"mirror-meta 'sams'", no("frodo: alice may not send mirror-meta: push and fetch with git, or send info")},
	} {
		req := parsed(t, c.command)
		got := DecideUser(Facts{Hostname: "frodo", Repo: repos[req.Repo]}, alice, req)
		if diff := cmp.Diff(c.want, got, userFields); diff != "" {
			t.Errorf("%s: %s", c.command, diff)
		}
	}
}

// A user who is called like the master, or like a slave, is a user.
func TestDecideUserNamedLikeAPeer(t *testing.T) {
	f := Facts{Hostname: "frodo", Repo: testRepo(t, "ip1", "master=sam", "slaves=frodo gollum")}
	for _, name := range []string{"sam", "frodo", "gollum"} {
		if d := DecideUser(f, testUser(t, name), parsed(t, "git-receive-pack 'ip1'")); d.Action != Refuse {
			t.Errorf("user %s: %+v", name, d)
		}
	}
}

// Two servers that name each other as master: each redirects users, neither
// redirects what was redirected.
func TestNoRedirectLoop(t *testing.T) {
	frodo := Facts{Hostname: "frodo", Repo: testRepo(t, "ip1", "master=sam", "slaves=frodo", "redirectOK=true")}
	sam := Facts{Hostname: "sam", Repo: testRepo(t, "ip1", "master=frodo", "slaves=sam", "redirectOK=true")}
	d := DecideUser(frodo, testUser(t, "alice"), parsed(t, "git-receive-pack 'ip1'"))
	if d.Action != Redirect || d.Host != "sam" {
		t.Fatalf("%+v", d)
	}
	d = DecidePeer(sam, testPeer(t, "frodo"), parsed(t, "USER=alice SOC=git-receive-pack 'ip1'"))
	if want := "sam <==//== frodo redirected push rejected: frodo and sam take each other for the master of ip1: let gitolite.mirror.master name the same server on both"; d.Action != Refuse || d.Message != want {
		t.Errorf("%+v, want %s", d, want)
	}
}

func TestIdentities(t *testing.T) {
	for _, name := range []string{"", "a b", "../x", "-x", "a/b", "a\nb", "a'b", strings.Repeat("x", 129), "é"} {
		if _, err := NewPeer(name); err == nil {
			t.Errorf("peer %q", name)
		}
		if _, err := NewUser(name); err == nil {
			t.Errorf("user %q", name)
		}
	}
}

// Where gitolite makes the repositories, git init is not the way.
func TestMissingBesideGitolite(t *testing.T) {
	d := DecidePeer(Facts{Hostname: "sam", Gitolite: true}, testPeer(t, "frodo"), parsed(t, "git-receive-pack 'ip1'"))
	if want := "sam <==//== frodo mirror-push rejected: ip1 does not exist here: create it in gitolite.conf, with config gitolite.mirror.master = frodo, " +
		`or let frodo do it: in the server configuration of sam, under [accept], create = ["ip1"]`; d.Action != Refuse || d.Message != want {
		t.Errorf("%+v, want %s", d, want)
	}
}
