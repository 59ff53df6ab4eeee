package hooks

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
	"mirror-shell/mirrorcfg"
)

func TestPushToSlave(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("a/ip1", "master=sam", "slaves=frodo gollum", "redirectOK=true")
	for name, env := range map[string][]string{
		"by path":       nil,
		"lying GL_REPO": {"GL_REPO=local", "GL_USER=root"},
		"as a user":     {"MIRROR_SHELL_USER=alice", "GL_REPO=a/ip1"},
		"no peer":       {"MIRROR_SHELL_PEER="},
		"by gitolite":   {"MIRROR_SHELL_PEER=sam", "GL_USER=eve"},
	} {
		out, err := w.push(dir, env...)
		w.refused(dir, out, err, "fatal: frodo is not the master of a/ip1, please push to sam")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	for peer, why := range map[string]string{
		"gollum": "fatal: frodo <==//== gollum mirror-push rejected: the master of a/ip1 is sam",
		"frodo":  "fatal: frodo <==//== frodo mirror-push rejected: the master of a/ip1 is sam",
		"sa.m":   "fatal: frodo <==//== sa.m mirror-push rejected: the master of a/ip1 is sam",
	} {
		out, err := w.push(dir, "MIRROR_SHELL_PEER="+peer)
		w.refused(dir, out, err, why)
	}
	log, err := os.ReadFile(filepath.Join(w.state(), "mirror-shell.log"))
	if err != nil || !strings.Contains(string(log), "the master of a/ip1 is sam") {
		t.Errorf("log: %v, %s", err, log)
	}
	// The mirror push of the master: passes, and is not passed on.
	out, err := w.push(dir, "MIRROR_SHELL_PEER=sam")
	w.pushed(dir, out, err)
	if events := w.events(); len(events) > 0 || strings.Contains(out, "remote:") {
		t.Errorf("events %v, told %s", events, out)
	}
}

func TestPushToLocal(t *testing.T) {
	for name, prepare := range map[string]func(*world){
		"with a server configuration":    func(*world) {},
		"without one":                    func(w *world) { os.Remove(w.config) },
		"with a broken one":              func(w *world) { w.write(w.config, "hostname = \n", 0o600) },
		"with one that names no servers": func(w *world) { w.write(w.config, "", 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			prepare(w)
			for repo, config := range map[string][]string{"plain": nil, "word": {"master=local", "slaves=sam"}, "slaves": {"slaves=sam"}} {
				dir := w.bare(repo, config...)
				out, err := w.push(dir)
				w.pushed(dir, out, err)
				if strings.Contains(out, "remote:") || len(w.events()) > 0 {
					t.Errorf("%s: told %s, events %v", repo, out, w.events())
				}
			}
		})
	}
}

// job is what the user sees: (JOB&) frodo ==== (REPO) ===> PEERS.
var job = regexp.MustCompile(`remote: \(([0-9a-f]{8})&\) frodo ==== \(([^)]*)\) ===> ([a-z ]*[a-z]) *\n`)

func TestPushToMaster(t *testing.T) {
	for name, prepare := range map[string]func(*world) (dir string, env []string){
		"plain": func(w *world) (string, []string) {
			return w.bare("a/ip1", "master=frodo", "slaves=sam gollum"), nil
		},
		"lying GL_REPO": func(w *world) (string, []string) {
			return w.bare("a/ip1", "master=frodo", "slaves=sam gollum"), []string{"GL_REPO=other", "GL_USER=eve"}
		},
		"through our shell": func(w *world) (string, []string) {
			return w.bare("a/ip1", "master=frodo", "slaves=sam gollum"), []string{"GL_REPO=a/ip1", "MIRROR_SHELL_USER=alice", "MIRROR_SHELL_CONFIG=" + w.config}
		},
		"through a link": func(w *world) (string, []string) {
			w.bare("a/ip1", "master=frodo", "slaves=sam gollum")
			link := filepath.Join(w.home, "link")
			if err := os.Symlink(filepath.Join(w.home, "repositories"), link); err != nil {
				t.Fatal(err)
			}
			return link + "/a/ip1.git", []string{"PWD=" + link}
		},
		"by global and included configuration": func(w *world) (string, []string) {
			w.write(w.home+"/.gitconfig", "[includeIf \"gitdir:**/a/ip1.git\"]\n\tpath = mirrors\n[gitolite \"mirror\"]\n\tmaster = frodo\n", 0o600)
			w.write(w.home+"/mirrors", "[gitolite \"mirror\"]\n\tslaves = sam gitolite.mirror.more\n\tmore = gollum frodo sam\n", 0o600)
			return w.bare("a/ip1"), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dir, env := prepare(w)
			out, err := w.push(dir, env...)
			w.pushed(dir, out, err)
			events := w.events()
			if len(events) != 1 {
				t.Fatalf("events %v", events)
			}
			e := events[0]
			if e.Repository != "a/ip1" || strings.Join(e.Peers, " ") != "sam gollum" || e.Origin != inbox.OriginList || time.Since(e.Time) > time.Minute {
				t.Errorf("event %+v", e)
			}
			m := job.FindStringSubmatch(out)
			if m == nil || m[1] != e.ID || m[2] != "a/ip1" || m[3] != "sam gollum" || strings.Count(out, "remote:") != 1 {
				t.Errorf("event %s, told\n%s", e.ID, out)
			}
			c := w.called("drain")
			if want := []string{"--config", w.config, "drain"}; !slices.Equal(c.Args, want) {
				t.Errorf("mirrord %q, want %q", c.Args, want)
			}
			if len(c.Inbox) != 1 {
				t.Errorf("mirrord was called when the inbox held %q", c.Inbox)
			}
		})
	}
}

func TestPushToMasterWithoutSlaves(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo")
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	if strings.Contains(out, "remote:") || len(w.events()) > 0 {
		t.Errorf("told %s, events %v", out, w.events())
	}
}

// A repository with a master is closed until it is known who that is.
func TestMirroredWithoutServerConfig(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*world)
		why     string
	}{
		"missing": {func(w *world) { os.Remove(w.config) }, "no server configuration"},
		"broken":  {func(w *world) { w.write(w.config, "hostname = frodo\n", 0o600) }, "config.toml"},
		"unknown key": {func(w *world) { w.write(w.config, "hostname = \"frodo\"\nslaves = []\n", 0o600) },
			"unknown key slaves"},
		"no hostname": {func(w *world) { w.write(w.config, "[worker]\njobs = 2\n", 0o600) }, "hostname is not set"},
		"another base": {func(w *world) {
			w.write(w.config, fmt.Sprintf("hostname = \"frodo\"\nrepo_base = %q\n", w.work), 0o600)
		}, "is not below repo_base"},
		"no base": {func(w *world) { w.write(w.config, "hostname = \"frodo\"\nrepo_base = \"/nowhere\"\n", 0o600) }, "repo_base /nowhere does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.prepare(w)
			for _, master := range []string{"frodo", "sam"} {
				dir := w.bare(master, "master="+master, "slaves=gollum")
				for _, peer := range []string{"", "sam"} {
					out, err := w.push(dir, "MIRROR_SHELL_PEER="+peer)
					w.refused(dir, out, err, "push refused: "+master)
					if !strings.Contains(strings.ReplaceAll(out, "\nremote: ", ""), c.why) {
						t.Errorf("told %s, want %q", out, c.why)
					}
				}
			}
		})
	}
}

func TestBrokenRepoConfig(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1")
	w.git(dir, "config", "gitolite.mirror.master", "sam; id")
	out, err := w.push(dir)
	w.refused(dir, out, err, "push refused: configuration of ip1.git: gitolite.mirror.master: bad name")
}

// What cannot be queued is told, with what to do; the push itself stands.
func TestNotQueued(t *testing.T) {
	for name, c := range map[string]struct {
		config  []string
		prepare func(*world)
		why     string
	}{
		"state_dir cannot be made": {nil, func(w *world) { w.write(w.state(), "a file", 0o600) }, "not a directory"},
		"inbox is a file":          {nil, func(w *world) { w.write(w.state()+"/inbox", "a file", 0o600) }, "not a directory"},
		"list is broken":           {[]string{"slaves=sam gitolite.mirror.missing"}, func(*world) {}, "gitolite.mirror.missing is not set"},
		"list is a cycle":          {[]string{"slaves=gitolite.mirror.a", "a=gitolite.mirror.slaves"}, func(*world) {}, "slaves → a → slaves"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dir := w.bare("a/ip1", append([]string{"master=frodo", "slaves=sam gollum"}, c.config...)...)
			c.prepare(w)
			out, err := w.push(dir)
			w.pushed(dir, out, err)
			for _, want := range []string{"remote: fatal: the push is stored, but NOT queued for mirroring: ", c.why, "run on frodo: mirror-shell request-push a/ip1"} {
				if !strings.Contains(out, want) {
					t.Errorf("told\n%s, want %q", out, want)
				}
			}
			if strings.Contains(out, "===>") || len(w.events()) > 0 {
				t.Errorf("told\n%s, events %v", out, w.events())
			}
		})
	}
}

// A list that is broken does not take the other along.
func TestPartlyQueued(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo", "slaves=sam gollum", "sync=-oProxyCommand=id")
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	for _, want := range []string{"remote: fatal: the push is stored, but queued only for sam gollum: ", "bad name", "===> sam gollum"} {
		if !strings.Contains(out, want) {
			t.Errorf("told\n%s, want %q", out, want)
		}
	}
	if events := w.events(); len(events) != 1 || len(events[0].Peers) != 2 {
		t.Errorf("events %v", events)
	}
}

// A server configuration that breaks between the two hooks.
func TestNotQueuedWithoutServerConfig(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("a/ip1", "master=frodo", "slaves=sam")
	w.write(dir+"/hooks/pre-receive.next", "#!/bin/sh\nrm "+w.config+"\n", 0o700)
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	for _, want := range []string{"NOT queued for mirroring", "no server configuration", "run on this server: mirror-shell request-push ip1"} {
		if !strings.Contains(out, want) {
			t.Errorf("told\n%s, want %q", out, want)
		}
	}
}

func TestNoWorkerProgram(t *testing.T) {
	w := newWorld(t)
	w.ownPrograms("pre-receive", "post-receive")
	dir := w.bare("ip1", "master=frodo", "slaves=sam")
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	if len(w.events()) != 1 || !job.MatchString(out) || !strings.Contains(out, "queued, but no worker could be started") {
		t.Errorf("events %v, told\n%s", w.events(), out)
	}
}

func TestWorkerIsWoken(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo", "slaves=sam")
	waker, err := inbox.Listen(w.state())
	if err != nil {
		t.Fatal(err)
	}
	defer waker.Close()
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	select {
	case <-waker.C:
	case <-time.After(10 * time.Second):
		t.Error("the worker was not woken")
	}
	if _, err := os.Stat(filepath.Dir(w.config) + "/mirrord-drain"); err == nil {
		t.Error("another worker was started")
	}
}

// A drain that runs for long does not hold the push, nor anything of the pusher's.
func TestDrainIsDetached(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo", "slaves=sam")
	w.write(filepath.Dir(w.config)+"/sleep-drain", "12", 0o600)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := exec.Command("git", "push", dir, "main")
	cmd.Dir, cmd.Env = w.work, w.env("SECRET=x", "GIT_TRACE=0", "MIRROR_SHELL_USER=alice", "LD_LIBRARY_PATH=/x")
	cmd.ExtraFiles = []*os.File{write} // descriptor 3 of git, and of the hooks
	start := time.Now()
	out, err := cmd.CombinedOutput()
	write.Close()
	w.pushed(dir, string(out), err)
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the push took %v", d)
	}
	c := w.called("drain")
	if n, err := io.Copy(io.Discard, read); n != 0 || err != nil { // until everybody let go of it
		t.Errorf("%d, %v", n, err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the pusher's descriptor was held for %v", d)
	}
	for _, fd := range []string{"0", "1", "2"} {
		if c.Fds[fd] != "/dev/null" {
			t.Errorf("descriptor %s is %s", fd, c.Fds[fd])
		}
	}
	for fd, target := range c.Fds {
		if strings.HasPrefix(target, "pipe:") || strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, w.home) {
			t.Errorf("descriptor %s is %s", fd, target)
		}
	}
	if !c.Alone || c.Dir != "/" {
		t.Errorf("own session %v, directory %s", c.Alone, c.Dir)
	}
	for _, v := range c.Env {
		for _, bad := range []string{"GIT_DIR=", "GIT_QUARANTINE", "GIT_TRACE", "SECRET=", "LD_", "MIRROR_SHELL_USER=", "GIT_AUTHOR"} {
			if strings.HasPrefix(v, bad) {
				t.Errorf("environment: %s", v)
			}
		}
	}
}

func TestSynchronousPeers(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("a/ip1", "master=frodo", "slaves=sam", "sync=gollum gitolite.mirror.near", "near=legolas frodo sam")
	w.write(filepath.Dir(w.config)+"/sleep-await", "1", 0o600)
	start := time.Now()
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	if d := time.Since(start); d < time.Second {
		t.Errorf("the push waited for %v only", d)
	}
	events := w.events()
	if len(events) != 1 || strings.Join(events[0].Peers, " ") != "sam gollum legolas" {
		t.Fatalf("events %v", events)
	}
	c := w.called("await")
	want := []string{"--config", w.config, "await", "--event", events[0].ID, "--timeout", "1m0s", "--", "a/ip1", "gollum", "legolas", "sam"}
	if !slices.Equal(c.Args, want) {
		t.Errorf("mirrord %q, want %q", c.Args, want)
	}
	if len(c.Inbox) != 1 || c.Fds["0"] != "/dev/null" {
		t.Errorf("inbox %q, stdin %s", c.Inbox, c.Fds["0"])
	}
	if m := job.FindStringIndex(out); m == nil || !strings.Contains(out[m[1]:], "remote: gollum: equal") {
		t.Errorf("told\n%s", out)
	}
}

func TestSynchronousPeersFail(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo", "sync=gollum")
	w.write(filepath.Dir(w.config)+"/exit-await", "1", 0o600)
	out, err := w.push(dir)
	w.pushed(dir, out, err) // post-receive cannot undo it

	w = newWorld(t)
	w.ownPrograms("pre-receive", "post-receive")
	dir = w.bare("ip1", "master=frodo", "sync=gollum")
	out, err = w.push(dir)
	w.pushed(dir, out, err)
	if !strings.Contains(out, "the push is queued, but cannot be waited for") || len(w.events()) != 1 {
		t.Errorf("told\n%s, events %v", out, w.events())
	}
}

// Of many repositories that are queued at once, people are told of some.
func TestEnqueueAll(t *testing.T) {
	w := newWorld(t)
	server, err := mirrorcfg.Load(w.config)
	if err != nil {
		t.Fatal(err)
	}
	server.StateDir = t.TempDir()
	events := []inbox.Event{
		{Repository: "a", Peers: []string{"sam"}, Origin: inbox.OriginList},
		{Repository: "to nobody", Origin: inbox.OriginList},
		{Repository: "b", Peers: []string{"sam", "gollum"}, Origin: inbox.OriginList},
		{Repository: "c", Peers: []string{"sam"}, Origin: inbox.OriginList},
	}
	var told strings.Builder
	if err := EnqueueAll(server, t.TempDir(), events, 2, &told); err == nil || !strings.Contains(err.Error(), "to nobody: not queued") {
		t.Errorf("an event that cannot be written: %v", err)
	}
	for _, want := range []string{"&) frodo ==== (a) ===> sam\n", "and 1 more repositories are queued\n", "mirror-shell: queued, but no worker could be started"} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("not told %q:\n%s", want, told.String())
		}
	}
	if strings.Contains(told.String(), "(c)") {
		t.Errorf("told of too many:\n%s", told.String())
	}
	files, err := os.ReadDir(filepath.Join(server.StateDir, "inbox"))
	n := 0
	for _, f := range files {
		if !f.IsDir() {
			n++
		}
	}
	if err != nil || n != 3 {
		t.Errorf("%d files in the inbox, %v", n, err)
	}
}
