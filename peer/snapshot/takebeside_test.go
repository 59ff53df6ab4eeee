package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/internal/proc"
)

// With many refs git is told only of some, and what it packs is the same.
func TestTakeManyRefs(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	var in, packed strings.Builder
	const n = fewTips + 500
	for i := range n {
		fmt.Fprintf(&in, "commit refs/heads/main\ncommitter a <a@b> %d +0000\ndata 2\nx\nM 100644 inline f%d\ndata 5\n%05d\n", 1_000_000_000+i, i%10, i)
	}
	cmd := exec.Command("git", "--git-dir="+r.Dir, "-c", "fastimport.unpackLimit=0", "fast-import", "--quiet")
	cmd.Stdin, cmd.Env = strings.NewReader(in.String()), proc.Env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ids := strings.Fields(run(t, r.Dir, "rev-list", "--reverse", "main"))
	for i, id := range ids {
		if i%50 != 25 { // some commits have no ref
			fmt.Fprintf(&packed, "%s refs/heads/b%05d\n", id, i)
		}
	}
	if err := os.WriteFile(filepath.Join(r.Dir, "packed-refs"), []byte(packed.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	src := sourceOf(t, r)
	take1(t, v, src)
	for what, change := range map[string]func(){
		"a tip":                 func() { commitTo(t, r, "refs/heads/b02000", "x tip") },
		"a new branch of a tip": func() { run(t, r.Dir, "update-ref", "refs/heads/n1", ids[7]); commitTo(t, r, "refs/heads/n1", "y tip") },
		"a new branch of an old commit": func() {
			run(t, r.Dir, "update-ref", "refs/heads/n2", ids[25])
			commitTo(t, r, "refs/heads/n2", "z tip")
		},
		"a tag and a force push": func() {
			run(t, r.Dir, "tag", "-a", "-m", "t", "v1", ids[75])
			run(t, r.Dir, "update-ref", "refs/heads/b02000", ids[2])
			commitTo(t, r, "refs/heads/b02000", "w tip")
		},
	} {
		change()
		got := take1(t, v, src)
		if got.Uploaded > 5000 {
			t.Errorf("%s: %d bytes", what, got.Uploaded)
		}
	}
	takeNow(t, v, src)
}

// A gc, repacks and pushes run beside: every snapshot is whole.
func TestTakeBesideGC(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	group.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			// --prune=now beside pushes damages a repository: it may take an object that a ref is about to have.
			args := [][]string{{"repack", "-q"}, {"gc", "-q", "--prune=5.seconds.ago"}, {"repack", "-adq"}, {"repack", "-Adq"}}[i%4]
			_, _ = tryRun(r.Dir, args...)
		}
	})
	group.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = tryCommit(r, fmt.Sprintf("refs/heads/b%d", i%7), fmt.Sprintf("%d push", i))
		}
	})
	var taken []Name
	for i := range 12 {
		src := sourceOf(t, r)
		src.Repository = fmt.Sprintf("r%d", i%6) // half of them are first snapshots
		result, err := v.Take(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, result.Name)
	}
	stop()
	group.Wait()
	for _, name := range taken {
		compareOld(t, v, name)
	}
	leftovers(t, v)
}

func TestTakeTwoAtOnce(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	for range 3 {
		var names [3]Name
		var group sync.WaitGroup
		for i := range names {
			group.Go(func() {
				result, err := v.Take(t.Context(), sourceOf(t, r))
				if err != nil {
					t.Error(err)
				}
				names[i] = result.Name
			})
		}
		group.Wait()
		for _, name := range names {
			compare(t, v, name, r)
		}
		commitTo(t, r, "refs/heads/main", "2 next")
	}
}

// What is in the store already is used only where nobody is about to delete it.
func TestTakeFindsTakenKeys(t *testing.T) {
	v, m := testVault(t)
	now := time.Now()
	v.Now, m.now = func() time.Time { return now }, func() time.Time { return now }
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	run(t, r.Dir, "repack", "-adq")
	src := sourceOf(t, r)
	cut := errors.New("cut")
	m.before = func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, "snapshots/") {
			return cut
		}
		return nil
	}
	if _, err := v.Take(t.Context(), src); !errors.Is(err, cut) {
		t.Fatal(err)
	}
	m.before = nil
	young, err := v.Take(t.Context(), src)
	if err != nil || young.Uploaded != 0 {
		t.Errorf("what was put a moment ago was put again: %+v, %v", young, err)
	}
	delete(m.blobs, young.Name.Key())
	now = now.Add(v.grace()/2 + time.Second)
	old := takeNow(t, v, src)
	for _, o := range compare(t, v, old.Name, r).Objects() {
		if !strings.Contains(o.Key, "~") {
			t.Errorf("%s is used, which a prune may be about to delete", o.Key)
		}
	}
}

// A backup that takes long looks again whether all that it relies on is there.
func TestTakeLong(t *testing.T) {
	v, m := testVault(t)
	start, passed := time.Now(), atomic.Int64{}
	v.Now = func() time.Time { return start.Add(time.Duration(passed.Load())) }
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	base := takeNow(t, v, src)
	commitTo(t, r, "refs/heads/main", "2 second")
	var once sync.Once
	m.before = func(op, key string) error {
		if op == "put" && strings.HasSuffix(key, ".pack") {
			once.Do(func() {
				passed.Add(int64(v.grace()))
				m.mu.Lock()
				defer m.mu.Unlock()
				for key := range m.blobs { // the base is pruned
					if strings.HasPrefix(key, "data/") || key == base.Name.Key() {
						delete(m.blobs, key)
					}
				}
			})
		}
		return nil
	}
	got := takeNow(t, v, src)
	if got.Name.Time.Before(base.Name.Time) {
		t.Errorf("%+v", got)
	}
}

func TestTakeRetains(t *testing.T) {
	v, m := testVault(t)
	now := time.Now()
	v.Now, m.now, v.Retain = func() time.Time { return now }, func() time.Time { return now }, 40*24*time.Hour
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	takeNow(t, v, src)
	for day := range 100 {
		now = now.Add(24 * time.Hour)
		got := take1(t, v, src)
		if !got.Unchanged || got.Uploaded != 0 {
			t.Fatalf("day %d: %+v", day, got)
		}
		manifest, err := v.Load(t.Context(), got.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range manifest.Objects() {
			if left := m.retained[o.Key].Sub(now); left < v.Retain/4-24*time.Hour || m.retained[o.Key].Before(o.Retained) {
				t.Fatalf("day %d: %s is retained for %s, and should be until %s", day, o.Key, left, o.Retained)
			}
		}
	}
	if n := len(m.blobs); n > 25 {
		t.Errorf("%d blobs", n)
	}
}

// A vault that retains for longer than when the latest snapshot was made gets another one, once.
func TestTakeRetainsLonger(t *testing.T) {
	v, m := testVault(t)
	now := time.Now()
	v.Now, m.now = func() time.Time { return now }, func() time.Time { return now }
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	takeNow(t, v, src)
	for _, retain := range []time.Duration{24 * time.Hour, 40 * 24 * time.Hour, 2 * time.Hour} {
		before := v.Retain
		v.Retain = retain
		now = now.Add(time.Minute)
		src.Look = true
		if got := take1(t, v, src); got.Unchanged != (retain < before) {
			t.Errorf("%s after %s: a look says unchanged: %v", retain, before, got.Unchanged)
		}
		src.Look = false
		first := take1(t, v, src)
		if left := m.retained[first.Name.Key()].Sub(now); left < retain-time.Minute || first.Uploaded != 0 {
			t.Errorf("%s after %s: retained for %s, %d bytes uploaded", retain, before, left, first.Uploaded)
		}
		now = now.Add(time.Minute)
		if again := take1(t, v, src); again.Name != first.Name {
			t.Errorf("%s: another snapshot, %v", retain, again.Name)
		}
		memoryDir(src.Memory).remember(recalled{}) // as on another server
		if again := take1(t, v, src); again.Name != first.Name {
			t.Errorf("%s: another snapshot without memory, %v", retain, again.Name)
		}
	}
}

func TestTakeClockGoesBack(t *testing.T) {
	v, _ := testVault(t)
	now := time.Now()
	v.Now = func() time.Time { return now }
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	first := takeNow(t, v, src)
	now = now.Add(-time.Hour)
	commitTo(t, r, "refs/heads/main", "2 second")
	second := takeNow(t, v, src)
	if !second.Name.Time.After(first.Name.Time) {
		t.Errorf("%s is not after %s", second.Name.Time, first.Name.Time)
	}
	if latest, err := v.Latest(t.Context(), src.Repository); err != nil || latest != second.Name {
		t.Errorf("%+v, %v", latest, err)
	}
}
