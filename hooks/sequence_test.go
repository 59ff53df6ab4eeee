package hooks

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
)

// A process of the slave that hangs with the record's lock.
func TestRecordLocked(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	lock, err := os.OpenFile(refset.Received(dir)+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var warned []string
	p := w.quickPush(dir, "sam", &warned)
	done := make(chan bool)
	go func() {
		p.Begin(t.Context(), []sendpack.Command{{Ref: "refs/heads/main", Old: w.oid, New: strings.Repeat("1", 40)}})
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("Begin waits without end")
	}
	lock.Close()
	<-done
}

// When a push is done, others may get at the record.
func TestDoneUnlocks(t *testing.T) {
	w := newWorld(t)
	dir, _ := w.slave()
	var warned []string
	p := w.quickPush(dir, "sam", &warned)
	if _, err := p.Begin(t.Context(), []sendpack.Command{{Ref: "refs/heads/x", Old: zero, New: w.oid}}); err != nil {
		t.Fatal(err)
	}
	p.Done()
	lock, _ := os.OpenFile(refset.Received(dir)+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Errorf("after Done the record is still locked: %v", err)
	}
}

// A deletion of a value that does not exist on the slave (T was dropped there and pruned), while
// somebody makes the ref anew with W between the hook and git's transaction.
func TestDeletionOfNothing(t *testing.T) {
	w := newWorld(t)
	dir, clone := w.slave()
	gone := strings.Repeat("1", 40)
	var warned []string
	p := w.quickPush(dir, "sam", &warned)
	alone, err := p.Begin(t.Context(), []sendpack.Command{{Ref: "refs/heads/topic", Old: gone, New: zero}})
	t.Log(alone, err)
	if err != nil {
		return // would be right
	}
	// the pack is on its way; somebody commits on the slave
	only := w.local(dir, clone, "refs/heads/topic")
	// now git gets the commands, as talk does
	pkt := func(s string) string { return fmtPkt(s) }
	in := pkt(gone+" "+zero+" refs/heads/topic\x00report-status atomic") + "0000"
	out := w.receivePack(dir, in)
	t.Logf("%q", out)
	p.Done()
	if got := w.git(dir, "for-each-ref", "--contains", only); got == "" {
		t.Errorf("the commit %s is in no ref, rescued %v", only, w.rescued(dir))
	}
}

func fmtPkt(s string) string {
	const hex = "0123456789abcdef"
	n := len(s) + 4
	return string([]byte{hex[n>>12&15], hex[n>>8&15], hex[n>>4&15], hex[n&15]}) + s
}

func (w *world) receivePack(dir, in string) string {
	cmd := exec.Command("git", "-c", "transfer.hideRefs=refs/mirror", "-c", "core.hooksPath=/dev/null", "receive-pack", dir)
	cmd.Env = w.env("MIRROR_SHELL_PEER=sam")
	cmd.Stdin = strings.NewReader(in)
	out, _ := cmd.CombinedOutput()
	return string(out)
}
