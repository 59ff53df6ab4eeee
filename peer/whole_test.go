package peer

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/internal/repos"
	"mirror-shell/mirrorcfg"
)

// slow is a peer that is told one thing after the other, and keeps what.
type slow struct {
	Peer
	mu      sync.Mutex
	told    []string
	waiting chan struct{} // closed by the first Tell
	goOn    chan struct{}
	once    sync.Once
}

func (s *slow) Tell(_ context.Context, op repos.Op, _ io.Writer) error {
	s.once.Do(func() { close(s.waiting); <-s.goOn })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, string(op.Kind)+" "+op.Name+" "+op.To)
	return nil
}

// Jobs for all the names of a chain of renamings run at the same time. Each is told
// once: told again, the first would take away what has got the name since.
func TestToldOnce(t *testing.T) {
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	server := &mirrorcfg.Server{Hostname: "frodo", RepoBase: t.TempDir(), StateDir: t.TempDir()}
	if _, err := git.Init(t.Context(), filepath.Join(server.RepoBase, "a.git"), "sha1"); err != nil {
		t.Fatal(err)
	}
	for _, names := range [][2]string{{"a", "b"}, {"b", "c"}} {
		if err := repos.Rename(t.Context(), server, repos.Renaming{Old: names[0], New: names[1], Peers: []string{"sam"}}); err != nil {
			t.Fatal(err)
		}
	}
	p := &Peers{Server: server}
	s := &slow{waiting: make(chan struct{}), goOn: make(chan struct{})}
	var jobs sync.WaitGroup
	tell := func(name string) {
		jobs.Go(func() {
			if _, _, err := p.tellOps(t.Context(), s, Job{Repository: name, Peer: "sam"}, io.Discard); err != nil {
				t.Error(err)
			}
		})
	}
	tell("a")
	<-s.waiting
	tell("b")
	tell("c")
	time.Sleep(50 * time.Millisecond) // time to read, and to be late
	close(s.goOn)
	jobs.Wait()
	if len(s.told) != 2 || s.told[0] != "rename a b" || s.told[1] != "rename b c" {
		t.Errorf("%q", s.told)
	}
	if left, err := repos.Untold(t.Context(), server, "sam", "c"); len(left) > 0 || err != nil {
		t.Error(left, err)
	}
	if _, err := os.Stat(filepath.Join(server.RepoBase, mirrorcfg.PrivateDir, "untold/sam.json")); err == nil {
		t.Error("what was told stays on disk")
	}
}
