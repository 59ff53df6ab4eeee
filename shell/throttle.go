package shell

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// throttle keeps a log from being filled by people who need no key for it: the
// first lines are written at once, then one in a while. What was left out is
// counted in the next one.
type throttle struct {
	mu      sync.Mutex
	used    int // of the burst
	since   time.Time
	leftOut int
}

const (
	throttleBurst = 20
	throttleEvery = 10 * time.Second // about a megabyte a day
)

// log writes a line, or counts it.
func (t *throttle) log(l *slog.Logger, level slog.Level, message string, args ...any) {
	leftOut, ok := t.take(time.Now())
	if !ok {
		return
	}
	if leftOut > 0 {
		args = append(args, "similar_lines_left_out", leftOut)
	}
	l.Log(context.Background(), level, message, args...)
}

// take reports whether a line may be written now, and how many before it were
// not.
func (t *throttle) take(now time.Time) (leftOut int, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if regained := int(now.Sub(t.since) / throttleEvery); regained > 0 {
		t.used, t.since = max(0, t.used-regained), now
	}
	if t.used >= throttleBurst {
		t.leftOut++
		return 0, false
	}
	t.used++
	leftOut, t.leftOut = t.leftOut, 0
	return leftOut, true
}
