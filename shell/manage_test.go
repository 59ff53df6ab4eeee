package shell

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/internal/repos"
)

// Who may do what with a repository as a whole.
func TestDecideWhole(t *testing.T) {
	all := frodosRepos(t)
	for _, c := range []struct {
		peer, command  string
		create, delete bool
		want           Action
		message        string
	}{
		{"sam", "mirror-create 'gone'", true, false, CreateRepo, ""},
		{"sam", "mirror-create 'gone'", false, true, Refuse, "under [accept], create = [\"gone\"]"},
		{"sam", "mirror-create 'sams'", true, true, Refuse, "exists here already, with sam as its master"},
		{"sam", "mirror-create 'mine'", true, true, Refuse, "is not taken over"},
		{"sam", "mirror-create 'local'", true, true, Refuse, "is not taken over"},
		{"sam", "mirror-create 'gollums'", true, true, Refuse, "is not taken over"},

		{"sam", "mirror-delete 'sams'", false, true, DeleteRepo, ""},
		{"sam", "mirror-delete 'sams'", true, false, Refuse, "under [accept], delete = [\"sams\"]"},
		{"sam", "mirror-delete 'gollums'", true, true, Refuse, "the master of gollums is gollum"},
		{"sam", "mirror-delete 'mine'", true, true, Refuse, "frodo is the master of mine"},
		{"sam", "mirror-delete 'local'", true, true, Refuse, "local is local"},
		{"frodo", "mirror-delete 'mine'", true, true, Refuse, "frodo is the master of mine"},
		{"sam", "mirror-delete 'gone'", true, true, TellDone, "absent"},

		{"sam", "mirror-rename 'sams' 'gone'", true, false, RenameRepo, ""},
		{"sam", "mirror-rename 'sams' 'gone'", false, true, Refuse, "mirror-shell rename --here sams gone"},
		{"sam", "mirror-rename 'sams' 'mine'", true, true, Refuse, "mine exists here already"},
		{"sam", "mirror-rename 'sams' 'sams'", true, true, Refuse, "sams exists here already"},
		{"sam", "mirror-rename 'gollums' 'gone'", true, true, Refuse, "the master of gollums is gollum"},
		{"sam", "mirror-rename 'local' 'gone'", true, true, Refuse, "local is local"},
		{"sam", "mirror-rename 'gone' 'sams'", true, true, TellDone, "already"},
		{"sam", "mirror-rename 'gone' 'gollums'", true, true, TellDone, "absent"},
		{"sam", "mirror-rename 'gone' 'gone2'", true, true, TellDone, "absent"},

		{"sam", "git-receive-pack 'gone'", true, false, Refuse, "gone does not exist here: sam may create it " + MayCreateMark},
	} {
		req := parsed(t, c.command)
		facts := Facts{Hostname: "frodo", Repo: all[req.Repo], Target: all[req.To], Create: c.create, Delete: c.delete}
		got := DecidePeer(facts, testPeer(t, c.peer), req)
		if got.Action != c.want || !strings.Contains(got.Message+got.Done, c.message) || got.Action >= CreateRepo && got.Action <= RenameRepo && got.Host != c.peer {
			t.Errorf("%s: %s: %+v, want %d %s", c.peer, c.command, got, c.want, c.message)
		}
		if user := DecideUser(facts, testUser(t, "alice"), req); req.Verb != ReceivePack && user.Action != Refuse {
			t.Errorf("%s: a user may", c.command)
		}
	}
}

// A session from the creation to the trash, each step a second time as when its
// answer was lost.
func TestWholeLife(t *testing.T) {
	s := newTestServer(t, "[accept]\ncreate = [\"p/**\"]\ndelete = [\"p/**\"]\n")
	send := func(peer, command, stdin string) *testRun {
		r := s.session(command)
		r.Stdin = strings.NewReader(stdin)
		r.InstallHooks = func(context.Context, git.Repo) error { return nil }
		return r.peer(t, peer)
	}
	done := func(r *testRun, want string) {
		t.Helper()
		if r.status != 0 || !strings.Contains(r.out.String(), want) {
			t.Errorf("%s: exit status %d, %q %q, want %s", r.Command, r.status, r.out.String(), r.err.String(), want)
		}
	}
	done(send("sam", "mirror-create 'p/a'", `{"version":1,"head":"refs/heads/x"}`), `{"version":1,"not_taken":[]}`)
	send("sam", "mirror-create 'p/a'", "{}").refused(t, "exists here already, with sam as its master")
	send("eve", "mirror-create 'p/a'", "{}").refused(t, "is not taken over")
	done(send("sam", "mirror-rename 'p/a' 'p/b'", ""), `"renamed"`)
	done(send("sam", "mirror-rename 'p/a' 'p/b'", ""), `"already"`)
	send("eve", "mirror-delete 'p/b'", `{"version":1,"id":"x"}`).refused(t, "the master of p/b is sam")
	for _, body := range []string{`{"version":2}`, `{"version":1,"id":"../x"}`, `[]`, strings.Repeat(" ", 2000), `{"id":"` + strings.Repeat("x", 100) + `"}`} {
		if r := send("sam", "mirror-delete 'p/b'", body); r.status != 1 || !strings.HasPrefix(r.err.String(), "fatal: frodo: mirror-delete: ") {
			t.Errorf("%.40q: exit status %d, told %q", body, r.status, r.err.String())
		}
	}
	done(send("sam", "mirror-delete 'p/b'", `{"version":1,"id":"x"}`), `"deleted"`)
	done(send("sam", "mirror-delete 'p/b'", `{"version":1,"id":"x"}`), `"absent"`)
	// What has been made since is not what was meant.
	done(send("sam", "mirror-create 'p/b'", "{}"), "not_taken")
	done(send("sam", "mirror-delete 'p/b'", `{"version":1,"id":"x"}`), `"already"`)
	if _, err := os.Stat(filepath.Join(s.RepoBase, "p/b.git")); err != nil {
		t.Error(err)
	}
	if list, err := repos.Trash(s.Server); err != nil || len(list) != 1 || list[0].By != "sam" {
		t.Errorf("%+v %v", list, err)
	}
	// A server that cannot install hooks makes nothing.
	r := s.session("mirror-create 'p/c'")
	r.peer(t, "sam").refused(t, "p/c does not exist here: create it")
}
