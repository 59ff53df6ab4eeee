package inbox

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"mirror-shell/internal/durable"
)

// Lack says that a peer has gone without something for longer than is normal.
// With Repository it is what the peer lacks of it; without, the peer cannot be
// reached at all.
type Lack struct {
	Repository string    `json:"repository,omitempty"`
	Peer       string    `json:"peer"`
	Since      time.Time `json:"since"`
	Why        string    `json:"why"` // one line
}

// Text is one line for people: "sam has not had ip1 since 2026-11-20 (3 days): disk full".
func (l Lack) Text(now time.Time) string {
	what := "has not had " + l.Repository
	if l.Repository == "" {
		what = "has not been reached"
	}
	text := fmt.Sprintf("%s %s since %s", l.Peer, what, When(l.Since, now))
	if l.Why != "" {
		text += ": " + l.Why
	}
	return text
}

// When writes a moment in the past for people, with its age: "2026-11-20 (3 days)", or
// "2026-11-20 03:55 UTC (2 hours)" when it is less than two days ago.
func When(t, now time.Time) string {
	t = t.UTC()
	switch age := now.Sub(t); {
	case age >= 48*time.Hour:
		return fmt.Sprintf("%s (%d days)", t.Format("2006-01-02"), int(age.Hours())/24)
	case age >= 2*time.Hour:
		return fmt.Sprintf("%s UTC (%d hours)", t.Format("2006-01-02 15:04"), int(age.Hours()))
	case age >= 2*time.Minute:
		return fmt.Sprintf("%s UTC (%d minutes)", t.Format("2006-01-02 15:04"), int(age.Minutes()))
	default:
		return fmt.Sprintf("%s UTC (%d seconds)", t.Format("2006-01-02 15:04"), max(0, int(age.Seconds())))
	}
}

// Behind returns what the worker wrote about a repository, and about the peers
// named that cannot be reached at all; peers that the first names are not named again. In the
// good case it costs one failed open.
func Behind(stateDir, repository string, peers []string) ([]Lack, error) {
	dir := behindDir(stateDir)
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d.Close()
	lacks, err := readLacks(filepath.Join(dir, Lack{Repository: repository}.key()))
	errs := []error{err}
	for _, peer := range peers {
		if slices.ContainsFunc(lacks, func(l Lack) bool { return l.Peer == peer }) {
			continue
		}
		down, err := readLacks(filepath.Join(dir, Lack{Peer: peer}.key()))
		lacks, errs = append(lacks, down...), append(errs, err)
	}
	return lacks, errors.Join(errs...)
}

// SetBehind makes the files say exactly this. What says so already is not
// written again, and with no lacks the directory goes. Only one process may set at a time.
func SetBehind(stateDir string, lacks []Lack) error {
	dir := behindDir(stateDir)
	want := map[string][]Lack{}
	for _, l := range lacks {
		l.Since = l.Since.UTC().Round(0)
		want[l.key()] = append(want[l.key()], l)
	}
	there, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("say what is behind: %w", err)
	}
	var errs []error
	for _, entry := range there {
		if want[entry.Name()] == nil {
			errs = append(errs, os.Remove(filepath.Join(dir, entry.Name())))
		}
	}
	for key, lacks := range want {
		errs = append(errs, writeLacks(dir, key, lacks))
	}
	if err == nil && len(want) == 0 {
		errs = append(errs, os.Remove(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("say what is behind: %w", err)
	}
	return nil
}

func behindDir(stateDir string) string { return filepath.Join(stateDir, "behind") }

// key is the name of the file that a lack stands in: of its repository, else of its peer. It is a
// hash, because a repository's name may be longer than a file's, and has slashes.
func (l Lack) key() string {
	name := "repository " + l.Repository
	if l.Repository == "" {
		name = "peer " + l.Peer
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(name)))[:32]
}

func readLacks(path string) ([]Lack, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var lacks []Lack
	if err := json.Unmarshal(data, &lacks); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return lacks, nil
}

func writeLacks(dir, key string, lacks []Lack) error {
	path := filepath.Join(dir, key)
	if old, err := readLacks(path); err == nil && slices.EqualFunc(old, lacks, Lack.equal) {
		return nil
	}
	data, err := json.Marshal(lacks)
	if err == nil {
		err = durable.MakeDirs(dir)
	}
	if err != nil {
		return err
	}
	// Not fsynced: a peer that goes down is behind with ten thousand repositories at once, and
	// after a power cut the next SetBehind writes again what cannot be read.
	temp := filepath.Join(dir, "."+key+".tmp")
	if err := os.WriteFile(temp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func (l Lack) equal(o Lack) bool {
	return l.Repository == o.Repository && l.Peer == o.Peer && l.Why == o.Why && l.Since.Equal(o.Since)
}
