package hooks

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/rescue"
)

var zero = strings.Repeat("0", 40)

// slave is the repository ip1, of which sam is the master, with a branch main that
// sam pushed, and clone, a clone of it on the slave's own disk.
func (w *world) slave() (dir, clone string) {
	w.t.Helper()
	dir = w.bare("ip1", "master=sam")
	out, err := w.push(dir, "MIRROR_SHELL_PEER=sam")
	w.pushed(dir, out, err)
	clone = filepath.Join(w.home, "clone")
	w.git("", "clone", "-q", dir, clone)
	return dir, clone
}

// local makes a commit on the slave's disk and returns its id.
func (w *world) local(dir, clone, ref string) string {
	w.t.Helper()
	w.git(clone, "commit", "-q", "--allow-empty", "-m", "only here "+ref)
	w.git(dir, "fetch", "-q", clone, "+HEAD:"+ref)
	return w.git(clone, "rev-parse", "HEAD")
}

// commit makes a commit on the master.
func (w *world) commit(message string) string {
	w.t.Helper()
	w.git(w.work, "commit", "-q", "--allow-empty", "-m", message)
	return w.git(w.work, "rev-parse", "HEAD")
}

// mirror is a mirror push, by default of everything.
func (w *world) mirror(dir string, args ...string) (string, error) {
	w.t.Helper()
	if len(args) == 0 {
		args = []string{"+refs/*:refs/*", "--prune"}
	}
	receive := "git -c transfer.hideRefs=refs/mirror receive-pack"
	cmd := exec.Command("git", append([]string{"push", "--receive-pack=" + receive, dir}, args...)...)
	cmd.Dir, cmd.Env = w.work, w.env("MIRROR_SHELL_PEER=sam")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// rescued returns the rescued refs as REF OID, sorted.
func (w *world) rescued(dir string) []string {
	w.t.Helper()
	w.t.Setenv("HOME", w.home)
	entries, err := rescue.List(w.t.Context(), git.Repo{Dir: dir})
	if err != nil {
		w.t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Ref+" "+e.OID)
	}
	slices.Sort(list)
	return list
}

func (w *world) wantRescued(dir string, want ...string) {
	w.t.Helper()
	slices.Sort(want)
	if got := w.rescued(dir); !slices.Equal(got, want) {
		w.t.Errorf("rescued %q, want %q", got, want)
	}
}

func TestRescue(t *testing.T) {
	for name, c := range map[string]struct {
		// prepare changes slave and master and returns what is to be rescued
		prepare func(w *world, dir, clone string) []string
		push    []string
	}{
		"nothing": {prepare: func(w *world, dir, clone string) []string { w.commit("two"); return nil }},
		"overwritten": {prepare: func(w *world, dir, clone string) []string {
			w.commit("two")
			return []string{"refs/heads/main " + w.local(dir, clone, "refs/heads/main")}
		}},
		"deleted": {prepare: func(w *world, dir, clone string) []string {
			return []string{"refs/heads/mine " + w.local(dir, clone, "refs/heads/mine")}
		}},
		"several": {prepare: func(w *world, dir, clone string) []string {
			a := w.local(dir, clone, "refs/heads/a")
			b := w.local(dir, clone, "refs/heads/b/c")
			w.git(dir, "update-ref", "refs/tags/b", b)
			w.git(dir, "pack-refs", "--all")
			return []string{"refs/heads/a " + a, "refs/heads/b/c " + b, "refs/tags/b " + b}
		}},
		"rewritten by the master": {prepare: func(w *world, dir, clone string) []string {
			w.git(w.work, "commit", "-q", "--amend", "--allow-empty", "-m", "rewritten")
			return nil
		}},
		"contained in what is pushed": {prepare: func(w *world, dir, clone string) []string {
			w.local(dir, clone, "refs/heads/main")
			w.git(w.work, "fetch", "-q", dir, "main")
			w.git(w.work, "commit", "-q", "--allow-empty", "-m", "two")
			w.git(w.work, "merge", "-q", "-m", "merged", "FETCH_HEAD") // new objects: the quarantine has the merge
			return nil
		}},
		"contained in another ref that is pushed": {prepare: func(w *world, dir, clone string) []string {
			w.local(dir, clone, "refs/heads/mine")
			w.git(w.work, "fetch", "-q", dir, "mine")
			w.git(w.work, "merge", "-q", "FETCH_HEAD")
			w.commit("after")
			return nil
		}},
		"contained in a ref that stays": {prepare: func(w *world, dir, clone string) []string {
			w.local(dir, clone, "refs/heads/mine")
			w.git(dir, "update-ref", "refs/heads/stays", "refs/heads/mine")
			return nil
		}, push: []string{":refs/heads/mine"}},
		"not saved by a rescued ref of another name": {prepare: func(w *world, dir, clone string) []string {
			oid := w.local(dir, clone, "refs/heads/mine")
			w.git(dir, "update-ref", "refs/mirror/rescued/20260101T000000Z-"+oid[:8]+"/refs/heads/x", oid)
			return []string{"refs/heads/mine " + oid, "refs/heads/x " + oid}
		}},
		"reused": {prepare: func(w *world, dir, clone string) []string {
			oid := w.local(dir, clone, "refs/heads/mine")
			w.git(dir, "update-ref", "refs/mirror/rescued/20260101T000000Z-"+oid[:8]+"/refs/heads/mine", oid)
			return []string{"refs/heads/mine " + oid}
		}},
		"a tag that was moved, a tree, a blob": {prepare: func(w *world, dir, clone string) []string {
			w.git(clone, "tag", "-a", "-m", "local", "v1")
			w.git(dir, "fetch", "-q", clone, "refs/tags/v1:refs/tags/v1")
			blob := w.git(dir, "hash-object", "-w", dir+"/config")
			w.git(dir, "update-ref", "refs/tags/blob", blob)
			tree := w.git(dir, "rev-parse", "main^{tree}")
			w.git(dir, "update-ref", "refs/tags/tree", tree)
			w.git(w.work, "tag", "-a", "-m", "the master's", "v1")
			return []string{"refs/tags/v1 " + w.git(clone, "rev-parse", "v1"), "refs/tags/blob " + blob, "refs/tags/tree " + tree}
		}},
		"outside of the slave's patterns": {prepare: func(w *world, dir, clone string) []string {
			w.git(dir, "config", "gitolite.mirror.refs", "!refs/heads/mine")
			return []string{"refs/heads/mine " + w.local(dir, clone, "refs/heads/mine")}
		}},
		"an incomplete history": {prepare: func(w *world, dir, clone string) []string {
			oid := w.local(dir, clone, "refs/heads/mine")
			more := w.local(dir, clone, "refs/heads/mine")
			if err := os.Remove(filepath.Join(dir, "objects", oid[:2], oid[2:])); err != nil {
				w.t.Fatal(err)
			}
			w.commit("two")
			return []string{"refs/heads/mine " + more}
		}},
		"a broken ref elsewhere": {prepare: func(w *world, dir, clone string) []string {
			oid := w.local(dir, clone, "refs/heads/mine")
			w.write(dir+"/refs/heads/empty", "", 0o600)
			return []string{"refs/heads/mine " + oid}
		}, push: []string{":refs/heads/mine"}}, // git takes no new objects then
		"without its record": {prepare: func(w *world, dir, clone string) []string {
			if err := os.Remove(refset.Received(dir)); err != nil {
				w.t.Fatal(err)
			}
			w.commit("two") // contains what was there
			return nil
		}},
		"rewritten, and without its record": {prepare: func(w *world, dir, clone string) []string {
			os.Remove(refset.Received(dir))
			w.git(w.work, "commit", "-q", "--amend", "--allow-empty", "-m", "rewritten")
			return []string{"refs/heads/main " + w.oid}
		}},
		"with a damaged record": {prepare: func(w *world, dir, clone string) []string {
			w.write(refset.Received(dir), "nonsense\n", 0o600)
			w.git(w.work, "commit", "-q", "--amend", "--allow-empty", "-m", "rewritten")
			return []string{"refs/heads/main " + w.oid}
		}},
		"with a record that cannot be used": {prepare: func(w *world, dir, clone string) []string {
			os.RemoveAll(refset.Dir(dir))
			w.write(refset.Dir(dir), "in the way", 0o600)
			w.commit("two")
			return []string{"refs/heads/main " + w.local(dir, clone, "refs/heads/main")}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dir, clone := w.slave()
			want := c.prepare(w, dir, clone)
			before := w.rescued(dir)
			out, err := w.mirror(dir, c.push...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			w.wantRescued(dir, want...)
			for _, line := range want {
				ref, oid, _ := strings.Cut(line, " ")
				told := fmt.Sprintf("remote: frodo: rescued %s at %s as refs/mirror/rescued/", ref, oid[:10])
				if slices.Contains(before, line) {
					told = fmt.Sprintf("remote: frodo: %s at %s is rescued already, as ", ref, oid[:10])
				}
				if strings.Contains(name, "another name") && ref == "refs/heads/x" {
					continue
				}
				if !strings.Contains(out, told) {
					t.Errorf("told\n%swant %q", out, told)
				}
			}
			if len(want) == 0 && strings.Contains(out, "rescued") {
				t.Errorf("told\n%s", out)
			}
		})
	}
}

// A push that is tried again, with the record in any state, adds no rescued ref.
func TestRescueOnce(t *testing.T) {
	w := newWorld(t)
	dir, clone := w.slave()
	oid := w.local(dir, clone, "refs/heads/main")
	w.commit("two")
	w.write(dir+"/hooks/pre-receive.next", "#!/bin/sh\nexit 1\n", 0o700)
	for i := range 3 {
		if out, err := w.mirror(dir); err == nil {
			t.Fatalf("%d: not refused\n%s", i, out)
		}
		if i == 1 {
			os.Remove(refset.Received(dir))
		}
	}
	os.Remove(dir + "/hooks/pre-receive.next")
	if out, err := w.mirror(dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.wantRescued(dir, "refs/heads/main "+oid)
	// Deleted by a person, it is made again when it is needed again.
	w.git(dir, "update-ref", "refs/heads/main", oid)
	if out, err := w.mirror(dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.wantRescued(dir, "refs/heads/main "+oid)
}

// What the master sent stays known when we die before post-receive.
func TestDiedBeforeRecord(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	w.commit("two")
	if err := os.Rename(dir+"/hooks/post-receive", dir+"/hooks/gone"); err != nil {
		t.Fatal(err)
	}
	if out, err := w.mirror(dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.git(w.work, "commit", "-q", "--amend", "--allow-empty", "-m", "rewritten")
	if out, err := w.mirror(dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.wantRescued(dir)
}

// Nothing is destroyed that cannot be kept.
func TestRescueFails(t *testing.T) {
	w := newWorld(t)
	dir, clone := w.slave()
	oid := w.local(dir, clone, "refs/heads/main")
	w.commit("two")
	w.write(dir+"/refs/mirror", "", 0o600) // in the way
	out, err := w.mirror(dir, "+main", "main:other")
	if err == nil || !strings.Contains(out, "push refused: frodo has commits in ip1 that are nowhere else (refs/heads/main), and they cannot be kept") {
		t.Errorf("%v\n%s", err, out)
	}
	if refs := w.git(dir, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads"); refs != "refs/heads/main "+oid {
		t.Errorf("refs %s", refs)
	}
	os.Remove(dir + "/refs/mirror")
	if out, err := w.mirror(dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.wantRescued(dir, "refs/heads/main "+oid)
}

// preReceive runs the hook with made-up updates, as receive-pack would for a
// client that makes them up, and git in a wrapper that counts.
func (w *world) preReceive(dir string, updates ...string) (out string, gits []string, err error) {
	w.t.Helper()
	bin, log := filepath.Join(w.home, "bin"), filepath.Join(w.home, "gits")
	real, err := exec.LookPath("git")
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(bin+"/git", fmt.Sprintf("#!/bin/sh\necho \"$*\" >> %s\nexec %s \"$@\"\n", log, real), 0o700)
	os.Remove(log)
	cmd := exec.Command(dir + "/hooks/pre-receive")
	cmd.Dir, cmd.Env = dir, w.env("MIRROR_SHELL_PEER=sam", "PATH="+bin+":"+os.Getenv("PATH"))
	cmd.Stdin = strings.NewReader(strings.Join(updates, "\n") + "\n")
	text, err := cmd.CombinedOutput()
	data, _ := os.ReadFile(log)
	return string(text), strings.Split(strings.TrimSpace(string(data)), "\n"), err
}

// What is on record costs no process of git but the one that reads the
// configuration, be it changed, deleted, packed or loose.
func TestUsualPushCostsNoGit(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	if out, err := w.mirror(dir, "main:loose", "main:packed"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.git(dir, "pack-refs", "--all")
	two := w.commit("two")
	if out, err := w.mirror(dir, "main:loose"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, gits, err := w.preReceive(dir, zero+" "+w.oid+" refs/heads/new", w.oid+" "+two+" refs/heads/main",
		two+" "+zero+" refs/heads/loose", w.oid+" "+zero+" refs/heads/packed")
	if err != nil || out != "" || len(gits) != 1 || !strings.Contains(gits[0], "config") {
		t.Errorf("%v, %s, git %q", err, out, gits)
	}
}

func TestMadeUpUpdates(t *testing.T) {
	w := newWorld(t)
	dir, clone := w.slave()
	local := w.local(dir, clone, "refs/heads/mine")
	none := strings.Repeat("1", 40)
	w.git(dir, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
	w.git(dir, "symbolic-ref", "refs/heads/alias2", "refs/heads/alias")
	w.git(dir, "symbolic-ref", "refs/heads/dangling", "refs/heads/nowhere")
	if err := os.Symlink("main", dir+"/refs/heads/link"); err != nil {
		t.Fatal(err)
	}
	broken := strings.Repeat("2", 40)
	w.write(dir+"/refs/heads/broken", broken+"\n", 0o600)
	w.write(dir+"/secret", "ref: x", 0o600)
	for _, c := range []struct{ name, updates, refused string }{
		{"a deletion of whatever it is", zero + " " + zero + " refs/heads/mine", "refs/heads/mine is at " + local[:10] + " on frodo, and not at 0000000000: try again"},
		{"a deletion of what does not exist", none + " " + zero + " refs/heads/mine", "and not at 1111111111: try again"},
		{"a deletion of what is not there", zero + " " + zero + " refs/heads/no", ""},
		{"a deletion of a broken ref", broken + " " + zero + " refs/heads/broken", ""},
		{"an alias", w.oid + " " + local + " refs/heads/alias", "refs/heads/alias is only another name of refs/heads/main"},
		{"an alias deleted", w.oid + " " + zero + " refs/heads/alias", "refs/heads/alias is only another name of refs/heads/main"},
		{"an alias and its target, alike", w.oid + " " + local + " refs/heads/alias\n" + w.oid + " " + local + " refs/heads/main", ""},
		{"an alias and its target, unlike", w.oid + " " + zero + " refs/heads/alias\n" + w.oid + " " + local + " refs/heads/main", "another name of refs/heads/main"},
		{"an alias of an alias", w.oid + " " + local + " refs/heads/alias2\n" + w.oid + " " + local + " refs/heads/alias", "another name"},
		{"a dangling alias", zero + " " + local + " refs/heads/dangling", "another name of refs/heads/nowhere"},
		{"a link", w.oid + " " + local + " refs/heads/link", "another name of main"},
		{"what git refuses by itself", zero + " " + local + " refs/../secret", ""},
		{"with a space", zero + " " + local + " refs/heads/a b", ""},
		{"HEAD", w.oid + " " + local + " HEAD", ""},
		{"rescued refs", zero + " " + local + " refs/mirror/rescued/x", `"refs/mirror/rescued/x" belongs to frodo alone`},
		{"what is in the way of them", zero + " " + local + " refs/mirror", `"refs/mirror" belongs to frodo alone`},
		{"nothing like it", zero + " " + local + " refs/mirrors/x", ""},
		{"nonsense", "nonsense", "git told the hook"},
		{"no ref", zero + " " + zero + " ", "git told the hook"},
	} {
		out, _, err := w.preReceive(dir, c.updates)
		if (err == nil) != (c.refused == "") || !strings.Contains(out, c.refused) || strings.Count(out, "\n") > 1 && c.refused != "" {
			t.Errorf("%s: %v, told %q, want %q", c.name, err, out, c.refused)
		}
	}
	if refs := w.git(dir, "rev-parse", "refs/heads/main", "refs/heads/mine"); refs != w.oid+"\n"+local {
		t.Errorf("refs %s", refs)
	}
}

// A ref that is an alias on both servers goes on working.
func TestAliasOnBoth(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	w.git(dir, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
	w.git(w.work, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
	two := w.commit("two")
	if out, err := w.mirror(dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if refs := w.git(dir, "rev-parse", "refs/heads/main", "refs/heads/alias"); refs != two+"\n"+two {
		t.Errorf("refs %s", refs)
	}
	w.wantRescued(dir)
}

// Users' pushes on the master are not held up: with new objects, with old ones
// only, and with private refs among others in a session of ours.
func TestUserPushOnMaster(t *testing.T) {
	w := newWorld(t)
	dir := w.bare("ip1", "master=frodo")
	out, err := w.push(dir)
	w.pushed(dir, out, err)
	w.git(w.work, "push", "-q", dir, "main:old-objects-only")
	w.git(w.work, "push", "-q", dir, ":old-objects-only")
	cmd := exec.Command("git", "push", "--receive-pack=git -c transfer.hideRefs=refs/mirror receive-pack", dir, "main:refs/mirror/x", "main:visible")
	cmd.Dir, cmd.Env = w.work, w.env()
	text, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(text, []byte("deny updating a hidden ref")) || !bytes.Contains(text, []byte("main -> visible")) {
		t.Errorf("%v\n%s", err, text)
	}
	if refs := w.git(dir, "for-each-ref", "--format=%(refname)"); refs != "refs/heads/main\nrefs/heads/visible" {
		t.Errorf("refs %s", refs)
	}
	if _, err := os.Stat(refset.Dir(dir)); err == nil {
		t.Error("a master keeps a record of what it was sent")
	}
}

func TestGitHides(t *testing.T) {
	for text, want := range map[string]bool{
		"'transfer.hideRefs'='refs/mirror'": true,
		"'receive.hideRefs'='refs/' 'receive.hideRefs'='!refs/heads/a' 'transfer.hideRefs'='refs/mirror'": true,
		"'transfer.hideRefs'='refs/mirror' 'transfer.hideRefs'='!refs/mirror/x'":                          false,
		"'transfer.hideRefs'='refs/mirrors'":                                                              false, "'x.y'='z'": false, "": false,
	} {
		if got := gitHides(text); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}
