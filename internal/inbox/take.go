package inbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// batch bounds one Take, and with it the size of one database transaction.
const batch = 1000

// abandonedAfter is the age at which a half-written file can only belong to a hook
// that was killed.
const abandonedAfter = 24 * time.Hour

// ErrBad is wrapped by the errors that report a file which is not an event.
var ErrBad = errors.New("not a usable event file")

// errRead marks a failure of the machine rather than of the file: the file may be read later.
var errRead = errors.New("cannot be read now")

// Take hands up to a thousand events, oldest first, to commit, which must store them
// durably or fail as a whole; it is not called when there are none. After a nil from commit the
// files are removed and n is their number. After an error they are put back and the
// error is returned with n = 0; those that cannot even be put back wait in taken/ for Replay.
//
// A file that is not an event never holds up the others: it is moved to bad/ and reported
// by an error that wraps ErrBad, possibly beside n > 0.
func (b *Inbox) Take(commit func([]Event) error) (n int, err error) {
	names, err := b.List()
	if err != nil || len(names) == 0 {
		return 0, err
	}
	if err := makeDirs(b.takenDir()); err != nil {
		return 0, fmt.Errorf("take events: %w", err)
	}
	taken, events, problem := b.claim(names[:min(len(names), batch)])
	if len(events) == 0 {
		return 0, problem
	}
	if err := commit(events); err != nil {
		errs := []error{problem, fmt.Errorf("commit %d events: %w", len(events), err)}
		for _, name := range taken {
			errs = append(errs, b.putBack(name))
		}
		return 0, errors.Join(errs...)
	}
	errs := []error{problem}
	for _, name := range taken {
		err := os.Remove(filepath.Join(b.takenDir(), name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove committed event: %w", err))
		}
	}
	return len(events), errors.Join(errs...)
}

// claim moves files into taken/ and reads them; taken[i] is the name of events[i]. Files
// that another taker won are skipped silently.
func (b *Inbox) claim(names []string) (taken []string, events []Event, err error) {
	var errs []error
	for _, name := range names {
		path := filepath.Join(b.takenDir(), name)
		err := os.Rename(filepath.Join(b.dir, name), path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take event: %w", err))
			continue
		}
		event, err := readEvent(path)
		switch {
		case err == nil:
			taken, events = append(taken, name), append(events, event)
		case errors.Is(err, errRead):
			errs = append(errs, fmt.Errorf("event %s %w", name, err), b.putBack(name))
		default:
			errs = append(errs, b.setAside(name, err))
		}
	}
	return taken, events, errors.Join(errs...)
}

// readEvent reads one file. Its errors are about the file, unless they wrap errRead.
func readEvent(path string) (Event, error) {
	id, ok := idOf(filepath.Base(path))
	if !ok {
		return Event{}, errors.New("its name is not NANOSECONDS-ID.json")
	}
	// NONBLOCK and NOFOLLOW: neither a fifo nor a link may hold up the worker.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return Event{}, err
	}
	if err != nil {
		return Event{}, fmt.Errorf("%w: %w", errRead, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return Event{}, fmt.Errorf("%w: %w", errRead, err)
	} else if !info.Mode().IsRegular() {
		return Event{}, fmt.Errorf("it is not a regular file (%s)", info.Mode().Type())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxEventBytes+1))
	if err != nil {
		return Event{}, fmt.Errorf("%w: %w", errRead, err)
	}
	if len(data) > maxEventBytes {
		return Event{}, fmt.Errorf("it is larger than %d bytes", maxEventBytes)
	}
	event, err := parse(data)
	event.ID = id
	return event, err
}

// setAside moves a file that is not an event from taken/ to bad/ and returns the report.
func (b *Inbox) setAside(name string, cause error) error {
	bad := filepath.Join(b.badDir(), name)
	err := makeDirs(b.badDir())
	if err == nil {
		err = os.Rename(filepath.Join(b.takenDir(), name), bad)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w; it cannot be moved aside: %w", ErrBad, name, cause, err)
	}
	return fmt.Errorf("%w: %w; kept as %s, look at it and remove it", ErrBad, cause, bad)
}

func (b *Inbox) putBack(name string) error {
	err := os.Rename(filepath.Join(b.takenDir(), name), filepath.Join(b.dir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put event back: %w", err)
	}
	return nil
}

// Replay puts the events that a killed worker had taken back into the inbox, and removes what
// killed hooks left half written. Only the holder of the worker lock may call it.
// An event that somebody else is committing at this moment is then delivered twice, which is harmless.
func (b *Inbox) Replay() error {
	names, err := listFiles(b.takenDir())
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, b.putBack(name))
	}
	errs = append(errs, b.removeAbandoned(time.Now().Add(-abandonedAfter)))
	return errors.Join(errs...)
}

func (b *Inbox) removeAbandoned(before time.Time) error {
	entries, err := os.ReadDir(b.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for abandoned events: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasPrefix(name, ".") || !strings.HasSuffix(name, ".tmp") {
			continue
		}
		if info, err := entry.Info(); err == nil && info.ModTime().Before(before) {
			os.Remove(filepath.Join(b.dir, name)) // tried again at the next start
		}
	}
	return nil
}
