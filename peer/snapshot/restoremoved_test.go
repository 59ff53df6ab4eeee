package snapshot

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
)

func init() { pushPatience, refusalPatience = 2*time.Second, 500*time.Millisecond }

// pusher pushes new branches, one after the other, to a repository.
type pusher struct {
	name, work, to string
	pushed         map[string]string // ref → value, of pushes that git called a success
	failed         []string
}

func (p *pusher) push(n int) {
	ref := fmt.Sprintf("refs/heads/%s-%d", p.name, n)
	if out, err := tryRun(p.work, "commit", "-q", "--allow-empty", "-m", ref); err != nil {
		p.failed = append(p.failed, out)
		return
	}
	oid, _ := tryRun(p.work, "rev-parse", "HEAD")
	if out, err := tryRun(p.work, "push", "-q", p.to, "HEAD:"+ref); err != nil {
		p.failed = append(p.failed, out)
		return
	}
	p.pushed[ref] = oid
}

// No push that git has called a success may be missing afterwards and not be named. MIRROR_SHELL_PUSHES is how many restores are
// tried; the repository has no hooks of ours.
func TestRestoreBesidePushes(t *testing.T) {
	rounds := 2
	if n, err := strconv.Atoi(os.Getenv("MIRROR_SHELL_PUSHES")); err == nil {
		rounds = n
	}
	total, named, failed := 0, 0, 0
	for range rounds {
		v, _ := testVault(t)
		dir := packedRepo(t, "sha1")
		name := takeNow(t, v, Source{Repository: "group/ip1", Repo: git.Repo{Dir: dir}}).Name
		var all sync.WaitGroup
		var ended atomic.Bool
		var once sync.Once
		var pushers []*pusher
		for i := range 4 {
			p := &pusher{fmt.Sprintf("p%d", i), filepath.Join(t.TempDir(), "w"), dir, map[string]string{}, nil}
			run(t, ".", "clone", "-q", dir, p.work)
			pushers = append(pushers, p)
		}
		begin := func(int64) {
			once.Do(func() {
				for _, p := range pushers {
					all.Go(func() {
						for n := 0; !ended.Load(); n++ {
							p.push(n)
						}
					})
				}
				time.Sleep(100 * time.Millisecond) // a large download
			})
		}
		done, err := v.Restore(t.Context(), name, dir, RestoreOptions{Replace: true, Progress: begin})
		time.Sleep(50 * time.Millisecond)
		ended.Store(true)
		all.Wait()
		if err != nil {
			t.Fatal(err)
		}
		moved := map[string]string{}
		for _, m := range done.Moved {
			moved[m.Ref] = m.New
		}
		refs, err := git.Repo{Dir: dir}.Refs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pushers {
			for ref, oid := range p.pushed {
				total++
				if refs[ref] != oid && moved[ref] != oid {
					t.Errorf("%s at %s was pushed, and is neither there nor named", ref, oid)
				}
			}
			failed += len(p.failed)
		}
		if now, err := (git.Repo{Dir: done.Before}).Refs(t.Context()); err != nil {
			t.Error(err)
		} else {
			for ref, oid := range moved {
				if now[ref] != oid {
					t.Errorf("%s is named at %s, and is at %s in %s", ref, oid, now[ref], done.Before)
				}
			}
		}
		named += len(moved)
		if refset.StaleRestoring(done.Before) || refset.StaleRestoring(dir) {
			t.Error("the mark is left")
		}
	}
	if named == 0 {
		t.Error("no push came in between: the test shows nothing")
	}
	t.Logf("%d pushes succeeded, of which %d are named; %d failed", total, named, failed)
}

// A client that has gone to sleep holds up no restore, and cannot push to what was put away.
func TestRestoreEndsSleepingPush(t *testing.T) {
	t.Parallel()
	v, _ := testVault(t)
	dir := packedRepo(t, "sha1")
	name := takeNow(t, v, Source{Repository: "group/ip1", Repo: git.Repo{Dir: dir}}).Name
	cmd := exec.Command("git", "receive-pack", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Read(make([]byte, 1)) // it is in the repository now
	done, err := v.Restore(t.Context(), name, dir, RestoreOptions{Replace: true})
	if err != nil || len(done.Moved) > 0 || !slices.ContainsFunc(done.Notes, func(n string) bool { return strings.Contains(n, "1 pushes that had begun before") }) {
		t.Errorf("%+v, %v", done, err)
	}
	cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
		t.Errorf("git receive-pack: %v", cmd.ProcessState)
	}
}

// What cannot be read is replaced all the same; it is said that nothing is known of pushes.
func TestRestoreOverBroken(t *testing.T) {
	v, _ := testVault(t)
	dir := packedRepo(t, "sha1")
	name := takeNow(t, v, Source{Repository: "group/ip1", Repo: git.Repo{Dir: dir}}).Name
	if err := os.WriteFile(filepath.Join(dir, "packed-refs"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	done, err := v.Restore(t.Context(), name, dir, RestoreOptions{Replace: true})
	if err != nil || len(done.Notes) != 1 || !strings.Contains(done.Notes[0], "cannot be told") {
		t.Errorf("%+v, %v", done, err)
	}
}

// What was made at the target, and pushed to, while the restore was at work is moved aside too: all of it is named.
func TestRestoreOverWhatCameMeanwhile(t *testing.T) {
	v, _ := testVault(t)
	source := packedRepo(t, "sha1")
	name := takeNow(t, v, Source{Repository: "group/ip1", Repo: git.Repo{Dir: source}}).Name
	for _, before := range []bool{false, true} { // whether something was there when it began
		dir, work := filepath.Join(t.TempDir(), "ip1.git"), filepath.Join(t.TempDir(), "w")
		var oid string
		make := func() {
			run(t, ".", "init", "-q", "--bare", dir)
			run(t, ".", "init", "-q", work)
			run(t, work, "commit", "-q", "--allow-empty", "-m", "new")
			run(t, work, "push", "-q", dir, "HEAD:refs/heads/new")
			oid = run(t, work, "rev-parse", "HEAD")
		}
		if before {
			run(t, ".", "clone", "-q", "--mirror", source, dir)
		}
		var once sync.Once
		done, err := v.Restore(t.Context(), name, dir, RestoreOptions{Replace: true, Progress: func(int64) {
			once.Do(func() {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
				make()
			})
		}})
		if err != nil || done.Before == "" || !slices.Contains(done.Moved, Moved{Ref: "refs/heads/new", New: oid}) {
			t.Errorf("%v: %+v, %v", before, done, err)
		}
	}
}

// What Prepare puts into the repository is there from the moment on at which it has its place.
func TestRestorePrepares(t *testing.T) {
	v, _ := testVault(t)
	dir := packedRepo(t, "sha1")
	name := takeNow(t, v, Source{Repository: "group/ip1", Repo: git.Repo{Dir: dir}}).Name
	_, err := v.Restore(t.Context(), name, dir, RestoreOptions{Replace: true, Prepare: func(_ context.Context, build string) error {
		if build == dir || os.WriteFile(filepath.Join(build, "prepared"), nil, 0o600) != nil {
			t.Errorf("prepare %s", build)
		}
		if _, err := os.Lstat(filepath.Join(build, "packed-refs")); err != nil {
			t.Error(err)
		}
		return nil
	}})
	if _, there := os.Lstat(filepath.Join(dir, "prepared")); err != nil || there != nil {
		t.Error(err, there)
	}
}

func TestDifference(t *testing.T) {
	before := map[string]string{"refs/heads/a": "1", "refs/heads/b": "2", "refs/heads/c": "3"}
	after := map[string]string{"refs/heads/a": "1", "refs/heads/b": "4", "refs/heads/d": "5"}
	want := []Moved{{"refs/heads/b", "2", "4"}, {"refs/heads/c", "3", ""}, {"refs/heads/d", "", "5"}}
	if got := difference(before, after); !cmp.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

// While the repository is about to be replaced its mark is there, and afterwards nowhere.
func TestRestoreRefusesMeanwhile(t *testing.T) {
	v, _ := testVault(t)
	dir := packedRepo(t, "sha1")
	r := &replaced{v: v, name: "group/ip1"}
	var err error
	if r.dir, err = os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	if notes, err := r.close(t.Context(), dir); err != nil || len(notes) > 0 {
		t.Error(notes, err)
	}
	if why := refset.WhyRestoring(dir); !strings.Contains(why, "group/ip1 is being restored: try again") {
		t.Errorf("%q", why)
	}
	r.open()
	r.open()
	if why := refset.WhyRestoring(dir); why != "" {
		t.Errorf("%q", why)
	}
	if all, err := proc.Pushes(r.dir); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
}
