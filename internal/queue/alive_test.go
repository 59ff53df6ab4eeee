package queue

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/inbox"
)

// What a killed worker was running is run by the next one at once, though its lease would last for half a minute; and until
// then nobody says that it runs.
func TestKilledWorkersRunsAreEnded(t *testing.T) { onBoth(t, testKilledWorkersRunsAreEnded) }

func testKilledWorkersRunsAreEnded(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir, nil)
	enqueue(t, q, samKey, gollumKey)
	killed := child{Kind: KindServe, Dir: dir, URL: databaseURL(t, dir), Run: "hang", Lease: time.Minute}
	serve := killed.start(t)
	untilRunning(t, q, samKey)
	untilRunning(t, q, gollumKey)
	if r := row(t, q, samKey); !strings.Contains(r.Owner, ":"+q.node+":") || time.Until(r.Lease) < 30*time.Second {
		t.Errorf("owner %s, lease %v", r.Owner, r.Lease)
	}
	kill(serve)
	for _, k := range []Key{samKey, gollumKey} {
		if r := row(t, q, k); r.State != StateWaiting || r.Owner != "" {
			t.Errorf("of a dead worker: %+v", r)
		}
	}
	began := time.Now()
	next := killed
	next.Run = "at once"
	next.start(t)
	untilOK(t, q, samKey)
	untilOK(t, q, gollumKey)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	noComplaints(t, dir)
}

// A lease of this node under the number of a process that lives is left alone, and so is that of another node with
// the same process id: only who is known to be dead is buried.
func TestTheLivingAreNotBuried(t *testing.T) { onBoth(t, testTheLivingAreNotBuried) }

func testTheLivingAreNotBuried(t *testing.T) {
	dir := t.TempDir()
	q, other := open(t, dir, nil), open(t, dir, nil) // other stands for a push in the foreground
	dead, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo", URL: databaseURL(t, dir)})
	if err != nil {
		t.Fatal(err)
	}
	node := q // of which we know nothing
	if onPostgres(t) {
		node = openNode(t, dir, nil)
	}
	living, foreign, gone, old := Key{"living", "a"}, Key{"foreign", "b"}, Key{"gone", "c"}, Key{"old", "d"}
	for _, run := range []struct {
		by *Queue
		k  Key
	}{{other, living}, {node, foreign}, {dead, gone}, {dead, old}} {
		enqueue(t, run.by, run.k)
		mustClaim(t, run.by, run.k)
	}
	if !onPostgres(t) {
		setOwner(t, q, foreign, strings.Replace(row(t, q, gone).Owner, q.node, "00000000", 1))
	}
	setOwner(t, q, old, "host:1:"+q.node+":0123456789abcdef") // of a version that had no numbers
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	// The number of a process says nothing: the dead one's is ours, and we live.
	if owner := row(t, q, living).Owner; !strings.Contains(owner, fmt.Sprintf(":%d:", os.Getpid())) {
		t.Errorf("owner %s", owner)
	}
	q.mends.reset()
	for range 3 {
		if c, err := q.claim(t.Context(), limits{}); err != nil || c != nil && c.Key != gone {
			t.Fatal(c, err)
		}
	}
	for k, running := range map[Key]bool{living: true, foreign: true, old: true} {
		if r := row(t, q, k); (r.State == StateRunning) != running {
			t.Errorf("%s: %+v", k, r)
		}
	}
	if r := row(t, q, gone); r.State != StateRunning || r.Attempt != 1 {
		t.Errorf("the dead one's: %+v", r)
	}
}

func setOwner(t *testing.T, q *Queue, k Key, owner string) {
	t.Helper()
	err := q.update(t.Context(), func(tx *tx) error {
		j, err := tx.job(t.Context(), k)
		if err != nil {
			return err
		}
		j.owner = owner
		return tx.storeJobs(t.Context(), j)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// While a worker works it also finds out about pushes in the foreground that were killed.
func TestKilledForegroundRun(t *testing.T) { onBoth(t, testKilledForegroundRun) }

func testKilledForegroundRun(t *testing.T) {
	b := newBench(t, succeed)
	b.Poll = 100 * time.Millisecond
	b.serve()
	foreground := child{Kind: "foreground", Dir: b.dir, URL: databaseURL(t, b.dir), Run: "hang", Lease: time.Minute}.start(t)
	b.untilState(samKey, StateRunning)
	time.Sleep(300 * time.Millisecond)
	checkState(t, b.Queue, samKey, StateRunning) // the worker left it alone
	kill(foreground)
	b.untilState(samKey, StateOK) // within the few seconds after which it looks
}

// Without the file nobody is believed to be dead.
func TestNodeFileIsRemoved(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir, nil)
	enqueue(t, q, samKey)
	mustClaim(t, q, samKey)
	if err := os.Remove(nodePath(dir)); err != nil {
		t.Fatal(err)
	}
	later := open(t, dir, nil)
	checkState(t, later, samKey, StateRunning)
	checkState(t, q, samKey, StateRunning)
	noClaim(t, later, limits{})
}

// A job that kills every worker has to wait longer each time, so that others get their turn.
func TestJobThatKillsItsWorker(t *testing.T) { onBoth(t, testJobThatKillsItsWorker) }

func testJobThatKillsItsWorker(t *testing.T) {
	clock := newFakeClock()
	dir := t.TempDir()
	options := Options{StateDir: dir, Server: "frodo", URL: databaseURL(t, dir), Now: clock.now}
	q := openWith(t, options)
	enqueue(t, q, samKey)
	for died := range 5 {
		victim, err := Open(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		mustClaim(t, victim, samKey)
		if err := victim.Close(); err != nil {
			t.Fatal(err)
		}
		q.mends.reset()
		if died == 0 {
			if due, err := q.due(t.Context(), limits{}); err != nil || due {
				t.Errorf("a look changed something: %v, %v", due, err)
			}
		}
		if c, err := q.claim(t.Context(), limits{}); died > 0 && c != nil || err != nil {
			t.Fatalf("after %d deaths: at once, %v", died+1, err)
		} else if c != nil { // the first time
			if _, err := q.settle(t.Context(), c, judge(Result{}, errors.New("x"), true)); err != nil {
				t.Fatal(err)
			}
		}
		r := row(t, q, samKey)
		if r.Attempt != died+1 || r.Error != "the worker ended in the middle of the run" || r.State != StateWaiting {
			t.Errorf("after %d deaths: %+v", died+1, r)
		}
		wait := r.NextTry.Sub(clock.now())
		if least := time.Duration(1<<max(died-1, 0)) * time.Second / 2; died > 0 && wait < least || wait > 20*time.Second {
			t.Errorf("after %d deaths it waits %v", died+1, wait)
		}
		clock.add(20 * time.Second)
	}
	enqueue(t, q, samKey) // a push is a reason to try now
	settle(t, q, mustClaim(t, q, samKey), nil)
	if r := row(t, q, samKey); r.State != StateOK || r.Attempt != 0 || r.Error != "" {
		t.Errorf("%+v", r)
	}
}

// Of servers that are started at once one gets to work, also when it is killed again and again, and its files do not
// matter to the next.
func TestServersStartedAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		codes := make(chan int, 3)
		for range 3 {
			serve := child{Kind: KindServe, Dir: dir}.start(t)
			go func() { _ = serve.Wait(); codes <- serve.ProcessState.ExitCode() }()
		}
		for range 2 {
			select {
			case code := <-codes:
				if code != 3 {
					t.Errorf("one of them ended with %d", code)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("several believe to serve")
			}
		}
		h, running, err := WorkerHolder(dir)
		if err != nil || !running || h.Kind != KindServe {
			t.Fatal(h, running, err)
		}
		if _, err := inbox.New(dir).Put(inbox.Event{Repository: "ip1", Peers: []string{"sam"}, Origin: inbox.OriginList}); err != nil {
			t.Fatal(err)
		}
		_ = unix.Kill(h.PID, unix.SIGKILL)
		<-codes
	}
	child{Kind: KindServe, Dir: dir}.start(t)
	q := open(t, dir, nil)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		rows, err := q.Rows(t.Context(), Filter{})
		if err == nil && len(rows) == 1 && rows[0].State == StateOK && rows[0].Want >= 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(rows, err)
		}
	}
	noComplaints(t, dir)
}
