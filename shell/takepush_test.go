package shell

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// taken is a slave's repository and its master's.
type taken struct {
	*PushTaker
	t      *testing.T
	master string
	stderr bytes.Buffer
}

func newTaken(t *testing.T) *taken {
	cfg, err := mirrorcfg.ParseRepo("ip1", nil)
	if err != nil {
		t.Fatal(err)
	}
	k := &taken{t: t, master: filepath.Join(t.TempDir(), "master.git")}
	slave := filepath.Join(t.TempDir(), "slave.git")
	k.PushTaker = &PushTaker{Config: cfg, Repo: git.Repo{Dir: slave}, Host: "sam", Stderr: &k.stderr}
	for _, dir := range []string{k.master, slave} {
		k.git("", "init", "-q", "--bare", "-b", "main", dir)
	}
	return k
}

func (k *taken) git(stdin string, args ...string) string {
	k.t.Helper()
	return strings.TrimSuffix(k.gitOutput(stdin, args...), "\n")
}

func (k *taken) gitOutput(stdin string, args ...string) string {
	k.t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=f", "-c", "user.email=f@example.org"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		k.t.Fatalf("git %v: %v", args, err)
	}
	return string(out)
}

func (k *taken) commit(message string) string {
	tree := k.git("", "--git-dir", k.master, "mktree")
	return k.git("", "--git-dir", k.master, "commit-tree", "-m", message, tree)
}

// request is a request with its pack.
func (k *taken) request(head string, commands ...sendpack.Command) []byte {
	k.t.Helper()
	var text bytes.Buffer
	if err := sendpack.WriteQuickRequest(&text, sendpack.QuickRequest{Format: "sha1", Head: head, Peer: "sam", Commands: commands}); err != nil {
		k.t.Fatal(err)
	}
	want := ""
	for _, c := range commands {
		if strings.Trim(c.New, "0") != "" {
			want += c.New + "\n"
		}
	}
	if want != "" {
		text.WriteString(k.gitOutput(want, "--git-dir", k.master, "pack-objects", "--revs", "--stdout", "-q"))
	}
	return text.Bytes()
}

func (k *taken) serve(in []byte) (sendpack.QuickAnswer, error) {
	k.t.Helper()
	var out bytes.Buffer
	if err := k.Serve(k.t.Context(), bytes.NewReader(in), &out); err != nil {
		return sendpack.QuickAnswer{}, err
	}
	return sendpack.ReadQuickAnswer(bufio.NewReader(&out))
}

func (k *taken) refs() map[string]string {
	k.t.Helper()
	refs, err := k.Repo.Refs(k.t.Context())
	if err != nil {
		k.t.Fatal(err)
	}
	return refs
}

var noRef = strings.Repeat("0", 40)

// What is wrong on the slave after a push is the master's to know, and when it asks again.
func TestTakePushNote(t *testing.T) {
	k := newTaken(t)
	one := k.commit("one")
	k.After = func(context.Context) string {
		if k.refs()["refs/heads/main"] != one {
			t.Error("asked before it was applied")
		}
		return "the rules are old"
	}
	if a, err := k.serve(k.request("refs/heads/main", sendpack.Command{Ref: "refs/heads/main", Old: noRef, New: one})); err != nil || a.Stock != "" || a.Note != "the rules are old" {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := k.serve(k.request("refs/heads/main")); err != nil || a.Note != "the rules are old" {
		t.Errorf("nothing changed: %+v, %v", a, err)
	}
	if a, err := k.serve(k.request("refs/heads/main", sendpack.Command{Ref: "refs/heads/main", Old: noRef, New: k.commit("two")})); err != nil || a.Stock == "" || a.Note != "" {
		t.Errorf("refused: %+v, %v", a, err)
	}
}

func TestTakePush(t *testing.T) {
	k := newTaken(t)
	one, two := k.commit("one"), k.commit("two")
	a, err := k.serve(k.request("refs/heads/trunk",
		sendpack.Command{Ref: "refs/heads/trunk", Old: noRef, New: one}, sendpack.Command{Ref: "refs/heads/x", Old: noRef, New: two}))
	if err != nil || a.Stock != "" || a.Head != "refs/heads/trunk" || len(a.Digest) != 64 {
		t.Fatalf("%+v, %v, %s", a, err, k.stderr.String())
	}
	// Nothing to change is a question.
	if again, err := k.serve(k.request("refs/heads/trunk")); err != nil || again != a {
		t.Errorf("%+v, %v; want %+v", again, err, a)
	}
	// One old value that is no longer true: nothing is applied.
	a, err = k.serve(k.request("", sendpack.Command{Ref: "refs/heads/x", Old: one, New: noRef}, sendpack.Command{Ref: "refs/heads/trunk", Old: one, New: two}))
	if refs := k.refs(); err != nil || a.Stock == "" || refs["refs/heads/x"] != two || refs["refs/heads/trunk"] != one {
		t.Errorf("%+v, %v: %v", a, err, refs)
	}
	// A master that is gone before the end of the pack has changed nothing.
	three := k.commit("three")
	whole := k.request("", sendpack.Command{Ref: "refs/heads/x", Old: two, New: three})
	for _, n := range []int{len(whole) - 1, len(whole) - 30} {
		if a, err := k.serve(whole[:n]); err == nil && a.Stock == "" || k.refs()["refs/heads/x"] != two {
			t.Errorf("cut after %d of %d bytes: %+v, %v", n, len(whole), a, err)
		}
	}
	if a, err := k.serve(whole); err != nil || a.Stock != "" || k.refs()["refs/heads/x"] != three {
		t.Errorf("%+v, %v, %s", a, err, k.stderr.String())
	}
}

// A push that was meant for another server changes nothing.
func TestTakePushOfAnother(t *testing.T) {
	k := newTaken(t)
	k.Host = "gollum"
	if a, err := k.serve(k.request("", sendpack.Command{Ref: "refs/heads/x", Old: noRef, New: k.commit("one")})); err != nil || a.Stock != "this is gollum, and not sam" || len(k.refs()) > 0 {
		t.Errorf("%+v, %v", a, err)
	}
}

// An early connection that found no use says nothing, and is told nothing.
func TestTakeNothing(t *testing.T) {
	k := newTaken(t)
	var out bytes.Buffer
	if err := k.Serve(t.Context(), strings.NewReader(""), &out); err != nil || out.Len() > 0 {
		t.Errorf("%v, %q", err, out.String())
	}
	if err := k.Serve(t.Context(), strings.NewReader("push 1 sha1 - sam\n"), io.Discard); err == nil {
		t.Error("half a request is taken")
	}
}

// Begin may refuse, and is told what was asked; its end is called only when all was applied.
func TestTakePushBegin(t *testing.T) {
	k := newTaken(t)
	one := k.commit("one")
	create := sendpack.Command{Ref: "refs/heads/main", Old: noRef, New: one}
	refused := true
	done := 0
	k.Begin = func(_ context.Context, commands []sendpack.Command) ([]string, func(), error) {
		if refused {
			return nil, nil, fmt.Errorf("no %s", commands[0].Ref)
		}
		return []string{"-c", "core.hooksPath=" + os.DevNull}, func() { done++ }, nil
	}
	if a, err := k.serve(k.request("", create)); err != nil || a.Stock != "no refs/heads/main" || len(k.refs()) > 0 {
		t.Errorf("%+v, %v", a, err)
	}
	refused = false
	hook := filepath.Join(k.Repo.Dir, "hooks/pre-receive")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if a, err := k.serve(k.request("", create)); err != nil || a.Stock != "" || done != 1 {
		t.Errorf("%+v, %v, done %d times: %s", a, err, done, k.stderr.String())
	}
	if a, err := k.serve(k.request("", create)); err != nil || a.Stock == "" || done != 1 {
		t.Errorf("%+v, %v, done %d times", a, err, done)
	}
	// Where git runs the hooks, they count.
	k.Begin = nil
	if a, err := k.serve(k.request("", sendpack.Command{Ref: "refs/heads/main", Old: one, New: noRef})); err != nil || a.Stock == "" {
		t.Errorf("%+v, %v", a, err)
	}
	if a, _ := k.serve(k.request("refs/tags/x")); a.Stock == "" {
		t.Errorf("HEAD points to a tag: %+v", a)
	}
	if errors.Is(k.Repo.SetHead(t.Context(), "refs/heads/main"), os.ErrNotExist) {
		t.Error("no repository")
	}
}

// git gc is started when it has something to do, and not for each push.
func TestGCDue(t *testing.T) {
	repo := git.Repo{Dir: t.TempDir()}
	fill := func(dir string, n int) {
		os.MkdirAll(filepath.Join(repo.Dir, "objects", dir), 0o700)
		for i := range n {
			os.WriteFile(filepath.Join(repo.Dir, "objects", dir, fmt.Sprint(i)), nil, 0o600)
		}
	}
	if gcDue(repo) {
		t.Error("due in an empty repository")
	}
	fill("17", 10)
	fill("pack", 60)
	if gcDue(repo) {
		t.Error("due with 10 loose objects in 256")
	}
	fill("17", 11)
	if !gcDue(repo) {
		t.Error("not due with 11 loose objects in 256")
	}
	os.RemoveAll(filepath.Join(repo.Dir, "objects/17"))
	fill("pack", 61)
	if !gcDue(repo) {
		t.Error("not due with 61 files of packs")
	}
}
