package proc

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGitVerb(t *testing.T) {
	for _, c := range []struct {
		want string
		argv []string
	}{
		{"receive-pack", []string{"git-receive-pack", "/r/ip1.git"}},
		{"receive-pack", []string{"/usr/bin/git", "-c", "a.b=c", "--no-pager", "-C", "/x", "receive-pack", "--", "/r"}},
		{"upload-pack", []string{"git", "upload-pack", "receive-pack"}},
		{"", []string{"git"}}, {"", []string{"git", "-c"}}, {"", nil}, {"", []string{"sh", "receive-pack"}}, {"", []string{""}},
	} {
		if got := gitVerb(c.argv); got != c.want {
			t.Errorf("%q: %q", c.argv, got)
		}
	}
}

func TestPushes(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("git", "init", "-q", "--bare", dir).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("git", "receive-pack", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var found []Process
	for range 1000 {
		if found, err = Pushes(info); err != nil || len(found) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err != nil || len(found) != 1 || found[0].PID != cmd.Process.Pid || found[0].Ended() {
		t.Fatalf("%v, %v", found, err)
	}
	defer found[0].Close()
	if err := os.Rename(dir, dir+"-moved"); err != nil {
		t.Fatal(err)
	}
	again, err := Pushes(info)
	if err != nil || len(again) != 1 {
		t.Fatalf("after a rename: %v, %v", again, err)
	}
	again[0].Close()
	if err := found[0].Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if !found[0].Ended() {
		t.Error("it has ended")
	}
	if err := found[0].Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if all, err := Pushes(info); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}
