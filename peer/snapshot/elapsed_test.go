package snapshot

import (
	"testing"
	"time"
	"unsafe"
)

// A machine that was suspended, or whose clock was set, does not hide that time has passed.
func TestElapsed(t *testing.T) {
	start := time.Now()
	if d := elapsed(start, start.Add(time.Hour)); d != time.Hour {
		t.Error(d)
	}
	// The clock on the wall goes on in a suspended machine, that of the process does not.
	woken := start
	(*[2]int64)(unsafe.Pointer(&woken))[0] += 3600 << 30 // seconds since 1885, behind a bit that says that both are there
	if woken.Sub(start) != 0 || woken.Round(0).Sub(start.Round(0)) != time.Hour {
		t.Skip("a time.Time looks otherwise in this version of Go")
	}
	if d := elapsed(start, woken); d != time.Hour {
		t.Error(d)
	}
	if d := elapsed(woken, start.Add(time.Minute)); d != time.Minute {
		t.Error("set back:", d)
	}
}
