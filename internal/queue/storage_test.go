package queue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/inbox"
)

// smallDisk is a directory on a file system of its own.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m,nr_inodes=64,mode=0700")
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs the right to mount a file system: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillDisk takes all room, for bytes and for files, and returns what gives it back.
func fillDisk(t *testing.T, dir string) (free func()) {
	t.Helper()
	filling := filepath.Join(dir, "filling")
	if err := os.Mkdir(filling, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(filling, fmt.Sprint(i)), make([]byte, 1<<20), 0o600)
		if errors.Is(err, unix.ENOSPC) && i > 64 {
			break
		}
	}
	return func() {
		if err := os.RemoveAll(filling); err != nil {
			t.Error(err)
		}
	}
}

// serveAnyhow is serve for a worker that cannot listen yet.
func (b *bench) serveAnyhow() (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("serve: %v", err)
		}
	}
}

// complains checks that the log tells of the trouble, and for some seconds not again and again.
func (b *bench) complains() {
	b.t.Helper()
	b.until("the log tells", func() bool { return strings.Contains(b.log.String(), "level=ERROR") })
	time.Sleep(2500 * time.Millisecond)
	if n := strings.Count(b.log.String(), "level=ERROR"); n > 3 { // the lock, the bell, the table
		b.t.Errorf("%d complaints", n)
	}
}

// The disk is full when a worker starts: it waits, and goes on by itself when there is room. Nothing that was queued is lost.
func TestStartsOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	b := newBenchOn(t, open(t, dir, nil), succeed)
	if err := b.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Queue.Close()
	for i := range 5 {
		_ = b.push(fmt.Sprint("r", i), "sam")
	}
	free := fillDisk(t, dir)
	if _, err := b.Inbox.Put(inbox.Event{Repository: "ip1", Peers: []string{"sam"}, Origin: inbox.OriginList}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a push on a full disk: %v", err)
	}
	// SQLite calls it an input/output error.
	if _, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo"}); !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), "no room in "+dir+" (0 kB ") {
		t.Errorf("a command on a full disk: %v", err)
	}
	b = newBenchOn(t, open(t, dir, func(o *Options) { o.Patient = true }), succeed)
	b.Poll = 100 * time.Millisecond
	stop := b.serveAnyhow()
	b.complains()
	free()
	for i := range 5 {
		b.untilState(Key{fmt.Sprint("r", i), "sam"}, StateOK)
	}
	_ = b.push("ip1", "sam")
	b.untilState(samKey, StateOK)
	stop()
	if log := b.log.String(); !strings.Contains(log, "the queue works again") {
		t.Errorf("the log:\n%s", log)
	}
	if _, standing, err := LostTable(dir); standing || err != nil {
		t.Errorf("lost: %v, %v", standing, err)
	}
}

// A state directory of which nothing is there yet, on a disk without room.
func TestFirstStartOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	free := fillDisk(t, dir)
	if _, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo"}); !errors.Is(err, ErrNoRoom) {
		t.Errorf("opened for a command: %v", err)
	}
	b := newBenchOn(t, open(t, dir, func(o *Options) { o.Patient = true }), succeed)
	b.Poll = 100 * time.Millisecond
	stop := b.serveAnyhow()
	defer stop()
	b.complains()
	free()
	b.until("it listens", func() bool { return inbox.Wake(dir) == nil })
	_ = b.push("ip1", "sam")
	b.untilState(samKey, StateOK)
	if _, standing, err := LostTable(dir); standing || err != nil {
		t.Errorf("lost: %v, %v", standing, err)
	}
}

// The disk fills up while a job runs: its result cannot be recorded, so it is run again.
func TestDiskFillsUp(t *testing.T) {
	dir := smallDisk(t)
	release := make(chan struct{})
	b := newBenchOn(t, open(t, dir, func(o *Options) { o.Lease = time.Second }), func(ctx context.Context, job Job) (Result, error) {
		select {
		case <-release:
			return Result{Digest: "d"}, nil
		case <-ctx.Done():
			return Result{}, context.Cause(ctx)
		}
	})
	b.Poll = 100 * time.Millisecond
	defer b.serve()()
	_ = b.push("ip1", "sam", "gollum")
	b.untilState(samKey, StateRunning)
	b.untilState(gollumKey, StateRunning)
	free := fillDisk(t, dir)
	close(release)
	b.complains()
	free()
	b.untilState(samKey, StateOK)
	b.untilState(gollumKey, StateOK)
}

// A directory that cannot be written, as after an error of the file system below.
func TestReadOnlyDirectory(t *testing.T) {
	dir := smallDisk(t)
	b := newBenchOn(t, open(t, dir, nil), succeed)
	if err := b.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = b.push("ip1", "sam")
	b.Queue.Close()
	remount := func(flags uintptr) {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	q, err := Open(t.Context(), Options{StateDir: dir, Server: "frodo"})
	if errors.Is(err, ErrNoRoom) {
		t.Error(err) // there is room, and nobody may use it
	}
	if err == nil {
		defer q.Close()
		if _, err := q.Enqueue(t.Context(), []Change{{Key: samKey, Origin: inbox.OriginList}}); err == nil {
			t.Error("recorded")
		}
	}
	b = newBenchOn(t, open(t, dir, func(o *Options) { o.Patient = true }), succeed)
	b.Poll = 100 * time.Millisecond
	stop := b.serveAnyhow()
	defer stop()
	b.complains()
	remount(0)
	b.untilState(samKey, StateOK)
	if _, standing, err := LostTable(dir); standing || err != nil {
		t.Errorf("lost: %v, %v", standing, err)
	}
}
