package inbox

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFileInPlaceOfDirectory(t *testing.T) {
	b := New(t.TempDir())
	if err := os.WriteFile(b.Dir(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(event("ip1", "sam")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("put: %v", err)
	}
	if _, err := b.List(); err == nil {
		t.Error("list of a file succeeded")
	}
}

const fullDiskEnv = "INBOX_TEST_FULL_DISK"

// A limit on file sizes cuts the write short as a full disk does. It binds a whole process
// for good, so a child process bears it.
func TestPutOnFullDisk(t *testing.T) {
	if state := os.Getenv(fullDiskEnv); state != "" {
		signal.Ignore(unix.SIGXFSZ)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 10, Max: 10}); err != nil {
			t.Fatal(err)
		}
		if _, err := New(state).Put(event("ip1", "sam")); !errors.Is(err, unix.EFBIG) {
			t.Fatalf("put: %v", err)
		}
		return
	}
	state := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestPutOnFullDisk$")
	child.Env = append(os.Environ(), fullDiskEnv+"="+state)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if left := files(t, New(state).Dir()); left != nil {
		t.Errorf("half an event was left: %v", left)
	}
}

// The tests run as root in places, where modes do not stop anybody: the thread gives up
// its rights to files instead.
func TestPutReadOnly(t *testing.T) {
	b := New(t.TempDir())
	mustPut(t, b, event("ip1", "sam"))
	if err := os.Chmod(b.Dir(), 0o555); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(b.Dir(), 0o700)
	err := asNobody(func() error { _, err := b.Put(event("ip2", "sam")); return err })
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), b.Dir()) {
		t.Errorf("got %v", err)
	}
	if names, _ := b.List(); len(names) != 1 {
		t.Errorf("left: %v", names)
	}
}

func asNobody(do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if os.Geteuid() == 0 {
		const nobody = 65534
		if _, err := unix.SetfsuidRetUid(nobody); err != nil {
			return err
		}
		defer unix.SetfsuidRetUid(0)
	}
	return do()
}
