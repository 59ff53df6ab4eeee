package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

// Several nodes on one table of a database server. The subtests are named "postgres" because that is how
// open knows; a second node is opened with the first one's url.

func onServer(t *testing.T, test func(*testing.T)) { t.Run("postgres", test) }

// openNode opens another node's queue of the state directory first.
func openNode(t testing.TB, first string, change func(*Options)) *Queue {
	t.Helper()
	o := Options{StateDir: t.TempDir(), Server: "frodo", URL: databaseURL(t, first)}
	if change != nil {
		change(&o)
	}
	return openWith(t, o)
}

// newNode is a worker on a queue.
func newNode(t *testing.T, q *Queue, run Func) *bench {
	log := &lockedBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return &bench{t: t, dir: q.stateDir, log: log, Worker: &Worker{Queue: q, Inbox: inbox.New(q.stateDir), Run: run,
		Log: slog.New(slog.NewTextHandler(log, nil)), Poll: 50 * time.Millisecond}}
}

func TestNodesShareABatch(t *testing.T) { onServer(t, testNodesShareABatch) }

func testNodesShareABatch(t *testing.T) {
	var mu sync.Mutex
	var running, by = map[Key]bool{}, [2]int{}
	const jobs = 48
	run := func(node int) Func {
		return func(_ context.Context, job Job) (Result, error) {
			mu.Lock()
			if running[job.Key] {
				t.Errorf("%s runs twice at a time", job.Key)
			}
			running[job.Key] = true
			by[node]++
			mu.Unlock()
			time.Sleep(40 * time.Millisecond) // a slow peer
			mu.Lock()
			defer mu.Unlock()
			delete(running, job.Key)
			return Result{Digest: "d"}, nil
		}
	}
	first := open(t, t.TempDir(), nil)
	a, b := newNode(t, first, run(0)), newNode(t, openNode(t, first.stateDir, nil), run(1))
	a.serve()
	b.serve()
	began := time.Now()
	var keys []Key
	for i := range jobs {
		k := Key{fmt.Sprint("r", i), "sam"}
		keys = append(keys, k)
		_ = a.push(k.Repository, k.Peer) // all at one node
	}
	for _, k := range keys {
		a.untilState(k, StateOK)
	}
	t.Logf("%v: the nodes ran %d", time.Since(began), by)
	if by[0]+by[1] != jobs || min(by[0], by[1]) < jobs/4 {
		t.Errorf("the nodes ran %d of %d", by, jobs)
	}
}

// A node that dies loses its jobs to the others, when their leases end and not sooner.
func TestKilledNode(t *testing.T) { onServer(t, testKilledNode) }

func testKilledNode(t *testing.T) {
	dir := t.TempDir()
	address := databaseURL(t, dir)
	dead := child{Kind: KindServe, Dir: t.TempDir(), URL: address, Run: "hang"}
	q := open(t, dir, func(o *Options) { *o = child{Dir: dir, URL: address}.options() })
	keys := []Key{samKey, {"ip2", "sam"}, gollumKey}
	enqueue(t, q, keys...)
	cmd := dead.start(t)
	for _, k := range keys {
		untilRunning(t, q, k)
	}
	b := newNode(t, q, succeed)
	b.Poll = time.Minute // it wakes up by itself when the leases end
	b.serve()
	time.Sleep(childLease * 3 / 2)
	for _, k := range keys {
		checkState(t, q, k, StateRunning)
	}
	kill(cmd)
	began := time.Now()
	for _, k := range keys {
		b.untilState(k, StateOK)
		if r := row(t, q, k); r.Attempt != 0 {
			t.Errorf("%+v", r)
		}
	}
	if took := time.Since(began); took < childLease/4 || took > 3*childLease {
		t.Errorf("taken over after %v", took)
	}
}

// Each node has its own connections to a peer; but one probe of a peer that is down is enough for all.
func TestLimitsOfNodes(t *testing.T) { onServer(t, testLimitsOfNodes) }

func testLimitsOfNodes(t *testing.T) {
	clock := newFakeClock()
	now := func(o *Options) { o.Now = clock.now }
	a := open(t, t.TempDir(), now)
	b := openNode(t, a.stateDir, now)
	var claims []*claim
	for i := range 6 {
		enqueue(t, a, Key{fmt.Sprint("r", i), "sam"})
		clock.add(time.Millisecond)
	}
	lim := limits{perPeer: 2}
	for _, q := range []*Queue{a, b, b, a} {
		c, err := q.claim(t.Context(), lim)
		if err != nil || c == nil {
			t.Fatal(c, err)
		}
		claims = append(claims, c)
	}
	noClaim(t, a, lim)
	noClaim(t, b, lim)
	settle(t, b, claims[1], ErrPeerDown)
	noClaim(t, b, lim)
	clock.add(2 * time.Second)
	c, err := a.claim(t.Context(), lim)
	if err != nil || c == nil || !c.Probe {
		t.Fatalf("no probe: %+v, %v", c, err)
	}
	noClaim(t, b, lim)
	settle(t, a, c, nil)
	if c, err := b.claim(t.Context(), lim); err != nil || c == nil {
		t.Errorf("it is back: %v, %v", c, err)
	}
	if at := row(t, a, claims[0].Key); !strings.Contains(at.Owner, a.node) || strings.Contains(at.Owner, b.node) {
		t.Errorf("owner %s", at.Owner)
	}
}

// The clocks of nodes are wrong by an hour, in both directions.
func TestClocksOfNodes(t *testing.T) { onServer(t, testClocksOfNodes) }

func testClocksOfNodes(t *testing.T) {
	first := t.TempDir()
	wrong := func(d time.Duration) *Queue {
		q := openNode(t, first, nil)
		q.clock = func() time.Time { return time.Now().Add(d) }
		return q
	}
	const apart = 300 * time.Millisecond // more than the database's clock can be misjudged by on a busy machine
	fast, slow := wrong(time.Hour), wrong(-time.Hour)
	for _, q := range []*Queue{fast, slow} {
		enqueue(t, q, samKey)
		c := mustClaim(t, q, samKey)
		for _, other := range []*Queue{fast, slow} {
			noClaim(t, other, limits{})
			if wait, ok, err := other.nextRun(t.Context(), limits{}); err != nil || !ok || wait > 31*time.Second || wait < 20*time.Second {
				t.Errorf("the lease ends in %v, %v, %v", wait, ok, err)
			}
			if r := row(t, other, samKey); r.State != StateRunning || r.Lag > time.Minute || time.Since(r.Oldest).Abs() > time.Minute {
				t.Errorf("%+v", r)
			}
		}
		settle(t, q, c, errors.New("x"))
		for _, other := range []*Queue{fast, slow} {
			before := other.clock()
			time.Sleep(apart)
			enqueue(t, q, samKey)
			if n, err := other.Verified(t.Context(), []Verification{{Key: samKey, Digest: "d"}}, before); n != 0 || err != nil {
				t.Errorf("a push after the comparison: %d, %v", n, err)
			}
			time.Sleep(apart)
			if n, err := other.Verified(t.Context(), []Verification{{Key: samKey, Digest: "d"}}, other.clock()); n != 1 || err != nil {
				t.Errorf("a push before the comparison: %d, %v", n, err)
			}
		}
	}
	pushed := Change{Key: gollumKey, Origin: inbox.OriginList, Time: fast.clock()} // what a hook of that node says
	if _, err := slow.Enqueue(t.Context(), []Change{pushed}); err != nil {
		t.Fatal(err)
	}
	if r := row(t, slow, gollumKey); time.Since(r.Oldest).Abs() > time.Minute || r.Lag > time.Minute {
		t.Errorf("%+v", r)
	}
}

// A claim passes over what somebody is changing, and does not wait for it.
func TestClaimPassesOverLockedJobs(t *testing.T) { onServer(t, testClaimPassesOverLockedJobs) }

func testClaimPassesOverLockedJobs(t *testing.T) {
	q, clock := openFake(t)
	enqueue(t, q, samKey)
	clock.add(time.Millisecond)
	enqueue(t, q, Key{"ip2", "sam"})
	hold, err := q.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Rollback()
	if _, err := hold.Exec(`SELECT 1 FROM jobs WHERE repository = 'ip1' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	mustClaim(t, q, Key{"ip2", "sam"})
	noClaim(t, q, limits{})
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("waited %v", took)
	}
	if wait, ok, err := q.nextRun(t.Context(), limits{}); err != nil || !ok || wait != 0 {
		t.Errorf("next run %v, %v, %v", wait, ok, err)
	}
	if err := hold.Rollback(); err != nil {
		t.Fatal(err)
	}
	mustClaim(t, q, samKey)
}

// Changes that several processes record at once for the same jobs are all counted.
func TestEnqueueTogether(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { testEnqueueTogether(t, "") })
	t.Run("postgres", func(t *testing.T) { testEnqueueTogether(t, "") })
	t.Run("strict", func(t *testing.T) {
		t.Run("postgres", func(t *testing.T) { testEnqueueTogether(t, "&default_transaction_isolation=serializable") })
	})
}

func testEnqueueTogether(t *testing.T, option string) {
	dir := t.TempDir()
	const writers, rounds = 3, 8
	var wg sync.WaitGroup
	for w := range writers {
		q := open(t, dir, func(o *Options) { o.URL += option })
		wg.Go(func() {
			for range rounds {
				var changes []Change
				for i := range 30 {
					at := i
					if w%2 == 1 { // in another order
						at = 29 - i
					}
					changes = append(changes, Change{Key: Key{fmt.Sprint("r", at), "sam"}, Origin: inbox.OriginList})
				}
				if _, err := q.Enqueue(t.Context(), changes); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	rows, err := open(t, dir, nil).Rows(t.Context(), Filter{})
	if err != nil || len(rows) != 30 {
		t.Fatal(len(rows), err)
	}
	for _, r := range rows {
		if r.Want != writers*rounds {
			t.Errorf("%s: %d changes of %d", r.Key, r.Want, writers*rounds)
		}
	}
}

// The server is restarted under a worker: nothing is lost, and everything goes on by itself.
func TestServerRestarts(t *testing.T) { onServer(t, testServerRestarts) }

func testServerRestarts(t *testing.T) {
	release := make(chan struct{})
	end := sync.OnceFunc(func() { close(release) })
	defer end()
	var runs atomic.Int64
	run := func(_ context.Context, job Job) (Result, error) {
		runs.Add(1)
		if job.Repository == "long" {
			<-release
		}
		return Result{Digest: "d"}, nil
	}
	q := open(t, t.TempDir(), nil)
	address := databaseURL(t, q.stateDir)
	s := needServer(t)
	b := newNode(t, q, run)
	b.serve()
	_ = b.push("long", "sam")
	b.untilState(Key{"long", "sam"}, StateRunning)
	waiting := await(t.Context(), q, tickets(t, q, Key{"long", "sam"}))
	s.stop()
	up := sync.OnceFunc(func() {
		if err := s.start(); err != nil {
			t.Error(err)
		}
	})
	defer up()

	for i := range 5 { // the hook's part does not need the database
		if err := b.push(fmt.Sprint("r", i), "sam"); err != nil {
			t.Error(err)
		}
	}
	b.until("the problem is logged", func() bool { return strings.Contains(b.log.String(), ErrUnavailable.Error()) })
	if _, err := q.Rows(t.Context(), Filter{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("rows: %v", err)
	}
	if _, err := Open(t.Context(), Options{StateDir: t.TempDir(), Server: "frodo", URL: address}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("open: %v", err)
	}
	patient := newNode(t, openNode(t, q.stateDir, func(o *Options) { o.Patient = true }), run)
	stop := patient.serve()
	defer stop()
	if names, err := b.Inbox.List(); err != nil || len(names) != 5 {
		t.Errorf("the events are not in the inbox: %v, %v", names, err)
	}
	end() // the run ends while there is nothing to tell it to
	time.Sleep(50 * time.Millisecond)
	up()
	for i := range 5 {
		b.untilState(Key{fmt.Sprint("r", i), "sam"}, StateOK)
	}
	waiting.wait(t, map[Key]State{{"long", "sam"}: StateOK})
	if n := runs.Load(); n != 6 {
		t.Errorf("%d runs", n)
	}
	_ = patient.push("late", "sam")
	patient.untilState(Key{"late", "sam"}, StateOK)
}
