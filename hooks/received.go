package hooks

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/proc"
	"mirror-shell/internal/refset"
	"mirror-shell/internal/sendpack"
	"mirror-shell/mirrorcfg"
)

// record is a slave's memory of what the mirror pushes of its master have set. A
// value that stands here later and is not on record is somebody's work of this
// server, and must not be lost when the master pushes again.
//
// It is a cache. Without it every value counts as somebody's, which costs a question
// to git, and perhaps a rescued ref too many; never a commit, and never a push.
type record struct {
	log  *refset.Log // nil: can be neither read nor written now
	lock *os.File
}

// openRecord locks and loads the record. When the error is not nil, the record
// may be less than it was, but can be used.
func openRecord(dir string) (*record, error) {
	file := refset.Received(dir)
	if err := refset.MakeCacheDirs(filepath.Dir(file)); err != nil {
		return &record{}, err
	}
	lock, err := lockRecord(file)
	if err != nil {
		return &record{}, err
	}
	log, err := refset.Open(file)
	var corrupt *refset.CorruptError
	if errors.As(err, &corrupt) {
		aside := file + ".corrupt-" + time.Now().UTC().Format("20060102T150405.000Z")
		if moved := os.Rename(file, aside); moved != nil {
			return &record{lock: lock}, errors.Join(err, moved)
		}
		err = fmt.Errorf("it was damaged, and begins anew: %w: it is kept as %s", err, aside)
		fresh, again := refset.Open(file)
		return &record{fresh, lock}, errors.Join(err, again)
	}
	return &record{log, lock}, err
}

// lockPatience is how long the record's lock is waited for. It is held for
// milliseconds; a process that hangs with it must not make every push hang.
const lockPatience = 10 * time.Second

// lockRecord opens the record's lock file and locks it.
func lockRecord(record string) (*os.File, error) {
	lock, err := os.OpenFile(record+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return lock, nil
		case errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline), errors.Is(err, unix.EINTR):
		default:
			return nil, errors.Join(fmt.Errorf("lock %s: %w", lock.Name(), err), lock.Close())
		}
	}
}

// ours reports whether a ref having this value is the master's doing.
func (r *record) ours(ref, oid string) bool { return r.log != nil && r.log.Ours(ref, oid) }

func (r *record) close() error {
	var errs []error
	if r.log != nil {
		errs = append(errs, r.log.Close())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
		r.lock = nil
	}
	return errors.Join(errs...)
}

// sending records, before the refs are changed, what the push will set: were we to
// die between that and post-receive, the master's own work would look like somebody's.
func (r *record) sending(updates []update) error {
	if r.log == nil {
		return nil // this has been told
	}
	return r.log.Sending(entries(updates))
}

// received records in post-receive what a mirror push of the master has set.
func (h *Hook) received(server *mirrorcfg.Server) error {
	updates, err := h.updates()
	if err != nil {
		return err
	}
	r, err := openRecord(h.Dir)
	if r.log != nil {
		if err != nil {
			h.warn(server, recordTrouble, err)
		}
		err = r.log.Confirm(entries(updates))
	}
	return errors.Join(err, r.close())
}

const recordTrouble = "the record of what the master has set here"

// warn tells the log and who pushes what went wrong and is no reason to stop.
func (h *Hook) warn(server *mirrorcfg.Server, what string, err error) {
	logError(server, what, err, "repository", h.Dir, "peer", h.Peer)
	fmt.Fprintf(h.Stderr, "mirror-shell: %s: %s: %s\n", server.Hostname, proc.OneLine(what, 500), proc.OneLine(err.Error(), 500))
}

// update is one ref of a push, as git tells it to the hooks.
type update struct{ old, new, ref string }

// entries are the updates as the record wants them. Names that git is going to
// refuse, after pre-receive, are left out.
func entries(updates []update) []refset.Entry {
	list := make([]refset.Entry, 0, len(updates))
	for _, u := range updates {
		if sound(u.ref) {
			list = append(list, refset.Entry{Ref: u.ref, OID: u.new})
		}
	}
	return list
}

// sound holds for the names that git accepts in a push.
func sound(ref string) bool { return strings.HasPrefix(ref, "refs/") && sendpack.ValidRef(ref) }

// updates reads standard input, and makes it readable again for the next hook.
func (h *Hook) updates() ([]update, error) {
	text, err := io.ReadAll(h.Stdin)
	if err != nil {
		return nil, err
	}
	if err := h.giveBack(text); err != nil {
		return nil, err
	}
	return parseUpdates(text)
}

// parseUpdates reads what git gives to both hooks: OLD SP NEW SP REF LF for
// each ref. In pre-receive a name has not been checked yet, and may be anything but a
// line's end.
func parseUpdates(text []byte) ([]update, error) {
	var list []update
	for line := range strings.Lines(string(text)) {
		body, whole := strings.CutSuffix(line, "\n")
		fields := strings.SplitN(body, " ", 3)
		if len(fields) != 3 || !whole || !isOID(fields[0]) || !isOID(fields[1]) || fields[2] == "" {
			return nil, fmt.Errorf("git told the hook %.120q", line)
		}
		list = append(list, update{fields[0], fields[1], fields[2]})
	}
	return list, nil
}

func isOID(text string) bool {
	return (len(text) == 40 || len(text) == 64) && strings.Trim(text, "0123456789abcdef") == ""
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
