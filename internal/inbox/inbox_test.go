package inbox

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"mirror-shell/internal/durable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func event(repository string, peers ...string) Event {
	return Event{Repository: repository, Peers: peers, Origin: OriginList,
		Time: time.Date(2026, 11, 22, 3, 55, 57, 123456789, time.UTC)}
}

func mustPut(t testing.TB, b *Inbox, e Event) string {
	t.Helper()
	id, err := b.Put(e)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// takeAll returns what one Take delivers.
func takeAll(t testing.TB, b *Inbox) []Event {
	t.Helper()
	var got []Event
	if _, err := b.Take(func(es []Event) error { got = es; return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func files(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestPutTake(t *testing.T) {
	state := filepath.Join(t.TempDir(), "a", "state")
	b := New(state)
	if pending, err := b.Pending(); pending || err != nil {
		t.Fatalf("a missing inbox: pending %v, %v", pending, err)
	}
	first, second := event("ip1", "sam", "gollum"), event("projects/ip2", "sam")
	second.Origin = OriginExplicit
	second.Time = second.Time.In(time.FixedZone("", 3600))
	first.ID = mustPut(t, b, first)
	second.ID = mustPut(t, b, second)
	if pending, err := b.Pending(); !pending || err != nil {
		t.Fatalf("pending %v, %v", pending, err)
	}
	second.Time = second.Time.UTC()
	if diff := cmp.Diff([]Event{first, second}, takeAll(t, b)); diff != "" {
		t.Error(diff)
	}
	for _, dir := range []string{b.Dir(), b.takenDir(), b.badDir()} {
		if left := files(t, dir); left != nil {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	if n, err := b.Take(func([]Event) error { return errors.New("called for nothing") }); n != 0 || err != nil {
		t.Errorf("an empty take: %d, %v", n, err)
	}
}

func TestPutModesAndName(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	b := New(state)
	id := mustPut(t, b, Event{Repository: "ip1", Peers: []string{"sam"}, Origin: OriginList})
	names, err := b.List()
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	if got, ok := idOf(names[0]); !ok || got != id {
		t.Errorf("name %s does not carry id %s", names[0], id)
	}
	for path, want := range map[string]fs.FileMode{state: 0o700, b.Dir(): 0o700, filepath.Join(b.Dir(), names[0]): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", path, info.Mode(), err, want)
		}
	}
	if got := takeAll(t, b); len(got) != 1 || time.Since(got[0].Time) > time.Minute {
		t.Errorf("a zero time must become now: %+v", got)
	}
}

func TestPutRefuses(t *testing.T) {
	b := New(t.TempDir())
	for name, change := range map[string]func(*Event){
		"no repository":   func(e *Event) { e.Repository = "" },
		"no peers":        func(e *Event) { e.Peers = nil },
		"empty peer":      func(e *Event) { e.Peers = []string{"sam", ""} },
		"unknown origin":  func(e *Event) { e.Origin = "" },
		"control":         func(e *Event) { e.Repository = "a\nb" },
		"not UTF-8":       func(e *Event) { e.Peers = []string{"\xff"} },
		"long repository": func(e *Event) { e.Repository = strings.Repeat("a", 5000) },
		"too many peers":  func(e *Event) { e.Peers = strings.Split(strings.Repeat("sam ", 300000)+"x", " ") },
		"impossible time": func(e *Event) { e.Time = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		e := event("ip1", "sam")
		change(&e)
		if _, err := b.Put(e); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if names, _ := b.List(); names != nil {
		t.Errorf("refused events were written: %v", names)
	}
}

func TestCommitErrorLosesNothing(t *testing.T) {
	b := New(t.TempDir())
	mustPut(t, b, event("ip1", "sam"))
	mustPut(t, b, event("ip2", "sam"))
	before, err := b.List()
	if err != nil {
		t.Fatal(err)
	}
	locked := errors.New("database is locked")
	n, err := b.Take(func(es []Event) error {
		if inbox, taken := files(t, b.Dir()), files(t, b.takenDir()); inbox != nil || len(taken) != 2 {
			t.Errorf("during commit: inbox %v, taken %v", inbox, taken)
		}
		return locked
	})
	if n != 0 || !errors.Is(err, locked) || errors.Is(err, ErrBad) {
		t.Errorf("got %d, %v", n, err)
	}
	if after, err := b.List(); err != nil || !slices.Equal(before, after) {
		t.Errorf("before %v, after %v, %v", before, after, err)
	}
	mustPut(t, b, event("ip3", "sam"))
	if got := takeAll(t, New(filepath.Dir(b.Dir()))); len(got) != 1 || got[0].Repository != "ip3" {
		t.Errorf("another taker: %v", got)
	}
	mustPut(t, b, event("ip4", "sam"))
	if got := takeAll(t, b); len(got) != 3 || got[0].Repository != "ip1" || got[2].Repository != "ip4" {
		t.Errorf("second take: %v", got)
	}
	if got := takeAll(t, b); got != nil {
		t.Errorf("third take: %v", got)
	}
	for _, dir := range []string{b.Dir(), b.takenDir()} {
		if left := files(t, dir); left != nil {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

// What a failed commit leaves is bounded by a Take's batch like everything else.
func TestRetriedTakeIsBounded(t *testing.T) {
	b := New(t.TempDir())
	for range batch + 3 {
		data, err := encode(event("r", "sam"))
		if err != nil {
			t.Fatal(err)
		}
		if err := durable.MakeDirs(b.takenDir()); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%019d-%08x.json", 1, rand.Uint32())
		if err := os.WriteFile(filepath.Join(b.takenDir(), name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := takeAll(t, b); got != nil {
		t.Errorf("took %d events of somebody who may be alive", len(got))
	}
	if err := b.Replay(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{batch, 3, 0} {
		if got := takeAll(t, b); len(got) != want {
			t.Errorf("took %d, want %d", len(got), want)
		}
	}
}

func TestHolds(t *testing.T) {
	// Neither the name of a directory nor an ID is a pattern.
	b := New(filepath.Join(t.TempDir(), "state [of*?"))
	holds := func(when, id string, want bool) {
		t.Helper()
		if got, err := b.Holds(id); got != want || err != nil {
			t.Errorf("%s: holds %v, %v, want %v", when, got, err, want)
		}
	}
	holds("a missing inbox", "00000000", false)
	id := mustPut(t, b, event("ip1", "sam"))
	for _, other := range []string{"", "*", id[:7], "-" + id, id + ".json", "zzzzzzzz"} {
		holds("id "+other, other, false)
	}
	holds("waiting", id, true)
	_, err := b.Take(func([]Event) error { holds("during the commit", id, true); return errors.New("no database") })
	if err == nil {
		t.Error("the commit's error was lost")
	}
	holds("after a failed commit", id, true)
	takeAll(t, b)
	holds("committed", id, false)
	if err := os.WriteFile(filepath.Join(b.Dir(), "0000000000000000001-"+id+".json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	holds("unread", id, true)
	if _, err := b.Take(nil); !errors.Is(err, ErrBad) {
		t.Errorf("got %v", err)
	}
	holds("set aside", id, false)
}

// However often commits fail, and whoever replays: an event is never out of sight before it is committed.
func TestHoldsMissesNothing(t *testing.T) {
	state := t.TempDir()
	b := New(state)
	id := mustPut(t, b, event("ip1", "sam"))
	var committed atomic.Bool
	var wg sync.WaitGroup
	looks := 0
	wg.Go(func() {
		for before := false; !before; looks++ {
			before = committed.Load()
			held, err := b.Holds(id)
			if err != nil || !held && !committed.Load() {
				t.Errorf("held %v, %v, and not committed", held, err)
				return
			}
		}
	})
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
		box := New(state) // the next worker
		if err := box.Replay(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := box.Take(func([]Event) error { return errors.New("no database") }); err == nil {
				t.Fatal("nothing to take")
			}
		}
		mustPut(t, b, event("other", "sam")) // the directory changes while it is read
	}
	if err := b.Replay(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Take(func([]Event) error { committed.Store(true); return nil }); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if looks < 10 {
		t.Errorf("only %d looks", looks)
	}
}

func TestKilledTakerIsReplayed(t *testing.T) {
	b := New(t.TempDir())
	mustPut(t, b, event("ip1", "sam"))
	func() {
		defer func() { _ = recover() }()
		_, _ = b.Take(func([]Event) error { panic("as if killed") })
	}()
	if left, taken := files(t, b.Dir()), files(t, b.takenDir()); left != nil || len(taken) != 1 {
		t.Fatalf("the event must wait in taken/: %v, %v", left, taken)
	}
	if pending, err := b.Pending(); !pending || err != nil {
		t.Errorf("pending %v, %v", pending, err)
	}
	old := filepath.Join(b.Dir(), ".1.tmp")
	fresh := filepath.Join(b.Dir(), ".2.tmp")
	for path, age := range map[string]time.Duration{old: 48 * time.Hour, fresh: time.Minute} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Now().Add(-age), time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Replay(); err != nil {
		t.Fatal(err)
	}
	if got := takeAll(t, b); len(got) != 1 || got[0].Repository != "ip1" {
		t.Errorf("after replay: %v", got)
	}
	if diff := cmp.Diff([]string{".2.tmp"}, files(t, b.Dir())); diff != "" {
		t.Error(diff)
	}
}

func TestBadFilesDoNotHoldUpOthers(t *testing.T) {
	b := New(t.TempDir())
	mustPut(t, b, event("ip1", "sam"))
	good := `{"repository":"r","peers":["p"],"origin":"list","time":"2026-11-22T03:55:57Z"}`
	bad := map[string]string{
		"0000000000000000001-0000000a.json": "",
		"0000000000000000002-0000000a.json": good[:30],
		"0000000000000000003-0000000a.json": strings.Replace(good, "{", `{"protocol":2,`, 1),
		"0000000000000000004-0000000a.json": good + good,
		"0000000000000000005-0000000a.json": strings.Replace(good, `"p"`, `""`, 1),
		"0000000000000000006-0000000a.json": strings.Repeat(" ", maxEventBytes) + good,
		"0000000000000000007-0000000A.json": good,
		"README":                            "what is this directory for?",
	}
	for name, data := range bad {
		if err := os.WriteFile(filepath.Join(b.Dir(), name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fifo := "0000000000000000008-0000000a.json"
	if err := unix.Mkfifo(filepath.Join(b.Dir(), fifo), 0o600); err != nil {
		t.Fatal(err)
	}
	link := "0000000000000000009-0000000a.json"
	if err := os.Symlink("/etc/passwd", filepath.Join(b.Dir(), link)); err != nil {
		t.Fatal(err)
	}
	var got []Event
	n, err := b.Take(func(es []Event) error { got = es; return nil })
	if n != 1 || len(got) != 1 || got[0].Repository != "ip1" {
		t.Errorf("the good event: %d, %v", n, got)
	}
	if !errors.Is(err, ErrBad) {
		t.Errorf("error %v does not wrap ErrBad", err)
	}
	aside, err2 := b.Bad()
	if err2 != nil || len(aside) != len(bad)+2 {
		t.Errorf("bad files: %v, %v", aside, err2)
	}
	for _, path := range aside {
		if !strings.Contains(err.Error(), path) {
			t.Errorf("the report does not name %s", path)
		}
	}
	if pending, _ := b.Pending(); pending {
		t.Error("something bad is still in the way")
	}
}

func TestTakeIsBounded(t *testing.T) {
	b := New(t.TempDir())
	mustPut(t, b, event("first", "sam"))
	for i := range batch + 4 {
		e := event(fmt.Sprint("r", i), "sam")
		data, err := encode(e)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%019d-%08x.json", i, i)
		if err := os.WriteFile(filepath.Join(b.Dir(), name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := takeAll(t, b)
	if len(got) != batch || got[0].Repository != "r0" || got[batch-1].Repository != fmt.Sprint("r", batch-1) {
		t.Errorf("first take: %d events", len(got))
	}
	if got := takeAll(t, b); len(got) != 5 || got[4].Repository != "first" {
		t.Errorf("second take: %v", got)
	}
}

// Several takers, some of which fail to commit: every event is committed exactly once.
func TestConcurrentTakers(t *testing.T) {
	state := t.TempDir()
	b := New(state)
	const total = 200
	var (
		mu    sync.Mutex
		seen  = map[string]int{}
		count int
		wg    sync.WaitGroup
	)
	wg.Go(func() {
		for i := range total {
			if _, err := b.Put(event(fmt.Sprint("r", i), "sam")); err != nil {
				t.Error(err)
			}
		}
	})
	stop := time.Now().Add(20 * time.Second)
	for worker := range 4 {
		wg.Go(func() {
			mine := New(state)
			for round := 0; time.Now().Before(stop); round++ {
				_, err := mine.Take(func(es []Event) error {
					if (round+worker)%3 == 0 {
						return errors.New("now and then")
					}
					mu.Lock()
					defer mu.Unlock()
					for _, e := range es {
						seen[e.Repository]++
						count++
					}
					return nil
				})
				if err != nil && !strings.Contains(err.Error(), "now and then") {
					t.Error(err)
				}
				mu.Lock()
				finished := count >= total
				mu.Unlock()
				if finished {
					return
				}
			}
		})
	}
	wg.Wait()
	if len(seen) != total || count != total {
		t.Errorf("%d of %d events, %d deliveries", len(seen), total, count)
	}
}
