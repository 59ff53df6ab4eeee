package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/digest"
	"mirror-shell/internal/git"
)

// What is tested with small packs has to be tested with split ones, too.
func init() { splitFrom = 4 }

// gitCommand is git in a directory, with a clean config.
func gitCommand(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org", "LC_ALL=C")
	return cmd
}

// packedRepo makes a bare repository with a few commits, branches and tags in two packs.
func packedRepo(t testing.TB, format string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ip1.git")
	run(t, ".", "init", "-q", "--bare", "--object-format="+format, "-b", "main", dir)
	for i := range 4 {
		tree := commitTo(t, git.Repo{Dir: dir}, "refs/heads/main", fmt.Sprintf("file %d", i))
		if i == 1 {
			run(t, dir, "tag", "-a", "-m", "a tag", "v1", tree)
			run(t, dir, "repack", "-adq")
		}
	}
	run(t, dir, "update-ref", "refs/heads/a/b", "refs/heads/main~2")
	run(t, dir, "update-ref", "refs/mirror/rescued/x", "refs/heads/main~1")
	run(t, dir, "symbolic-ref", "refs/heads/current", "refs/heads/main")
	run(t, dir, "repack", "-dq")
	return dir
}

// describeRepo returns the manifest of a repository, with its packs, kept files and LFS objects put into the store.
func describeRepo(t testing.TB, v *Vault, dir string, at time.Time) *Manifest {
	t.Helper()
	m := &Manifest{Format: Format, Repository: "group/ip1", Time: at.UTC().Truncate(time.Millisecond), Server: "frodo", Program: "mirror-shell test",
		ObjectFormat: run(t, dir, "rev-parse", "--show-object-format"), Refs: map[string]string{}, SymRefs: map[string]string{}}
	for line := range strings.Lines(run(t, dir, "for-each-ref", "--format=%(objectname) %(refname) %(symref)") + "\n") {
		if f := strings.Fields(line); len(f) > 1 {
			m.Refs[f[1]] = f[0]
			if len(f) > 2 {
				m.SymRefs[f[1]] = f[2]
			}
		}
	}
	m.Digest = digest.Of(m.Refs)
	var err error
	if m.Head, err = (git.Repo{Dir: dir}).Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.Head == "" {
		m.Detached = run(t, dir, "rev-parse", "HEAD")
	}
	put := func(key, file string, compress bool) Object {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		mem := v.Store.(*memory)
		if _, there := mem.blobs[dataOf(m.Repository)+key]; there {
			key += fmt.Sprintf("~%08d", len(mem.blobs))
		}
		return storeContent(t, v, dataOf(m.Repository)+key, data, compress)
	}
	packs, _ := filepath.Glob(dir + "/objects/pack/*.pack")
	for _, p := range packs {
		base := strings.TrimSuffix(p, ".pack")
		m.Packs = append(m.Packs, Pack{filepath.Base(base), put(filepath.Base(p), p, false), put(filepath.Base(base)+".idx", base+".idx", false)})
	}
	filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, file)
		if oid := filepath.Base(file); strings.HasPrefix(name, "lfs/objects/") && d.Type().IsRegular() {
			m.LFS = append(m.LFS, LFS{oid, put("lfs-"+oid, file, false)})
		}
		if d.Type().IsRegular() && keepable(name) && !strings.HasSuffix(name, ".sample") {
			info, _ := d.Info()
			mode := uint32(0o644 | info.Mode()&0o100*0o111/0o100)
			data, _ := os.ReadFile(file)
			m.Files = append(m.Files, File{name, mode, put("file-"+sumOf(data), file, true)})
		}
		return nil
	})
	return m
}

// publishRepo makes a snapshot of a repository whose objects are all in packs.
func publishRepo(t testing.TB, v *Vault, dir string, at time.Time) Name {
	t.Helper()
	name, _, err := v.publish(t.Context(), describeRepo(t, v, dir, at))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func sameRepo(t testing.TB, got, want string) {
	t.Helper()
	run(t, got, "fsck", "--strict")
	if diff := cmp.Diff(repoText(t, want), repoText(t, got)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func repoText(t testing.TB, dir string) []string {
	head, err := os.ReadFile(dir + "/HEAD")
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{string(head)}, strings.Split(run(t, dir, "for-each-ref", "--format=%(objectname) %(objecttype) %(refname) %(symref)")+"\n"+
		run(t, dir, "rev-parse", "--show-object-format")+"\n"+
		run(t, dir, "cat-file", "--batch-all-objects", "--batch-check"), "\n")...)
}

// files returns path → mode and content of what a directory has besides objects and refs.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, file)
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(name, "objects/") || strings.HasPrefix(name, "refs/") || name == "packed-refs" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(file)
		all[name] = fmt.Sprintf("%v %s", info.Mode(), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestRestore(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		for _, check := range []Thoroughness{Full, Checksums} {
			for _, sealed := range []bool{false, true} {
				t.Run(fmt.Sprint(format, check, sealed), func(t *testing.T) {
					v, _ := testVault(t)
					if sealed {
						seal(t, v)
					}
					repo := packedRepo(t, format)
					os.RemoveAll(repo + "/hooks")
					os.MkdirAll(repo+"/hooks", 0o755)
					os.WriteFile(repo+"/hooks/post-receive", []byte("#!/bin/sh\n"), 0o755)
					os.WriteFile(repo+"/gl-creator", []byte("alice\n"), 0o644)
					name := publishRepo(t, v, repo, time.Now())
					target := filepath.Join(t.TempDir(), "new", "group", "ip1.git")
					got, err := v.Restore(t.Context(), name, target, RestoreOptions{Check: check, Mark: "mirror-shell/restored"})
					if err != nil {
						t.Fatal(err)
					}
					sameRepo(t, target, repo)
					want := files(t, repo)
					want["mirror-shell/restored"] = "-rw------- "
					if diff := cmp.Diff(want, files(t, target)); diff != "" {
						t.Errorf("files -want +got\n%s", diff)
					}
					if diff := cmp.Diff([]string{"ip1.git"}, names(t, filepath.Dir(target))); diff != "" {
						t.Error(diff)
					}
					if got.Refs != 5 || got.Objects != 2*2+len(want)-2 || got.Bytes == 0 || got.Before != "" || len(got.Notes) > 0 {
						t.Errorf("%+v", got)
					}
				})
			}
		}
	}
}

// A repository without a commit, one with a detached HEAD, and one whose snapshot has no config.
func TestRestoreUnusual(t *testing.T) {
	for what, change := range map[string]func(dir string){
		"empty":     nil,
		"detached":  func(dir string) { run(t, dir, "update-ref", "--no-deref", "HEAD", "refs/heads/main~1") },
		"no config": func(dir string) { os.Remove(dir + "/config") },
		"unborn":    func(dir string) { run(t, dir, "symbolic-ref", "HEAD", "refs/heads/nowhere") },
	} {
		for _, format := range []string{"sha1", "sha256"} {
			t.Run(what+" "+format, func(t *testing.T) {
				v, _ := testVault(t)
				var repo string
				if change == nil {
					repo = filepath.Join(t.TempDir(), "ip1.git")
					run(t, ".", "init", "-q", "--bare", "--object-format="+format, repo)
				} else {
					repo = packedRepo(t, format)
				}
				if change != nil && what != "no config" {
					change(repo)
				}
				m := describeRepo(t, v, repo, time.Now())
				if what == "no config" {
					m.Files = slices.DeleteFunc(m.Files, func(f File) bool { return f.Path == "config" })
				}
				name, _, err := v.publish(t.Context(), m)
				if err != nil {
					t.Fatal(err)
				}
				target := filepath.Join(t.TempDir(), "ip1.git")
				if _, err := v.Restore(t.Context(), name, target, RestoreOptions{}); err != nil {
					t.Fatal(err)
				}
				sameRepo(t, target, repo)
			})
		}
	}
}

func TestRestoreTarget(t *testing.T) {
	v, _ := testVault(t)
	repo := packedRepo(t, "sha1")
	name := publishRepo(t, v, repo, time.Now())
	base := t.TempDir()
	at := func(n string) string { return filepath.Join(base, n) }
	run(t, base, "init", "-q", "--bare", at("repo"))
	os.Mkdir(at("full"), 0o755)
	os.WriteFile(at("full/x"), nil, 0o644)
	os.WriteFile(at("file"), nil, 0o644)
	os.Symlink(at("repo"), at("link"))
	os.Mkdir(at("empty"), 0o755)
	before := names(t, base)
	for _, replace := range []bool{false, true} {
		for _, n := range []string{"repo", "full", "file", "link"} {
			if n == "repo" && replace {
				continue
			}
			if _, err := v.Restore(t.Context(), name, at(n), RestoreOptions{Replace: replace}); !errors.Is(err, ErrTarget) {
				t.Errorf("%s, replace %v: %v", n, replace, err)
			}
		}
	}
	if diff := cmp.Diff(before, names(t, base)); diff != "" {
		t.Error(diff)
	}
	if _, err := v.Restore(t.Context(), name, at("empty"), RestoreOptions{}); err != nil {
		t.Error(err)
	}
	old := commitTo(t, git.Repo{Dir: at("repo")}, "refs/heads/old", "old")
	os.Chmod(at("repo"), 0o750)
	v.Now = func() time.Time { return time.Date(2026, 11, 22, 3, 55, 57, 0, time.UTC) }
	for _, want := range []string{at("repo.before-restore-20261122T035557Z"), at("repo.before-restore-20261122T035557Z-2")} {
		got, err := v.Restore(t.Context(), name, at("repo"), RestoreOptions{Replace: true})
		if err != nil || got.Before != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
	sameRepo(t, at("repo"), repo)
	if info, _ := os.Stat(at("repo")); info.Mode().Perm() != 0o750 {
		t.Error(info.Mode())
	}
	if got := run(t, at("repo.before-restore-20261122T035557Z"), "rev-parse", "refs/heads/old"); got != old {
		t.Error(got)
	}
	if diff := cmp.Diff([]string{"empty", "file", "full", "link", "repo", "repo.before-restore-20261122T035557Z", "repo.before-restore-20261122T035557Z-2"}, names(t, base)); diff != "" {
		t.Error(diff)
	}
}

// What a killed restore left is cleaned up, and never while the one that made it is alive.
func TestRestoreAfterKill(t *testing.T) {
	v, m := testVault(t)
	repo := packedRepo(t, "sha1")
	name := publishRepo(t, v, repo, time.Now())
	base := t.TempDir()
	target := filepath.Join(base, "ip1.git")
	run(t, base, "init", "-q", "--bare", target)
	half, swapped, empty := target[:len(target)-7]+".ip1.git.mirror-shell-restore-1", filepath.Join(base, ".ip1.git.mirror-shell-restore-2"), filepath.Join(base, ".ip1.git.mirror-shell-restore-3")
	os.MkdirAll(half+"/objects/pack", 0o755)
	os.WriteFile(filepath.Join(half, halfMade), nil, 0o600)
	os.Mkdir(empty, 0o755)
	run(t, base, "init", "-q", "--bare", swapped)
	kept := commitTo(t, git.Repo{Dir: swapped}, "refs/heads/main", "only here")
	os.WriteFile(filepath.Join(target, halfMade), nil, 0o600)

	// While one runs, the next is refused and touches nothing.
	var asked atomic.Bool
	m.before = func(operation, key string) error {
		if strings.HasSuffix(key, ".pack") && !asked.Swap(true) {
			was := names(t, base)
			if left, err := LeftIn(base); err != nil || len(left) > 0 {
				t.Errorf("left by one that is at work: %+v, %v", left, err)
			}
			if _, err := v.Restore(t.Context(), name, target, RestoreOptions{Replace: true}); !errors.Is(err, ErrTarget) {
				t.Error("a second restore:", err)
			}
			if diff := cmp.Diff(was, names(t, base)); diff != "" {
				t.Error(diff)
			}
		}
		return nil
	}
	v.Now = func() time.Time { return time.Date(2026, 11, 22, 3, 55, 57, 0, time.UTC) }
	left := []Left{{half, target, false}, {swapped, target, true}, {empty, target, false}}
	if got, err := LeftIn(base); err != nil || !slices.Equal(got, left) {
		t.Errorf("%+v, %v", got, err)
	}
	got, err := v.Restore(t.Context(), name, target, RestoreOptions{Replace: true})
	if err != nil || len(got.Notes) != 3 || !strings.Contains(strings.Join(got.Notes, "\n"), "what was pushed meanwhile is only there") {
		t.Fatalf("%+v %v", got, err)
	}
	if diff := cmp.Diff([]string{"ip1.git", "ip1.git.before-restore-20261122T035557Z", "ip1.git.before-restore-20261122T035557Z-2"}, names(t, base)); diff != "" {
		t.Error(diff)
	}
	if got := run(t, target+".before-restore-20261122T035557Z", "rev-parse", "refs/heads/main"); got != kept {
		t.Error(got)
	}
	sameRepo(t, target, repo)
}

// Who is killed while what was made is removed does not leave what looks like a repository that was replaced. What ends it here is
// a directory that cannot be removed.
func TestRestoreKilledAsItRemoves(t *testing.T) {
	stuck := os.Getenv(fullEnv)
	if stuck == "" {
		dir := filepath.Join(t.TempDir(), ".ip1.git.mirror-shell-restore-1")
		run(t, ".", "init", "-q", "--bare", dir)
		if err := os.WriteFile(filepath.Join(dir, halfMade), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		onSmallDisk(t, filepath.Join(dir, "refs"))
		return
	}
	mountSmallDisk(t, stuck)
	dir := filepath.Dir(stuck)
	base := filepath.Dir(dir)
	failed := removeBuild(dir)
	if left, err := LeftIn(base); failed == nil || err != nil || !slices.Equal(left, []Left{{dir, filepath.Join(base, "ip1.git"), false}}) {
		t.Errorf("%v, %+v, %v", failed, left, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{halfMade, "refs"}) {
		t.Errorf("left: %q", got)
	}
}

// What a hostile manifest could do with paths.
func TestRestoreConfined(t *testing.T) {
	v, _ := testVault(t)
	repo := packedRepo(t, "sha1")
	for _, bad := range []func(*Manifest){
		func(m *Manifest) { m.Files[0].Path = "../x" },
		func(m *Manifest) { m.Files[0].Path = "/etc/x" },
		func(m *Manifest) { m.Files[0].Path = "refs/heads/x" },
		func(m *Manifest) { m.Files[0].Path = "commondir" },
		func(m *Manifest) { m.Files[0].Path = halfMade },
		func(m *Manifest) { m.Files[0].Path = "mirror-shell/restored" },
		func(m *Manifest) { m.Head = "hooks/post-receive" },
		func(m *Manifest) {
			m.Refs["hooks/x"] = m.Refs["refs/heads/main"]
			m.SymRefs["hooks/x"] = "refs/heads/main"
		},
		func(m *Manifest) { m.Refs["refs/heads/main/x"] = m.Refs["refs/heads/main"] },
		func(m *Manifest) { m.Files = append(m.Files, m.Files[0]) },
		func(m *Manifest) { m.Refs["refs/heads/x"] = strings.Repeat("1", 40) },
		func(m *Manifest) { m.Packs[0].Index = m.Packs[1].Index },
		func(m *Manifest) { m.Packs = m.Packs[:1] },
	} {
		m := describeRepo(t, v, repo, time.Now())
		bad(m)
		m.Digest = digest.Of(m.Refs)
		name, _, err := v.publish(t.Context(), m)
		if err != nil {
			continue // it would not be read either
		}
		base := t.TempDir()
		if _, err := v.Restore(t.Context(), name, filepath.Join(base, "ip1.git"), RestoreOptions{Check: Checksums}); err == nil {
			t.Errorf("restored %+v", m)
		}
		if left := names(t, base); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	}
}

// Objects that are not what their names say, and history that is not there, are found by the full check.
func TestRestoreIncomplete(t *testing.T) {
	v, _ := testVault(t)
	repo := packedRepo(t, "sha1")
	m := describeRepo(t, v, repo, time.Now())
	blob := run(t, repo, "rev-parse", "refs/heads/main~3:file-f")
	// The first pack has the older half of the history, of which a ref's value is in the second.
	for i, p := range m.Packs {
		if strings.Contains(run(t, repo, "verify-pack", "-v", "objects/pack/"+p.Name+".idx"), blob) {
			m.Packs = slices.Delete(m.Packs, i, i+1)
			break
		}
	}
	maps.DeleteFunc(m.Refs, func(name, _ string) bool { return name != "refs/heads/main" })
	m.SymRefs = nil
	m.Digest = digest.Of(m.Refs)
	name, _, err := v.publish(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	if _, err = v.Restore(t.Context(), name, base+"/full", RestoreOptions{}); !errors.Is(err, ErrIncomplete) {
		t.Error(err)
	} else if oid := run(t, repo, "rev-parse", "refs/heads/main~2"); !strings.Contains(err.Error(), oid) {
		t.Errorf("%v does not name %s", err, oid)
	}
	if left := names(t, base); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestRestoreConfig(t *testing.T) {
	v, _ := testVault(t)
	for _, c := range []struct {
		format, config string
		without        bool
		want           map[string]string
		mode           fs.FileMode // of HEAD
	}{
		{"sha1", "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectFormat = sha256\n\trefStorage = reftable\n", false, map[string]string{"core.repositoryformatversion": "0"}, 0o644},
		{"sha256", "[core]\n\trepositoryformatversion = 0\n\tbare = true\n[a]\n\tb = c\n", false, map[string]string{"extensions.objectformat": "sha256", "core.repositoryformatversion": "1", "a.b": "c"}, 0o644},
		{"sha1", "[core]\n\tsharedRepository = group\n", false, map[string]string{"core.sharedrepository": "group"}, 0o664},
		{"sha1", "[core]\n\tsharedRepository = 0640\n", false, nil, 0o640},
		{"sha256", "[core\nbroken", false, map[string]string{"extensions.objectformat": "sha256"}, 0o644},
		{"sha1", "[core]\n\tfsmonitor = touch /tmp/x\n\thooksPath = /x\n\tsharedRepository = all\n[include]\n\tpath = /x\n[gitolite \"mirror\"]\n\tmaster = \"fro\\\"do # ;\"\n", true,
			map[string]string{"core.fsmonitor": "", "core.hookspath": "", "include.path": "", "gitolite.mirror.master": `fro"do # ;`, "core.bare": "true"}, 0o664},
	} {
		repo := packedRepo(t, c.format)
		m := describeRepo(t, v, repo, time.Now())
		for i := range m.Files {
			if m.Files[i].Path == "config" {
				m.Files[i].Object = storeContent(t, v, dataOf(m.Repository)+fmt.Sprintf("file-x~%d", len(v.Store.(*memory).blobs)), []byte(c.config), true)
			}
		}
		name, _, err := v.publish(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(t.TempDir(), "ip1.git")
		if _, err := v.Restore(t.Context(), name, target, RestoreOptions{WithoutHooks: c.without}); err != nil {
			t.Fatal(err)
		}
		for key, want := range c.want {
			cmd := exec.Command("git", "config", "--file", target+"/config", "--get", key)
			if out, _ := cmd.Output(); strings.TrimSpace(string(out)) != want {
				t.Errorf("%q: %s is %q, want %q", c.config, key, out, want)
			}
		}
		if info, err := os.Stat(target + "/HEAD"); err != nil || info.Mode().Perm() != c.mode {
			t.Errorf("%q: %v", c.config, info.Mode())
		}
		if !strings.Contains(c.config, "0640") {
			sameRepo(t, target, repo)
		}
	}
}
