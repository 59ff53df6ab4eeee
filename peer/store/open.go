package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options say which store to open, and how hard it may be used. Limits hold for all
// operations of the opened Store together.
type Options struct {
	// URL is s3://BUCKET[/PREFIX][?PARAMETERS], file:///DIRECTORY, or a directory's
	// absolute path. Parameters are those of Go CDK URLs (region, endpoint, profile,
	// role, dualstack, fips, use_path_style) and insecure=true, which allows an http endpoint
	// that is not on this machine. With an endpoint, buckets are part of the path unless
	// use_path_style=false.
	URL string
	// CredentialsFile holds access key and secret as ~/.aws/credentials does, in the
	// section named by the parameter profile ("default"). Nobody but its owner may read it. It is
	// read at each request, so that a renewed key counts at once. Empty: AWS's chain
	// (environment, ~/.aws, the machine's role).
	CredentialsFile string

	BytesPerSecond    int64   // of blobs' content and all else that is transferred; 0: no limit
	RequestsPerSecond float64 // 0: no limit
	Concurrency       int     // blobs transferred at a time; 0: 8

	// LockMode is how a blob with a time to be retained is locked: "governance" (an
	// administrator with a special right can still remove it), "compliance" (nobody can), or "": it
	// is not, and the Store is no Retainer. A store without object lock refuses the first two at
	// the first such blob; a directory has no lock and refuses them at once.
	LockMode string

	Stall    time.Duration // without a byte moved, a request is given up; 0: one minute
	Attempts int           // at each request that fails for a reason that may pass; 0: 6
	Log      *slog.Logger  // gets a line for each attempt that failed; nil: nobody
}

func (o Options) withDefaults() Options {
	if o.Concurrency <= 0 {
		o.Concurrency = 8
	}
	if o.Stall <= 0 {
		o.Stall = time.Minute
	}
	if o.Attempts <= 0 {
		o.Attempts = 6
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Open opens a store. S3 is asked nothing yet: a missing bucket or a wrong key is the
// error of the first operation. A directory is made when the one above it exists.
func Open(ctx context.Context, o Options) (Store, error) {
	p, err := parsePlace(o.URL)
	if err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if !slices.Contains([]string{"", "governance", "compliance"}, o.LockMode) {
		return nil, fmt.Errorf("lock mode %q: it is governance, compliance or empty", o.LockMode)
	}
	switch p.kind {
	case kindDirectory:
		if o.LockMode != "" {
			return nil, fmt.Errorf("store %s: a directory cannot retain blobs: leave the lock mode away", p.dir)
		}
		return openDirectory(p.dir, o)
	case kindS3:
		return openS3(ctx, p, o)
	}
	panic("unreachable: parsePlace knows the kinds")
}

type kind int

const (
	kindDirectory kind = iota
	kindS3
)

// place is what a store's URL says.
type place struct {
	kind kind
	dir  string // of kindDirectory: absolute and clean

	bucket, prefix string // of kindS3; the prefix is empty or ends in "/"
	endpoint       string // empty: AWS's own
	pathStyle      bool
	profile        string
	params         url.Values // the others, for AWS's configuration
}

// errURL hides what was wrong with a URL, because the text may have a secret in it
// that somebody put where it does not belong.
var errURL = errors.New("the store's URL cannot be read: it is s3://BUCKET/PREFIX?region=REGION, file:///DIRECTORY or an absolute path")

// parsePlace reads a store's URL. Its errors never quote what could be a password.
func parsePlace(text string) (place, error) {
	if strings.HasPrefix(text, "/") {
		return directoryPlace(text)
	}
	u, err := url.Parse(text)
	if err != nil || u.Opaque != "" {
		return place{}, errURL
	}
	if u.User != nil {
		return place{}, errors.New("the store's URL has a user name or a password in it: put them into a credentials file")
	}
	if u.Fragment != "" {
		return place{}, errors.New("the store's URL has a # in it: write %23")
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" && u.Host != "localhost" || u.RawQuery != "" || !strings.HasPrefix(u.Path, "/") {
			return place{}, errors.New("the store's URL: a directory is file:///ABSOLUTE/PATH, with three slashes and no parameters")
		}
		return directoryPlace(u.Path)
	case "s3":
		return s3Place(u)
	case "":
		return place{}, errURL
	}
	return place{}, fmt.Errorf("a store of kind %q is not known: s3 and file are", u.Scheme)
}

func directoryPlace(path string) (place, error) {
	if strings.ContainsRune(path, 0) || filepath.Clean(path) == "/" {
		return place{}, errors.New("the store's directory: it cannot be the root directory, nor have a zero byte in its name")
	}
	return place{kind: kindDirectory, dir: filepath.Clean(path)}, nil
}

// bucketName is what S3 allows.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// maxPrefix leaves room for the longest key: S3's limit for both is 1,024 bytes.
const maxPrefix = 120

func s3Place(u *url.URL) (place, error) {
	p := place{kind: kindS3, bucket: u.Host}
	if !bucketName.MatchString(p.bucket) {
		return place{}, errors.New("the store's URL: after s3:// stands the bucket's name: 3 to 63 lower case letters, digits, dots and hyphens")
	}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		if err := CheckKey(prefix); err != nil || len(prefix) > maxPrefix {
			return place{}, fmt.Errorf("the store's URL: the prefix after the bucket is at most %d bytes of printable ASCII, and no element begins with a dot", maxPrefix)
		}
		p.prefix = prefix + "/"
	}
	params, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return place{}, errors.New("the store's URL: its parameters, after the question mark, cannot be read")
	}
	return p, p.takeParams(params)
}

// takeParams splits the parameters into ours and those for AWS's configuration.
func (p *place) takeParams(params url.Values) error {
	known := []string{"region", "endpoint", "profile", "role", "dualstack", "fips", "use_path_style", "insecure"}
	for name, values := range params {
		if !slices.Contains(known, name) || len(values) != 1 || values[0] == "" {
			return fmt.Errorf("the store's URL: parameter %.30q is not known, empty or there twice: %s are known", name, strings.Join(known, ", "))
		}
	}
	insecure, err := boolParam(params, "insecure", false)
	if err != nil {
		return err
	}
	p.endpoint, p.profile = params.Get("endpoint"), params.Get("profile")
	if err := checkEndpoint(p.endpoint, insecure); err != nil {
		return err
	}
	if p.pathStyle, err = boolParam(params, "use_path_style", p.endpoint != ""); err != nil {
		return err
	}
	for _, ours := range []string{"endpoint", "use_path_style", "insecure"} {
		params.Del(ours)
	}
	p.params = params
	return nil
}

func boolParam(params url.Values, name string, otherwise bool) (bool, error) {
	if !params.Has(name) {
		return otherwise, nil
	}
	v, err := strconv.ParseBool(params.Get(name))
	if err != nil {
		return false, fmt.Errorf("the store's URL: parameter %s is true or false", name)
	}
	return v, nil
}

// checkEndpoint refuses what would send blobs over a network that anybody can read, unless
// the administrator insists. (Keys are never sent: requests are signed with them.)
func checkEndpoint(endpoint string, insecure bool) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.User != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return errors.New("the store's URL: endpoint is https://HOST or https://HOST:PORT, without user name or password")
	}
	if u.Scheme == "http" && !insecure && !isLoopback(u.Hostname()) {
		return fmt.Errorf("the store's URL: endpoint %s is not encrypted: use https, or insecure=true when the network in between is trusted", u.Host)
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
