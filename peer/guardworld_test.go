package peer_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"mirror-shell/mirrorcfg"
	"mirror-shell/peer"
	"mirror-shell/peer/peertest"
)

// slave is local with a memory of what it had from its master, or with a way to
// fetch from it.
type slave struct {
	*local
	received func(ref, oid string) bool // nil: no verb mirror-known
	uploads  bool
	hang     bool // mirror-known says nothing
}

func (s *slave) Open(ctx context.Context, host, command string, stderr io.Writer) (peer.Stream, error) {
	verb, _, _ := strings.Cut(command, " ")
	ours := verb == "git-upload-pack" && s.uploads || s.received != nil && (verb == peer.KnownVerb || verb == "info")
	if !ours {
		return s.local.Open(ctx, host, command, stderr)
	}
	s.mu.Lock()
	s.opened = append(s.opened, verb)
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	return answer(ctx, cancel, func(in io.Reader, out io.Writer) error {
		switch {
		case verb == "info":
			_, err := io.WriteString(out, `{"verbs":["mirror-meta","mirror-known"]}`)
			return err
		case verb == "git-upload-pack":
			cmd := exec.CommandContext(ctx, "git", "-c", "transfer.hideRefs=refs/mirror", "upload-pack", "--strict", s.copy.Dir)
			cmd.Env, cmd.Stdout, cmd.Stderr = peertest.Environ(), out, stderr
			stdin, err := cmd.StdinPipe() // as behind sshd, it does not wait for the end of its input
			if err != nil {
				return err
			}
			go func() {
				io.Copy(stdin, in)
				stdin.Close()
			}()
			return cmd.Run()
		case s.hang:
			<-ctx.Done()
			return ctx.Err()
		}
		text, err := io.ReadAll(in)
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for _, line := range lines {
			oid, ref, _ := strings.Cut(line, " ")
			fmt.Fprintln(out, map[bool]string{true: "received", false: "foreign"}[s.received(ref, oid)])
		}
		fmt.Fprintf(out, "END %d\n", len(lines))
		return err
	}), nil
}

// world is frodo with a repository whose copy sam has.
type world struct {
	*peertest.Fixture
	*slave
	peers  *peer.Peers
	server *mirrorcfg.Server
}

func newWorld(t testing.TB, stall string) *world {
	t.Helper()
	w := &world{}
	dir := t.TempDir()
	var err error
	w.server, err = mirrorcfg.Parse(dir+"/config.toml", fmt.Sprintf("hostname = \"frodo\"\nrepo_base = %q\nstate_dir = %q\n[worker]\nstall_timeout = %q\n", dir, dir+"/state", stall))
	if err != nil {
		t.Fatal(err)
	}
	w.Fixture = peertest.NewFixture(t, "sha1", func(t testing.TB, format string) peertest.Copy {
		repo := peertest.NewRepo(t, format)
		w.slave = &slave{local: &local{copy: repo}}
		w.peers = &peer.Peers{Server: w.server, Transport: w.slave}
		sam, err := w.peers.Open(peerName)
		if err != nil {
			t.Fatal(err)
		}
		return peertest.Copy{Peer: sam, Refs: repo.Refs, Head: repo.Head, Repo: repo}
	})
	if err := os.MkdirAll(dir+"/group", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.Dir, dir+"/group/project.git"); err != nil {
		t.Fatal(err)
	}
	w.Dir = dir + "/group/project.git"
	w.Git("config", "gitolite.mirror.master", "frodo")
	w.Git("config", "gitolite.mirror.slaves", "sam gollum")
	return w
}

func (w *world) approve() error {
	_, err := w.peers.Approve(context.Background(), peertest.Repository, peerName)
	return err
}

func (w *world) mustApprove() {
	w.Helper()
	if err := w.approve(); err != nil {
		w.Fatal(err)
	}
}

// held wants the sync to be held and the copy to be untouched.
func (w *world) held(texts ...string) {
	w.Helper()
	before := w.Copy.Refs()
	w.SyncHeld(append(texts, "mirror-shell approve group/project sam")...)
	w.CheckRefs(before)
}

// everReceived makes the slave remember all that the source ever has, from now on.
func (w *world) everReceived() func() {
	seen := map[string]bool{}
	w.received = func(ref, oid string) bool { return seen[ref+" "+oid] }
	return func() {
		for ref, oid := range w.Copy.Refs() {
			seen[ref+" "+oid] = true
		}
	}
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
