package inbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"mirror-shell/internal/durable"
)

// Notice is something that a light program found out and that a person is to be
// told. A hook cannot tell it itself: that may take half a minute, and the user waits.
type Notice struct {
	ID         string    `json:"-"` // 8 hexadecimal digits, part of the file's name
	Kind       string    `json:"kind"`
	Repository string    `json:"repository,omitempty"`
	Peer       string    `json:"peer,omitempty"` // the server that it is about, or that pushed
	Refs       []string  `json:"refs,omitempty"` // full names
	Time       time.Time `json:"time"`
}

// NoticeRescued is the kind of a notice that commits were kept which a mirror
// push would have destroyed; Refs are where they are now.
const NoticeRescued = "rescued"

// maxNoticeRefs bounds the refs of a notice, maxNoticeBytes its file. Whoever reads about a hundred refs
// has to look at the server anyway.
const (
	maxNoticeRefs  = 100
	maxNoticeBytes = 1 << 20
)

// PutNotice stores a notice for the worker to deliver. When it returns nil the
// notice survives a power cut. A zero Time means now; Notice.ID is ignored; of
// Refs the first hundred are kept. Waking the worker is the caller's business: without a
// ring it finds the notice within a minute.
func PutNotice(stateDir string, n Notice) error {
	if n.Time.IsZero() {
		n.Time = time.Now()
	}
	n.Time = n.Time.UTC().Round(0)
	n.Refs = n.Refs[:min(len(n.Refs), maxNoticeRefs)]
	err := n.validate()
	if err == nil {
		var data []byte
		if data, err = json.Marshal(n); err == nil {
			_, err = put(noticesDir(stateDir), append(data, '\n'))
		}
	}
	if err != nil {
		return fmt.Errorf("put notice of %q: %w", n.Repository, err)
	}
	return nil
}

func noticesDir(stateDir string) string { return filepath.Join(stateDir, "notices") }

func (n Notice) validate() error {
	if len(n.Kind) > 30 || strings.Trim(n.Kind, "abcdefghijklmnopqrstuvwxyz") != "" || n.Kind == "" {
		return fmt.Errorf("notice of kind %q: write a word in lower case", n.Kind)
	}
	for _, c := range []struct{ what, name string }{{"repository", n.Repository}, {"peer", n.Peer}} {
		if c.name == "" {
			continue // not about one
		}
		if err := checkName(c.what, c.name); err != nil {
			return err
		}
	}
	for _, ref := range n.Refs {
		if err := checkName("ref", ref); err != nil {
			return err
		}
	}
	if n.Time.IsZero() {
		return errors.New("notice has no time")
	}
	return nil
}

// TakeNotices hands up to a thousand notices, oldest first, to commit, which must
// store them durably or fail as a whole; it is not called when there are none. After a
// nil from commit the files are removed. Only one process may take at a time. A notice
// is delivered at least once, and twice with the same ID when its file outlived the commit. A file that is not
// a notice is moved to notices/bad/ and reported by an error that wraps ErrBad.
func TakeNotices(stateDir string, commit func([]Notice) error) error {
	dir := noticesDir(stateDir)
	names, err := listFiles(dir)
	if err != nil || len(names) == 0 {
		return err
	}
	errs := []error{removeAbandoned(dir, time.Now().Add(-abandonedAfter))}
	var notices []Notice
	var taken []string
	for _, name := range names[:min(len(names), batch)] {
		n, err := readNotice(filepath.Join(dir, name))
		switch {
		case err == nil:
			notices, taken = append(notices, n), append(taken, filepath.Join(dir, name))
		case errors.Is(err, errRead):
			errs = append(errs, fmt.Errorf("notice %s %w", name, err))
		default:
			errs = append(errs, setNoticeAside(dir, name, err))
		}
	}
	if len(notices) > 0 {
		if err := commit(notices); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	for _, path := range taken {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove a notice that was taken: %w", err))
		}
	}
	return errors.Join(errs...)
}

// HasNotices reports whether any notice waits.
func HasNotices(stateDir string) bool {
	names, err := listFiles(noticesDir(stateDir))
	return err != nil || len(names) > 0
}

func readNotice(path string) (Notice, error) {
	id, data, err := readLetter(path, maxNoticeBytes)
	if err != nil {
		return Notice{}, err
	}
	var n Notice
	if !utf8.Valid(data) {
		return n, errors.New("not valid UTF-8")
	}
	if err := json.Unmarshal(data, &n); err != nil { // members of a newer version say more, not something else
		return n, fmt.Errorf("not a notice: %w", err)
	}
	n.ID = id
	return n, n.validate()
}

func setNoticeAside(dir, name string, cause error) error {
	bad := filepath.Join(dir, "bad")
	err := durable.MakeDirs(bad)
	if err == nil {
		err = os.Rename(filepath.Join(dir, name), filepath.Join(bad, name))
	}
	if err != nil {
		return fmt.Errorf("file %s is not a notice (%w) and cannot be moved aside: %w", name, cause, err)
	}
	return fmt.Errorf("%w: notice: %w; kept as %s, look at it and remove it", ErrBad, cause, filepath.Join(bad, name))
}
