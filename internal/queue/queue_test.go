package queue

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"mirror-shell/internal/inbox"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(childMain())
	}
	flag.Parse()
	rebuildWait = 200 * time.Millisecond
	if flag.Lookup("test.bench").Value.String() == "" {
		chunk = 70 // a few chunks take no time, even under the race detector
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		stopShared()
		os.Exit(code)
	}))
}

// fakeClock moves only when told.
type fakeClock struct {
	mu sync.Mutex
	t  time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{t: time.Date(2026, 11, 22, 3, 55, 57, 0, time.UTC)}
}

func (c *fakeClock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *fakeClock) add(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

// open opens a queue of server frodo; change adjusts its options.
func open(t testing.TB, dir string, change func(*Options)) *Queue {
	t.Helper()
	o := Options{StateDir: dir, Server: "frodo", URL: databaseURL(t, dir)}
	if change != nil {
		change(&o)
	}
	return openWith(t, o)
}

func openWith(t testing.TB, o Options) *Queue {
	t.Helper()
	q, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	return q
}

func openFake(t testing.TB) (*Queue, *fakeClock) {
	clock := newFakeClock()
	return open(t, t.TempDir(), func(o *Options) { o.Now = clock.now }), clock
}

var (
	samKey    = Key{"ip1", "sam"}
	gollumKey = Key{"ip1", "gollum"}
)

func enqueue(t testing.TB, q *Queue, keys ...Key) []Ticket {
	t.Helper()
	var changes []Change
	for _, k := range keys {
		changes = append(changes, Change{Key: k, Origin: inbox.OriginList})
	}
	tickets, err := q.Enqueue(t.Context(), changes)
	if err != nil {
		t.Fatal(err)
	}
	return tickets
}

func mustClaim(t testing.TB, q *Queue, want Key) *claim {
	t.Helper()
	c, err := q.claim(t.Context(), limits{})
	if err != nil {
		t.Fatal(err)
	}
	if c == nil || c.Key != want {
		t.Fatalf("claimed %v, want %v", c, want)
	}
	return c
}

func noClaim(t testing.TB, q *Queue, lim limits) {
	t.Helper()
	if c, err := q.claim(t.Context(), lim); c != nil || err != nil {
		t.Fatalf("claimed %+v, %v; want nothing", c, err)
	}
}

func settle(t testing.TB, q *Queue, c *claim, err error) bool {
	t.Helper()
	current, serr := q.settle(t.Context(), c, judge(Result{Digest: "d"}, err, false))
	if serr != nil {
		t.Fatal(serr)
	}
	return current
}

func row(t testing.TB, q *Queue, k Key) Row {
	t.Helper()
	rows, err := q.Rows(t.Context(), Filter{Repository: k.Repository, Peer: k.Peer})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 {
		t.Fatalf("%d rows of %s", len(rows), k)
	}
	return rows[0]
}

func checkState(t testing.TB, q *Queue, k Key, want State) {
	t.Helper()
	if r := row(t, q, k); r.State != want {
		t.Fatalf("%s is %s, want %s: %+v", k, r.State, want, r)
	}
}

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a dir? with %41 & #odd names", "state")
	q := open(t, dir, nil)
	enqueue(t, q, samKey)
	for name, want := range map[string]fs.FileMode{"": 0o700, "queue.db": 0o600, "queue.db-wal": 0o600, "queue.db-shm": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, info, err, want)
		}
	}
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "busy_timeout": "10000"} {
		var got string
		if err := q.db.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", pragma, got, err, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo", URL: "mysql://db/mirror"})
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "not supported in this version") {
		t.Errorf("a url: %v", err)
	}
	if _, err := Open(t.Context(), Options{StateDir: dir}); err == nil {
		t.Error("opened without a server")
	}
	q := open(t, dir, nil)
	if _, err := q.db.Exec(`UPDATE meta SET value = '99'`); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo"}); !errors.Is(err, ErrNewerSchema) {
		t.Errorf("a newer schema: %v", err)
	}
	broken := t.TempDir()
	file := filepath.Join(broken, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{StateDir: filepath.Join(file, "state"), Server: "frodo"}); err == nil {
		t.Error("opened below a file")
	}
}

// Many processes start at once on a fresh machine.
func TestOpenTogether(t *testing.T) { onBoth(t, testOpenTogether) }

func testOpenTogether(t *testing.T) {
	dir := t.TempDir()
	address := databaseURL(t, dir)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			q, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo", URL: address})
			if err != nil {
				t.Error(err)
				return
			}
			defer q.Close()
			if _, err := q.Enqueue(t.Context(), []Change{{Key: Key{fmt.Sprint("r", i), "sam"}, Origin: inbox.OriginList}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if rows, err := open(t, dir, nil).Rows(t.Context(), Filter{}); err != nil || len(rows) != 8 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}

func TestEnqueueRefuses(t *testing.T) { onBoth(t, testEnqueueRefuses) }

func testEnqueueRefuses(t *testing.T) {
	q, _ := openFake(t)
	for _, c := range []Change{
		{Key: Key{"", "sam"}, Origin: inbox.OriginList}, {Key: Key{"ip1", ""}, Origin: inbox.OriginList}, {Key: samKey},
	} {
		good := Change{Key: gollumKey, Origin: inbox.OriginList}
		if _, err := q.Enqueue(t.Context(), []Change{good, c}); err == nil {
			t.Errorf("accepted %+v", c)
		}
	}
	if rows, err := q.Rows(t.Context(), Filter{}); err != nil || rows != nil {
		t.Errorf("all or none: %v, %v", rows, err)
	}
}

// The life of a job, with the columns that status shows.
func TestLife(t *testing.T) { onBoth(t, testLife) }

func testLife(t *testing.T) {
	q, clock := openFake(t)
	pushed := clock.now()
	clock.add(2 * time.Second)
	if _, err := q.Enqueue(t.Context(), []Change{{samKey, inbox.OriginList, pushed}}); err != nil {
		t.Fatal(err)
	}
	clock.add(3 * time.Second)
	if r := row(t, q, samKey); r.State != StateWaiting || r.Lag != 5*time.Second || !r.Oldest.Equal(pushed) || r.Want != 1 || r.Done != 0 {
		t.Errorf("waiting: %+v", r)
	}
	c := mustClaim(t, q, samKey)
	if !c.Oldest.Equal(pushed) || c.Origin != inbox.OriginList || c.Probe || c.Attempt != 0 {
		t.Errorf("the job: %+v", c.Job)
	}
	noClaim(t, q, limits{})
	if r := row(t, q, samKey); r.State != StateRunning || r.Owner == "" || !r.Lease.Equal(clock.now().Add(30*time.Second)) {
		t.Errorf("running: %+v", r)
	}
	clock.add(time.Second)
	enqueue(t, q, samKey) // during the run
	second := clock.now()
	clock.add(time.Second)
	if !settle(t, q, c, nil) {
		t.Error("stale")
	}
	if r := row(t, q, samKey); r.State != StateWaiting || r.Lag != time.Second || !r.Oldest.Equal(second) || r.Digest != "d" {
		t.Errorf("after the first run: %+v", r)
	}
	settle(t, q, mustClaim(t, q, samKey), nil)
	r := row(t, q, samKey)
	if r.State != StateOK || r.Lag != 0 || !r.Oldest.IsZero() || !r.Newest.Equal(second) || !r.LastSuccess.Equal(clock.now()) || !r.NextTry.IsZero() {
		t.Errorf("equal: %+v", r)
	}
	noClaim(t, q, limits{})
}

func TestFailureBackoff(t *testing.T) { onBoth(t, testFailureBackoff) }

func testFailureBackoff(t *testing.T) {
	q, clock := openFake(t)
	q.random = func() float64 { return 0 }
	enqueue(t, q, samKey)
	for i, wait := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second} {
		settle(t, q, mustClaim(t, q, samKey), errors.New("rejected:\nhook declined"))
		r := row(t, q, samKey)
		if r.State != StateFailed || r.Attempt != i+1 || r.Error != "rejected: hook declined" || !r.NextTry.Equal(clock.now().Add(wait)) {
			t.Fatalf("attempt %d: %+v", i+1, r)
		}
		clock.add(wait - time.Millisecond)
		noClaim(t, q, limits{})
		clock.add(time.Millisecond)
	}
	settle(t, q, mustClaim(t, q, samKey), errors.New("again"))
	enqueue(t, q, samKey) // a push is a reason to try now
	settle(t, q, mustClaim(t, q, samKey), nil)
	if r := row(t, q, samKey); r.State != StateOK || r.Attempt != 0 || r.Error != "" {
		t.Errorf("after success: %+v", r)
	}
}

func TestPeerDown(t *testing.T) { onBoth(t, testPeerDown) }

func testPeerDown(t *testing.T) {
	q, clock := openFake(t)
	q.random = func() float64 { return 0 }
	keys := []Key{{"a", "sam"}, {"b", "sam"}, {"c", "sam"}, {"d", "gollum"}}
	for _, k := range keys {
		enqueue(t, q, k)
		clock.add(time.Millisecond)
	}
	a, b := mustClaim(t, q, keys[0]), mustClaim(t, q, keys[1])
	down := fmt.Errorf("ssh: %w", ErrPeerDown)
	settle(t, q, a, down)
	since := clock.now()
	settle(t, q, mustClaim(t, q, keys[3]), nil) // other peers do not wait
	noClaim(t, q, limits{})
	settle(t, q, b, down) // found out together: one failure
	for _, k := range keys[:3] {
		if r := row(t, q, k); r.State != StateDown || !r.PeerDownSince.Equal(since) || r.Attempt != 0 || !r.NextTry.Equal(since.Add(500*time.Millisecond)) {
			t.Errorf("%s: %+v", k, r)
		}
	}
	clock.add(500 * time.Millisecond)
	probe := mustClaim(t, q, keys[0]) // kept its place
	if !probe.Probe {
		t.Error("not marked as a probe")
	}
	noClaim(t, q, limits{}) // one probe at a time
	enqueue(t, q, keys[2])
	noClaim(t, q, limits{})
	settle(t, q, probe, down)
	peers, err := q.Peers(t.Context())
	if err != nil || len(peers) != 2 || peers[1].Attempt != 2 || !peers[1].DownSince.Equal(since) || !peers[1].RetryAt.Equal(clock.now().Add(time.Second)) {
		t.Errorf("peers %+v, %v", peers, err)
	}
	noClaim(t, q, limits{})
	if err := q.ProbeNow(t.Context(), "sam"); err != nil {
		t.Fatal(err)
	}
	settle(t, q, mustClaim(t, q, keys[0]), nil)
	for _, k := range keys[1:3] { // the gate is open for all
		settle(t, q, mustClaim(t, q, k), nil)
		checkState(t, q, k, StateOK)
	}
}

// A failure of another kind during an outage neither ends it nor hides behind it.
func TestFailureWhilePeerIsDown(t *testing.T) { onBoth(t, testFailureWhilePeerIsDown) }

func testFailureWhilePeerIsDown(t *testing.T) {
	q, clock := openFake(t)
	enqueue(t, q, Key{"a", "sam"})
	clock.add(time.Millisecond) // of jobs that are due since the same moment, any may come first
	enqueue(t, q, Key{"b", "sam"})
	settle(t, q, mustClaim(t, q, Key{"a", "sam"}), ErrPeerDown)
	clock.add(time.Minute)
	settle(t, q, mustClaim(t, q, Key{"a", "sam"}), errors.New("no such repository"))
	checkState(t, q, Key{"a", "sam"}, StateFailed)
	checkState(t, q, Key{"b", "sam"}, StateDown)
	settle(t, q, mustClaim(t, q, Key{"b", "sam"}), nil) // it is the next probe
	checkState(t, q, Key{"a", "sam"}, StateFailed)
}

func TestHeldAndDropped(t *testing.T) { onBoth(t, testHeldAndDropped) }

func testHeldAndDropped(t *testing.T) {
	q, clock := openFake(t)
	enqueue(t, q, samKey)
	settle(t, q, mustClaim(t, q, samKey), fmt.Errorf("%w: the source is empty", ErrHeld))
	if r := row(t, q, samKey); r.State != StateHeld || !strings.Contains(r.Error, "the source is empty") || r.Lag != 0 {
		t.Errorf("held: %+v", r)
	}
	clock.add(15*time.Minute - 1)
	noClaim(t, q, limits{})
	if r := row(t, q, samKey); r.Lag == 0 {
		t.Error("a held job has no lag")
	}
	clock.add(1)
	settle(t, q, mustClaim(t, q, samKey), fmt.Errorf("%w: sam is in no list", ErrDropped))
	if r := row(t, q, samKey); r.State != StateDropped || r.Lag != 0 || !strings.Contains(r.Error, "no list") || r.Digest != "" {
		t.Errorf("dropped: %+v", r)
	}
	clock.add(time.Hour)
	noClaim(t, q, limits{})
	enqueue(t, q, samKey)
	mustClaim(t, q, samKey)
}
