package queue

import (
	"fmt"
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
		copies[i] = Verification{k, digest}
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
