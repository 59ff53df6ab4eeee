package queue

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// losses is an OnLoss that remembers.
type losses struct {
	mu    sync.Mutex
	texts []string
}

func (l *losses) told(text string) { l.mu.Lock(); defer l.mu.Unlock(); l.texts = append(l.texts, text) }
func (l *losses) all() string      { l.mu.Lock(); defer l.mu.Unlock(); return strings.Join(l.texts, "\n") }

// filled is a table with rows of all sorts, a paused peer, and everything in the file itself.
func filled(t *testing.T, dir string) {
	t.Helper()
	q := open(t, dir, nil)
	if err := q.Pause(t.Context(), "merry"); err != nil {
		t.Fatal(err)
	}
	var keys []Key
	for i := range 200 {
		keys = append(keys, Key{fmt.Sprint("projects/some/repository", i), fmt.Sprint("peer", i%3)})
	}
	if _, err := q.Enqueue(t.Context(), changesTo(keys)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond)
	if n, err := q.Verified(t.Context(), verifications(keys[:190], someDigest), time.Now()); err != nil || n != 190 {
		t.Fatal(n, err)
	}
	for i := range 3 {
		c, err := q.claim(t.Context(), limits{})
		if err != nil {
			t.Fatal(err)
		}
		settle(t, q, c, []error{nil, errors.New("x"), ErrHeld}[i])
	}
	if _, err := q.db.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
}

// checkLoss checks what a loss leaves behind.
func checkLoss(t *testing.T, dir string, kept bool, told string) {
	t.Helper()
	loss, standing, err := LostTable(dir)
	if err != nil || !standing || loss.ID == "" || !strings.Contains(told, loss.Reason) || time.Since(loss.Time) > time.Minute {
		t.Errorf("loss %+v, %v, %v; told %q", loss, standing, err, told)
	}
	if n := strings.Count(told, "compared again"); n != 1 {
		t.Errorf("told %d times: %q", n, told)
	}
	aside, _ := filepath.Glob(databasePath(dir) + ".corrupt-*Z")
	if len(aside) > 1 || kept != (len(aside) == 1) {
		t.Errorf("moved aside: %v", aside)
	}
	if kept && !strings.Contains(told, aside[0]) {
		t.Errorf("told %q and not of %s", told, aside[0])
	}
}
