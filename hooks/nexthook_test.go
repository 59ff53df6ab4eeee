package hooks

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/proc"
)

// The next hook still gets what git got.
func TestNextHookInheritsDescriptors(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo", "slaves=sam")
	w.write(dir+"/hooks/post-receive.next", "#!/bin/sh\necho here >&3\n", 0o700)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := exec.Command("git", "push", dir, "main")
	cmd.Dir, cmd.Env, cmd.ExtraFiles = w.work, w.env(), []*os.File{write}
	out, err := cmd.CombinedOutput()
	write.Close()
	w.pushed(dir, string(out), err)
	if text, _ := io.ReadAll(read); string(text) != "here\n" {
		t.Errorf("%q; told %s", text, out)
	}
}

// lines is what git gives a hook to read.
func (w *world) lines() string {
	return strings.Repeat("0", 40) + " " + w.oid + " refs/heads/main\n"
}

// A hook run with next to no environment, as some front ends do it.
func TestStrippedEnvironment(t *testing.T) {
	w := newWorld(t)
	master := w.bare("mine", "slaves=sam")
	slave := w.bare("sams", "master=sam")
	w.write(w.home+"/.gitconfig", "[gitolite \"mirror\"]\n\tmaster = frodo\n", 0o600) // of every repository
	run := func(dir, hook string, env ...string) (string, int) {
		cmd := exec.Command("hooks/" + hook)
		cmd.Dir, cmd.Env, cmd.Stdin = dir, env, strings.NewReader(w.lines())
		out, err := cmd.CombinedOutput()
		return string(out), proc.ExitCode(err)
	}
	home, path := "HOME="+w.home, "PATH="+os.Getenv("PATH")
	if out, code := run(slave, "pre-receive", home, path); code != 1 || out != "fatal: frodo is not the master of sams, please push to sam\n" {
		t.Errorf("%d, %s", code, out)
	}
	if out, code := run(master, "pre-receive", home, path); code != 0 || out != "" {
		t.Errorf("%d, %s", code, out)
	}
	if out, code := run(master, "post-receive", home, path); code != 0 || !strings.Contains(out, "&) frodo ==== (mine) ===> sam\n") {
		t.Errorf("%d, %s", code, out)
	}
	w.called("drain")
	// Git's variables of some other repository do not lead astray.
	evil := []string{home, path, "GIT_DIR=" + master, "GIT_CONFIG=" + master + "/config", "GIT_WORK_TREE=/", "GIT_CEILING_DIRECTORIES=/",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=gitolite.mirror.master", "GIT_CONFIG_VALUE_0=local", "GIT_CONFIG_PARAMETERS='gitolite.mirror.master=local'"}
	if out, code := run(slave, "pre-receive", evil...); code != 1 || !strings.Contains(out, "frodo is not the master of sams") {
		t.Errorf("%d, %s", code, out)
	}
	// Without HOME it is the account's, where there is nothing for this repository.
	if out, code := run(slave, "pre-receive", path, "MIRROR_SHELL_CONFIG="+w.config); code != 1 || !strings.Contains(out, "frodo is not the master of sams") {
		t.Errorf("%d, %s", code, out)
	}
}

func TestHomeOfTheAccount(t *testing.T) {
	u, err := user.Current()
	if err != nil {
		t.Skip(err)
	}
	t.Setenv("HOME", "")
	if _, err := New(); err != nil {
		t.Fatal(err)
	}
	if got := os.Getenv("HOME"); got != u.HomeDir {
		t.Errorf("HOME is %q, want %q", got, u.HomeDir)
	}
}

func TestNextHooks(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo", "slaves=sam")
	for _, name := range Names {
		if err := os.Remove(dir + "/hooks/" + name); err != nil {
			t.Fatal(err)
		}
		w.write(dir+"/hooks/"+name, "#!/bin/sh\ncat >>"+w.home+"/"+name+"\necho \"$0 $GIT_DIR\" >>"+w.home+"/"+name+"\ntest -e "+w.home+"/no-$(basename $0) && exit 3\nexit 0\n", 0o700)
	}
	w.install(dir)
	read := func(name string) string {
		data, _ := os.ReadFile(filepath.Join(w.home, name))
		return string(data)
	}

	// Its exit status counts.
	w.write(w.home+"/no-pre-receive.next", "", 0o600)
	out, err := w.push(dir)
	if err == nil || !strings.Contains(out, "pre-receive hook declined") || read("post-receive") != "" {
		t.Errorf("%v, %s", err, out)
	}
	if err := os.Remove(w.home + "/no-pre-receive.next"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.home + "/pre-receive"); err != nil {
		t.Fatal(err)
	}

	out, err = w.push(dir)
	w.pushed(dir, out, err)
	for _, name := range Names {
		if got, want := read(name), w.lines()+"hooks/"+name+".next .\n"; got != want {
			t.Errorf("%s saw %q, want %q", name, got, want)
		}
	}
	if len(w.events()) != 1 {
		t.Errorf("events %v", w.events())
	}

	// A refused push runs neither.
	os.Remove(w.home + "/pre-receive")
	w.git(dir, "config", "gitolite.mirror.master", "sam")
	w.git(w.work, "commit", "-q", "--allow-empty", "-m", "two")
	if out, err := w.push(dir); err == nil || read("pre-receive") != "" {
		t.Errorf("%v, %s, %s", err, out, read("pre-receive"))
	}
	// One that git would not run either is passed over.
	w.git(dir, "config", "gitolite.mirror.master", "frodo")
	if err := os.Chmod(dir+"/hooks/pre-receive.next", 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := w.push(dir); err != nil || read("pre-receive") != "" {
		t.Errorf("%v, %s, %s", err, out, read("pre-receive"))
	}
}

func TestNextHookOddities(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1")
	next := dir + "/hooks/pre-receive.next"
	// Ours, under that name: it must not run itself for ever.
	if err := os.Symlink(programs+"/pre-receive", next); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "hooks/pre-receive")
	cmd.Dir, cmd.Env = dir, w.env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v, %s", err, out)
	}
	if err := os.Remove(next); err != nil {
		t.Fatal(err)
	}
	// One that cannot be run refuses: it may be what keeps a repository safe.
	w.write(next, "#!/nowhere/interpreter\n", 0o700)
	out, err := w.push(dir)
	w.refused(dir, out, err, "hook hooks/pre-receive.next: no such file")
}

// Both without a process: what Hook does with its fields.
func TestHookFields(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo", "slaves=sam")
	w.write(dir+"/hooks/post-receive.next", "#!/bin/sh\n", 0o700)
	t.Setenv("HOME", w.home)
	var told bytes.Buffer
	var ran []string
	h := &Hook{Path: dir + "/hooks/post-receive", Dir: dir, Programs: programs, Stderr: &told,
		Exec: func(path string, argv, env []string) error { ran = append(ran, path); return os.ErrPermission }}
	if code := h.PostReceive(t.Context()); code != 1 || !strings.Contains(told.String(), "fatal: hook "+dir+"/hooks/post-receive.next: permission denied") {
		t.Errorf("%d, %s", code, told.String())
	}
	if len(ran) != 1 || len(w.events()) != 1 {
		t.Errorf("ran %q, events %v", ran, w.events())
	}
	w.called("drain")
}
