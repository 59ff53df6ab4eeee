package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"

	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/peer/store"
)

// fullEnv tells this test binary to work in a mount namespace of its own: the directory that gets a disk of 200 KiB there, and
// nowhere else.
const fullEnv = "MIRROR_SHELL_FULL_DISK"

// onSmallDisk runs a test again as a child process, which may mount such a disk on the directory.
func onSmallDisk(t *testing.T, dir string, env ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), append(env, fullEnv+"="+dir)...)
	id := func(id int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: id(os.Getuid()), GidMappings: id(os.Getgid()), Pdeathsig: syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) || strings.Contains(string(out), "cannot mount") {
		t.Skipf("needs a mount namespace: %v %s", err, out)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v: %s", err, out)
	}
}

// bigCommit adds a commit of 400 KB that cannot be compressed.
func bigCommit(t testing.TB, r git.Repo) {
	t.Helper()
	noise := make([]byte, 400_000)
	rand.Read(noise)
	commitTo(t, r, "refs/heads/main", "noise "+hex.EncodeToString(noise)) // hex: half of it compresses away
}

// With no room in the scratch directory, and nowhere else: the error says where and what to do, what was backed up stays, and
// what needs little room is backed up.
func TestScratchIsFull(t *testing.T) {
	if scratch := os.Getenv(fullEnv); scratch != "" {
		inFullScratch(t, scratch, os.Getenv("MIRROR_SHELL_FULL_VAULT"))
		return
	}
	scratch, vault := t.TempDir(), t.TempDir()+"/vault"
	onSmallDisk(t, scratch, "MIRROR_SHELL_FULL_VAULT="+vault)
}

func mountSmallDisk(t *testing.T, dir string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=200k"); err != nil {
		t.Fatal("cannot mount: ", err)
	}
}

func inFullScratch(t *testing.T, scratch, vault string) {
	mountSmallDisk(t, scratch)
	place, err := store.Open(t.Context(), store.Options{URL: vault})
	if err != nil {
		t.Fatal(err)
	}
	v := &Vault{Store: place, Scratch: scratch, Server: "frodo", Program: "mirror-shell test"}
	big, small := newSource(t), newSource(t)
	commitTo(t, big, "refs/heads/main", "1 first")
	commitTo(t, small, "refs/heads/main", "1 first")
	good := take1(t, v, Source{Repository: "big", Repo: big}).Name
	bigCommit(t, big)
	full := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrNoRoom) || errors.Is(err, ErrSource) || !strings.Contains(err.Error(), scratch+" (") || !strings.Contains(err.Error(), "make room there") {
			t.Errorf("%s: %v", what, err)
		}
		leftovers(t, v)
	}
	_, err = v.Take(t.Context(), Source{Repository: "big", Repo: big})
	full("an update", err)
	_, err = v.Take(t.Context(), Source{Repository: "new", Repo: big}) // loose objects are put by their ids
	full("a first snapshot", err)
	if latest, err := v.Latest(t.Context(), "big"); err != nil || latest != good {
		t.Errorf("the latest is %v, %v", latest, err)
	}
	if _, err := v.Latest(t.Context(), "new"); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("half of one is there: %v", err)
	}
	take1(t, v, Source{Repository: "small", Repo: small})

	// A drill, and files that are encrypted before they are put.
	run(t, big.Dir, "repack", "-adq")
	packed := take1(t, v, Source{Repository: "packed", Repo: big}).Name // straight from where the pack lies
	_, err = v.practise(t.Context(), packed)
	full("a drill", err)
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 { // more than is encrypted in memory
		bigCommit(t, big)
		run(t, big.Dir, "update-ref", fmt.Sprintf("refs/heads/b%d", i), "main")
	}
	run(t, big.Dir, "repack", "-adq")
	v.Recipients = []age.Recipient{identity.Recipient()}
	_, err = v.Take(context.WithoutCancel(t.Context()), Source{Repository: "sealed", Repo: big})
	full("encryption", err)

	// What is said helps: the directory may be a link to another.
	v.Recipients = nil
	v.Scratch = scratch + "-link"
	if err := os.Symlink(t.TempDir(), v.Scratch); err != nil {
		t.Fatal(err)
	}
	take1(t, v, Source{Repository: "new", Repo: big})
}

// With no room where a repository is restored to: what was there stays and takes pushes, what was made is removed, and
// it is said how much room is needed.
func TestTargetIsFull(t *testing.T) {
	if disk := os.Getenv(fullEnv); disk != "" {
		restoreToFull(t, disk)
		return
	}
	onSmallDisk(t, t.TempDir())
}

func restoreToFull(t *testing.T, disk string) {
	mountSmallDisk(t, disk)
	v, _ := testVault(t)
	source := newSource(t)
	bigCommit(t, source)
	name := take1(t, v, Source{Repository: "big", Repo: source}).Name
	m, err := v.Load(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(disk, "big.git")
	run(t, disk, "init", "-q", "--bare", "--template=", target)
	kept := commitTo(t, git.Repo{Dir: target}, "refs/heads/main", "1 kept")
	full := func(what string, err error) {
		t.Helper()
		needs := fmt.Sprintf("make room there for %d kB", (contentSize(m)+999)/1000)
		if !errors.Is(err, ErrNoRoom) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), disk+" (") || !strings.Contains(err.Error(), "nothing was changed: "+needs) {
			t.Errorf("%s: %v", what, err)
		}
		if got := names(t, disk); !slices.Equal(got, []string{"big.git"}) {
			t.Errorf("%s: left: %q", what, got)
		}
		if got := run(t, target, "rev-parse", "main"); got != kept || refset.WhyRestoring(target) != "" {
			t.Errorf("%s: %s, %q", what, got, refset.WhyRestoring(target))
		}
	}
	_, err = v.Restore(t.Context(), name, target, RestoreOptions{Replace: true})
	full("in place", err)
	_, err = v.Restore(t.Context(), name, filepath.Join(disk, "other.git"), RestoreOptions{})
	full("beside", err)

	// A small one that fits but for what is put last: the disk is full when the hooks come.
	small := newSource(t)
	commitTo(t, small, "refs/heads/main", "1 small")
	name = take1(t, v, Source{Repository: "small", Repo: small}).Name
	if m, err = v.Load(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	_, err = v.Restore(t.Context(), name, target, RestoreOptions{Replace: true, Prepare: func(_ context.Context, build string) error {
		return os.WriteFile(filepath.Join(build, "hook"), make([]byte, 300_000), 0o600)
	}})
	full("hooks", err)
	done, err := v.Restore(t.Context(), name, target, RestoreOptions{Replace: true})
	if err != nil || done.Before == "" {
		t.Errorf("what fits: %+v, %v", done, err)
	}
}
