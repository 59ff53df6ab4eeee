package shell

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/mirrorcfg"
)

// TestMain keeps the tests away from the configuration of whoever runs them.
func TestMain(m *testing.M) {
	for key, value := range map[string]string{
		"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
		"GIT_AUTHOR_NAME": "Alice", "GIT_AUTHOR_EMAIL": "alice@example.org",
		"GIT_COMMITTER_NAME": "Alice", "GIT_COMMITTER_EMAIL": "alice@example.org",
	} {
		os.Setenv(key, value)
	}
	os.Exit(m.Run())
}

// testServer is frodo, with an empty repo_base.
type testServer struct {
	*mirrorcfg.Server
	t   testing.TB
	dir string
}

func newTestServer(t testing.TB, toml string) testServer {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("hostname = \"frodo\"\nrepo_base = %q\nstate_dir = %q\n%s", dir+"/repositories", dir+"/state", toml)
	file := filepath.Join(dir, "config.toml")
	for _, d := range []string{dir + "/repositories", dir + "/bin"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	server, err := mirrorcfg.Parse(file, text)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return testServer{server, t, dir}
}

// bare makes a repository with the config "key=value", below gitolite.mirror.,
// and returns its directory.
func (s testServer) bare(name string, config ...string) string {
	s.t.Helper()
	dir := filepath.Join(s.RepoBase, name+".git")
	testGit(s.t, "", "init", "-q", "--bare", "-b", "main", dir)
	for _, c := range config {
		key, value, _ := strings.Cut(c, "=")
		testGit(s.t, dir, "config", "gitolite.mirror."+key, value)
	}
	return dir
}

// script writes an executable file and returns its path.
func (s testServer) script(name, text string) string {
	s.t.Helper()
	file := filepath.Join(s.dir, "bin", name)
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		s.t.Fatal(err)
	}
	return file
}

func testGit(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit adds a commit to the branch main of a repository, bare or not.
func testCommit(t testing.TB, dir, message string) string {
	t.Helper()
	tree := testGit(t, dir, "hash-object", "-w", "-t", "tree", "/dev/null")
	args := []string{"commit-tree", "-m", message, tree}
	if old, err := exec.Command("git", "-C", dir, "rev-parse", "-q", "--verify", "refs/heads/main").Output(); err == nil {
		args = append(args, "-p", strings.TrimSpace(string(old)))
	}
	oid := testGit(t, dir, args...)
	testGit(t, dir, "update-ref", "refs/heads/main", oid)
	return oid
}

// run is one session and what came of it.
type testRun struct {
	Session
	out, err, log bytes.Buffer
	env, argv     []string // of the last Exec
	execs         int
	status        int
	execErr       error // what Exec answers
	execStatus    int
}

func (s testServer) session(command string) *testRun {
	r := &testRun{}
	r.Session = Session{
		Server: s.Server, Mirrord: "/usr/bin/mirrord", Command: command, From: "192.0.2.1 1 2",
		Stdin: strings.NewReader(""), Stdout: &r.out, Stderr: &r.err,
		Log: slog.New(slog.NewTextHandler(&r.log, nil)),
		Exec: func(_ context.Context, env []string, argv ...string) (int, error) {
			r.execs++
			r.env, r.argv = env, argv
			return r.execStatus, r.execErr
		},
	}
	return r
}

func (r *testRun) peer(t testing.TB, name string) *testRun {
	t.Helper()
	r.status = r.ServePeer(t.Context(), testPeer(t, name))
	return r
}

func (r *testRun) user(t testing.TB, name string) *testRun {
	t.Helper()
	r.status = r.ServeUser(t.Context(), testUser(t, name))
	return r
}

// refused checks that nothing ran, that the client was told why in one line,
// and that the log has one line.
func (r *testRun) refused(t testing.TB, why string) {
	t.Helper()
	if r.status != 1 || r.execs != 0 {
		t.Errorf("%q: exit status %d, %d programs run (%q), want a refusal", r.Command, r.status, r.execs, r.argv)
	}
	if got := r.err.String(); !strings.HasPrefix(got, "fatal: ") || !strings.Contains(got, why) || strings.Count(got, "\n") != 1 {
		t.Errorf("%.100q: told %q, want one line with %q", r.Command, got, why)
	}
	if got := r.log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "msg=refused") {
		t.Errorf("%.100q: log %q, want one line", r.Command, got)
	}
}

// ran checks that exactly this program was handed the session.
func (r *testRun) ran(t testing.TB, argv ...string) {
	t.Helper()
	if r.execs != 1 || strings.Join(r.argv, "\x00") != strings.Join(argv, "\x00") {
		t.Errorf("%q: %d programs run, the last %q, want %q; told %q", r.Command, r.execs, r.argv, argv, r.err.String())
	}
}
