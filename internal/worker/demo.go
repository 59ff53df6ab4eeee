package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"mirror-shell/internal/cli"
	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
)

// demo sets up three servers in a temporary directory, lets alice push, and
// ends with nil only when every copy is equal. What it shows is what was typed
// and what came back.
func demo(ctx context.Context, p *cli.Program) (err error) {
	dir, err := os.MkdirTemp("", "mirror-shell-demo-")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	d := &demonstration{dir: dir, programs: p.Programs, out: p.Stdout}
	defer func() {
		d.stop()
		if p.Demo.Keep {
			fmt.Fprintf(p.Stdout, "\nkept: %s\n", dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	return d.run(ctx, p.Demo.Repo)
}

// demonstration is one run of demo.
type demonstration struct {
	dir      string
	programs string
	out      io.Writer
	servers  []*demoServer
	alice    *demoHost
}

// hostnames are those of gitolite's own mirroring document.
var hostnames = []string{"frodo", "sam", "gollum"}

func (d *demonstration) run(ctx context.Context, repo string) error {
	d.tell("Three servers, frodo, sam and gollum, each with a home directory, a key and an ssh port of its own (in %s)", d.dir)
	if err := d.setUp(ctx); err != nil {
		return err
	}
	steps := []func(context.Context) error{d.exchangeKeys, d.configure, d.start, d.greet, func(ctx context.Context) error { return d.clone(ctx, repo) }, d.push, d.redirect, d.refused, d.backup}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return d.conclude(ctx)
}

func (d *demonstration) tell(format string, args ...any) {
	fmt.Fprintf(d.out, "\n# "+format+"\n", args...)
}

// typed shows a command as host's user types it, runs it and shows its output.
func (d *demonstration) typed(ctx context.Context, h *demoHost, argv ...string) error {
	fmt.Fprintf(d.out, "%s$ %s\n", h.name, shown(argv))
	cmd := h.command(ctx, argv...)
	cmd.Stdout, cmd.Stderr = d.out, d.out
	return cmd.Run()
}

// must is typed for a command that has to succeed.
func (d *demonstration) must(ctx context.Context, h *demoHost, argv ...string) error {
	if err := d.typed(ctx, h, argv...); err != nil {
		return fmt.Errorf("%s: %s: %w", h.name, shown(argv), err)
	}
	return nil
}

// shown quotes as a person would.
func shown(argv []string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		if strings.ContainsAny(w, " '\"$") {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}

func (d *demonstration) exchangeKeys(ctx context.Context) error {
	d.tell("Every server gets the others' public keys; alice's key is known everywhere")
	for _, s := range d.servers {
		for _, other := range d.servers {
			if s == other {
				continue
			}
			if err := d.must(ctx, &s.demoHost, "mirror-shell", "add-peer", other.name+".pub"); err != nil {
				return err
			}
		}
		if err := d.must(ctx, &s.demoHost, "mirror-shell", "add-user", "alice.pub"); err != nil {
			return err
		}
	}
	return nil
}

func (d *demonstration) configure(ctx context.Context) error {
	d.tell("The repository ip1: frodo is its master, sam and gollum are slaves, sam may redirect pushes, and every push is also backed up to vault, a directory of frodo's")
	for _, s := range d.servers {
		keys := [][2]string{{"master", "frodo"}, {"redirectOK", "sam"}}
		if s.name == "frodo" {
			keys = append(keys, [2]string{"slaves", "sam gollum vault"})
		}
		if err := d.must(ctx, &s.demoHost, "git", "init", "--quiet", "--bare", "repositories/ip1.git"); err != nil {
			return err
		}
		for _, kv := range keys {
			if err := d.must(ctx, &s.demoHost, "git", "-C", "repositories/ip1.git", "config", "gitolite.mirror."+kv[0], kv[1]); err != nil {
				return err
			}
		}
		if err := d.must(ctx, &s.demoHost, "mirror-shell", "install-hooks", "ip1"); err != nil {
			return err
		}
	}
	return nil
}

func (d *demonstration) start(ctx context.Context) error {
	d.tell("The servers start (built-in ssh server and worker in one daemon)")
	for _, s := range d.servers {
		fmt.Fprintf(d.out, "%s$ mirror-shell serve &\n", s.name)
		if err := s.serve(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demonstration) greet(ctx context.Context) error {
	d.tell("Everybody reaches everybody")
	for _, s := range d.servers {
		for _, other := range d.servers {
			if s != other {
				if err := d.must(ctx, &s.demoHost, "ssh", other.name, "info"); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// clone gives alice a working copy with history: of the repository asked for,
// else of the one we stand in, else of a small one made up on the spot.
func (d *demonstration) clone(ctx context.Context, repo string) error {
	if repo == "" {
		repo = here(ctx)
	} else if abs, err := filepath.Abs(repo); err == nil && !strings.Contains(repo, "://") {
		if _, err := os.Stat(abs); err == nil {
			repo = abs
		}
	}
	if repo == "" {
		d.tell("alice starts a project")
		if err := d.must(ctx, d.alice, "git", "init", "--quiet", "-b", "main", "work"); err != nil {
			return err
		}
		return d.commit(ctx, "Begin")
	}
	d.tell("alice has a clone of a project with history")
	if err := d.must(ctx, d.alice, "git", "clone", "--quiet", repo, "work"); err != nil {
		return err
	}
	return d.must(ctx, d.alice, "git", "-C", "work", "log", "--oneline", "-3")
}

// here is the repository that demo was started in, if it has commits.
func here(ctx context.Context) string {
	var top bytes.Buffer
	cmd := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel")
	cmd.Stdout = &top
	if cmd.Run() != nil || exec.CommandContext(ctx, "git", "rev-parse", "--verify", "--quiet", "HEAD").Run() != nil {
		return ""
	}
	return strings.TrimSpace(top.String())
}

func (d *demonstration) commit(ctx context.Context, message string) error {
	return d.must(ctx, d.alice, "git", "-C", "work", "commit", "--quiet", "--allow-empty", "-m", message)
}

func (d *demonstration) push(ctx context.Context) error {
	d.tell("alice pushes to the master; the hook queues the slaves and lets her go")
	if err := d.must(ctx, d.alice, "git", "-C", "work", "push", "frodo:ip1", "HEAD:refs/heads/main", "--tags"); err != nil {
		return err
	}
	return d.equal(ctx)
}

func (d *demonstration) redirect(ctx context.Context) error {
	d.tell("alice pushes to sam, a slave that may redirect: the push goes on to frodo, and from there to every slave")
	if err := d.commit(ctx, "Pushed to sam, arrived at frodo"); err != nil {
		return err
	}
	if err := d.must(ctx, d.alice, "git", "-C", "work", "push", "sam:ip1", "HEAD:refs/heads/main"); err != nil {
		return err
	}
	return d.equal(ctx)
}

func (d *demonstration) refused(ctx context.Context) error {
	d.tell("alice pushes to gollum, a slave that may not redirect: refused, and told where to go")
	if err := d.commit(ctx, "Never arrives anywhere"); err != nil {
		return err
	}
	if err := d.typed(ctx, d.alice, "git", "-C", "work", "push", "gollum:ip1", "HEAD:refs/heads/main"); err == nil {
		return errors.New("gollum accepted a push, and should have refused it")
	}
	return nil
}

// backup shows the snapshots, and brings the latest back.
func (d *demonstration) backup(ctx context.Context) error {
	frodo := &d.servers[0].demoHost
	d.tell("Each push was a point in time; frodo brings the latest back, checks every object, and has what it had")
	for _, argv := range [][]string{
		{"mirror-shell", "sync"}, {"mirror-shell", "snapshots"}, {"mirror-shell", "restore", "ip1", "--into", "restored"},
	} {
		if err := d.must(ctx, frodo, argv...); err != nil {
			return err
		}
	}
	var refs [2]map[string]string
	for i, dir := range []string{"repositories", "restored"} {
		var err error
		if refs[i], err = (git.Repo{Dir: filepath.Join(frodo.home, dir, "ip1.git")}).Refs(ctx); err != nil {
			return err
		}
	}
	if !maps.Equal(refs[0], refs[1]) {
		return errors.New("the restored repository has other refs")
	}
	fmt.Fprintln(d.out, "# the restored repository has the same refs")
	return nil
}

// equalWait is far more than a push on one machine takes.
const equalWait = time.Minute

// equal waits until all copies are equal and says how long that took.
func (d *demonstration) equal(ctx context.Context) error {
	began := time.Now()
	for {
		same, err := d.compare(ctx)
		if err != nil {
			return err
		}
		if same {
			fmt.Fprintf(d.out, "# all copies are equal, %d ms after the push returned\n", time.Since(began).Milliseconds())
			return nil
		}
		if time.Since(began) > equalWait {
			d.typed(ctx, &d.servers[0].demoHost, "mirror-shell", "status")
			return fmt.Errorf("the copies are not equal after %s", equalWait)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// compare reports whether refs and HEAD are the same on all servers.
func (d *demonstration) compare(ctx context.Context) (bool, error) {
	var want map[string]string
	var wantHead string
	for i, s := range d.servers {
		repo := git.Repo{Dir: filepath.Join(s.home, "repositories/ip1.git")}
		refs, err := repo.Refs(ctx)
		if err != nil {
			return false, err
		}
		head, err := repo.Head(ctx)
		if err != nil {
			return false, err
		}
		if i == 0 {
			want, wantHead = refs, head
		}
		if !maps.Equal(refs, want) || head != wantHead {
			return false, nil
		}
	}
	return true, nil
}

func (d *demonstration) conclude(ctx context.Context) error {
	d.tell("What frodo knows about its copies, and what the copies say themselves")
	if err := d.must(ctx, &d.servers[0].demoHost, "mirror-shell", "status"); err != nil {
		return err
	}
	for _, s := range d.servers {
		if err := d.must(ctx, &s.demoHost, "git", "-C", "repositories/ip1.git", "for-each-ref", "--count=3"); err != nil {
			return err
		}
	}
	same, err := d.compare(ctx)
	if err == nil && !same {
		err = errors.New("the copies differ")
	}
	if err == nil {
		fmt.Fprintln(d.out, "\nall three copies are equal")
	}
	return err
}

func (d *demonstration) stop() {
	for _, s := range d.servers {
		s.stop()
	}
}

func sleep(ctx context.Context, t time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(t):
		return nil
	}
}

// demoHost is somebody's place: a home directory and what their commands see.
type demoHost struct {
	name string
	home string
	path string
}

// command runs in the home directory with a clean environment, in which "ssh" is
// our own client: a machine without OpenSSH can show the demo too.
func (h *demoHost) command(ctx context.Context, argv ...string) *exec.Cmd {
	program := argv[0]
	for _, dir := range filepath.SplitList(h.path) {
		if _, err := os.Stat(filepath.Join(dir, argv[0])); err == nil {
			program = filepath.Join(dir, argv[0])
			break
		}
	}
	cmd := proc.Command(ctx, []string{
		"HOME=" + h.home, "PATH=" + h.path, "USER=" + h.name, "LOGNAME=" + h.name, "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_SSH_VARIANT=ssh",
	}, append([]string{program}, argv[1:]...)...)
	cmd.Dir = h.home
	return cmd
}
