package shell

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/repos"
	"mirror-shell/internal/sendpack"
)

// lateInput is a client that waits until something has happened before it sends.
type lateInput struct {
	io.Reader
	before func()
}

func (l *lateInput) Read(p []byte) (int, error) {
	if l.before != nil {
		l.before()
		l.before = nil
	}
	return l.Reader.Read(p)
}

// What a peer may do is decided again once all was read: until then the repository may have
// been made anew by another master, or have become ours.
func TestDecidedAgain(t *testing.T) {
	var push bytes.Buffer
	if err := sendpack.WriteQuickRequest(&push, sendpack.QuickRequest{Format: "sha1", Head: "refs/heads/eves", Peer: "frodo"}); err != nil {
		t.Fatal(err)
	}
	for command, input := range map[string]string{
		"mirror-meta 'p/a'":             `{"version":1,"head":"refs/heads/eves","gl-perms":"WRITERS eve\n"}`,
		"CREATOR=eve perms -c 'p/a'":    "WRITERS eve\n",
		"mirror-push 'p/a'":             push.String(),
		"mirror-delete 'p/a'":           "",
		"mirror-rename 'p/a' 'p/b/c/d'": "",
	} {
		for name, change := range map[string]func(t *testing.T, s testServer){
			"made anew": func(t *testing.T, s testServer) {
				if _, err := repos.Delete(t.Context(), s.Server, repos.Deletion{Name: "p/a"}); err != nil {
					t.Error(err)
				}
				s.bare("p/a", "master=sam")
			},
			"ours now": func(t *testing.T, s testServer) {
				dir := filepath.Join(s.RepoBase, "p/a.git")
				if err := (git.Repo{Dir: dir}).SetConfig(t.Context(), "gitolite.mirror.master", "frodo"); err != nil {
					t.Error(err)
				}
			},
		} {
			t.Run(command+", "+name, func(t *testing.T) {
				s := newTestServer(t, "[accept]\ncreate = [\"p/**\"]\ndelete = [\"p/**\"]\n")
				s.bare("p/a", "master=eve")
				r := s.session(command)
				r.InstallHooks = func(context.Context, git.Repo) error { return nil }
				if !strings.HasPrefix(command, "mirror-rename") { // which reads nothing
					r.Stdin = &lateInput{strings.NewReader(input), func() {
						change(t, s)
						r.looked = r.looked.Add(-decisionHolds)
					}}
					r.peer(t, "eve")
				} else {
					r.Stdin = strings.NewReader("")
					change(t, s)
					_ = repos.Rename(t.Context(), s.Server, repos.Renaming{Old: "p/a", New: "p/b/c/d", By: "eve"})
				}
				dir := filepath.Join(s.RepoBase, "p/a.git")
				for _, file := range []string{"HEAD", "gl-perms", "gl-creator"} {
					if text, _ := os.ReadFile(filepath.Join(dir, file)); strings.Contains(string(text), "eve") {
						t.Errorf("%s is %q", file, text)
					}
				}
				if _, err := os.Stat(dir); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A directory that another one has taken the place of is noticed at once.
func TestStill(t *testing.T) {
	s := newTestServer(t, "")
	dir := s.bare("sams", "master=sam")
	r := s.session("mirror-push 'sams'")
	req, _, _, err := r.prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.still(t.Context(), Peer{"sam"}, req); err != nil {
		t.Error(err)
	}
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	if err := r.still(t.Context(), Peer{"sam"}, req); err == nil {
		t.Error("what is gone is taken for still there")
	}
	s.bare("sams", "master=gollum")
	if err := r.still(t.Context(), Peer{"sam"}, req); err == nil || !strings.Contains(err.Error(), "the master of sams is gollum") {
		t.Error(err)
	}
}

// The administrator's command runs whether or not the master waits for it.
func TestCreatedAfterHangup(t *testing.T) {
	dir := t.TempDir()
	program, seen := filepath.Join(dir, "created"), filepath.Join(dir, "seen")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nsleep 0.2\necho \"$1\" >"+seen+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := newTestServer(t, "[accept]\ncreate = [\"p/**\"]\ncreated = [\""+program+"\"]\n")
	r := s.session("mirror-create 'p/a'")
	r.Stdin = strings.NewReader("{}")
	ctx, hangup := context.WithCancel(t.Context())
	r.InstallHooks = func(context.Context, git.Repo) error { return nil }
	r.Stderr = writerFunc(func(p []byte) (int, error) {
		hangup()
		return 0, os.ErrClosed
	})
	peer, err := NewPeer("sam")
	if err != nil {
		t.Fatal(err)
	}
	r.ServePeer(ctx, peer)
	if text, err := os.ReadFile(seen); proc.OneLine(string(text), 80) != "p/a" {
		t.Errorf("%q, %v", text, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// What a repository is called now is for peers that it is mirrored with.
func TestNewNameIsNotForAll(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("old", "master=sam")
	if err := repos.Rename(t.Context(), s.Server, repos.Renaming{Old: "old", New: "secret"}); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"git-receive-pack 'old'", "mirror-meta 'old'", "USER=a SOC=git-receive-pack 'old'", "git-upload-pack 'old'"} {
		if r := s.session(command).peer(t, "eve"); strings.Contains(r.err.String(), "secret") || r.status != 1 {
			t.Errorf("%s: %d, %s", command, r.status, r.err.String())
		}
	}
	if r := s.session("git-receive-pack 'old'").peer(t, "sam"); !strings.Contains(r.err.String(), "secret") {
		t.Error(r.err.String())
	}
}

// Who may create repositories does not get the one that says who may do what.
func TestNobodyTakesTheMap(t *testing.T) {
	s := newTestServer(t, "[accept]\ncreate = [\"**\"]\ndelete = [\"**\"]\n[map]\nrepository = \"admin\"\n[gitolite]\nprograms = \"/g\"\n")
	s.bare("eves", "master=eve")
	for _, command := range []string{"mirror-create 'admin'", "mirror-rename 'eves' 'admin'", "CREATOR=eve perms -c 'admin'", "git-receive-pack 'admin.git'",
		"mirror-create 'gitolite-admin'", "mirror-rename 'eves' '/gitolite-admin'"} {
		r := s.session(command)
		r.Stdin = strings.NewReader("{}")
		r.InstallHooks = func(context.Context, git.Repo) error { return nil }
		r.peer(t, "eve")
		if text := r.err.String(); r.status != 1 || !strings.Contains(text, "says who may do what on frodo") || strings.Contains(text, "[accept]") {
			t.Errorf("%s: %d, %s", command, r.status, text)
		}
		for _, name := range []string{"admin", "gitolite-admin"} {
			if _, err := os.Lstat(filepath.Join(s.RepoBase, name+".git")); err == nil {
				t.Fatalf("%s: %s is there", command, name)
			}
		}
	}
}

// Where gitolite decides who may read what, info names nothing that it might hide.
func TestInfoWhereOthersDecide(t *testing.T) {
	s := newTestServer(t, "[users]\nexec = [\"/g/gitolite-shell\"]\n")
	s.bare("secret")
	for _, command := range []string{"info", "info --json"} {
		if r := s.session(command).user(t, "alice"); r.status != 0 || strings.Contains(r.out.String(), "secret") {
			t.Errorf("%s: %d, %s", command, r.status, r.out.String())
		}
	}
}
