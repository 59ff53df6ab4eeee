package shell

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInfoForPeer(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("ip1", "master=sam")
	for _, command := range []string{"", "info"} {
		r := s.session(command).peer(t, "sam")
		if r.status != 0 || r.out.String() != "Hello sam, I am frodo.\n" || r.err.Len() > 0 || r.execs != 0 {
			t.Errorf("%q: exit status %d, stdout %q, stderr %q", command, r.status, r.out.String(), r.err.String())
		}
	}
	r := s.session("info --json").peer(t, "sam")
	want := `{"hostname":"frodo","version":"` + ProgramVersion() + `","protocol":1,"verbs":["info","git-receive-pack","git-upload-pack","request-push","USER=","mirror-meta","mirror-digest","mirror-push","mirror-known","mirror-rescued","mirror-create","mirror-delete","mirror-rename"]}` + "\n"
	if r.status != 0 || r.out.String() != want {
		t.Errorf("exit status %d, stdout %s", r.status, r.out.String())
	}
	for _, verb := range peerVerbs { // every verb announced is one that can be sent
		command := Request{Verb: verb, Repo: "ip1", To: "ip2", User: "alice"}.Command()
		if r := s.session(command).peer(t, "gollum"); strings.Contains(r.err.String(), "may not send") || strings.Contains(r.err.String(), "unknown") {
			t.Errorf("%s: %s", command, r.err.String())
		}
	}
}

func TestInfoForUser(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("b/mine", "master=frodo")
	s.bare("sams", "master=sam")
	s.bare("plain")
	breakConfig(t, s.bare("broken"))
	if err := os.MkdirAll(s.RepoBase+"/not-a-repository.git", 0o700); err != nil {
		t.Fatal(err)
	}
	r := s.session("info").user(t, "alice")
	want := "Hello alice, I am frodo.\n master  b/mine\n local   plain\n slave   sams (master: sam)\n"
	if r.status != 0 || r.out.String() != want || r.err.Len() > 0 {
		t.Errorf("exit status %d, stdout %q, stderr %q", r.status, r.out.String(), r.err.String())
	}
	if !strings.Contains(r.log.String(), "repository left out of info") || !strings.Contains(r.log.String(), "broken") {
		t.Errorf("log %q", r.log.String())
	}

	s.Users.Authorize = []string{s.script("authorize", `test "$2" = R && test "$3" = sams`)}
	var got InfoReply
	r = s.session("info --json").user(t, "alice")
	if err := json.Unmarshal(r.out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	reply := InfoReply{
		Hostname: "frodo", Version: ProgramVersion(), Protocol: 1, Verbs: []Verb{Info, ReceivePack, UploadPack, UploadArchive},
		Repositories: []Repository{{Name: "sams", Role: "slave", Master: "sam"}},
	}
	if diff := cmp.Diff(reply, got); diff != "" {
		t.Error(diff)
	}
}

// A directory that cannot be read: the rest is shown, its path is not.
func TestInfoIncomplete(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("plain")
	s.RepoBase += "/gone"
	r := s.session("info").user(t, "alice")
	if r.status != 1 || r.out.String() != "Hello alice, I am frodo.\n" {
		t.Errorf("exit status %d, stdout %q", r.status, r.out.String())
	}
	if got := r.err.String(); !strings.HasPrefix(got, "fatal: frodo: some repositories cannot be read") || strings.Contains(got, s.RepoBase) {
		t.Errorf("told %q", got)
	}
	if !strings.Contains(r.log.String(), s.RepoBase) {
		t.Errorf("log %q", r.log.String())
	}
}

// info --back asks the way back, of the asking peer and of nobody else.
func TestInfoBack(t *testing.T) {
	s := newTestServer(t, "")
	s.script("ssh", `test "$*" = "-T -a -x -oBatchMode=yes -oClearAllForwardings=yes -- sam info" || { echo "ssh $*"; exit 9; }
test -e `+s.dir+`/down && { printf 'ssh: no route\nto \033[31msam\n' >&2; exit 255; }
printf 'Hello frodo, I am \033[31msam.\nmore\n'
`)
	t.Setenv("PATH", filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH"))
	if r := s.session("info --back").peer(t, "sam"); r.out.String() != "Hello sam, I am frodo.\nHello frodo, I am [31msam.\n" || r.status != 0 {
		t.Errorf("exit status %d, stdout %q", r.status, r.out.String())
	}
	if err := os.WriteFile(s.dir+"/down", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var got InfoReply
	r := s.session("info --json --back").peer(t, "sam")
	if err := json.Unmarshal(r.out.Bytes(), &got); err != nil || r.status != 0 {
		t.Fatal(err, r.status)
	}
	if want := "failed: ssh: exit status 255: ssh: no route to [31msam"; got.Back != want {
		t.Errorf("back %q, want %q", got.Back, want)
	}
	s.session("info --back").user(t, "sam").refused(t, "info --back is for peers")
}
