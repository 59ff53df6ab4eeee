package snapshot

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"mirror-shell/internal/lazyregexp"
	"mirror-shell/mirrorcfg"
)

// Name is what a snapshot's key says about it.
type Name struct {
	Repository string
	Time       time.Time // UTC, whole milliseconds
	Digest     string    // of the mirrored refs, 64 hex digits
	State      string    // of all else, 32 hex digits
	Sum        string    // of the manifest as stored, 32 hex digits: identifies the snapshot
	ID         string    // of the run, or ""
	Sealed     bool      // encrypted
}

const (
	lastMilli  = 9999999999999 // in the year 2286
	timeLayout = "20060102T150405.000Z"
)

// CheckID refuses what cannot be the ID of a run.
func CheckID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("ID %q: write 1 to 60 letters, digits, dots, dashes or underscores, beginning with a letter or digit", id)
	}
	return nil
}

var idPattern = lazyregexp.New(`^[0-9A-Za-z][0-9A-Za-z._-]{0,59}$`)

// countdown is the number that sorts newer before older.
func countdown(t time.Time) string { return fmt.Sprintf("%013d", lastMilli-t.UnixMilli()) }

// prefixes of a repository's keys.
func snapshotsOf(repository string) string { return "snapshots/" + repository + ".git/" }
func checksOf(repository string) string    { return "checks/" + repository + ".git/" }
func dataOf(repository string) string      { return "data/" + repository + ".git/" }
func marksOf(repository string) string     { return "marks/" + repository + ".git/" }

// Key returns the key of the snapshot's manifest.
func (n Name) Key() string {
	parts := []string{countdown(n.Time), n.Time.UTC().Format(timeLayout), n.Digest, n.State, n.Sum}
	if n.ID != "" {
		parts = append(parts, n.ID)
	}
	key := snapshotsOf(n.Repository) + strings.Join(parts, "-") + ".json.zst"
	if n.Sealed {
		key += ".age"
	}
	return key
}

var namePattern = lazyregexp.New(`^([0-9]{13})-([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)-([0-9a-f]{64})-([0-9a-f]{32})-([0-9a-f]{32})(?:-([0-9A-Za-z][0-9A-Za-z._-]{0,59}))?\.json\.zst(\.age)?$`)

// ParseName reads a key that Name.Key wrote. Any other is an error.
func ParseName(key string) (Name, error) {
	repository, rest, err := cutRepository(key, "snapshots/")
	if err != nil {
		return Name{}, err
	}
	m := namePattern.FindStringSubmatch(rest)
	if m == nil {
		return Name{}, fmt.Errorf("key %q is not that of a snapshot", key)
	}
	t, err := parseTimes(m[1], m[2])
	if err != nil {
		return Name{}, fmt.Errorf("key %q: %w", key, err)
	}
	return Name{Repository: repository, Time: t, Digest: m[3], State: m[4], Sum: m[5], ID: m[6], Sealed: m[7] != ""}, nil
}

// cutRepository splits PREFIX REPO.git/REST.
func cutRepository(key, prefix string) (repository, rest string, err error) {
	path, ok := strings.CutPrefix(key, prefix)
	repository, rest, found := strings.Cut(path, ".git/")
	if clean, bad := mirrorcfg.CleanRepo(repository); !ok || !found || bad != nil || clean != repository {
		return "", "", fmt.Errorf("key %q has no repository's name", key)
	}
	return repository, rest, nil
}

// parseTimes reads the two forms of a name's time, which must agree.
func parseTimes(down, text string) (time.Time, error) {
	n, err := strconv.ParseInt(down, 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	t := time.UnixMilli(lastMilli - n).UTC()
	if t.Format(timeLayout) != text {
		return time.Time{}, errors.New("its two times differ")
	}
	return t, nil
}

// checkName is what a check's key says.
type checkName struct {
	Repository string
	Time       time.Time
	Kind       string // see the package comment
	Sum        string // of the snapshot
	ID         string
}

func (n checkName) key() string {
	parts := []string{countdown(n.Time), n.Time.UTC().Format(timeLayout), n.Kind, n.Sum}
	if n.ID != "" {
		parts = append(parts, n.ID)
	}
	return checksOf(n.Repository) + strings.Join(parts, "-") + ".json"
}

var checkPattern = lazyregexp.New(`^([0-9]{13})-([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)-([a-z]{1,16})-([0-9a-f]{32})(?:-([0-9A-Za-z][0-9A-Za-z._-]{0,59}))?\.json$`)

func parseCheckName(key string) (checkName, error) {
	repository, rest, err := cutRepository(key, "checks/")
	if err != nil {
		return checkName{}, err
	}
	m := checkPattern.FindStringSubmatch(rest)
	if m == nil {
		return checkName{}, fmt.Errorf("key %q is not that of a check", key)
	}
	t, err := parseTimes(m[1], m[2])
	if err != nil {
		return checkName{}, fmt.Errorf("key %q: %w", key, err)
	}
	return checkName{Repository: repository, Time: t, Kind: m[3], Sum: m[4], ID: m[5]}, nil
}
