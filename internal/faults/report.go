package faults

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Report is what a run was and what it found.
type Report struct {
	Seed     uint64
	Pushes   int
	Faults   int
	Checked  int // values that had to be somewhere
	Rescued  int // refs below refs/mirror/rescued/
	Lost     int
	Duration time.Duration
	Tally    map[string]int // what happened how often

	Problems []string // empty: all is well
	History  []string // of a run with problems, the end
	Kept     string   // and where the rest is
}

// String is the report for people.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d pushes made, %d faults injected, %d values checked, %d rescued, %d lost, in %s\n",
		r.Seed, r.Pushes, r.Faults, r.Checked, r.Rescued, r.Lost, r.Duration)
	for _, key := range slices.Sorted(maps.Keys(r.Tally)) {
		fmt.Fprintf(&b, "%8d %s\n", r.Tally[key], key)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "PROBLEM %s\n", p)
	}
	if len(r.Problems) > 0 {
		fmt.Fprintf(&b, "the end of the history:\n")
		for _, line := range r.History {
			fmt.Fprintf(&b, "  %s\n", line)
		}
		fmt.Fprintf(&b, "once more: make faults SEED=%d\n", r.Seed)
	}
	if r.Kept != "" {
		fmt.Fprintf(&b, "history, logs and repositories: %s\n", r.Kept)
	}
	return b.String()
}

// tally counts what happens.
type tally struct {
	mu    sync.Mutex
	count map[string]int
}

func newTally() *tally { return &tally{count: map[string]int{}} }

func (t *tally) add(what string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count[what] += n
}

func (t *tally) all() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.count)
}

// history is what happened in which order, in a file.
type history struct {
	mu    sync.Mutex
	file  *os.File
	began time.Time
	lines []string
}

func openHistory(path string) (*history, error) {
	file, err := os.Create(path)
	return &history{file: file, began: time.Now()}, err
}

func (h *history) add(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	line := fmt.Sprintf("%s %8.3f ", now.UTC().Format("15:04:05.000"), now.Sub(h.began).Seconds()) + oneLine(fmt.Sprintf(format, args...))
	h.lines = append(h.lines, line)
	fmt.Fprintln(h.file, line)
}

func (h *history) last(n int) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.lines[max(0, len(h.lines)-n):])
}

func (h *history) close() { h.file.Close() }
