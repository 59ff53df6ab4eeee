package queue

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/inbox"
)

// A daemon that is started while a drain lingers gets to work; processes as in life.

func untilHolder(t *testing.T, dir, kind string, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		h, running, err := WorkerHolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		if running && h == (Holder{pid, kind}) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the worker is %v (%v), not %s, process %d", h, running, kind, pid)
		}
	}
}

func untilRunning(t *testing.T, q *Queue, k Key) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); row(t, q, k).State != StateRunning; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v does not run", row(t, q, k))
		}
	}
}

func untilOK(t *testing.T, q *Queue, k Key) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); row(t, q, k).State != StateOK; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %+v", row(t, q, k))
		}
	}
}

func TestServeTakesOverFromDrain(t *testing.T) {
	for _, run := range []string{"hang", "fail"} {
		t.Run(run, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			q := open(t, dir, nil)
			enqueue(t, q, samKey)
			drain := child{Kind: KindDrain, Dir: dir, Run: run}.start(t)
			untilHolder(t, dir, KindDrain, drain.Process.Pid)
			if run == "hang" {
				untilRunning(t, q, samKey)
			}
			began := time.Now()
			serve := child{Kind: KindServe, Dir: dir}.start(t)
			if code := ended(t, drain); code != 0 {
				t.Errorf("the drain ended with %d", code)
			}
			untilHolder(t, dir, KindServe, serve.Process.Pid)
			untilOK(t, q, samKey)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("taking over took %v", took)
			}
			if r := row(t, q, samKey); r.Attempt != 0 || r.Error != "" {
				t.Errorf("%+v", r)
			}
			if code := ended(t, child{Kind: KindServe, Dir: dir}.start(t)); code != 3 {
				t.Errorf("a second server ended with %d", code)
			}
			if code := ended(t, child{Kind: KindDrain, Dir: dir}.start(t)); code != 3 {
				t.Errorf("a second drain ended with %d", code)
			}
			if err := inbox.AskToLeave(dir); err != nil {
				t.Error(err)
			}
			enqueue(t, q, samKey) // a server does not leave when it is asked
			untilOK(t, q, samKey)
			_ = serve.Process.Signal(unix.SIGTERM)
			if code := ended(t, serve); code != 0 {
				t.Errorf("the server ended with %d", code)
			}
			noComplaints(t, dir)
		})
	}
}

// Of two servers that are started at once while a drain lingers, one gets to work and the other says that it cannot.
func TestTwoServersTakeOver(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir, nil)
	enqueue(t, q, samKey)
	drain := child{Kind: KindDrain, Dir: dir, Run: "hang"}.start(t)
	untilRunning(t, q, samKey)
	codes := make(chan int, 2)
	for range 2 {
		serve := child{Kind: KindServe, Dir: dir}.start(t)
		go func() { _ = serve.Wait(); codes <- serve.ProcessState.ExitCode() }()
	}
	if code := ended(t, drain); code != 0 {
		t.Errorf("the drain ended with %d", code)
	}
	untilOK(t, q, samKey)
	select {
	case code := <-codes:
		if code != 3 {
			t.Errorf("one of them ended with %d", code)
		}
	case <-time.After(10 * time.Second):
		t.Error("both believe to serve")
	}
	select {
	case code := <-codes:
		t.Errorf("the other ended too, with %d", code)
	case <-time.After(100 * time.Millisecond):
	}
	h, running, err := WorkerHolder(dir)
	if err != nil || !running || h.Kind != KindServe {
		t.Fatal(h, running, err)
	}
	if err := unix.Kill(h.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-codes; code != 0 {
		t.Errorf("the server ended with %d", code)
	}
	noComplaints(t, dir)
}

// A drain that cannot hear is waited for, and the log says so.
func TestServeWaitsForADeafDrain(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir, nil)
	enqueue(t, q, samKey)
	drain := child{Kind: KindDrain, Dir: dir, Run: "wait"}.start(t)
	untilRunning(t, q, samKey)
	if err := os.Remove(filepath.Join(dir, "worker.sock")); err != nil {
		t.Fatal(err)
	}
	serve := child{Kind: KindServe, Dir: dir}.start(t)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		if strings.Contains(string(log), "cannot be asked to leave") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say why nothing happens:\n%s", log)
		}
	}
	untilHolder(t, dir, KindDrain, drain.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := ended(t, drain); code != 0 {
		t.Errorf("the drain ended with %d", code)
	}
	untilHolder(t, dir, KindServe, serve.Process.Pid)
	checkState(t, q, samKey, StateOK)
	noComplaints(t, dir)
}

// A name in the lock file that is not the holder's decides nothing.
func TestTakeOverWithWrongNames(t *testing.T) {
	b := newBench(t, succeed)
	lock, err := acquire(t.Context(), b.dir, KindDrain)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lockPath(b.dir), []byte("1 serve\n"), 0o600); err != nil { // of one that was killed
		t.Fatal(err)
	}
	renamed := make(chan struct{})
	go func() {
		defer close(renamed)
		time.Sleep(300 * time.Millisecond) // the drain writes its own
		_ = os.WriteFile(lockPath(b.dir), []byte("2 drain\n"), 0o600)
		time.Sleep(400 * time.Millisecond)
		_ = lock.Unlock()
	}()
	stop := b.serve()
	<-renamed
	stop()

	lock, err = acquire(t.Context(), b.dir, KindServe)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	if err := b.Serve(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(lockPath(b.dir), []byte("3 drain\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := b.Serve(ctx); err != nil { // told to stop while it waits
		t.Errorf("got %v", err)
	}
}
