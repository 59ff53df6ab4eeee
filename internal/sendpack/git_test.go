package sendpack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// repo is a real bare repository.
type repo struct {
	t      testing.TB
	dir    string
	format string
}

func newRepo(t testing.TB, format string) repo {
	t.Helper()
	r := repo{t, filepath.Join(t.TempDir(), "r.git"), format}
	r.must(exec.Command("git", "init", "-q", "--bare", "--object-format="+format, "--initial-branch=main", r.dir))
	return r
}

func gitEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "GIT_") {
			env = append(env, e)
		}
	}
	return append(env, "LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
}

func (r repo) cmd(args ...string) *exec.Cmd {
	return r.cmdContext(context.Background(), args...)
}

func (r repo) cmdContext(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "git", append([]string{"-C", r.dir}, args...)...)
	c.Env = gitEnv()
	c.WaitDelay = time.Second
	return c
}

func (r repo) must(c *exec.Cmd) string {
	r.t.Helper()
	var stderr bytes.Buffer
	c.Env, c.Stderr = gitEnv(), &stderr
	out, err := c.Output()
	if err != nil {
		r.t.Fatalf("%v: %v\n%s", c.Args, err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

func (r repo) git(args ...string) string { r.t.Helper(); return r.must(r.cmd(args...)) }

// commit makes a commit of one file, with the parents given.
func (r repo) commit(content []byte, parents ...string) string {
	r.t.Helper()
	hash := r.cmd("hash-object", "-w", "--stdin")
	hash.Stdin = bytes.NewReader(content)
	tree := r.cmd("mktree")
	tree.Stdin = strings.NewReader("100644 blob " + r.must(hash) + "\tf\n")
	args := []string{"commit-tree", "-m", "c", r.must(tree)}
	for _, p := range parents {
		args = append(args, "-p", p)
	}
	return r.git(args...)
}

func (r repo) zero() string {
	n, _ := oidLen(r.format)
	return strings.Repeat("0", n)
}

func (r repo) refs() map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(r.git("for-each-ref", "--format=%(objectname) %(refname)") + "\n") {
		if oid, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			m[name] = oid
		}
	}
	return m
}

// pack is what a caller's pack function looks like.
func (r repo) pack(ctx context.Context, adv *Advertisement, cmds []Command) func(io.Writer) error {
	return func(w io.Writer) error {
		var revs strings.Builder
		for _, c := range cmds {
			if !isZero(c.New) {
				fmt.Fprintln(&revs, c.New)
			}
		}
		for _, oid := range adv.Refs {
			if r.cmd("cat-file", "-e", oid).Run() == nil {
				fmt.Fprintln(&revs, "^"+oid)
			}
		}
		c := r.cmdContext(ctx, "pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset", "-q")
		c.Stdin, c.Stdout = strings.NewReader(revs.String()), w
		return c.Run()
	}
}

// peer is a running receive-pack.
type peer struct {
	*exec.Cmd
	in  io.WriteCloser
	out io.ReadCloser
	adv *Advertisement
}

func (r repo) receive() *peer {
	r.t.Helper()
	p := &peer{Cmd: r.cmd("receive-pack", r.dir)}
	var err error
	if p.in, err = p.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	if p.out, err = p.StdoutPipe(); err != nil {
		r.t.Fatal(err)
	}
	p.Stderr = os.Stderr
	if err := p.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { p.in.Close(); p.Wait() })
	if p.adv, err = ReadAdvertisement(p.out); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// push sends cmds from src to r and returns what Push does; stdin is not closed until it has returned.
func (r repo) push(src repo, cmds []Command, opt Options) (Report, error) {
	r.t.Helper()
	p := r.receive()
	opt.ObjectFormat = src.format
	rep, err := Push(p.out, p.in, p.adv, cmds, src.pack(context.Background(), p.adv, cmds), opt)
	p.in.Close()
	if werr := p.Wait(); werr != nil && err == nil {
		r.t.Errorf("receive-pack: %v", werr)
	}
	return rep, err
}

func (r repo) check(want map[string]string) {
	r.t.Helper()
	if d := cmp.Diff(want, r.refs()); d != "" {
		r.t.Error(d)
	}
	r.git("fsck", "--strict")
}

func TestRealReceivePack(t *testing.T) {
	for _, format := range []string{SHA1, SHA256} {
		t.Run(format, func(t *testing.T) {
			src, dst := newRepo(t, format), newRepo(t, format)
			zero := src.zero()
			c1 := src.commit([]byte("one"))
			c2 := src.commit([]byte("two"), c1)
			p := dst.receive()
			if len(p.adv.Refs) != 0 || p.adv.ObjectFormat != format || !p.adv.Caps.Has("report-status-v2") {
				t.Fatalf("an empty repository advertises %+v", p.adv)
			}
			if err := End(p.in); err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(); err != nil {
				t.Fatalf("receive-pack after End: %v", err)
			}

			ok := func(cmds ...Command) {
				t.Helper()
				rep, err := dst.push(src, cmds, Options{Quiet: true, Agent: "mirror-shell/test"})
				if err != nil || rep.Unpack != "" || len(rep.Refs) != len(cmds) {
					t.Fatalf("%+v, %v", rep, err)
				}
				for ref, why := range rep.Refs {
					if why != "" {
						t.Errorf("%s: %s", ref, why)
					}
				}
			}
			ok(Command{"refs/heads/main", zero, c1}, Command{"refs/heads/x/y", zero, c1}, Command{"refs/tags/v1", zero, c1})
			dst.check(map[string]string{"refs/heads/main": c1, "refs/heads/x/y": c1, "refs/tags/v1": c1})
			if adv := dst.receive().adv; cmp.Diff(dst.refs(), adv.Refs) != "" {
				t.Errorf("advertised %v", adv.Refs)
			}
			// A directory gives way to a file; a thin pack of what is new.
			ok(Command{"refs/heads/x", zero, c2}, Command{"refs/heads/x/y", c1, zero}, Command{"refs/heads/main", c1, c2})
			dst.check(map[string]string{"refs/heads/main": c2, "refs/heads/x": c2, "refs/tags/v1": c1})
			// Deletions alone: no pack is sent.
			ok(Command{"refs/heads/x", c2, zero}, Command{"refs/tags/v1", c1, zero})
			dst.check(map[string]string{"refs/heads/main": c2})
			// Back to an ancestor: not fast-forward, and the pack is empty.
			ok(Command{"refs/heads/main", c2, c1})
			dst.check(map[string]string{"refs/heads/main": c1})
		})
	}
}

func TestFormatsDiffer(t *testing.T) {
	src, dst := newRepo(t, SHA256), newRepo(t, SHA1)
	p := dst.receive()
	_, err := Push(p.out, p.in, p.adv, []Command{{"refs/heads/a", src.zero(), src.commit([]byte("x"))}}, noPack(t), Options{ObjectFormat: SHA256})
	if err == nil || !strings.Contains(err.Error(), "our repository is sha256 but the peer's is sha1") {
		t.Errorf("error %v", err)
	}
}

// One ref's refusal is its own: the others are applied.
func TestRefusedPerRef(t *testing.T) {
	src, dst := newRepo(t, SHA1), newRepo(t, SHA1)
	c1 := src.commit([]byte("one"))
	c2 := src.commit([]byte("two"), c1)
	if rep, err := dst.push(src, []Command{{"refs/heads/main", zero1, c1}, {"refs/heads/stale", zero1, c2}, {"refs/secret/s", zero1, c1}}, Options{}); err != nil || rep.Unpack != "" {
		t.Fatal(rep, err)
	}
	dst.git("config", "receive.hideRefs", "refs/secret")
	if adv := dst.receive().adv; adv.Refs["refs/secret/s"] != "" {
		t.Fatal("a hidden ref is advertised")
	}
	rep, err := dst.push(src, []Command{
		{"refs/heads/main", c1, c2},
		{"refs/heads/stale", c1, c2 /* it is at c2 */}, {"refs/heads/new", zero1, c1},
		{"refs/heads/gone", c1, c2 /* there is none */}, {"refs/secret/t", zero1, c1},
		{"refs/heads/main/below", zero1, c1 /* main is in the way */},
	}, Options{})
	if err != nil || rep.Unpack != "" {
		t.Fatal(rep, err)
	}
	for ref, why := range rep.Refs {
		good := ref == "refs/heads/main" || ref == "refs/heads/new"
		if (why == "") != good {
			t.Errorf("%s: %q", ref, why)
		}
	}
	if why := rep.Refs["refs/secret/t"]; !strings.Contains(why, "hidden") {
		t.Errorf("hidden ref: %q", why)
	}
	dst.check(map[string]string{"refs/heads/main": c2, "refs/heads/new": c1, "refs/heads/stale": c2, "refs/secret/s": c1})
	// Two deletions, one of them of a value that is no longer there.
	rep, err = dst.push(src, []Command{{"refs/heads/new", c2, zero1}, {"refs/heads/stale", c2, zero1}}, Options{})
	if err != nil || rep.Refs["refs/heads/new"] == "" || rep.Refs["refs/heads/stale"] != "" {
		t.Error(rep, err)
	}
	dst.check(map[string]string{"refs/heads/main": c2, "refs/heads/new": c1, "refs/secret/s": c1})
}

func TestHooksSpeak(t *testing.T) {
	src, dst := newRepo(t, SHA1), newRepo(t, SHA1)
	c1 := src.commit([]byte("one"))
	hook := func(name, script string) {
		if err := os.WriteFile(filepath.Join(dst.dir, "hooks", name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.MkdirAll(filepath.Join(dst.dir, "hooks"), 0o755)
	cmds := []Command{{"refs/heads/main", zero1, c1}}

	hook("pre-receive", "cat >/dev/null; echo no pushing today >&2; exit 1\n")
	var said bytes.Buffer
	rep, err := dst.push(src, cmds, Options{Progress: &said})
	if err != nil || !strings.Contains(rep.Refs["refs/heads/main"], "pre-receive hook declined") || !strings.Contains(said.String(), "no pushing today\n") {
		t.Errorf("%+v, %v; said %q", rep, err, &said)
	}
	dst.check(map[string]string{})

	// post-receive speaks after the report.
	hook("pre-receive", "exit 0\n")
	hook("post-receive", "cat >/dev/null; sleep 0.2; echo queued >&2\n")
	said.Reset()
	if rep, err = dst.push(src, cmds, Options{Progress: &said}); err != nil || rep.Refs["refs/heads/main"] != "" || !strings.Contains(said.String(), "queued\n") {
		t.Errorf("%+v, %v; said %q", rep, err, &said)
	}
	dst.check(map[string]string{"refs/heads/main": c1})
}

func TestPeerKilledInTheMiddle(t *testing.T) {
	src, dst := newRepo(t, SHA1), newRepo(t, SHA1)
	big := make([]byte, 20<<20)
	rand.Read(big)
	cmds := []Command{{"refs/heads/main", zero1, src.commit(big)}}
	p := dst.receive()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	makePack := src.pack(ctx, p.adv, cmds)
	mustReturn(t, func() {
		_, err := Push(p.out, p.in, p.adv, cmds, func(w io.Writer) error {
			return makePack(&after{w: w, n: 8 << 20, do: func() { p.Process.Kill() }})
		}, Options{Stop: cancel})
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error %v", err)
		}
	})
	dst.check(map[string]string{})
}

// after calls do once n bytes have passed.
type after struct {
	w  io.Writer
	n  int
	do func()
}

func (a *after) Write(p []byte) (int, error) {
	if a.n -= len(p); a.n <= 0 && a.do != nil {
		a.do()
		a.do = nil
	}
	return a.w.Write(p)
}

// Even a pack function that fails after the pack's last byte changes nothing at the peer.
func TestFailingPackAppliesNothing(t *testing.T) {
	src, dst := newRepo(t, SHA1), newRepo(t, SHA1)
	for _, size := range []int{10, 3 << 20} {
		content := make([]byte, size)
		rand.Read(content)
		cmds := []Command{{"refs/heads/main", zero1, src.commit(content)}}
		p := dst.receive()
		makePack := src.pack(context.Background(), p.adv, cmds)
		mustReturn(t, func() {
			rep, err := Push(p.out, p.in, p.adv, cmds, func(w io.Writer) error {
				if err := makePack(w); err != nil {
					t.Error(err)
				}
				return errMade
			}, Options{})
			if !errors.Is(err, errMade) || rep.Unpack == "" {
				t.Errorf("%+v, %v", rep, err)
			}
		})
		dst.check(map[string]string{})
	}
}

// A peer that cannot store the pack says so and goes; that is its report, not a broken connection.
func TestCorruptPack(t *testing.T) {
	src, dst := newRepo(t, SHA1), newRepo(t, SHA1)
	cmds := []Command{{"refs/heads/main", zero1, src.commit([]byte("x"))}}
	p := dst.receive()
	mustReturn(t, func() {
		rep, err := Push(p.out, p.in, p.adv, cmds, writes(append([]byte("PACK\x00\x00\x00\x07"), make([]byte, 4<<20)...)), Options{})
		if err != nil || rep.Unpack == "" || rep.Refs["refs/heads/main"] == "" {
			t.Errorf("%+v, %v", rep, err)
		}
	})
	dst.check(map[string]string{})
}

// Refs through the alternates of the peer come as haves.
func TestHaves(t *testing.T) {
	src, dst := newRepo(t, SHA1), newRepo(t, SHA1)
	c1 := src.commit([]byte("one"))
	src.git("update-ref", "refs/heads/main", c1)
	if err := os.WriteFile(filepath.Join(dst.dir, "objects/info/alternates"), []byte(filepath.Join(src.dir, "objects")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if adv := dst.receive().adv; len(adv.Refs) != 0 || cmp.Diff([]string{c1}, adv.Haves) != "" {
		t.Errorf("%+v", adv)
	}
}
