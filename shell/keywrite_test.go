package shell

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

func TestKeysSymlink(t *testing.T) {
	k := newTestKeys(t)
	k.put("")
	target := filepath.Join(k.dir, "real")
	if err := os.WriteFile(target, []byte("# real\n"), 0o664); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(target, 0o664); err != nil {
		t.Fatal(err)
	}
	os.Remove(k.Path)
	if err := os.Symlink("../real", k.Path); err != nil {
		t.Fatal(err)
	}
	_, line := newTestKey(t)
	k.mustAdd(KeyPeer, "sam.pub", line)
	k.want("# real\n" + ourKeyLine("peer", "sam", "sam.pub", line) + "\n")
	if link, err := os.Readlink(k.Path); err != nil || link != "../real" {
		t.Error(link, err)
	}
	if info, _ := os.Stat(target); info.Mode() != 0o644 { // readable as before, no longer group-writable
		t.Error(info.Mode())
	}

	os.Remove(target) // a dangling link makes its target
	k.mustAdd(KeyPeer, "sam.pub", line)
	if info, err := os.Lstat(target); err != nil || info.Mode() != 0o600 {
		t.Error(info, err)
	}
	os.Remove(k.Path)
	if err := os.Symlink("authorized_keys", k.Path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := k.Add(KeyPeer, k.pub("sam.pub", line)); err == nil {
		t.Error("a link to itself is followed")
	}
}

func TestKeysOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root works in other accounts' directories")
	}
	k := newTestKeys(t)
	if err := os.Chown(k.dir, 12345, 54321); err != nil {
		t.Fatal(err)
	}
	_, line := newTestKey(t)
	k.mustAdd(KeyPeer, "sam.pub", line)
	owner := func(path string, uid, gid uint32) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
	}
	owner(filepath.Dir(k.Path), 12345, 54321)
	owner(k.Path, 12345, 54321)
	owner(k.Path+".lock", 12345, 54321)
	if err := os.Chown(k.Path, 777, 778); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Remove(KeyPeer, "sam"); err != nil {
		t.Fatal(err)
	}
	owner(k.Path, 777, 778)
}

// A write that fails (here: the disk quota of one file) leaves the old file and no litter.
func TestKeysFailedWrite(t *testing.T) {
	k := newTestKeys(t)
	_, line := newTestKey(t)
	k.put("# " + strings.Repeat("x", 8192) + "\n")
	pub := k.pub("sam.pub", line)
	before, _ := os.ReadFile(k.Path)

	cmd := exec.Command(os.Args[0], "-test.run=^TestKeysFailedWriteChild$")
	cmd.Env = append(os.Environ(), "KEYS_CHILD_PATH="+k.Path, "KEYS_CHILD_PUB="+pub)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "old one is unchanged") {
		t.Fatalf("%v: %s", err, out)
	}
	k.want(string(before))
	entries, _ := os.ReadDir(filepath.Dir(k.Path))
	if len(entries) != 2 { // the file and its lock
		t.Error(entries)
	}
}

// TestKeysFailedWriteChild is the process that may write 4 KiB to a file at most.
func TestKeysFailedWriteChild(t *testing.T) {
	path := os.Getenv("KEYS_CHILD_PATH")
	if path == "" {
		t.Skip("a part of TestKeysFailedWrite")
	}
	lim := syscall.Rlimit{Cur: 4096, Max: 4096}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &lim); err != nil {
		t.Fatal(err)
	}
	_, _, err := AuthorizedKeys{Path: path, Command: testKeyCommand}.Add(KeyPeer, os.Getenv("KEYS_CHILD_PUB"))
	fmt.Println(err)
	if !errors.Is(err, syscall.EFBIG) {
		t.Fatal("not refused for the size:", err)
	}
}

func TestKeysConcurrentEdits(t *testing.T) {
	k := newTestKeys(t)
	const n = 20
	var wg sync.WaitGroup
	for i := range n {
		_, line := newTestKey(t)
		pub := k.pub(fmt.Sprintf("user%d.pub", i), line)
		wg.Go(func() {
			if _, _, err := k.Add(KeyUser, pub); err != nil {
				t.Error(err)
			}
			if _, err := k.List(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, err := k.List(); len(list) != n || err != nil {
		t.Errorf("%d entries, %v", len(list), err)
	}
}

func TestKeysLockedOrTrapped(t *testing.T) {
	k := newTestKeys(t)
	k.put("")
	victim := filepath.Join(k.dir, "victim")
	if err := os.Symlink(victim, k.Path+".lock"); err != nil {
		t.Fatal(err)
	}
	_, line := newTestKey(t)
	if _, _, err := k.Add(KeyUser, k.pub("a.pub", line)); !errors.Is(err, syscall.ELOOP) {
		t.Error("a symlink in place of the lock:", err)
	}
	if _, err := os.Lstat(victim); err == nil {
		t.Error("the lock was made through a symlink")
	}
	os.Remove(k.Path + ".lock")

	l := flock.New(k.Path + ".lock")
	if err := l.Lock(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { l.Close() })
	start := time.Now()
	k.mustAdd(KeyUser, "a.pub", line)
	if time.Since(start) < 200*time.Millisecond {
		t.Error("did not wait for the lock")
	}
}
