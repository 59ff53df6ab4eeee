package shell

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/proc"
)

func TestRunGit(t *testing.T) {
	s := newTestServer(t, "")
	mine := s.bare("a/mine", "master=frodo", "slaves=sam", "redirectOK=true")
	sams := s.bare("sams", "master=sam", "slaves=frodo", "redirectOK=true")
	hide := []string{"git", "-c", "transfer.hideRefs=refs/mirror"}

	r := s.session("git-receive-pack 'sams'").peer(t, "sam")
	r.ran(t, append(hide, "-c", "receive.denyNonFastForwards=false", "-c", "receive.denyDeletes=false", "-c", "receive.denyDeleteCurrent=ignore", "receive-pack", "--", sams)...)
	if got, want := r.err.String(), "frodo <=== (sams) ==== sam\n"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	s.session("git-upload-pack 'sams'").peer(t, "sam").ran(t, append([]string{"git", "-c", "uploadpack.allowAnySHA1InWant=true"}, append(hide[1:], "upload-pack", "--strict", "--", sams)...)...)
	s.session("git-upload-pack '/a/mine.git'").user(t, "alice").ran(t, append(hide, "upload-pack", "--strict", "--", mine)...)
	s.session("git-upload-archive 'a/mine'").user(t, "alice").ran(t, append(hide, "upload-archive", mine)...)
	// The rules that a repository has for users hold for a redirected push too.
	s.session("git-receive-pack 'a/mine'").user(t, "alice").ran(t, append(hide, "receive-pack", "--", mine)...)
	s.session("USER=alice SOC=git-receive-pack 'a/mine'").peer(t, "sam").ran(t, append(hide, "receive-pack", "--", mine)...)

	r = s.session("git-receive-pack 'sams'").user(t, "alice")
	r.ran(t, "ssh", "-oConnectTimeout=60", "-oServerAliveInterval=20", "-oServerAliveCountMax=3",
		"-T", "-a", "-x", "-oBatchMode=yes", "-oClearAllForwardings=yes", "--", "sam", "USER=alice SOC=git-receive-pack 'sams'")
	if got, want := r.err.String(), "frodo ==== alice (sams) ===> sam\n"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	s.session("request-push a/mine").peer(t, "sam").ran(t,
		"/usr/bin/mirrord", "--config", s.File, "request-push", "--fg", "--", "a/mine", "sam")
}

func TestRunStatus(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("ip1")
	r := s.session("git-upload-pack 'ip1'")
	r.execStatus = 128
	if r.user(t, "alice"); r.status != 128 {
		t.Errorf("exit status %d, want the program's", r.status)
	}
	r = s.session("git-upload-pack 'ip1'")
	r.execErr, r.execStatus = errors.New("no such file"), 1
	if r.user(t, "alice"); r.status != 1 || !strings.HasPrefix(r.err.String(), "fatal: frodo: cannot run git: no such file") {
		t.Errorf("exit status %d, told %q", r.status, r.err.String())
	}
}

func TestRunEnvironment(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("mine", "master=frodo", "slaves=sam", "redirectOK=true")
	s.bare("sams", "master=sam", "redirectOK=true")
	for name, value := range map[string]string{
		"GIT_DIR": "/evil", "GIT_SSH_COMMAND": "evil", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": "evil",
		"GIT_CONFIG_PARAMETERS": "'core.fsmonitor=evil'", "GIT_TRACE": "/tmp/evil", "GIT_QUARANTINE_PATH": "/evil", "GIT_OBJECT_DIRECTORY": "/evil",
		"LD_PRELOAD": "/evil.so", "BASH_ENV": "/evil", "LANG": "de_DE", "GL_USER": "root", "GL_REPO": "evil", "GIT_PROTOCOL": "version=9",
		"MIRROR_SHELL_PEER": "sam", "MIRROR_SHELL_USER": "root", "SSH_ORIGINAL_COMMAND": "evil",
	} {
		t.Setenv(name, value)
	}
	config := "MIRROR_SHELL_CONFIG=" + s.File
	for _, c := range []struct {
		run  *testRun
		want []string
	}{
		{s.session("git-receive-pack 'sams'").peer(t, "sam"), []string{"MIRROR_SHELL_PEER=sam", config, "GL_REPO=sams"}},
		{s.session("git-upload-pack 'mine'").peer(t, "sam"), []string{"MIRROR_SHELL_PEER=sam", config, "GL_REPO=mine"}},
		// A redirected push is the user's: the hooks of the master see no peer.
		{s.session("USER=alice SOC=git-receive-pack 'mine'").peer(t, "sam"), []string{"MIRROR_SHELL_USER=alice", config, "GL_REPO=mine", "GL_USER=alice"}},
		{s.session("git-receive-pack 'mine'").user(t, "bob"), []string{"MIRROR_SHELL_USER=bob", config, "GL_REPO=mine", "GL_USER=bob"}},
		{s.session("git-receive-pack 'sams'").user(t, "bob"), nil}, // ssh
		{s.session("request-push mine").peer(t, "sam"), nil},       // mirrord
	} {
		if c.run.execs != 1 {
			t.Fatalf("%s: %s", c.run.Command, c.run.err.String())
		}
		if want := append(proc.Env(), c.want...); !slices.Equal(c.run.env, want) {
			t.Errorf("%s: environment\n%q, want\n%q", c.run.Command, c.run.env, want)
		}
		if env := strings.Join(c.run.env, "\n"); strings.Contains(env, "evil") || strings.Contains(env, "GIT_PROTOCOL") {
			t.Errorf("%s: environment %q", c.run.Command, c.run.env)
		}
	}
}

func TestRunGitProtocol(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("ip1")
	for value, passed := range map[string]bool{
		"version=2": true, "version=1": true, "version=2:key=x": true,
		"": false, "version=2\nX=y": false, "version=2 ": false, "$(id)": false, strings.Repeat("x", 65): false, "version=2\x00": false,
	} {
		r := s.session("git-upload-pack 'ip1'")
		r.GitProtocol = value
		r.user(t, "alice")
		if got := slices.Contains(r.env, "GIT_PROTOCOL="+value); got != passed {
			t.Errorf("GIT_PROTOCOL %q: passed on %v, want %v (%q)", value, got, passed, r.env)
		}
		if r.execs != 1 {
			t.Errorf("GIT_PROTOCOL %q ended the session", value)
		}
	}
}

func TestRunRefusals(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("mine", "master=frodo", "slaves=sam", "nightly=gimli")
	s.bare("sams", "master=sam")
	s.bare("local", "slaves=sam")
	s.session("git-receive-pack 'mine'").peer(t, "gollum").refused(t, "fatal: frodo <==//== gollum mirror-push rejected: frodo is the master of mine")
	s.session("git-receive-pack 'sams'").peer(t, "gollum").refused(t, "fatal: frodo <==//== gollum mirror-push rejected: the master of sams is sam")
	s.session("git-receive-pack 'local'").peer(t, "sam").refused(t, "fatal: frodo <==//== sam mirror-push rejected: local is local")
	s.session("request-push mine").peer(t, "gimli").refused(t, "fatal: frodo ==//==> gimli refused: not in slave list")
	s.session("git-upload-pack 'local'").peer(t, "sam").refused(t, "fatal: frodo ==//==> sam fetch rejected")
	s.session("USER=alice SOC=git-receive-pack 'mine'").peer(t, "sam").refused(t, "fatal: frodo <==//== sam redirected push rejected: ")
	s.session("USER=bob SOC=git-receive-pack 'mine'").user(t, "alice").refused(t, "alice may not send USER=")
	s.session("git-receive-pack 'sams'").user(t, "alice").refused(t, "fatal: frodo is not the master of sams, please push to sam")
	for _, command := range []string{
		"git-upload-pack --timeout=1 'mine'", "git-upload-pack 'mine' && id", "info; id", "mine", "git-upload-pack '../mine'",
		"git-upload-pack 'mine'\n", "\xff", strings.Repeat("x", 5000), "git-upload-pack 'mine\x1b[2J'",
	} {
		s.session(command).user(t, "alice").refused(t, "")
		s.session(command).peer(t, "sam").refused(t, "")
	}
}

// What a client sends never begins a line of the log, nor reaches a terminal raw.
func TestRunHostileText(t *testing.T) {
	s := newTestServer(t, "")
	for _, command := range []string{
		"x\nlevel=INFO msg=accepted who=root", "x\r\nmsg=accepted", "x\x1b[31mred\x07", "x\u2028y\u0085z\u202e", "x\" msg=accepted y=\"", "x\x00y",
		"\xff\xfe\n", "info \u202e", strings.Repeat("\n", 900), strings.Repeat("é", 100000), "USER=\u202eroot SOC=git-receive-pack 'x'",
	} {
		r := s.session(command).user(t, "alice")
		r.refused(t, "")
		for what, text := range map[string]string{"log": r.log.String(), "client": r.err.String()} {
			if strings.ContainsFunc(strings.TrimSuffix(text, "\n"), func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 || c == '\u202e' || c == '\u2028' }) {
				t.Errorf("%.80q: %s: %q", command, what, text)
			}
			if len(text) > 4000 {
				t.Errorf("%.80q: %s: %d bytes", command, what, len(text))
			}
		}
	}
}

// A repository that is not there, one that is not for the asker and one that is
// broken look the same to whoever has no business with it.
func TestRunSaysNothingOfOthers(t *testing.T) {
	s := newTestServer(t, "")
	s.Users.Authorize = []string{s.script("no", "exit 1\n")}
	s.bare("mine", "master=frodo", "slaves=gollum")
	s.bare("sams", "master=sam")
	s.bare("sams2", "master=sam", "redirectOK=true")
	s.bare("local")
	breakConfig(t, s.bare("broken", "master=frodo"))
	outside := t.TempDir()
	testGit(t, "", "init", "-q", "--bare", outside+"/x.git")
	if err := os.Symlink(outside+"/x.git", s.RepoBase+"/link.git"); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"git-upload-pack", "git-receive-pack", "git-upload-archive"} {
		for _, repo := range []string{"gone", "mine", "sams", "sams2", "local", "broken", "link"} {
			r := s.session(verb+" '"+repo+"'").user(t, "eve")
			r.refused(t, "")
			if got, want := r.err.String(), "fatal: frodo: repository "+repo+" is not here, or is not for eve\n"; got != want {
				t.Errorf("%s %s: %q, want %q", verb, repo, got, want)
			}
		}
	}
	for _, repo := range []string{"gone", "mine", "local", "broken", "link"} {
		r := s.session("git-upload-pack '"+repo+"'").peer(t, "eve")
		r.refused(t, "")
		if got, want := r.err.String(), "fatal: frodo ==//==> eve fetch rejected: "+repo+" is not mirrored to eve\n"; got != want {
			t.Errorf("%s: %q, want %q", repo, got, want)
		}
	}
	// The log has the reason.
	if r := s.session("git-upload-pack 'broken'").user(t, "eve"); !strings.Contains(r.log.String(), "has no value") {
		t.Errorf("log %q", r.log.String())
	}
	// So has a user with rights, and a master that is not heard.
	s.Users.Authorize = nil
	s.session("git-upload-pack 'broken'").user(t, "alice").refused(t, "gitolite.mirror.slaves has no value")
	s.session("git-upload-pack 'link'").user(t, "alice").refused(t, "link that leaves repo_base")
	s.session("git-receive-pack 'broken'").peer(t, "sam").refused(t, "gitolite.mirror.slaves has no value")
}

func breakConfig(t testing.TB, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, "[gitolite \"mirror\"]\n\tslaves\n"); err != nil {
		t.Fatal(err)
	}
}

func TestRunMissingRepoBase(t *testing.T) {
	s := newTestServer(t, "")
	if err := os.Remove(s.RepoBase); err != nil {
		t.Fatal(err)
	}
	s.session("git-upload-pack 'ip1'").user(t, "alice").refused(t, "repo_base "+s.RepoBase+" does not exist: create it")
	s.session("git-receive-pack 'ip1'").peer(t, "sam").refused(t, "does not exist: create it")
}

func TestRunAuthorize(t *testing.T) {
	s := newTestServer(t, "")
	asked := filepath.Join(s.dir, "asked")
	// alice may do everything, bob reads, the others are not known.
	s.Users.Authorize = []string{s.script("authorize", `test "$MIRROR_SHELL_CONFIG" = "`+s.File+`" || exit 3
echo "$*" >>`+asked+`
case "$2 $3" in "alice "*|"bob R") exit 0;; "carol "*) exit 7;; esac
exit 1
`), "first word"}
	s.bare("mine", "master=frodo", "slaves=sam", "redirectOK=true")
	s.bare("sams", "master=sam", "slaves=frodo", "redirectOK=true")
	s.bare("gollums", "master=gollum")
	for _, c := range []struct {
		user, peer, command string
		question            string // "": not asked
		allowed             bool
		told                string
	}{
		{user: "alice", command: "git-upload-pack 'mine'", question: "first word alice R mine", allowed: true},
		{user: "bob", command: "git-upload-pack 'mine'", question: "first word bob R mine", allowed: true},
		{user: "bob", command: "git-upload-archive 'mine'", question: "first word bob R mine", allowed: true},
		{user: "bob", command: "git-receive-pack 'mine'", question: "first word bob W mine", told: "is not here, or is not for bob"},
		{user: "carol", command: "git-upload-pack 'mine'", question: "first word carol R mine", told: "is not here, or is not for carol"},
		// On a slave: the push that is passed on, and the push that is refused.
		{user: "alice", command: "git-receive-pack 'sams'", question: "first word alice W sams", allowed: true},
		{user: "bob", command: "git-receive-pack 'sams'", question: "first word bob W sams", told: "is not here, or is not for bob"},
		{user: "bob", command: "git-receive-pack 'gollums'", question: "first word bob R gollums", told: "frodo is not the master of gollums, please push to gollum"},
		{user: "carol", command: "git-receive-pack 'gollums'", question: "first word carol R gollums", told: "is not here, or is not for carol"},
		// On the master, for a redirected push.
		{peer: "sam", command: "USER=alice SOC=git-receive-pack 'mine'", question: "first word alice W mine", allowed: true},
		{peer: "sam", command: "USER=bob SOC=git-receive-pack 'mine'", question: "first word bob W mine", told: "is not here, or is not for bob"},
		{peer: "eve", command: "USER=alice SOC=git-receive-pack 'mine'", told: "redirected push rejected"},
		// Peers have rules of their own.
		{peer: "sam", command: "git-receive-pack 'sams'", allowed: true},
		{peer: "sam", command: "git-upload-pack 'mine'", allowed: true},
	} {
		os.Remove(asked)
		r := s.session(c.command)
		if c.user != "" {
			r.user(t, c.user)
		} else {
			r.peer(t, c.peer)
		}
		if (r.execs == 1) != c.allowed {
			t.Errorf("%s%s %s: allowed %v, want %v: %s", c.user, c.peer, c.command, r.execs == 1, c.allowed, r.err.String())
		}
		if !c.allowed {
			r.refused(t, c.told)
		}
		question, _ := os.ReadFile(asked)
		if strings.TrimSpace(string(question)) != c.question {
			t.Errorf("%s%s %s: asked %q, want %q", c.user, c.peer, c.command, question, c.question)
		}
	}
}

// Whatever goes wrong with the command, the answer is no.
func TestRunAuthorizeFails(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("ip1")
	for name, c := range map[string]struct{ cmd, log string }{
		"missing":        {s.dir + "/bin/nowhere", "no such file"},
		"not executable": {s.File, "permission denied"},
		"killed":         {s.script("killed", "kill -9 $$\n"), "killed"},
		"hangs":          {s.script("hangs", "exec sleep 60\n"), "authorize command"},
		"catches":        {s.script("catches", "trap 'exit 0' TERM\nsleep 2 &\nwait\n"), "authorize command"},
	} {
		t.Run(name, func(t *testing.T) {
			s.Users.Authorize = []string{c.cmd}
			r := s.session("git-upload-pack 'ip1'")
			r.patience = 300 * time.Millisecond
			start := time.Now()
			r.user(t, "alice").refused(t, "frodo: repository ip1 is not here, or is not for alice")
			if !strings.Contains(r.log.String(), c.log) {
				t.Errorf("log %q, want %q in it", r.log.String(), c.log)
			}
			if d := time.Since(start); d > 8*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

func TestRunUsersExec(t *testing.T) {
	s := newTestServer(t, "")
	s.Users.Exec = []string{"/usr/share/gitolite-shell", "-x"}
	s.bare("mine", "master=frodo", "slaves=sam", "redirectOK=true")
	s.bare("sams", "master=sam", "redirectOK=true")
	for command, want := range map[string]string{
		"git-receive-pack '/mine.git'": "SSH_ORIGINAL_COMMAND=git-receive-pack 'mine'",
		"git upload-pack 'mine'":       "SSH_ORIGINAL_COMMAND=git-upload-pack 'mine'",
		"git-upload-archive 'mine'":    "SSH_ORIGINAL_COMMAND=git-upload-archive 'mine'",
	} {
		r := s.session(command).user(t, "alice")
		r.ran(t, "/usr/share/gitolite-shell", "-x", "alice")
		if !slices.Contains(r.env, want) || !slices.Contains(r.env, "GL_USER=alice") {
			t.Errorf("%s: environment %q, want %q", command, r.env, want)
		}
	}
	r := s.session("USER=alice SOC=git-receive-pack 'mine'").peer(t, "sam")
	r.ran(t, "/usr/share/gitolite-shell", "-x", "alice")
	if !slices.Contains(r.env, "SSH_ORIGINAL_COMMAND=git-receive-pack 'mine'") {
		t.Errorf("environment %q", r.env)
	}
	// Peers' sessions and redirected ones are never handed over.
	if r := s.session("git-receive-pack 'sams'").peer(t, "sam"); r.argv[0] != "git" {
		t.Errorf("%q", r.argv)
	}
	if r := s.session("git-receive-pack 'sams'").user(t, "alice"); r.argv[0] != "ssh" {
		t.Errorf("%q", r.argv)
	}
	if s.Users.Exec[1] != "-x" || len(s.Users.Exec) != 2 {
		t.Errorf("the configuration was changed: %q", s.Users.Exec)
	}
}

func TestMirrorMeta(t *testing.T) {
	s := newTestServer(t, "")
	dir := s.bare("sams", "master=sam")
	head := func() string { return testGit(t, dir, "symbolic-ref", "HEAD") }
	send := func(body string) *testRun {
		r := s.session("mirror-meta 'sams'")
		r.Stdin = strings.NewReader(body)
		return r.peer(t, "sam")
	}
	for body, want := range map[string]string{
		`{"head":"refs/heads/trunk"}`:                            "refs/heads/trunk",
		`{"head":"refs/heads/a/b.c-d@e"}` + "\n":                 "refs/heads/a/b.c-d@e",
		` {"version":1,"head":"refs/heads/é"} `:                  "refs/heads/é",
		`{}`:                                                     "refs/heads/main",
		`{"description":"x"}`:                                    "refs/heads/main",
		strings.Repeat(" ", 1<<20-50) + `{"head":""}`:            "refs/heads/main",
		`{"head":"refs/heads/` + strings.Repeat("b", 100) + `"}`: "refs/heads/" + strings.Repeat("b", 100),
	} {
		testGit(t, dir, "symbolic-ref", "HEAD", "refs/heads/main")
		if r := send(body); r.status != 0 || r.err.Len() > 0 || r.execs != 0 {
			t.Errorf("%.80s: exit status %d, told %q", body, r.status, r.err.String())
		}
		if got := head(); got != want {
			t.Errorf("%.80s: HEAD %s, want %s", body, got, want)
		}
	}

	testGit(t, dir, "symbolic-ref", "HEAD", "refs/heads/main")
	bad := map[string]string{
		"": "not a JSON object", "null": "not a JSON object", "[]": "not a JSON object", `"refs/heads/x"`: "not a JSON object", "x": "not a JSON object",
		`{`: "metadata", `{"head":`: "metadata", `{"head":7}`: "metadata", `{"head":"refs/heads/x"} {}`: "metadata", `{"head":"refs/heads/x"} x`: "metadata", `{"head":"refs/heads/x",}`: "metadata",
		`{"version":2,"head":"refs/heads/x"}`: "version 2 is not known here", `{"head":"refs/heads/x","new":1}`: "unknown field",
		`{"head":"refs/heads/x","description":"` + strings.Repeat("x", 1<<20) + `"}`: "more than 1048576 bytes",
		`{"head":"refs/heads/x"}` + strings.Repeat(" ", 1<<20):                       "more than 1048576 bytes",
	}
	for _, ref := range []string{
		"refs/heads/../x", "refs/heads/..", "refs/heads/a/../../../config", "refs/tags/v1", "refs/mirror/rescued/x", "refs/remotes/x", "refs/heads", "refs/heads/", "refs/headsx",
		"main", "HEAD", "-d", "/etc/passwd", "refs/heads//x", "refs/heads/x/", "refs/heads/x.lock", "refs/heads/x.lock/y", "refs/heads/.x", "refs/heads/a/.b", "refs/heads/x.",
		"refs/heads/x..y", "refs/heads/x@{1}", "refs/heads/a b", "refs/heads/a:b", "refs/heads/a~1", "refs/heads/a^", "refs/heads/a?", "refs/heads/a*", "refs/heads/[a", `refs/heads/a\\b`,
		`refs/heads/a\nb`, `refs/heads/a\u0000b`, `refs/heads/a\u007f`, " refs/heads/x", `refs/heads/x\n`,
	} {
		bad[`{"head":"`+ref+`"}`] = "HEAD cannot point to"
	}
	for body, want := range bad {
		r := send(body)
		if r.status != 1 || !strings.HasPrefix(r.err.String(), "fatal: frodo: metadata: ") || !strings.Contains(r.err.String(), want) || strings.Count(r.err.String(), "\n") != 1 {
			t.Errorf("%.80s: exit status %d, told %q, want %q", body, r.status, r.err.String(), want)
		}
		if got := head(); got != "refs/heads/main" {
			t.Fatalf("%.80s: HEAD is now %s", body, got)
		}
	}
	// One that never ends is not read for ever.
	endless := &endlessReader{}
	r := s.session("mirror-meta 'sams'")
	r.Stdin = endless
	if r.peer(t, "sam"); r.status != 1 || endless.n > 2<<20 {
		t.Errorf("exit status %d after %d bytes", r.status, endless.n)
	}
	// Whoever is not the master is not even read.
	r = s.session("mirror-meta 'sams'")
	r.Stdin = &neverRead{t}
	r.peer(t, "gollum").refused(t, "mirror-push rejected")
}

type neverRead struct{ t *testing.T }

func (n *neverRead) Read([]byte) (int, error) { n.t.Error("stdin was read"); return 0, io.EOF }

type endlessReader struct{ n int }

func (e *endlessReader) Read(p []byte) (int, error) {
	if e.n += len(p); e.n > 64<<20 {
		return 0, io.EOF
	}
	return copy(p, bytes.Repeat([]byte{'{'}, len(p))), nil
}
