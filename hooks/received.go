package hooks

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/refset"
)

// received records on a slave what a mirror push of the master has set: a value
// that stands here later and is not on record is somebody's work of this server,
// and must not be lost when the master pushes again.
func (h *Hook) received() error {
	updates, err := io.ReadAll(h.Stdin)
	if err != nil {
		return err
	}
	if err := h.giveBack(updates); err != nil {
		return err
	}
	entries, err := parseUpdates(updates)
	if err != nil {
		return err
	}
	file := refset.Received(h.Dir)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(file+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	log, err := refset.Open(file)
	if err != nil {
		return err
	}
	return errors.Join(log.Confirm(entries), log.Close())
}

// parseUpdates reads what git gives to post-receive: OLD SP NEW SP REF LF for
// each ref that was changed.
func parseUpdates(updates []byte) ([]refset.Entry, error) {
	var entries []refset.Entry
	for line := range strings.Lines(string(updates)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || !strings.HasSuffix(line, "\n") {
			return nil, fmt.Errorf("git told post-receive %.120q", line)
		}
		entries = append(entries, refset.Entry{Ref: fields[2], OID: fields[1]})
	}
	return entries, nil
}

// giveBack makes what was read from standard input readable again, for the next
// hook.
func (h *Hook) giveBack(data []byte) error {
	fd, err := unix.MemfdCreate("updates", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("keep the updates for the next hook: %w", err)
	}
	file := os.NewFile(uintptr(fd), "updates")
	defer file.Close()
	if _, err := io.Copy(file, bytes.NewReader(data)); err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return unix.Dup3(fd, int(h.Stdin.Fd()), 0)
}
