package peer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/peer/peertest"
)

// site is frodo, with a program in the place of ssh that has sam on this machine.
type site struct {
	*peertest.Fixture
	server *mirrorcfg.Server
	peers  *peer.Peers
	dir    string
	git    string // the real one
}

// newSite makes frodo the master of ip1. The test cannot run in parallel, as it
// changes PATH.
func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{dir: t.TempDir()}
	s.Fixture = peertest.NewFixture(t, "sha1", func(t testing.TB, format string) peertest.Copy {
		repo := peertest.NewRepo(t, format)
		return peertest.Copy{Refs: repo.Refs, Head: repo.Head, Repo: repo}
	})
	var err error
	if s.git, err = exec.LookPath("git"); err != nil {
		t.Fatal(err)
	}
	s.Git("config", "gitolite.mirror.master", "frodo")
	s.Git("config", "gitolite.mirror.slaves", "sam")
	if err := os.MkdirAll(s.dir+"/repositories", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.Dir, s.dir+"/repositories/ip1.git"); err != nil {
		t.Fatal(err)
	}
	s.Dir = s.dir + "/repositories/ip1.git"
	s.server, err = mirrorcfg.Parse(s.dir+"/config.toml", fmt.Sprintf(
		"hostname = \"frodo\"\nrepo_base = %q\nstate_dir = %q\n[worker]\nstall_timeout = \"20s\"\n[peer.vault]\nkind = \"backup\"\nurl = \"file:///nowhere/x\"\n",
		s.dir+"/repositories", s.dir+"/state"))
	if err != nil {
		t.Fatal(err)
	}
	s.peers = &peer.Peers{Server: s.server, Transport: peer.OpenSSH{}}
	if setter, ok := t.(interface{ Setenv(key, value string) }); ok {
		setter.Setenv("PATH", s.dir+"/bin:"+os.Getenv("PATH"))
		setter.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
		setter.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	}
	s.ssh("")
	return s
}

func (s *site) program(name, script string) {
	s.Helper()
	if err := os.MkdirAll(s.dir+"/bin", 0o700); err != nil {
		s.Fatal(err)
	}
	tmp := filepath.Join(s.dir, name+".new")
	if err := os.WriteFile(tmp, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		s.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, "bin", name)); err != nil {
		s.Fatal(err)
	}
}

// ssh installs the program that stands for ssh and sam; first is done before
// the command is looked at.
func (s *site) ssh(first string) {
	s.Helper()
	s.program("ssh", fmt.Sprintf(`for command; do :; done
%[1]s
case $command in
"git-receive-pack 'ip1'") %[2]s receive-pack %[3]s; status=$?; %[4]s exit $status;;
"mirror-meta 'ip1'") head=$(sed 's/.*"head":"//; s/".*//'); exec %[2]s --git-dir=%[3]s symbolic-ref HEAD "$head";;
esac
echo "fatal: sam has no $command" >&2
exit 1
`, first, s.git, s.Copy.Repo.Dir, "echo end >>"+s.dir+"/log;"))
}

// sleeper is shell text that starts a process which outlives its parent, and
// keeps the streams that are not redirected.
func (s *site) sleeper(redirect string) string {
	return "sleep 600 </dev/null " + redirect + " & echo $! >>" + s.dir + "/sleepers"
}

// killSleepers ends what sleeper started.
func (s *site) killSleepers() {
	text, _ := os.ReadFile(s.dir + "/sleepers")
	for pid := range strings.FieldsSeq(string(text)) {
		if n, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
	_ = os.Remove(s.dir + "/sleepers")
}

func (s *site) sync(ctx context.Context, job peer.Job) (string, error) {
	var said bytes.Buffer
	_, err := s.peers.Sync(ctx, job, &said)
	return said.String(), err
}

var ip1 = peer.Job{Repository: "ip1", Peer: "sam", Listed: true}

func (s *site) mustSync() {
	s.Helper()
	if said, err := s.sync(context.Background(), ip1); err != nil {
		s.Fatalf("%v\n%s", err, said)
	}
	s.CheckRefs(s.Refs())
}

func TestOpenSSH(t *testing.T) {
	s := newSite(t)
	s.Git("symbolic-ref", "HEAD", "refs/heads/trunk")
	s.Commit("refs/heads/trunk")
	s.mustSync()
	if head := s.Copy.Head(); head != "refs/heads/trunk" {
		t.Errorf("HEAD %s", head)
	}
	s.Commit("refs/heads/trunk")

	fails := func(first string, unreachable bool, texts ...string) {
		t.Helper()
		s.ssh(first)
		start := time.Now()
		said, err := s.sync(context.Background(), ip1)
		if err == nil {
			t.Fatalf("sync succeeded, want %q", texts)
		}
		for _, text := range texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("error %q does not contain %q\n%s", err, text, said)
			}
		}
		if errors.Is(err, peer.ErrUnreachable) != unreachable || strings.Contains(err.Error(), "\n") {
			t.Errorf("ErrUnreachable %t, want %t: %q", !unreachable, unreachable, err)
		}
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("%q took %s", texts, took)
		}
	}
	fails("echo 'ssh: connect to host sam port 22: Connection refused' >&2; exit 255", true, "sam: cannot be reached", "Connection refused")
	fails("echo 'fatal: sam <==//== frodo mirror push rejected: ip1 is local' >&2; exit 1", false, "sam: ssh: exit status 1: fatal: sam <==//== frodo mirror push rejected: ip1 is local")
	defer s.killSleepers()
	patience := s.server.Worker.StallTimeout
	s.server.Worker.StallTimeout = mirrorcfg.Duration(time.Second)
	fails("exec sleep 600", true, "stalled: nothing moved for 1s")
	fails("trap '' TERM; "+s.sleeper("")+"; wait; wait", true, "stalled: nothing moved for 1s")
	s.server.Worker.StallTimeout = patience
	s.ssh("")
	s.mustSync()
	s.mustSync() // has found out that there is no mirror-push

	// Somebody who inherits ssh's standard error, as the master of a shared connection did
	// in old versions, does not turn success into failure.
	s.Commit("refs/heads/trunk")
	s.ssh(s.sleeper(">/dev/null"))
	start := time.Now()
	s.mustSync()
	if took := time.Since(start); took > 12*time.Second {
		t.Errorf("it took %s", took)
	}
	s.killSleepers()

	// Ended by us, it is not the peer that cannot be reached.
	s.Commit("refs/heads/trunk")
	s.ssh("trap 'exit 255' TERM; " + s.sleeper(">/dev/null 2>&1") + "; wait $!; exit 255")
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(300*time.Millisecond, cancel)
	if _, err := s.sync(ctx, ip1); !errors.Is(err, context.Canceled) || errors.Is(err, peer.ErrUnreachable) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := s.sync(ctx, ip1); !errors.Is(err, context.Canceled) || errors.Is(err, peer.ErrUnreachable) {
		t.Errorf("cancelled before: %v", err)
	}
}

// Jobs without a reason, and ones that cannot be done.
func TestSyncOfJob(t *testing.T) {
	s := newSite(t)
	s.Commit("refs/heads/main")
	for _, c := range []struct {
		job  peer.Job
		is   error
		text string
	}{
		{peer.Job{Repository: "ip1", Peer: "merry", Listed: true}, peer.ErrDropped, "no list of ip1 names merry"},
		{peer.Job{Repository: "ip2", Peer: "sam"}, mirrorcfg.ErrNoRepo, "mirror-shell forget ip2"},
		{peer.Job{Repository: "../ip1", Peer: "sam"}, mirrorcfg.ErrName, "ip1"},
		{peer.Job{Repository: "ip1", Peer: "-oProxyCommand=x"}, mirrorcfg.ErrName, "host name"},
		{peer.Job{Repository: "ip1", Peer: "vault"}, nil, "/nowhere"},
	} {
		_, err := s.sync(context.Background(), c.job)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v, want %q", c.job, err, c.text)
		}
	}
	s.Git("config", "gitolite.mirror.master", "gollum")
	if _, err := s.sync(context.Background(), ip1); !errors.Is(err, peer.ErrDropped) {
		t.Errorf("another's repository: %v", err)
	}
	s.CheckRefs(map[string]string{})
}

// However many want to, one at a time has to do with one copy.
func TestSyncsTakeTurns(t *testing.T) {
	s := newSite(t)
	log := s.dir + "/log"
	s.ssh("echo begin >>" + log + "; sleep 0.1")
	s.Commit("refs/heads/main")
	s.mustSync()
	s.mustSync() // has found out that there is no mirror-push
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 6 {
		s.Commit("refs/heads/main")
		all.Go(func() {
			name := []string{"ip1", "ip1.git"}[i%2]
			if said, err := s.sync(context.Background(), peer.Job{Repository: name, Peer: "sam"}); err != nil {
				t.Errorf("%v\n%s", err, said)
			}
		})
	}
	all.Wait()
	s.CheckRefs(s.Refs())
	text, err := os.ReadFile(log)
	if want := strings.Repeat("begin\nend\n", 6); err != nil || string(text) != want {
		t.Errorf("%v, what happened:\n%s", err, text)
	}
	// Who waits for a turn can be called off.
	s.ssh("touch " + s.dir + "/running; sleep 0.7")
	all.Go(func() { s.sync(context.Background(), ip1) })
	for i := 0; i < 100; i++ {
		if _, err := os.Stat(s.dir + "/running"); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.sync(ctx, ip1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a turn: %v", err)
	}
	all.Wait()
}

// What a sync costs in processes, ssh apart.
func TestProcesses(t *testing.T) {
	s := newSite(t)
	s.Commit("refs/heads/main")
	s.Commit("refs/heads/topic")
	s.mustSync()
	s.mustSync() // has found out that there is no mirror-push
	trace := s.dir + "/trace"
	s.program("git", fmt.Sprintf("for word; do case $word in -*) ;; *) echo $word >>%s; break;; esac; done\nexec %s \"$@\"\n", trace, s.git))
	for _, c := range []struct {
		name   string
		change func()
		want   string
	}{
		{"nothing to do", func() {}, "config"},
		{"one commit", func() { s.Commit("refs/heads/main") }, "config pack-objects"},
		{"a new branch", func() { s.Set("refs/heads/new", s.Refs()["refs/heads/main"]) }, "config pack-objects"},
		{"a rewritten branch", func() { s.Set("refs/heads/main", s.NewCommit()) }, "config pack-objects"},
		{"a deletion", func() { s.Delete("refs/heads/new") }, "config"},
		{"an unknown value there", func() { s.Copy.Repo.Set("refs/heads/x", s.Refs()["refs/heads/topic"]) },
			"config cat-file rev-list"},
	} {
		c.change()
		_ = os.Remove(trace)
		if said, err := s.sync(context.Background(), ip1); err != nil {
			t.Fatalf("%s: %v\n%s", c.name, err, said)
		}
		text, err := os.ReadFile(trace)
		s.CheckRefs(s.Refs())
		if got := strings.Join(slices.Collect(strings.FieldsSeq(string(text))), " "); err != nil || got != c.want {
			t.Errorf("%s: %v, processes %q, want %q", c.name, err, got, c.want)
		}
	}
}

// Nodes that serve the same repositories share what was sent: a branch that one of
// them pushed may be rewritten through the other. And they take turns.
func TestSeveralNodes(t *testing.T) {
	s := newSite(t)
	other := *s.server
	other.StateDir = s.dir + "/state2"
	nodes := []*peer.Peers{s.peers, {Server: &other, Transport: peer.OpenSSH{}}}
	s.Commit("refs/heads/main")
	for i := range 6 {
		s.Set("refs/heads/main", s.NewCommit()) // not contained in what follows
		var said bytes.Buffer
		if _, err := nodes[i%2].Sync(context.Background(), ip1, &said); err != nil {
			t.Fatalf("node %d: %v\n%s", i%2, err, said.String())
		}
		s.CheckRefs(s.Refs())
	}
	s.ssh("test -e " + s.dir + "/busy && touch " + s.dir + "/both; touch " + s.dir + "/busy; sleep 0.2; rm " + s.dir + "/busy")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			if _, err := nodes[i%2].Sync(context.Background(), ip1, io.Discard); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(s.dir + "/both"); err == nil {
		t.Error("two nodes were at one copy at once")
	}
}
