package refcache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

// world is a server with repositories, and a global git config of its own.
type world struct {
	testing.TB
	server *mirrorcfg.Server
	global string
}

func newWorld(t testing.TB, names ...string) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{TB: t, global: filepath.Join(dir, "gitconfig"), server: &mirrorcfg.Server{
		File: "x.toml", Hostname: "frodo", RepoBase: filepath.Join(dir, "repositories"), StateDir: filepath.Join(dir, "state"),
	}}
	t.Setenv("GIT_CONFIG_GLOBAL", w.global)
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	w.write(w.global, "[user]\n\tname = f\n\temail = f@example.org\n")
	for _, name := range names {
		w.git("", "init", "-q", "--bare", w.dir(name))
	}
	return w
}

func (w *world) dir(name string) string { return filepath.Join(w.server.RepoBase, name+".git") }

func (w *world) write(file, text string) {
	w.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
}

func (w *world) git(name string, args ...string) string {
	w.Helper()
	if name != "" {
		args = append([]string{"--git-dir", w.dir(name)}, args...)
	}
	out, err := exec.Command("git", args...).CombinedOutput()
	if err != nil {
		w.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit makes a commit with an id of its own, without any ref.
func (w *world) commit(name, message string) string {
	w.Helper()
	tree := w.git(name, "hash-object", "-t", "tree", "-w", "/dev/null")
	return w.git(name, "commit-tree", "-m", message, tree)
}

// want compares what the cache says with what git says.
func (w *world) want(c *Cache, name string) State {
	w.Helper()
	ctx := context.Background()
	got, err := c.Load(ctx, w.server, name)
	if err != nil {
		w.Fatal(err)
	}
	repo := git.Repo{Dir: w.dir(name)}
	cfg, err := mirrorcfg.LoadRepo(ctx, name, repo)
	if err != nil {
		w.Fatal(err)
	}
	refs, err := repo.Refs(ctx)
	if err != nil {
		w.Fatal(err)
	}
	head, err := repo.Head(ctx)
	if err != nil {
		w.Fatal(err)
	}
	if want := digest.Of(cfg.MirroredRefs(refs)); got.Digest != want || got.Head != head || got.Config.Master != cfg.Master || got.Config.Refs != cfg.Refs {
		w.Fatalf("the cache says %s %s %s, git says %s %s %s", got.Digest, got.Head, got.Config.Master, want, head, cfg.Master)
	}
	return got
}

// shortGrain lets tests remember what is 20 ms old.
func shortGrain(t testing.TB) {
	old := grain
	grain = 20 * time.Millisecond
	t.Cleanup(func() { grain = old })
}

// Whatever happens to a repository, a look through the cache is what git says.
func TestCacheSeesEveryChange(t *testing.T) {
	shortGrain(t)
	w := newWorld(t, "ip1")
	first := w.commit("ip1", "first")
	extra := filepath.Join(filepath.Dir(w.global), "extra")
	steps := []struct {
		name string
		do   func()
	}{
		{"nothing", func() {}},
		{"branch", func() { w.git("ip1", "update-ref", "refs/heads/main", first) }},
		{"deep branch", func() { w.git("ip1", "update-ref", "refs/heads/a/b/c", first) }},
		{"moved branch", func() { w.git("ip1", "update-ref", "refs/heads/a/b/c", w.commit("ip1", "second")) }},
		{"packed", func() { w.git("ip1", "pack-refs", "--all") }},
		{"branch over packed", func() { w.git("ip1", "update-ref", "refs/heads/main", w.commit("ip1", "third")) }},
		{"deleted from packed", func() { w.git("ip1", "update-ref", "-d", "refs/heads/a/b/c") }},
		{"head", func() { w.git("ip1", "symbolic-ref", "HEAD", "refs/heads/other") }},
		{"rescued ref, not mirrored", func() { w.git("ip1", "update-ref", "refs/mirror/rescued/x", first) }},
		{"master in its own config", func() { w.git("ip1", "config", "gitolite.mirror.master", "sam") }},
		{"master in the global config wins nothing", func() { w.git("", "config", "--file", w.global, "gitolite.mirror.master", "gollum") }},
		{"own master unset", func() { w.git("ip1", "config", "--unset", "gitolite.mirror.master") }},
		{"include of a file that is not there", func() { w.git("", "config", "--file", w.global, "include.path", extra) }},
		{"that file appears", func() { w.write(extra, "[gitolite \"mirror\"]\n\tmaster = frodo\n") }},
		{"that file changes", func() { w.write(extra, "[gitolite \"mirror\"]\n\tmaster = frodo\n\trefs = refs/heads/*\n") }},
		{"a tag, excluded", func() { w.git("ip1", "update-ref", "refs/tags/v1", first) }},
		{"that file goes", func() { os.Remove(extra) }},
		{"conditional include", func() { w.git("", "config", "--file", w.global, "includeIf.gitdir:"+w.server.RepoBase+"/.path", extra) }},
		{"of a file that appears", func() { w.write(extra, "[gitolite \"mirror\"]\n\tmaster = sam\n") }},
		{"symbolic ref", func() { w.git("ip1", "symbolic-ref", "refs/heads/alias", "refs/heads/main") }},
		{"its target moves", func() { w.git("ip1", "update-ref", "refs/heads/main", first) }},
		{"by hand", func() { w.write(filepath.Join(w.dir("ip1"), "refs/heads/main"), w.commit("ip1", "by hand")+"\n") }},
	}
	for _, step := range steps {
		step.do()
		OpenCache(w.server.StateDir) // a reader beside it changes nothing
		for range 2 {
			c := OpenCache(w.server.StateDir)
			t.Log(step.name)
			w.want(c, "ip1")
			time.Sleep(2 * grain)
			w.want(c, "ip1") // now old enough to be remembered
			if err := c.Save(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestCacheUnderRandomChanges(t *testing.T) {
	shortGrain(t)
	w := newWorld(t, "ip1")
	var oids []string
	for i := range 5 {
		oids = append(oids, w.commit("ip1", fmt.Sprint(i)))
	}
	random := rand.New(rand.NewPCG(1, 2))
	c := OpenCache(w.server.StateDir)
	for range 60 {
		ref := fmt.Sprintf("refs/heads/b%d/x", random.IntN(4))
		switch random.IntN(6) {
		case 0:
			w.git("ip1", "pack-refs", "--all", "--prune")
		case 1:
			w.git("ip1", "update-ref", "-d", ref)
		case 2:
			time.Sleep(2 * grain)
		default:
			w.git("ip1", "update-ref", ref, oids[random.IntN(len(oids))])
		}
		w.want(c, "ip1")
	}
}

// An unchanged repository is answered without a process: with no git to be found.
func TestCacheNeedsNoGit(t *testing.T) {
	shortGrain(t)
	w := newWorld(t, "ip1")
	w.git("ip1", "update-ref", "refs/heads/main", w.commit("ip1", "x"))
	time.Sleep(2 * grain)
	c := OpenCache(w.server.StateDir)
	want := w.want(c, "ip1")
	if err := c.Save(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "/nonexistent")
	got, err := OpenCache(w.server.StateDir).Load(context.Background(), w.server, "ip1")
	if err != nil || got.Digest != want.Digest {
		t.Errorf("got %v, %v", got, err)
	}
	os.WriteFile(filepath.Join(w.server.StateDir, "digests.json"), []byte("{broken"), 0o600)
	if _, err := OpenCache(w.server.StateDir).Load(context.Background(), w.server, "ip1"); err == nil {
		t.Error("a damaged cache answers")
	}
}

func TestBrokenRefsAreErrors(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "garbage": "garbage\n", "zero": strings.Repeat("0", 40) + "\n"} {
		w := newWorld(t, "ip1")
		w.git("ip1", "update-ref", "refs/heads/main", w.commit("ip1", "x"))
		w.write(filepath.Join(w.dir("ip1"), "refs/heads/broken"), text)
		if _, err := OpenCache(w.server.StateDir).Load(context.Background(), w.server, "ip1"); err == nil || !strings.Contains(err.Error(), "refs/heads/broken") {
			t.Errorf("%s ref: error %v, want one that names it", name, err)
		}
	}
}

func TestUnusualRepositories(t *testing.T) {
	w := newWorld(t, "ip1")
	oid := w.commit("ip1", "x")
	w.git("ip1", "update-ref", "refs/heads/main", oid)
	w.git("", "init", "-q", "--bare", "--object-format=sha256", w.dir("sha256"))
	w.git("sha256", "update-ref", "refs/heads/main", w.commit("sha256", "x"))
	w.git("", "clone", "-q", "--bare", "--shared", w.dir("ip1"), w.dir("borrowing"))
	for i := range 205 {
		w.git("borrowing", "update-ref", fmt.Sprintf("refs/heads/n%d", i), oid)
	}
	c := OpenCache(w.server.StateDir)
	for _, name := range []string{"ip1", "sha256", "borrowing"} {
		w.want(c, name)
	}
}

// How long a look at unchanged repositories takes, with and without the cache.
func BenchmarkLoad(b *testing.B) {
	shortGrain(b)
	var names []string
	for i := range 50 {
		names = append(names, fmt.Sprintf("r%d", i))
	}
	w := newWorld(b, names...)
	for _, name := range names {
		w.git(name, "update-ref", "refs/heads/main", w.commit(name, "x"))
	}
	time.Sleep(2 * grain)
	c := OpenCache(w.server.StateDir)
	for _, name := range names {
		w.want(c, name)
	}
	b.Run("remembered", func(b *testing.B) {
		for i := range b.N {
			if _, err := c.Load(context.Background(), w.server, names[i%len(names)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		for i := range b.N {
			if _, err := OpenCache("/nonexistent").Load(context.Background(), w.server, names[i%len(names)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}
