package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	gocloud "gocloud.dev/aws"
	"golang.org/x/sync/semaphore"
)

// s3Store is a store in a bucket of an S3-compatible server. A blob is an object
// PREFIX/KEY, made by a conditional write (If-None-Match: *).
//
// The URL is read as Go CDK does it; objects are handled with the S3 client itself. Go
// CDK's portable buckets turn some keys into others ("__0x2f__" in a name comes back
// as "/"), know no versions and cannot start a listing in the middle, and ask for an object before they
// delete it.
//
// # Requests
//
// Put of up to 8 MiB: one. A larger one: one per 8 MiB, and two. Get: one. List: one
// per thousand blobs. Delete: two. Retain: two. Each attempt that fails is one more. An upload in parts that was
// killed leaves parts that nobody sees and somebody pays for: the bucket needs a
// lifecycle rule that aborts incomplete multipart uploads.
//
// # Versions and locks
//
// In a bucket with versions, which object lock needs, a plain DELETE only hides an object
// below a delete marker. Delete removes all versions of the key instead, the newest last, and
// its delete markers: either the server refuses because a version is retained, which is
// ErrLocked, or the blob is gone for good.
type s3Store struct {
	*limits
	client         *s3.Client
	bucket, prefix string
	attempts       int
	log            *slog.Logger
	lockMode       string
	memory         *semaphore.Weighted // for what is being sent, in bytes
	buffers        partBuffers
}

// sendMemory is how much content of uploads one store holds in memory, in bytes,
// however many and large they are.
const sendMemory = 16 << 20

func openS3(ctx context.Context, p place, o Options) (Store, error) {
	cfg, err := awsConfig(ctx, p, o)
	if err != nil {
		return nil, fmt.Errorf("open store s3://%s/%s: %w", p.bucket, p.prefix, err)
	}
	s := &s3Store{
		limits: newLimits(o), bucket: p.bucket, prefix: p.prefix, attempts: o.Attempts,
		log: o.Log, lockMode: o.LockMode, memory: semaphore.NewWeighted(sendMemory),
	}
	s.client = s3.NewFromConfig(cfg, func(c *s3.Options) {
		c.UsePathStyle = p.pathStyle
		if p.endpoint != "" {
			c.BaseEndpoint = aws.String(p.endpoint)
		}
		c.HTTPClient = newHTTPClient(o, s.limits)
		c.HTTPSignerV4 = &signer{}
		c.Retryer = aws.NopRetryer{} // we repeat, at one place: try
		// The signature covers the content's SHA-256, and every server knows Content-MD5. The
		// newer checksums in trailers are refused by some.
		c.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		c.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	if o.LockMode == "" {
		return s, nil
	}
	return &lockStore{s}, nil
}

// awsConfig puts region and credentials together.
func awsConfig(ctx context.Context, p place, o Options) (aws.Config, error) {
	params := url.Values{}
	for name, values := range p.params {
		params[name] = values
	}
	if o.CredentialsFile != "" {
		if params.Has("role") {
			return aws.Config{}, errors.New("a credentials file and the parameter role exclude each other: name the role in ~/.aws/config, with source_profile")
		}
		params.Del("profile") // a section of that file, not of ~/.aws
	}
	cfg, err := gocloud.V2ConfigFromURLParams(ctx, params)
	if err != nil {
		return aws.Config{}, fmt.Errorf("AWS's configuration (environment, ~/.aws, URL): %w", err)
	}
	if cfg.Region == "" && p.endpoint == "" {
		return aws.Config{}, errors.New("the bucket's region is not known: add ?region=REGION to the URL")
	}
	if cfg.Region == "" {
		cfg.Region = "us-east-1" // what servers take that have no regions
	}
	inner := cfg.Credentials
	if o.CredentialsFile != "" {
		inner = aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
			return readCredentials(ctx, o.CredentialsFile, p.profile)
		})
	}
	cfg.Credentials = aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		return retrieve(ctx, inner)
	})
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return aws.Config{}, err
	}
	return cfg, nil
}

// retrieve gets credentials, and says in its error what to do when there are none.
func retrieve(ctx context.Context, from aws.CredentialsProvider) (aws.Credentials, error) {
	if from == nil {
		return aws.Credentials{}, fmt.Errorf("%w: no credentials: name a credentials file", ErrDenied)
	}
	c, err := from.Retrieve(ctx)
	switch {
	case err == nil || ctx.Err() != nil || errors.Is(err, ErrDenied):
		return c, err
	}
	// AWS's own text lists all it has tried, over many lines.
	return aws.Credentials{}, fmt.Errorf("%w: no valid credentials in the environment or ~/.aws: name a credentials file (%s)", ErrDenied, quote(err.Error()))
}

// readCredentials reads one section of a credentials file.
func readCredentials(ctx context.Context, file, profile string) (aws.Credentials, error) {
	info, err := os.Stat(file)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("%w: credentials file: %w", ErrDenied, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return aws.Credentials{}, fmt.Errorf("%w: credentials file %s: others may read it, or it is no file: chmod 600 it: %w", ErrDenied, file, fs.ErrPermission)
	}
	if profile == "" {
		profile = "default"
	}
	shared, err := config.LoadSharedConfigProfile(ctx, profile, func(o *config.LoadSharedConfigOptions) {
		o.CredentialsFiles, o.ConfigFiles = []string{file}, []string{}
	})
	// What the parser complains about may be a line with a secret in it.
	if err != nil || !shared.Credentials.HasKeys() {
		return aws.Credentials{}, fmt.Errorf("%w: credentials file %s: it needs a section [%s] with the lines aws_access_key_id = … and aws_secret_access_key = …", ErrDenied, file, profile)
	}
	return shared.Credentials, nil
}

// object returns a key's name in the bucket.
func (s *s3Store) object(key string) *string { return aws.String(s.prefix + key) }

// errorf says what was done where.
func (s *s3Store) errorf(what, key string, err error) error {
	return fmt.Errorf("%s %q in s3://%s/%s: %w", what, key, s.bucket, s.prefix, err)
}
