package inbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/durable"
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
// files are removed and n is their number. After an error n is 0, and the events are the first of
// this Inbox's next Take.
//
// A file that is not an event never holds up the others: it is moved to bad/ and reported
// by an error that wraps ErrBad, possibly beside n > 0.
func (b *Inbox) Take(commit func([]Event) error) (n int, err error) {
	names, err := b.claim()
	if len(names) == 0 {
		return 0, err
	}
	taken, events, problem := b.read(names)
	errs := []error{err, problem}
	if len(events) == 0 {
		return 0, errors.Join(errs...)
	}
	if err := commit(events); err != nil {
		b.keep(taken...)
		return 0, errors.Join(append(errs, fmt.Errorf("commit %d events: %w", len(events), err))...)
	}
	for _, name := range taken {
		err := os.Remove(filepath.Join(b.takenDir(), name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // delivered once more, at the next start
			errs = append(errs, fmt.Errorf("remove committed event: %w", err))
		}
	}
	return len(events), errors.Join(errs...)
}

// claim returns the names of up to a batch of files in taken/ that are the caller's alone: those kept by an
// earlier Take, then new ones, which it moves there. Files that another taker won are skipped silently.
func (b *Inbox) claim() ([]string, error) {
	ours := b.kept()
	waiting, err := listFiles(b.dir)
	if err != nil || len(waiting) == 0 || len(ours) == batch {
		return ours, err
	}
	if err := durable.MakeDirs(b.takenDir()); err != nil {
		return ours, fmt.Errorf("take events: %w", err)
	}
	var errs []error
	for _, name := range waiting[:min(len(waiting), batch-len(ours))] {
		err := os.Rename(filepath.Join(b.dir, name), filepath.Join(b.takenDir(), name))
		switch {
		case err == nil:
			ours = append(ours, name)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("take event: %w", err))
		}
	}
	return ours, errors.Join(errs...)
}

// kept hands over what keep was given, up to a batch, oldest first.
func (b *Inbox) kept() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := slices.Sorted(maps.Keys(b.again))
	names = names[:min(len(names), batch)]
	for _, name := range names {
		delete(b.again, name)
	}
	return names
}

// keep gives files in taken/ to the next Take.
func (b *Inbox) keep(names ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range names {
		b.again[name] = true
	}
}

// read reads claimed files; taken[i] is the name of events[i]. Those that are not events are
// set aside, and those that cannot be read now are kept.
func (b *Inbox) read(names []string) (taken []string, events []Event, err error) {
	var errs []error
	for _, name := range names {
		event, err := readEvent(filepath.Join(b.takenDir(), name))
		switch {
		case err == nil:
			taken, events = append(taken, name), append(events, event)
		case errors.Is(err, fs.ErrNotExist): // whoever Replay took it from was alive, and committed it
		case errors.Is(err, errRead):
			b.keep(name)
			errs = append(errs, fmt.Errorf("event %s %w", name, err))
		default:
			errs = append(errs, b.setAside(name, err))
		}
	}
	return taken, events, errors.Join(errs...)
}

// readEvent reads one file. Its errors are about the file, unless they wrap errRead.
func readEvent(path string) (Event, error) {
	id, data, err := readLetter(path, maxEventBytes)
	if err != nil {
		return Event{}, err
	}
	event, err := parse(data)
	event.ID = id
	return event, err
}

// readLetter reads a file that put has written, and that holds at most so many bytes. Its errors
// are about the file, unless they wrap errRead.
func readLetter(path string, most int) (id string, data []byte, err error) {
	id, ok := idOf(filepath.Base(path))
	if !ok {
		return "", nil, errors.New("its name is not NANOSECONDS-ID.json")
	}
	// NONBLOCK and NOFOLLOW: neither a fifo nor a link may hold up the worker.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return "", nil, err
	}
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", errRead, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return "", nil, fmt.Errorf("%w: %w", errRead, err)
	} else if !info.Mode().IsRegular() {
		return "", nil, fmt.Errorf("it is not a regular file (%s)", info.Mode().Type())
	}
	if data, err = io.ReadAll(io.LimitReader(f, int64(most)+1)); err != nil {
		return "", nil, fmt.Errorf("%w: %w", errRead, err)
	}
	if len(data) > most {
		return "", nil, fmt.Errorf("it is larger than %d bytes", most)
	}
	return id, data, nil
}

// setAside moves a file that is not an event from taken/ to bad/ and returns the report.
func (b *Inbox) setAside(name string, cause error) error {
	bad := filepath.Join(b.badDir(), name)
	err := durable.MakeDirs(b.badDir())
	if err == nil {
		err = os.Rename(filepath.Join(b.takenDir(), name), bad)
	}
	if err != nil {
		b.keep(name) // a full disk may keep it there for a while; it is no report for ErrBad yet
		return fmt.Errorf("file %s is not an event (%w) and cannot be moved aside: %w", name, cause, err)
	}
	return fmt.Errorf("%w: %w; kept as %s, look at it and remove it", ErrBad, cause, bad)
}

// Replay adopts the events that killed workers had taken: the next Take begins with them. It also
// removes what killed hooks left half written. Only the holder of the worker lock may call it.
// An event that somebody else is committing at this moment is then delivered twice, which is harmless.
func (b *Inbox) Replay() error {
	names, err := listFiles(b.takenDir())
	b.keep(names...)
	return errors.Join(err, b.removeAbandoned(time.Now().Add(-abandonedAfter)))
}

func (b *Inbox) removeAbandoned(before time.Time) error { return removeAbandoned(b.dir, before) }

func removeAbandoned(dir string, before time.Time) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for abandoned files: %w", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasPrefix(name, ".") || !strings.HasSuffix(name, ".tmp") {
			continue
		}
		if info, err := entry.Info(); err == nil && info.ModTime().Before(before) {
			os.Remove(filepath.Join(dir, name)) // tried again at the next start
		}
	}
	return nil
}
