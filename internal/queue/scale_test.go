package queue

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
)

// Ten thousand repositories with three peers each.
const (
	manyRepositories = 10_000
	manyPeers        = 3
)

func manyKeys() (keys []Key) {
	for i := range manyRepositories {
		for p := range manyPeers {
			keys = append(keys, Key{fmt.Sprintf("projects/team%d/r%d", i%100, i), fmt.Sprint("peer", p)})
		}
	}
	return keys
}

func changesTo(keys []Key) []Change {
	changes := make([]Change, len(keys))
	for i, k := range keys {
		changes[i] = Change{Key: k, Origin: inbox.OriginList}
	}
	return changes
}

func verifications(keys []Key, digest string) []Verification {
	copies := make([]Verification, len(keys))
	for i, k := range keys {
		copies[i] = Verification{Key: k, Digest: digest}
	}
	return copies
}

const someDigest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func BenchmarkScale(b *testing.B) {
	b.Run("sqlite", benchmarkScale)
	b.Run("postgres", benchmarkScale)
}

func benchmarkScale(b *testing.B) {
	keys := manyKeys()
	full := func(b *testing.B) (*Queue, *fakeClock) {
		q, clock := openFake(b)
		if _, err := q.Enqueue(b.Context(), changesTo(keys)); err != nil {
			b.Fatal(err)
		}
		clock.add(time.Second)
		return q, clock
	}
	verify := func(b *testing.B, q *Queue, clock *fakeClock, digest string, want int) {
		b.Helper()
		if n, err := q.Verified(b.Context(), verifications(keys, digest), clock.now()); err != nil || n != want {
			b.Fatal(n, err)
		}
	}
	b.Run("enqueue", func(b *testing.B) {
		q, _ := openFake(b)
		for b.Loop() {
			if _, err := q.Enqueue(b.Context(), changesTo(keys)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rows", func(b *testing.B) {
		q, _ := full(b)
		for b.Loop() {
			if rows, err := q.Rows(b.Context(), Filter{}); err != nil || len(rows) != len(keys) {
				b.Fatal(len(rows), err)
			}
		}
	})
	b.Run("row", func(b *testing.B) {
		q, _ := full(b)
		for b.Loop() {
			_ = row(b, q, keys[12345])
		}
	})
	b.Run("claim and settle", func(b *testing.B) {
		q, _ := full(b)
		for b.Loop() {
			c, err := q.claim(b.Context(), limits{perPeer: 4})
			if err != nil || c == nil {
				b.Fatal(c, err)
			}
			settle(b, q, c, nil)
		}
	})
	b.Run("look in vain", func(b *testing.B) {
		q, _ := full(b)
		for p := range manyPeers {
			if err := q.Pause(b.Context(), fmt.Sprint("peer", p)); err != nil {
				b.Fatal(err)
			}
		}
		for b.Loop() {
			noClaim(b, q, limits{perPeer: 4})
			if _, _, err := q.nextRun(b.Context(), limits{perPeer: 4}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verified, new", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			q, clock := openFake(b)
			b.StartTimer()
			verify(b, q, clock, someDigest, 0)
		}
	})
	b.Run("verified, pending", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			q, clock := full(b)
			b.StartTimer()
			verify(b, q, clock, someDigest, len(keys))
		}
	})
	b.Run("verified, an hour later", func(b *testing.B) {
		q, clock := full(b)
		verify(b, q, clock, someDigest, len(keys))
		for b.Loop() {
			clock.add(time.Hour)
			verify(b, q, clock, someDigest, 0)
		}
	})
	b.Run("verified, again", func(b *testing.B) {
		q, clock := full(b)
		verify(b, q, clock, someDigest, len(keys))
		for b.Loop() {
			verify(b, q, clock, someDigest, 0)
		}
	})
}

// BenchmarkIdleWorker tells what memory a worker takes: "idle" beside a table whose copies are all equal, "after a
// storm" once it has taken a push to each repository from the inbox and run all jobs.
func BenchmarkIdleWorker(b *testing.B) {
	b.Run("sqlite", benchmarkIdleWorker)
	b.Run("postgres", benchmarkIdleWorker)
}

func benchmarkIdleWorker(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		q := open(b, dir, nil)
		keys := manyKeys()
		if _, err := q.Verified(b.Context(), verifications(keys, someDigest), time.Now()); err != nil {
			b.Fatal(err)
		}
		cmd := child{Kind: KindServe, Dir: dir, URL: databaseURL(b, dir), Run: "at once"}.start(b)
		time.Sleep(5 * time.Second)
		b.ReportMetric(residentMiB(b, cmd.Process.Pid), "MiB-idle")
		box := inbox.New(dir)
		for i := 0; i < len(keys); i += manyPeers {
			event := inbox.Event{Repository: keys[i].Repository, Origin: inbox.OriginList}
			for p := range manyPeers {
				event.Peers = append(event.Peers, fmt.Sprint("peer", p))
			}
			if _, err := box.Put(event); err != nil {
				b.Fatal(err)
			}
		}
		_ = inbox.Wake(dir)
		began, peak := time.Now(), 0.0
		for {
			time.Sleep(500 * time.Millisecond)
			peak = max(peak, residentMiB(b, cmd.Process.Pid))
			pending, changes, err := q.pending(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			if pending == 0 && changes >= int64(len(keys)) {
				break
			}
		}
		b.ReportMetric(time.Since(began).Seconds(), "s-storm")
		b.ReportMetric(peak, "MiB-peak")
		b.ReportMetric(residentMiB(b, cmd.Process.Pid), "MiB-after")
		kill(cmd)
	}
}

func residentMiB(b *testing.B, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}

// BenchmarkNodes is a batch of pushes to three slow peers, by one node and by two.
func BenchmarkNodes(b *testing.B) { b.Run("postgres", benchmarkNodes) }

func benchmarkNodes(b *testing.B) {
	const jobs = 480
	slow := func(ctx context.Context, _ Job) (Result, error) { return Result{}, sleep(ctx, 100*time.Millisecond) }
	for _, nodes := range []int{1, 2} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			for b.Loop() {
				first := open(b, b.TempDir(), nil)
				ctx, cancel := context.WithCancel(b.Context())
				var wg sync.WaitGroup
				for n := range nodes {
					q := first
					if n > 0 {
						q = openNode(b, first.stateDir, nil)
					}
					w := &Worker{Queue: q, Inbox: inbox.New(q.stateDir), Run: slow} // as configured by default
					wg.Go(func() {
						if err := w.Serve(ctx); err != nil {
							b.Error(err)
						}
					})
				}
				time.Sleep(300 * time.Millisecond)
				began := time.Now()
				var changes []Change
				for i := range jobs {
					changes = append(changes, Change{Key: Key{fmt.Sprint("r", i/3), fmt.Sprint("peer", i%3)}, Origin: inbox.OriginList})
				}
				tickets, err := first.Enqueue(b.Context(), changes)
				if err == nil {
					_ = inbox.Wake(first.stateDir)
					err = first.Await(b.Context(), tickets, func(Row) {})
				}
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(time.Since(began).Seconds(), "s-batch")
				cancel()
				wg.Wait()
			}
		})
	}
}
