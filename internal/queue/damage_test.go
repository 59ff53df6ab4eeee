package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

// damages are what can happen to the file. A file that is missing or empty leaves nothing to keep.
var damages = []struct {
	name string
	do   func(t *testing.T, path string)
	kept bool
}{
	{"garbage", func(t *testing.T, path string) {
		overwrite(t, path, 0, []byte(strings.Repeat("not a database ", 9000)))
	}, true},
	{"first page", func(t *testing.T, path string) { overwrite(t, path, 0, make([]byte, 4096)) }, true},
	{"header", func(t *testing.T, path string) { overwrite(t, path, 0, []byte("SQLite format 9")) }, true},
	{"another page", func(t *testing.T, path string) {
		overwrite(t, path, 3*4096, []byte(strings.Repeat("\xff\x00\x81", 1365)))
	}, true},
	{"cut to a few bytes", func(t *testing.T, path string) { truncate(t, path, 50) }, true},
	{"cut to a few pages", func(t *testing.T, path string) { truncate(t, path, 2*4096) }, true},
	{"empty", func(t *testing.T, path string) { truncate(t, path, 0) }, false},
	{"deleted", func(t *testing.T, path string) { remove(t, path) }, false},
	{"deleted with its companions", func(t *testing.T, path string) {
		remove(t, path)
		_, _ = os.Remove(path+"-wal"), os.Remove(path+"-shm")
	}, false},
	{"no tables", func(t *testing.T, path string) { change(t, path, `ALTER TABLE jobs RENAME TO gone`) }, true},
	{"values", func(t *testing.T, path string) { change(t, path, `UPDATE jobs SET want = 'abc'`) }, true},
	{"generations", func(t *testing.T, path string) { change(t, path, `UPDATE jobs SET done = 1000`) }, true},
}

func overwrite(t *testing.T, path string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, at); err != nil {
		t.Fatal(err)
	}
}

func change(t *testing.T, path, text string) {
	t.Helper()
	db, err := sql.Open("sqlite", dataSource(path))
	if err == nil {
		_, err = db.Exec(text)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// A file that is damaged while nobody uses it is found out by whatever is done first.
func TestDamagedAtRest(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			filled(t, dir)
			d.do(t, databasePath(dir))
			var l losses
			q := open(t, dir, func(o *Options) { o.OnLoss = l.told })
			if _, err := q.Rows(t.Context(), Filter{}); err != nil {
				t.Fatal(err)
			}
			checkLoss(t, dir, d.kept, l.all())
			peers, err := q.Peers(t.Context())
			if err != nil || len(peers) != 1 || peers[0].Name != "merry" || !peers[0].Paused {
				t.Errorf("peers %+v, %v", peers, err)
			}
			enqueue(t, q, samKey)
			settle(t, q, mustClaim(t, q, samKey), nil)
			other := open(t, dir, func(o *Options) { o.OnLoss = l.told }) // nothing is wrong any more
			checkState(t, other, samKey, StateOK)
			checkLoss(t, dir, d.kept, l.all())
		})
	}
}

// A file that is damaged under a worker, which other processes use too: what is pushed arrives, and none of it was only
// recorded in the file that is gone.
func TestDamagedInUse(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			filled(t, dir)
			var l losses
			var compared atomic.Int64
			looked := make(chan struct{}) // closed when the test has seen the mark
			b := newBenchOn(t, open(t, dir, func(o *Options) { o.OnLoss = l.told }), succeed)
			b.Poll = 100 * time.Millisecond
			b.Rebuild = func(ctx context.Context) error {
				if compared.Add(1) == 1 {
					return errors.New("not all of it")
				}
				select {
				case <-looked:
				case <-ctx.Done():
					return ctx.Err()
				}
				loss, standing, err := LostTable(dir)
				if err != nil || !standing {
					return fmt.Errorf("no loss: %w", err)
				}
				if compared.Load() == 2 { // what was written to the file before anybody noticed
					var keys []Key
					for i := range 5 {
						keys = append(keys, Key{fmt.Sprint("r", i), "sam"}, Key{fmt.Sprint("r", i), "gollum"})
					}
					if _, err := b.Queue.Enqueue(ctx, changesTo(keys)); err != nil {
						return err
					}
				}
				return Rebuilt(ctx, dir, loss)
			}
			idle := open(t, dir, func(o *Options) { o.OnLoss = l.told })
			_, _ = idle.Rows(t.Context(), Filter{})
			b.serve()
			_ = b.push("before", "sam")
			b.untilState(Key{"before", "sam"}, StateOK)
			d.do(t, databasePath(dir))
			for i := range 5 {
				_ = b.push(fmt.Sprint("r", i), "sam", "gollum")
				time.Sleep(20 * time.Millisecond)
			}
			later := open(t, dir, func(o *Options) { o.OnLoss = l.told }) // what is in a cache looks sound for long
			if _, err := later.Rows(t.Context(), Filter{}); errors.Join(err, later.inspect(t.Context())) != nil {
				t.Error(err)
			}
			// A page of which the write-ahead log has a newer version is mended by that, and inspect has found all in order.
			onePage := d.name == "first page" || d.name == "header" || d.name == "another page"
			_, standing, err := LostTable(dir)
			if lost := standing || compared.Load() > 0 || err != nil; lost || !onePage {
				b.until("the worker has noticed", func() bool { return compared.Load() > 0 })
				checkLoss(t, dir, d.kept || d.name == "empty", l.all())
			}
			close(looked)
			for i := range 5 {
				b.untilState(Key{fmt.Sprint("r", i), "sam"}, StateOK)
				b.untilState(Key{fmt.Sprint("r", i), "gollum"}, StateOK)
				untilOK(t, idle, Key{fmt.Sprint("r", i), "gollum"})
			}
			b.until("the loss is made good", func() bool { _, standing, err := LostTable(dir); return err == nil && !standing })
			if n := strings.Count(b.log.String(), "did not succeed"); n == 0 && compared.Load() > 0 {
				t.Error("the log does not say that it did not succeed")
			}
			untilOK(t, idle, Key{"r1", "sam"})
		})
	}
}

// Bytes anywhere are changed: whatever that does, the table works, as it was or as a new one.
func TestFlippedBytes(t *testing.T) {
	template := t.TempDir()
	filled(t, template)
	data, err := os.ReadFile(databasePath(template))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	replaced, whole := 0, 0
	t.Run("seeds", func(t *testing.T) {
		for seed := range uint64(16) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				random := rand.New(rand.NewPCG(seed, 1))
				dir := t.TempDir()
				flipped := append([]byte(nil), data...)
				for range 1 << random.IntN(4) {
					at := random.IntN(len(flipped))
					if random.IntN(2) == 0 { // structure: the beginning of a page
						at = at/4096*4096 + random.IntN(16)
					}
					flipped[at] ^= byte(1 + random.IntN(255))
				}
				for path, data := range map[string][]byte{databasePath(dir): flipped, nodePath(dir): []byte("0\n")} {
					if err := os.WriteFile(path, data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if flippedIsNewer(flipped) {
					t.Skip("it says that it is newer")
				}
				if useAll(t, dir) {
					mu.Lock()
					replaced++
					mu.Unlock()
					return
				}
				mu.Lock()
				whole++
				mu.Unlock()
			})
		}
	})
	t.Logf("%d replaced, %d worked as they were", replaced, whole)
	if replaced == 0 || whole == 0 {
		t.Error("the test does not test much")
	}
}

// useAll does everything that is ever done with a table, and reports whether it was replaced.
func useAll(t *testing.T, dir string) bool {
	b := newBenchOn(t, open(t, dir, func(o *Options) { o.RetryMax = 100 * time.Millisecond }), succeed)
	b.Poll, b.Jobs = 50*time.Millisecond, 2
	b.serve()
	for i := range 3 {
		_ = b.push(fmt.Sprint("r", i), "sam")
		_ = b.push(fmt.Sprint("projects/some/repository", i), "peer0")
	}
	for i := range 3 {
		b.untilState(Key{fmt.Sprint("r", i), "sam"}, StateOK)
		b.untilState(Key{fmt.Sprint("projects/some/repository", i), "peer0"}, StateOK)
	}
	if _, err := b.Queue.Verified(t.Context(), verifications(manyKeys()[:50], someDigest), time.Now()); err != nil {
		t.Error(err)
	}
	b.until("all was tried", func() bool {
		rows, err := b.Queue.Rows(t.Context(), Filter{Pending: true})
		return err == nil && len(rows) == 0
	})
	if _, err := b.Queue.Forget(t.Context(), "r1"); err != nil {
		t.Error(err)
	}
	b.until("nothing is left in the inbox", func() bool { names, err := b.Inbox.List(); return err == nil && len(names) == 0 })
	_, standing, err := LostTable(dir)
	if err != nil {
		t.Error(err)
	}
	return standing
}

// flippedIsNewer: a table of a newer version is refused, and that is what a changed version number looks like.
func flippedIsNewer(data []byte) bool { return !strings.Contains(string(data), "schema2") }

// Many processes find the same damage: one moves the file aside, and none the new one.
func TestDamageFoundTogether(t *testing.T) {
	dir := t.TempDir()
	filled(t, dir)
	var l losses
	var queues []*Queue
	for range 8 {
		queues = append(queues, open(t, dir, func(o *Options) { o.OnLoss = l.told }))
	}
	overwrite(t, databasePath(dir), 0, make([]byte, 8192))
	for _, round := range []string{"found", "after"} {
		var wg sync.WaitGroup
		for i, q := range queues {
			for n := range 3 {
				wg.Go(func() { enqueueInto(t, q, Key{fmt.Sprint(round, i, "-", n), "sam"}) })
			}
		}
		wg.Wait()
		checkLoss(t, dir, true, l.all())
	}
	// What some wrote while the others had not found it yet is gone with the file: everything is compared.
	rows, err := queues[3].Rows(t.Context(), Filter{})
	after := 0
	for _, r := range rows {
		if strings.HasPrefix(r.Repository, "after") {
			after++
		}
	}
	if err != nil || after != 24 {
		t.Errorf("%d rows, %v", after, err)
	}
}

func enqueueInto(t *testing.T, q *Queue, k Key) {
	if _, err := q.Enqueue(t.Context(), []Change{{Key: k, Origin: inbox.OriginList}}); err != nil {
		t.Error(err)
	}
}

// The log of a crash that SQLite cannot use is none of our business: the table is as it was before.
func TestDamagedCompanions(t *testing.T) {
	for _, suffix := range []string{"-wal", "-shm"} {
		dir := t.TempDir()
		filled(t, dir)
		if err := os.WriteFile(databasePath(dir)+suffix, []byte(strings.Repeat("garbage!", 8192)), 0o600); err != nil {
			t.Fatal(err)
		}
		rows, err := open(t, dir, nil).Rows(t.Context(), Filter{})
		if _, standing, lerr := LostTable(dir); err != nil || len(rows) != 200 || standing || lerr != nil {
			t.Errorf("%s: %d rows, %v, lost %v, %v", suffix, len(rows), err, standing, lerr)
		}
	}
}

// A server looks at the whole file when it starts; a look at a sound one is cheap.
func TestServeInspects(t *testing.T) {
	dir := t.TempDir()
	filled(t, dir)
	q := open(t, dir, nil)
	info, err := os.Stat(databasePath(dir))
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, databasePath(dir), info.Size()-4096, []byte(strings.Repeat("\xff\x00\x81", 1365))) // what no start of a worker reads
	b := newBenchOn(t, q, succeed)
	b.serve()
	b.until("it is found", func() bool { _, standing, err := LostTable(dir); return err == nil && standing })
}

// The first table of a state directory is no loss, and neither is one that is there.
func TestNoLoss(t *testing.T) { onBoth(t, testNoLoss) }

func testNoLoss(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		q := open(t, dir, nil)
		enqueue(t, q, samKey)
		if err := q.inspect(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if loss, standing, err := LostTable(dir); standing || err != nil {
		t.Errorf("%+v, %v", loss, err)
	}
	if err := Rebuilt(t.Context(), dir, Loss{}); err != nil {
		t.Error(err)
	}
}

// A comparison that began before a second loss does not make that good.
func TestLostAgain(t *testing.T) {
	dir := t.TempDir()
	filled(t, dir)
	remove(t, databasePath(dir))
	if err := open(t, dir, nil).Close(); err != nil {
		t.Fatal(err)
	}
	first, standing, err := LostTable(dir)
	if !standing || err != nil {
		t.Fatal(standing, err)
	}
	overwrite(t, databasePath(dir), 0, make([]byte, 4096))
	_ = open(t, dir, nil)
	if err := Rebuilt(t.Context(), dir, first); err != nil {
		t.Fatal(err)
	}
	second, standing, err := LostTable(dir)
	if !standing || err != nil || second.ID == first.ID {
		t.Fatal(second, standing, err)
	}
	if err := os.WriteFile(lossPath(dir), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	third, standing, err := LostTable(dir)
	if !standing || err != nil || third.Reason == "" {
		t.Fatal(third, standing, err)
	}
	if err := Rebuilt(t.Context(), dir, third); err != nil {
		t.Fatal(err)
	}
	if _, standing, err := LostTable(dir); standing || err != nil {
		t.Error(standing, err)
	}
}

// Damage that comes back is not chased for ever, and old copies do not fill the disk.
func TestDamagedAgainAndAgain(t *testing.T) {
	dir := t.TempDir()
	filled(t, dir)
	for range 6 {
		overwrite(t, databasePath(dir), 0, make([]byte, 4096))
		q := open(t, dir, nil)
		enqueue(t, q, samKey)
		overwrite(t, databasePath(dir), 0, make([]byte, 4096))
		if _, err := q.db.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`); err == nil {
			overwrite(t, databasePath(dir), 0, make([]byte, 4096))
		}
		q.drop(t.Context(), q.file.opened)
		if _, err := q.Rows(t.Context(), Filter{}); err == nil {
			t.Error("replaced at once")
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if aside, _ := filepath.Glob(databasePath(dir) + ".corrupt-*Z"); len(aside) != keptAside {
		t.Errorf("kept %v", aside)
	}
}

// Pauses are in the file of their own as soon as the command has ended.
func TestPausesOutliveTheTable(t *testing.T) {
	dir := t.TempDir()
	q := open(t, dir, nil)
	for _, name := range []string{"sam", "gollum", "merry"} {
		if err := q.Pause(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Resume(t.Context(), "gollum"); err != nil {
		t.Fatal(err)
	}
	remove(t, databasePath(dir))
	paused := []string{}
	peers, err := open(t, dir, nil).Peers(t.Context())
	for _, p := range peers {
		if p.Paused {
			paused = append(paused, p.Name)
		}
	}
	if got := strings.Join(paused, " "); err != nil || got != "merry sam" {
		t.Errorf("%s, %v", got, err)
	}
	if err := os.WriteFile(pausesPath(dir), []byte(`["sam",""`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readPauses(dir); got != nil {
		t.Errorf("of garbage: %v", got)
	}
}
