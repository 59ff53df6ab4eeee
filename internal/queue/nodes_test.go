package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
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
			time.Sleep(3 * time.Millisecond)
			enqueue(t, q, samKey)
			if n, err := other.Verified(t.Context(), []Verification{{samKey, "d"}}, before); n != 0 || err != nil {
				t.Errorf("a push after the comparison: %d, %v", n, err)
			}
			time.Sleep(3 * time.Millisecond)
			if n, err := other.Verified(t.Context(), []Verification{{samKey, "d"}}, other.clock()); n != 1 || err != nil {
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

func TestPostgresSettings(t *testing.T) { onServer(t, testPostgresSettings) }

func testPostgresSettings(t *testing.T) {
	q := open(t, t.TempDir(), func(o *Options) { o.URL += "&statement_timeout=5s" })
	for name, want := range map[string]string{"statement_timeout": "5s", "lock_timeout": "10s",
		"idle_in_transaction_session_timeout": "20s", "application_name": "mirror-shell", "transaction_isolation": "read committed"} {
		var got string
		if err := q.db.QueryRow("SHOW " + name).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
	if n := q.db.Stats().MaxOpenConnections; n != maxConnections {
		t.Errorf("%d connections", n)
	}
	if _, err := os.Stat(databasePath(q.stateDir)); err == nil {
		t.Error("there is a SQLite file too")
	}
}

// No password in anything that is shown, whatever goes wrong.
func TestNoPasswordIsShown(t *testing.T) { onServer(t, testNoPasswordIsShown) }

func testNoPasswordIsShown(t *testing.T) {
	s := needServer(t)
	const secret = "hunter2%&pass"
	closed, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	escaped := url.QueryEscape(secret)
	for name, c := range map[string]struct {
		url         string
		unavailable bool
	}{
		"wrong password":   {s.tcpURL(secret), false},
		"no server":        {fmt.Sprintf("postgres://mirror:%s@127.0.0.1:%d/mirror", url.PathEscape(secret), closed), true},
		"no server, query": {fmt.Sprintf("postgresql://127.0.0.1:%d/mirror?user=mirror&password=%s", closed, escaped), true},
		"no database":      {strings.TrimSuffix(s.tcpURL(serverPassword), "postgres") + "nowhere?application_name=x", false},
		"not a url":        {"postgres://mirror:" + secret + "@host:port/mirror", false},
		"bad option":       {fmt.Sprintf("postgres://mirror:%s@127.0.0.1/mirror?sslmode=maybe", url.PathEscape(secret)), false},
		"other kind":       {"mysql://mirror:" + url.PathEscape(secret) + "@host/mirror", false},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{StateDir: t.TempDir(), Server: "frodo", URL: c.url}
			_, err := Open(t.Context(), o)
			if err == nil || errors.Is(err, ErrUnavailable) != c.unavailable {
				t.Fatalf("got %v", err)
			}
			text := err.Error()
			o.Patient = true
			if q, err := Open(t.Context(), o); err == nil {
				defer q.Close()
				b := newNode(t, q, succeed)
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				if err := b.Serve(ctx); err != nil {
					text += err.Error()
				}
				text += b.log.String()
			}
			for _, form := range []string{secret, escaped, url.PathEscape(secret), serverPassword, url.PathEscape(serverPassword), "hunter2"} {
				if strings.Contains(text, form) {
					t.Errorf("shown: %s", text)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %s", err)
			}
			t.Log(err)
		})
	}
	q := open(t, t.TempDir(), func(o *Options) { o.URL = s.tcpURL(serverPassword) + "?search_path=" + searchPath(t, o.URL) })
	enqueue(t, q, samKey)
}

func searchPath(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("search_path")
}

// An account that may not create tables is told what is missing.
func TestMissingRights(t *testing.T) { onServer(t, testMissingRights) }

func testMissingRights(t *testing.T) {
	s := needServer(t)
	s.exec(t, `CREATE ROLE guest LOGIN`)
	dir := t.TempDir()
	address := strings.Replace(databaseURL(t, dir), "user=postgres", "user=guest", 1)
	_, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo", URL: address})
	if err == nil || !strings.Contains(err.Error(), "of its own") || errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// Tables of the first version are brought up to date, by several processes at once.
func TestMigration(t *testing.T) { onBothInTurn(t, testMigration) }

func testMigration(t *testing.T) {
	dir := t.TempDir()
	address := databaseURL(t, dir)
	var db *sql.DB
	var err error
	d := sqliteDialect
	if address == "" {
		db, err = sql.Open("sqlite", dataSource(databasePath(dir)))
	} else {
		db, d, err = openPostgres(address)
	}
	if err != nil {
		t.Fatal(err)
	}
	all := steps
	steps = all[:1]
	err = migrate(t.Context(), db, d)
	steps = all
	if err == nil {
		_, err = db.Exec(`INSERT INTO jobs (server, repository, peer, want, origin, oldest, newest, run_at, created)
			VALUES ('frodo', 'ip1', 'sam', 1, 'list', 5, 7, 5, 5)`)
	}
	if err == nil {
		_, err = db.Exec(`INSERT INTO peers (server, peer) VALUES ('frodo', 'sam')`)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			q, err := Open(t.Context(), Options{StateDir: dir, URL: address, Server: "frodo"})
			if err != nil {
				t.Error(err)
				return
			}
			defer q.Close()
			j := job{}
			err = q.read(t.Context(), func(tx *tx) (err error) { j, err = tx.job(t.Context(), samKey); return err })
			if err != nil || j.changed != 7 || j.want != 1 {
				t.Errorf("%+v, %v", j, err)
			}
		})
	}
	wg.Wait()
	q := open(t, dir, nil)
	settle(t, q, mustClaim(t, q, samKey), nil)
	checkState(t, q, samKey, StateOK)
	if version, err := readSchema(t.Context(), q.db); err != nil || version != len(steps) {
		t.Errorf("version %d, %v", version, err)
	}
}

// What every look of a worker asks for is found in an index, however long the table is.
func TestPlans(t *testing.T) { onBoth(t, testPlans) }

func testPlans(t *testing.T) {
	q, _ := openFake(t)
	var changes []Change
	for i := range fewer(t, 300, 3000) {
		changes = append(changes, Change{Key: Key{fmt.Sprint("r", i), fmt.Sprint("peer", i%3)}, Origin: inbox.OriginList})
	}
	if _, err := q.Enqueue(t.Context(), changes); err != nil {
		t.Fatal(err)
	}
	explain, scan := "EXPLAIN QUERY PLAN ", "SCAN jobs"
	if onPostgres(t) {
		explain, scan = "EXPLAIN ", "Seq Scan on jobs"
	}
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			if _, err := q.db.Exec("ANALYZE"); err != nil {
				t.Fatal(err)
			}
		}
		for text, index := range map[string]string{q.firstInLine: "jobs_due", q.claimable: "jobs_due", sqlRunning: "jobs_running"} {
			args := []any{"frodo", "peer1", 0}
			if text == sqlRunning {
				args = args[:1]
			}
			plan := explained(t, q, explain+text, args...)
			if !strings.Contains(plan, index) || strings.Contains(plan, scan) {
				t.Errorf("analyzed %v: %s\n%s", analyzed, text, plan)
			}
		}
	}
}

func explained(t *testing.T, q *Queue, text string, args ...any) string {
	t.Helper()
	rows, err := q.db.Query(text, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var plan strings.Builder
	for rows.Next() {
		fields := make([]any, len(columns))
		for i := range fields {
			fields[i] = new(string)
		}
		if err := rows.Scan(fields...); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&plan, *fields[len(fields)-1].(*string))
	}
	return plan.String()
}
