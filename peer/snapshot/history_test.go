package snapshot

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"mirror-shell/internal/git"
)

// histories is how many random histories are tried, unless MIRROR_SHELL_LONG asks for 200.
const histories = "6"

// moment is what a repository was when a snapshot of it was taken.
type moment struct {
	Name
	refs, objects string
}

// momentOf reads refs, HEAD, and all that they reach.
func momentOf(t testing.TB, dir string) (refs, objects string) {
	t.Helper()
	head, err := os.ReadFile(filepath.Join(dir, "HEAD"))
	if err != nil {
		t.Fatal(err)
	}
	refs = string(head) + run(t, dir, "for-each-ref", "--format=%(refname) %(objectname) %(symref)")
	args := []string{"rev-list", "--objects", "--no-object-names", "--all"}
	if !strings.HasPrefix(string(head), "ref:") {
		args = append(args, "HEAD")
	}
	ids := strings.Fields(run(t, dir, args...))
	slices.Sort(ids)
	return refs, strings.Join(ids, "\n")
}

// randomRepo is a repository that random things happen to.
type randomRepo struct {
	*rapid.T
	tb      testing.TB
	dir     string
	commits []string
	n       int
}

func (r *randomRepo) refs(prefix string) []string {
	return strings.Fields(run(r.tb, r.dir, "for-each-ref", "--format=%(refname)", prefix))
}

func (r *randomRepo) pick(all []string) string { return rapid.SampledFrom(all).Draw(r.T, "one") }

// free is a branch that can be made beside those that there are.
func (r *randomRepo) free() string {
	r.n++
	return fmt.Sprintf("refs/heads/%s%d", rapid.SampledFrom([]string{"b", "dir/b", "dir/sub/b"}).Draw(r.T, "where"), r.n)
}

// commit adds a commit to a branch, with a second parent for a merge.
func (r *randomRepo) commit(ref string, merge bool) {
	r.n++
	oid := commitTo(r.tb, git.Repo{Dir: r.dir}, ref, fmt.Sprintf("text %d", r.n))
	if merge && len(r.commits) > 0 {
		other := r.pick(r.commits)
		oid = run(r.tb, r.dir, "commit-tree", "-m", "merge", "-p", oid, "-p", other, oid+"^{tree}")
		run(r.tb, r.dir, "update-ref", ref, oid)
	}
	r.commits = append(r.commits, oid)
}

// step is one thing that happens.
func (r *randomRepo) step() {
	branches := slices.DeleteFunc(r.refs("refs/heads/"), func(name string) bool { return strings.Contains(name, "link") })
	if len(branches) == 0 || len(r.commits) == 0 {
		r.commit("refs/heads/main", false)
		return
	}
	steps := map[string]func(){
		"commit": func() { r.commit(r.pick(branches), false) },
		"merge":  func() { r.commit(r.pick(branches), true) },
		"force":  func() { run(r.tb, r.dir, "update-ref", r.pick(branches), r.pick(r.commits)) },
		"branch": func() { run(r.tb, r.dir, "update-ref", r.free(), r.pick(r.commits)) },
		"delete": func() { run(r.tb, r.dir, "update-ref", "--no-deref", "-d", r.pick(branches)) },
		"rescue": func() {
			r.n++
			run(r.tb, r.dir, "update-ref", fmt.Sprintf("refs/mirror/rescued/%d", r.n), r.pick(r.commits))
		},
		"tag":          func() { r.n++; run(r.tb, r.dir, "tag", "-a", "-m", "x", fmt.Sprintf("v%d", r.n), r.pick(r.commits)) },
		"symbolic":     func() { run(r.tb, r.dir, "symbolic-ref", "refs/heads/link", r.pick(branches)) },
		"unlink":       func() { run(r.tb, r.dir, "symbolic-ref", "-d", "refs/heads/link") },
		"HEAD":         func() { run(r.tb, r.dir, "symbolic-ref", "HEAD", r.pick(branches)) },
		"detach":       func() { run(r.tb, r.dir, "update-ref", "--no-deref", "HEAD", r.pick(r.commits)) },
		"repack":       func() { run(r.tb, r.dir, "repack", "-q", "-d") },
		"gc":           func() { run(r.tb, r.dir, "gc", "-q") },
		"pack refs":    func() { run(r.tb, r.dir, "pack-refs", "--all") },
		"description":  func() { r.n++; r.write("description", fmt.Sprint(r.n)) },
		"gc and prune": r.prune,
		"rename": func() {
			from := r.pick(branches)
			run(r.tb, r.dir, "update-ref", r.free(), from)
			run(r.tb, r.dir, "update-ref", "--no-deref", "-d", from)
		},
	}
	what := rapid.SampledFrom(slices.Sorted(maps.Keys(steps))).Draw(r.T, "step")
	if what == "unlink" && !slices.Contains(r.refs("refs/heads/"), "refs/heads/link") {
		return
	}
	steps[what]()
}

func (r *randomRepo) write(name, text string) {
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		r.tb.Fatal(err)
	}
}

// prune really removes what nobody reaches, so that no later step can use it.
func (r *randomRepo) prune() {
	run(r.tb, r.dir, "repack", "-a", "-d", "-q")
	run(r.tb, r.dir, "prune", "--expire=now")
	r.commits = slices.DeleteFunc(r.commits, func(oid string) bool { return gitCommand(r.dir, "cat-file", "-e", oid).Run() != nil })
}

// Whatever happens to a repository: each moment at which it was backed up can be brought back exactly, as long
// as its snapshot is there.
func TestRandomHistories(t *testing.T) {
	checks := histories
	if os.Getenv("MIRROR_SHELL_LONG") != "" {
		checks = "200"
	}
	old := flag.Lookup("rapid.checks").Value.String()
	if err := flag.Set("rapid.checks", checks); err != nil {
		t.Fatal(err)
	}
	defer flag.Set("rapid.checks", old)
	rapid.Check(t, func(rt *rapid.T) { randomHistory(t, rt) })
}

func randomHistory(t *testing.T, rt *rapid.T) {
	base := ramDir(t)
	defer os.RemoveAll(base)
	r := &randomRepo{T: rt, tb: t, dir: filepath.Join(base, "ip1.git")}
	run(t, base, "init", "-q", "--bare", "-b", "main", "--object-format="+rapid.SampledFrom([]string{"sha1", "sha256"}).Draw(rt, "format"), r.dir)
	v, _ := testVault(t)
	v.Scratch = base
	if rapid.Bool().Draw(rt, "sealed") {
		seal(t, v)
	}
	began, looks := time.Now(), atomic.Int64{} // uploads look at the clock side by side
	v.Now = func() time.Time { return began.Add(time.Duration(looks.Add(1)) * time.Second) }
	var moments []moment
	for range rapid.IntRange(2, 8).Draw(rt, "backups") {
		result, err := v.Take(t.Context(), Source{Repository: "ip1", Repo: git.Repo{Dir: r.dir}, Memory: filepath.Join(base, "memory")})
		if err != nil {
			rt.Fatalf("backup: %v", err)
		}
		refs, objects := momentOf(t, r.dir)
		moments = append(moments, moment{result.Name, refs, objects})
		for range rapid.IntRange(0, 4).Draw(rt, "steps") {
			r.step()
		}
	}
	for i, m := range moments {
		target := filepath.Join(base, fmt.Sprintf("restored-%d.git", i))
		if _, err := v.Restore(t.Context(), m.Name, target, RestoreOptions{Check: Thoroughness(i % 2)}); err != nil {
			rt.Fatalf("restore %d: %v", i, err)
		}
		refs, objects := momentOf(t, target)
		if diff := cmp.Diff(m.refs, refs) + cmp.Diff(m.objects, objects); diff != "" {
			rt.Fatalf("restored %d: -was +is\n%s", i, diff)
		}
	}
	if found, err := v.Verify(t.Context(), "ip1", VerifyOptions{ReadData: true, Expect: moments[len(moments)-1].Sum}); err != nil || !found.OK() {
		rt.Fatalf("verify: %+v, %v", found, err)
	}
}
