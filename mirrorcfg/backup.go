package mirrorcfg

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"mirror-shell/internal/lazyregexp"
)

// PeerConfig describes a peer that is more than an ssh host alias.
type PeerConfig struct {
	Kind string `toml:"kind"` // "ssh" (the default) or "backup"
	Backup
}

// Backup is what a peer of kind "backup" is, as the keys of its section.
type Backup struct {
	// URL is where snapshots are kept: s3://BUCKET?…, file:///DIRECTORY or the bare path.
	URL string `toml:"url"`
	// CredentialsFile holds what lets us in; "": the store's own rules.
	CredentialsFile string `toml:"credentials_file"`

	// Lock is for how long the store must refuse to delete what a snapshot needs; 0: not at all.
	Lock     Duration `toml:"lock"`
	LockMode string   `toml:"lock_mode"` // "governance" or "compliance"; "" when Lock is 0

	// Recipients and the lines of RecipientsFile encrypt all content; neither: nothing is encrypted.
	// IdentityFile has the keys that decrypt.
	Recipients     []string `toml:"recipients"`
	RecipientsFile string   `toml:"recipients_file"`
	IdentityFile   string   `toml:"identity_file"`

	// Include and Exclude are globs of paths in a repository's directory; Include nil: the usual files.
	Include []string `toml:"include"`
	Exclude []string `toml:"exclude"`

	// Schedule is when mirrord backs every repository up; "": only after pushes and by command.
	Schedule string `toml:"schedule"`
	// Limits on what is asked of the store at a time; 0: none, for Concurrency the store's own.
	BytesPerSecond    ByteSize `toml:"bytes_per_second"`
	RequestsPerSecond int      `toml:"requests_per_second"`
	Concurrency       int      `toml:"concurrency"`

	// Grace is how long nothing is deleted that may still come into use.
	Grace Duration `toml:"grace"`
	// What prune keeps when it is not told otherwise; all 0: it has to be told.
	KeepLast    int      `toml:"keep_last"`
	KeepHourly  int      `toml:"keep_hourly"`
	KeepDaily   int      `toml:"keep_daily"`
	KeepWeekly  int      `toml:"keep_weekly"`
	KeepMonthly int      `toml:"keep_monthly"`
	KeepYearly  int      `toml:"keep_yearly"`
	KeepWithin  Duration `toml:"keep_within"`
}

// backupKeys are the keys of a peer's section that only a backup has.
var backupKeys = strings.Fields("url credentials_file lock lock_mode recipients recipients_file identity_file include exclude schedule bytes_per_second requests_per_second concurrency grace keep_last keep_hourly keep_daily keep_weekly keep_monthly keep_yearly keep_within")

// ByteSize is a number of bytes, written as one or as "10MB", "512KiB".
type ByteSize int64

// byteUnits are powers of 1000, with an i of 1024.
var byteUnits = map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}

var byteSize = lazyregexp.New(`^([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([KMGTkmgt]?i?[Bb]?)$`)

// UnmarshalTOML reads an integer or a string.
func (b *ByteSize) UnmarshalTOML(value any) error {
	switch v := value.(type) {
	case int64:
		if v < 0 {
			return fmt.Errorf("%d is no size: write a number of bytes, or one with a unit like \"10MB\"", v)
		}
		*b = ByteSize(v)
		return nil
	case string:
		size, err := ParseByteSize(v)
		*b = size
		return err
	}
	return fmt.Errorf("%v is no size: write a number of bytes, or one with a unit like \"10MB\"", value)
}

// ParseByteSize reads "1000", "10MB" (10,000,000), "512KiB" (524,288), in letters of either case. A fraction of a byte
// is dropped.
func ParseByteSize(text string) (ByteSize, error) {
	bad := fmt.Errorf("%.40q is no size: write a number of bytes, or one with a unit like \"10MB\" or \"512KiB\"", text)
	m := byteSize.FindStringSubmatch(text)
	if m == nil {
		return 0, bad
	}
	unit, ok := byteUnits[strings.ToUpper(m[2])]
	n, err := strconv.ParseFloat(m[1], 64)
	if !ok || err != nil || n*unit > math.MaxInt64/2 {
		return 0, bad
	}
	return ByteSize(n * unit), nil
}

// minGrace is less than which no backup of a large repository could take.
const minGrace = time.Hour

// checkKindKeys refuses the keys of another kind: whoever writes recipients into the section of an ssh peer would think
// that something is encrypted.
func (s *Server) checkKindKeys(md toml.MetaData) error {
	for name, p := range s.Peers {
		if p.Kind != "" && p.Kind != "ssh" {
			continue
		}
		for _, key := range backupKeys {
			if md.IsDefined("peer", name, key) {
				return fmt.Errorf("peer.%s.%s: only a peer with kind = \"backup\" has it; an ssh peer is reached by its name, an alias in ssh_config: take %s out, or set the kind", name, key, key)
			}
		}
	}
	return nil
}

// check fills in what is not set, makes paths absolute and refuses what cannot be. Errors begin with
// the key.
func (b *Backup) check() error {
	if err := b.checkPlace(); err != nil {
		return err
	}
	for key, file := range map[string]*string{"credentials_file": &b.CredentialsFile, "recipients_file": &b.RecipientsFile, "identity_file": &b.IdentityFile} {
		if *file == "" {
			continue
		}
		abs, err := expandHome(*file)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		*file = abs
	}
	for _, r := range b.Recipients {
		if !recipient.MatchString(r) {
			return fmt.Errorf("recipients: %.80q is no public key: write \"age1…\" or \"ssh-ed25519 …\"", hideSecret(r))
		}
	}
	for key, globs := range map[string][]string{"include": b.Include, "exclude": b.Exclude} {
		for _, glob := range globs {
			if CheckGlob(glob) != nil {
				return fmt.Errorf("%s: glob %.80q: write a path in a repository with * ? [a-z] or **, such as \"hooks/**\"", key, glob)
			}
		}
	}
	if b.Schedule != "" && !schedule.MatchString(b.Schedule) {
		return fmt.Errorf("schedule = %.80q: write \"@hourly\", \"@daily\", \"@weekly\", \"@monthly\" or the five fields of cron, such as \"15 3 * * *\"", b.Schedule)
	}
	return errors.Join(b.checkLimits(), b.checkKeep())
}

var (
	// recipient is the shape of what age encrypts to; whether it is one is found out when it is used.
	recipient = lazyregexp.New(`^(age1[0-9a-z]{10,}|ssh-(ed25519|rsa) [0-9A-Za-z+/=]{40,}( [^\n]*)?)$`)
	// schedule is the shape only: the parser would cost every hook a start of its own.
	schedule   = lazyregexp.New(`^(@(hourly|daily|weekly|monthly|yearly|(5|10|15|30)minutes)|[0-9*,/?#A-Za-z-]+( +[0-9*,/?#A-Za-z-]+){4})$`)
	backupS3   = lazyregexp.New(`^s3://[0-9a-z][0-9a-z.-]*[0-9a-z](/[^\s?#]*)?(\?[^\s#]*)?$`)
	backupFile = lazyregexp.New(`^file:///[^?#]+$`)
)

// hideSecret keeps a private key that was written in the wrong place out of messages.
func hideSecret(text string) string {
	if strings.Contains(strings.ToUpper(text), "SECRET") || strings.Contains(text, "PRIVATE") {
		return "(a secret key)"
	}
	return text
}

func (b *Backup) checkPlace() error {
	// The value may carry a password: it is never part of a message.
	switch isS3 := backupS3.MatchString(b.URL); {
	case b.URL == "":
		return errors.New("url is not set: a backup needs a place, such as \"s3://bucket?region=…\"")
	case isS3 || backupFile.MatchString(b.URL):
	case strings.Contains(b.URL, "://"):
		return errors.New("url: write \"s3://BUCKET?region=…\", without user or password (they belong into credentials_file), or \"file:///DIRECTORY\"")
	default:
		abs, err := expandHome(b.URL)
		if err != nil {
			return fmt.Errorf("url: %w, or write \"s3://BUCKET?region=…\"", err)
		}
		b.URL = abs
	}
	switch {
	case b.Lock == 0 && b.LockMode != "":
		return errors.New("lock_mode is set, and lock is not: write for how long, such as lock = \"720h\"")
	case b.Lock == 0:
		return nil
	case !strings.HasPrefix(b.URL, "s3://"):
		return errors.New("lock: only a store behind s3:// can refuse to delete: take lock out")
	case time.Duration(b.Lock) < time.Hour:
		return fmt.Errorf("lock = %q: write at least \"1h\" (30 days are \"720h\")", time.Duration(b.Lock))
	case b.LockMode == "":
		b.LockMode = "governance"
	case b.LockMode != "governance" && b.LockMode != "compliance":
		return fmt.Errorf("lock_mode = %.40q: write \"governance\" or \"compliance\"", b.LockMode)
	}
	return nil
}

func (b *Backup) checkLimits() error {
	if b.Grace == 0 {
		b.Grace = Duration(24 * time.Hour)
	}
	switch {
	case b.BytesPerSecond != 0 && b.BytesPerSecond < 1000:
		return fmt.Errorf("bytes_per_second = %d: write at least 1000, or a size like \"10MB\"", b.BytesPerSecond)
	case b.RequestsPerSecond < 0 || b.RequestsPerSecond > 100_000:
		return fmt.Errorf("requests_per_second = %d: write a number up to 100000, or 0 for no limit", b.RequestsPerSecond)
	case b.Concurrency < 0 || b.Concurrency > 256:
		return fmt.Errorf("concurrency = %d: write a number from 1 to 256", b.Concurrency)
	case time.Duration(b.Grace) < minGrace:
		return fmt.Errorf("grace = %q: write at least \"1h\", and more than a backup ever takes", time.Duration(b.Grace))
	case b.KeepWithin < 0:
		return fmt.Errorf("keep_within = %q: write a duration such as \"168h\"", time.Duration(b.KeepWithin))
	}
	return nil
}

func (b *Backup) checkKeep() error {
	for _, keep := range []struct {
		key   string
		count int
	}{{"keep_last", b.KeepLast}, {"keep_hourly", b.KeepHourly}, {"keep_daily", b.KeepDaily}, {"keep_weekly", b.KeepWeekly}, {"keep_monthly", b.KeepMonthly}, {"keep_yearly", b.KeepYearly}} {
		if keep.count < 0 || keep.count > 1_000_000 {
			return fmt.Errorf("%s = %d: write how many are to be kept, 0 for no such rule", keep.key, keep.count)
		}
	}
	return nil
}

// peerKeys lists the keys of a section peer.NAME, for the message about an unknown one.
func (s *Server) peerKeys(name string) string {
	if s.Peers[name].Kind == "backup" {
		return strings.Join(slices.Concat([]string{"kind"}, backupKeys), ", ")
	}
	return "kind; with kind = \"backup\" also " + strings.Join(backupKeys, ", ")
}
