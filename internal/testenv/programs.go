package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// The programs are built once, and removed when the last test that asked for
// them has ended; Main holds them until the process ends.
var programs struct {
	sync.Mutex
	dir   string
	users int
}

// Programs returns a directory with mirror-shell, mirrord, post-receive and
// pre-receive, as `make build` makes them. Every unix user can run them.
func Programs(t testing.TB) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if programs.dir == "" {
		dir := worldDir(t)
		build := exec.Command("go", "build", "-trimpath", "-o", dir, "mirror-shell/cmd/...")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			os.RemoveAll(dir)
			t.Fatalf("build the programs: %v\n%s", err, out)
		}
		programs.dir = dir
	}
	programs.users++
	t.Cleanup(releasePrograms)
	return programs.dir
}

func releasePrograms() {
	programs.Lock()
	defer programs.Unlock()
	if programs.users--; programs.users > 0 || programs.dir == "" {
		return
	}
	os.RemoveAll(programs.dir)
	programs.dir = ""
}

// holding runs the tests while it holds the programs.
type holding struct{ m *testing.M }

func (h holding) Run() int {
	programs.Lock()
	programs.users++
	programs.Unlock()
	defer releasePrograms()
	return h.m.Run()
}

// program returns the path of one of our programs.
func (e *Env) program(name string) string { return filepath.Join(e.Programs, name) }
