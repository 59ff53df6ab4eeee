package refset

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mirror-shell/internal/durable"
)

// Sending records, before a push, the values it is going to set (zero: a ref it will delete). It
// returns once they are on disk; with an error nothing is recorded, and the push must not begin.
func (l *Log) Sending(entries []Entry) error {
	return l.record(sending, entries)
}

// Seen records that refs were seen to have these values, which are ones that are
// being sent, or absent: they become the likeliest, and no other is forgotten. It does not wait
// for the disk.
func (l *Log) Seen(entries []Entry) error {
	return l.recordAs(sending, entries, false)
}

// Confirm records the values that refs were seen to have at the peer, or that it
// reported to have taken (zero: absent). Only what is news is written.
//
// It ends what is being sent of these refs. A value that was merely seen should therefore be
// confirmed only when no earlier push to the peer can still be at work there.
//
// It does not wait for the disk, as it runs once for every push: if a power cut takes
// such a line away, the earlier lines still cover the value. They say that it was being sent
// (those are on disk), or else it is one that was found at the peer and found
// harmless there, which the next sync will find again.
func (l *Log) Confirm(entries []Entry) error {
	return l.record(confirmed, entries)
}

func (l *Log) record(mark byte, entries []Entry) error {
	return l.recordAs(mark, entries, mark == sending)
}

func (l *Log) recordAs(mark byte, entries []Entry, sync bool) error {
	if len(entries) == 0 {
		return nil
	}
	news, text, err := l.news(mark, entries)
	if err != nil {
		return err
	}
	if err := l.append(text, sync); err != nil {
		return fmt.Errorf("record refs of peer: %w", err)
	}
	for _, e := range news {
		l.apply(mark, e)
	}
	l.lines += len(news)
	l.compactIfDue()
	return nil
}

// news picks the entries that are to be written, and their text.
func (l *Log) news(mark byte, entries []Entry) (news []Entry, text string, err error) {
	latest := make(map[string]string, len(entries))
	var b strings.Builder
	for _, e := range entries {
		if !e.valid() {
			return nil, "", fmt.Errorf("record refs of peer: %q with value %q cannot be written", e.Ref, e.OID)
		}
		before, again := latest[e.Ref]
		if again && before != e.OID {
			return nil, "", fmt.Errorf("record refs of peer: %s is to have two values, %s and %s", e.Ref, before, e.OID)
		}
		latest[e.Ref] = e.OID
		if again || !l.changes(mark, e) {
			continue
		}
		news = append(news, e)
		b.WriteString(formatLine(mark, e))
	}
	return news, b.String(), nil
}

// append adds whole lines, or nothing. With sync it syncs even where there is
// no text: lines read at Open, or confirmed since, may not be on disk yet.
func (l *Log) append(text string, sync bool) error {
	if text == "" && (!sync || l.lines == 0) {
		return nil
	}
	if err := l.openForWriting(); err != nil {
		return err
	}
	if _, err := l.f.WriteAt([]byte(text), l.size); err != nil {
		l.undo()
		return err
	}
	if sync {
		// After a failed sync the kernel may call the next one a success although the
		// data is gone: so take the lines back and write them again next time.
		if err := l.sync(); err != nil {
			l.undo()
			return err
		}
	}
	l.size += int64(len(text))
	return nil
}

// openForWriting makes the file ready for an append at l.size.
func (l *Log) openForWriting() error {
	if l.f == nil {
		if err := MakeDirs(filepath.Dir(l.path)); err != nil {
			return err
		}
		f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		l.f = f
		// A file that was removed since we read it (forget, or a mirror push from a
		// new master) must not be continued in the middle.
		if info, err := f.Stat(); err != nil {
			return err
		} else if info.Size() < l.size {
			return fmt.Errorf("%s was removed or cut by somebody else meanwhile: try again", l.path)
		}
	}
	if l.longer {
		if err := l.f.Truncate(l.size); err != nil {
			return err
		}
		l.longer = false
	}
	return nil
}

// Current reports whether the file is still as this Log left it: nobody else has
// appended, replaced or removed it.
func (l *Log) Current() bool {
	now, err := os.Stat(l.path)
	if err != nil || now.Size() != l.size || l.longer {
		return errors.Is(err, fs.ErrNotExist) && l.size == 0
	}
	if l.f == nil {
		return true
	}
	mine, err := l.f.Stat()
	return err == nil && os.SameFile(mine, now)
}

// undo takes a failed append back, now or before the next one.
func (l *Log) undo() { l.longer = l.f.Truncate(l.size) != nil }

func (l *Log) sync() error {
	if err := l.f.Sync(); err != nil {
		return err
	}
	if !l.dirSynced {
		if err := durable.SyncDir(filepath.Dir(l.path)); err != nil {
			return err
		}
		l.dirSynced = true
	}
	return nil
}

// Close closes the file. Its error may be that of a compaction which failed
// earlier: nothing is lost by that, but the file goes on growing.
func (l *Log) Close() error {
	err := l.compactErr
	if l.f != nil {
		err = errors.Join(err, l.f.Close())
		l.f = nil
	}
	return err
}

// spareLines is how many superfluous lines are not worth a compaction, beyond as many as are needed.
const spareLines = 1000

func (l *Log) compactIfDue() {
	// Every ref known needs a line at least; this spares counting after each push.
	if l.lines <= 2*len(l.known)+l.spare || l.lines < l.compactAfter {
		return
	}
	live := 0
	for _, k := range l.known {
		live += len(k.sending)
		if k.confirmed != "" {
			live++
		}
	}
	if l.lines <= 2*live+l.spare {
		return
	}
	if l.compactErr = l.compact(live); l.compactErr != nil {
		l.compactErr = fmt.Errorf("compact record of peer's refs: %w", l.compactErr)
		l.compactAfter = l.lines + l.spare
	}
}

// compact replaces the file by one that says the same in fewest lines. If it
// fails, the old file stands as it was.
func (l *Log) compact(live int) error {
	tmp := l.path + tmpSuffix
	size, err := l.writeCompact(tmp)
	if err != nil {
		_ = os.Remove(tmp) // what is left is overwritten by the next attempt
		return err
	}
	if err := os.Rename(tmp, l.path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	old := l.f
	l.f, l.size, l.lines, l.longer = nil, size, live, false
	// Until the directory is synced a power cut may bring the old file back, and what
	// is appended to the new one would be lost: the next Sending tries again.
	l.dirSynced = false
	if err := durable.SyncDir(filepath.Dir(l.path)); err != nil {
		return errors.Join(err, old.Close())
	}
	l.dirSynced = true
	return old.Close()
}

const tmpSuffix = ".tmp"

func (l *Log) writeCompact(path string) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriter(f)
	put := func(mark byte, ref, oid string) {
		n, _ := w.WriteString(formatLine(mark, Entry{ref, oid})) // Flush returns its error
		size += int64(n)
	}
	for _, ref := range slices.Sorted(maps.Keys(l.known)) {
		k := l.known[ref]
		if k.confirmed != "" {
			put(confirmed, ref, k.confirmed)
		}
		for _, oid := range k.sending {
			put(sending, ref, oid)
		}
	}
	return size, errors.Join(w.Flush(), f.Sync(), f.Close())
}
