package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

// faulty opens a store behind a proxy.
func faulty(t *testing.T, o store.Options) (store.Store, *storetest.Proxy) {
	t.Helper()
	server := storetest.S3(t)
	p := storetest.Faulty(t, server)
	o.URL = storetest.URL(p.Endpoint, server.Bucket(t, true))
	if o.Stall == 0 {
		o.Stall = time.Second
	}
	return server.Open(t, "", o), p
}

// Uploads that meet a fault once succeed, and publish what was to be published.
func TestS3PutFaults(t *testing.T) {
	t.Parallel()
	put, part := storetest.Method("PUT", "/k"), storetest.Method("PUT", "partNumber=2")
	complete := func(r *http.Request) bool { return r.Method == "POST" && strings.Contains(r.URL.RawQuery, "uploadId") }
	for name, c := range map[string]struct {
		size  int
		fault storetest.Fault
	}{
		"500":                  {100, storetest.Fault{Match: put, Status: 500, Code: "InternalError", Times: 2}},
		"slow down":            {100, storetest.Fault{Match: put, Status: 503, Code: "SlowDown"}},
		"no S3 answer":         {100, storetest.Fault{Match: put, Status: 502}},
		"conflict":             {100, storetest.Fault{Match: put, Status: 409, Code: "ConditionalRequestConflict"}},
		"hangs":                {100, storetest.Fault{Match: put, Hang: true}},
		"cut":                  {1 << 20, storetest.Fault{Match: put, CutRequest: 5000}},
		"lost answer":          {100, storetest.Fault{Match: put, Lose: true}},
		"begin: 503":           {9 << 20, storetest.Fault{Match: storetest.Method("POST", "?uploads"), Status: 503}},
		"begin: lost answer":   {9 << 20, storetest.Fault{Match: storetest.Method("POST", "?uploads"), Lose: true}},
		"part: cut":            {9 << 20, storetest.Fault{Match: part, CutRequest: 500_000}},
		"part: hangs":          {9 << 20, storetest.Fault{Match: part, Hang: true}},
		"part: lost answer":    {9 << 20, storetest.Fault{Match: part, Lose: true}},
		"publish: 500":         {9 << 20, storetest.Fault{Match: complete, Status: 500}},
		"publish: lost answer": {9 << 20, storetest.Fault{Match: complete, Lose: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, p := faulty(t, store.Options{})
			p.Inject(c.fault)
			content := storetest.Random(9, c.size)
			if err := s.Put(t.Context(), "k/x", storetest.Bytes(content)); err != nil {
				t.Fatal(err)
			}
			if seen := p.Seen(); len(seen) < 2 {
				t.Errorf("the fault did not happen: %q", seen)
			}
			got, err := storetest.Read(t.Context(), s, "k/x")
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// A repeated attempt that finds another writer's blob has lost, whatever it has in it.
func TestS3LostAnswerOfAnother(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"mine", "same"} {
		s, p := faulty(t, store.Options{})
		p.Inject(storetest.Fault{Match: storetest.Method("PUT", "/k"), Status: 500})
		other := storetest.S3(t)
		p.Inject(storetest.Fault{Match: storetest.Method("PUT", "/k"), Before: func() {
			bucket := strings.SplitN(strings.TrimPrefix(p.Seen()[0], "PUT /"), "/", 2)[0]
			if err := other.Open(t, bucket, store.Options{}).Put(t.Context(), "k", storetest.Bytes([]byte("same"))); err != nil {
				t.Error(err)
			}
		}})
		if err := s.Put(t.Context(), "k", storetest.Bytes([]byte(content))); !errors.Is(err, store.ErrExists) {
			t.Errorf("%v, want that it exists", err)
		}
	}
}

// What never succeeds ends, with an error that says what it was, and leaves nothing.
func TestS3PutGivesUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault storetest.Fault
		want  error
		text  string
	}{
		"503":     {storetest.Fault{Status: 503, Code: "SlowDown", Times: -1}, store.ErrUnreachable, "SlowDown"},
		"hangs":   {storetest.Fault{Hang: true, Times: -1}, store.ErrUnreachable, "nothing has moved"},
		"cut":     {storetest.Fault{CutRequest: 1, Times: -1}, store.ErrUnreachable, ""},
		"expired": {storetest.Fault{Status: 400, Code: "ExpiredToken", Times: -1}, store.ErrDenied, "renew"},
		"denied":  {storetest.Fault{Status: 403, Code: "AccessDenied", Times: -1}, store.ErrDenied, "right"},
		"moved":   {storetest.Fault{Status: 301, Code: "PermanentRedirect", Times: -1}, store.ErrDenied, "region"},
		"invalid": {storetest.Fault{Status: 400, Code: "InvalidArgument", Times: -1}, nil, "InvalidArgument"},
	} {
		for _, size := range []int{100, 9 << 20} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s, p := faulty(t, store.Options{Attempts: 2, Stall: 200 * time.Millisecond})
				fault := c.fault
				fault.Match = func(r *http.Request) bool {
					return r.Method == "PUT" && (size == 100 || strings.Contains(r.URL.RawQuery, "partNumber=2"))
				}
				p.Inject(fault)
				err := s.Put(t.Context(), "k", storetest.Bytes(storetest.Random(1, size)))
				if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v", err)
				}
				t.Log(err)
				p.Reset()
				if keys, err := storetest.Keys(t.Context(), s, "", "", 0); len(keys) > 0 || err != nil {
					t.Errorf("%q, %v are there", keys, err)
				}
			})
		}
	}
}

// A failed upload leaves no parts.
func TestS3AbortsParts(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	bucket := server.Bucket(t, false)
	s := server.Open(t, bucket, store.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := store.Blob{Size: 40 << 20, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, 20<<20)), cancels{cancel})), nil
	}}
	if err := s.Put(ctx, "k", b); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	out, err := server.Client().ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil || len(out.Uploads) > 0 {
		t.Errorf("%d uploads are left, %v", len(out.Uploads), err)
	}
}

type cancels struct{ cancel func() }

func (c cancels) Read([]byte) (int, error) { c.cancel(); return 0, context.Canceled }

// Reads go on where they broke off.
func TestS3GetFaults(t *testing.T) {
	t.Parallel()
	content := storetest.Random(8, 3<<20)
	get := storetest.Method("GET", "/k")
	for name, faults := range map[string][]storetest.Fault{
		"cut":            {{Match: get, CutAnswer: 1 << 20}},
		"cut often":      {{Match: get, CutAnswer: 300_000, Times: 5}},
		"500":            {{Match: get, Status: 500, Times: 2}},
		"hangs":          {{Match: get, Hang: true}},
		"cut, 503":       {{Match: get, CutAnswer: 1000}, {Match: get, Status: 503}, {Match: get, CutAnswer: 5000}},
		"lost":           {{Match: get, Lose: true}},
		"cut at the end": {{Match: get, CutAnswer: int64(len(content)) - 1001}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, p := faulty(t, store.Options{})
			if err := s.Put(t.Context(), "k", storetest.Bytes(content)); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct{ offset, length int64 }{{0, -1}, {1000, -1}, {1000, 2<<20 + 5}} {
				p.Reset()
				p.Inject(faults...)
				want := content[c.offset:]
				if c.length >= 0 {
					want = want[:c.length]
				}
				got, err := storetest.ReadRange(t.Context(), s, "k", c.offset, c.length)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("from %d: %d bytes, %v; want %d", c.offset, len(got), err, len(want))
				}
				if seen := p.Seen(); len(seen) < 2 && c.length < 0 {
					t.Errorf("the fault did not happen: %q", seen)
				}
			}
		})
	}
}

func TestS3GetGivesUp(t *testing.T) {
	t.Parallel()
	s, p := faulty(t, store.Options{Attempts: 2, Stall: 10 * time.Second})
	if err := s.Put(t.Context(), "k", storetest.Bytes(storetest.Random(8, 3<<20))); err != nil {
		t.Fatal(err)
	}
	get := storetest.Method("GET", "/k")
	p.Inject(storetest.Fault{Match: get, CutAnswer: 1 << 20}, storetest.Fault{Match: get, Status: 500, Times: -1})
	if got, err := storetest.Read(t.Context(), s, "k"); !errors.Is(err, store.ErrUnreachable) {
		t.Errorf("%d bytes, %v; want that it cannot be reached", len(got), err)
	}
	// Somebody replaces the blob in the middle, whom no rule of ours binds.
	p.Reset()
	p.Inject(storetest.Fault{Match: get, CutAnswer: 1 << 20}, storetest.Fault{Match: get, Before: func() {
		bucket := strings.SplitN(strings.TrimPrefix(p.Seen()[0], "GET /"), "/", 2)[0]
		_, err := storetest.S3(t).Client().PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("k"), Body: bytes.NewReader(make([]byte, 3<<20))})
		if err != nil {
			t.Error(err)
		}
	}})
	if got, err := storetest.Read(t.Context(), s, "k"); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("%d bytes, %v; want that it was replaced", len(got), err)
	}
}

// Nothing is asked that need not be.
func TestS3Requests(t *testing.T) {
	t.Parallel()
	s, p := faulty(t, store.Options{LockMode: "governance"})
	counter := s.(store.Counter)
	for _, c := range []struct {
		name string
		want int
		do   func() error
	}{
		{"put", 1, func() error { return s.Put(t.Context(), "k/1", storetest.Bytes([]byte("x"))) }},
		{"put with a lock", 1, func() error {
			b := storetest.Bytes([]byte("x"))
			b.Retain = time.Now().Add(time.Hour)
			return s.Put(t.Context(), "k/2", b)
		}},
		{"put again", 1, func() error {
			if err := s.Put(t.Context(), "k/1", storetest.Bytes([]byte("x"))); !errors.Is(err, store.ErrExists) {
				return err
			}
			return nil
		}},
		{"put of 20 MiB", 5, func() error { return s.Put(t.Context(), "k/3", storetest.Bytes(make([]byte, 20<<20))) }},
		{"get", 1, func() error { _, err := storetest.Read(t.Context(), s, "k/1"); return err }},
		{"get a range", 1, func() error { _, err := storetest.ReadRange(t.Context(), s, "k/3", 5, 10); return err }},
		{"list the first", 1, func() error {
			keys, err := storetest.Keys(t.Context(), s, "k/", "k/1", 1)
			if len(keys) != 1 || keys[0] != "k/2" {
				t.Errorf("%q", keys)
			}
			return err
		}},
		{"list all", 1, func() error { _, err := storetest.Keys(t.Context(), s, "k/", "", 0); return err }},
		{"retain", 2, func() error { return s.(store.Retainer).Retain(t.Context(), "k/1", time.Now().Add(time.Minute)) }},
		{"delete", 2, func() error { return s.Delete(t.Context(), "k/3") }},
	} {
		p.Seen()
		before := counter.Counts().Requests
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		seen := p.Seen()
		if counted := int(counter.Counts().Requests - before); len(seen) != c.want || counted != c.want {
			t.Errorf("%s: %d requests were made, %d counted, %d wanted: %q", c.name, len(seen), counted, c.want, seen)
		}
		if c.name == "list the first" && !strings.Contains(seen[0], "max-keys=1&") {
			t.Errorf("the first of a list is asked for as %q", seen)
		}
	}
}

// Wrong credentials and buckets are told apart, at once, and no secret is in any error
// or log.
func TestS3Denied(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	bucket := server.Bucket(t, false)
	file := func(mode os.FileMode, text string) string {
		path := filepath.Join(t.TempDir(), "credentials")
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const secret, token = "VerySecretIndeed123456789", "TokenThatNobodyMaySee"
	keys := func(id, secret string) string {
		return "[default]\naws_access_key_id = " + id + "\naws_secret_access_key = " + secret + "\n"
	}
	var log bytes.Buffer
	for name, c := range map[string]struct {
		url, credentials, text string
	}{
		"no such bucket":  {server.URL("not-there"), server.CredentialsFile, "make the bucket"},
		"unknown key":     {server.URL(bucket), file(0o600, keys("AKNOBODY", secret)), "does not know this access key"},
		"wrong secret":    {server.URL(bucket), file(0o600, keys(server.AccessKey, secret)), "secret does not belong"},
		"no file":         {server.URL(bucket), "/not/there", "credentials file"},
		"readable by all": {server.URL(bucket), file(0o644, keys("A", secret)), "chmod 600"},
		"no section":      {server.URL(bucket) + "&profile=other", file(0o600, keys("A", secret)), "[other]"},
		"no secret":       {server.URL(bucket), file(0o600, "[default]\naws_access_key_id = "+secret+"\n"), "aws_secret_access_key"},
		"nonsense":        {server.URL(bucket), file(0o600, secret+"\x00[["+secret+"\n"), "section"},
		"role":            {server.URL(bucket) + "&role=arn:aws:iam::1:role/x", file(0o600, keys("A", secret)), ""},
		"token":           {server.URL(bucket), file(0o600, keys("A", secret)+"aws_session_token = "+token+"\n"), ""},
	} {
		begun := time.Now()
		s, err := store.Open(t.Context(), store.Options{URL: c.url, CredentialsFile: c.credentials, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err == nil {
			err = s.Put(t.Context(), "k", storetest.Bytes([]byte("x")))
			if _, gerr := storetest.Read(t.Context(), s, "k"); !errors.Is(gerr, store.ErrDenied) || errors.Is(gerr, fs.ErrNotExist) {
				t.Errorf("%s: get: %v", name, gerr)
			}
			if _, lerr := storetest.Keys(t.Context(), s, "", "", 0); !errors.Is(lerr, store.ErrDenied) {
				t.Errorf("%s: list: %v", name, lerr)
			}
			if derr := s.Delete(t.Context(), "k"); !errors.Is(derr, store.ErrDenied) {
				t.Errorf("%s: delete: %v", name, derr)
			}
		}
		if err == nil || !errors.Is(err, store.ErrDenied) && name != "role" || !strings.Contains(err.Error(), c.text) || time.Since(begun) > 10*time.Second {
			t.Errorf("%s: %v, after %v", name, err, time.Since(begun))
			continue
		}
		t.Logf("%s: %v", name, err)
		for _, hidden := range []string{secret, token, server.SecretKey} {
			if strings.Contains(err.Error(), hidden) || strings.Contains(log.String(), hidden) {
				t.Errorf("%s: a secret is shown: %v\n%s", name, err, log.String())
			}
		}
	}
}

// Credentials that are corrected while a store is open count from the next request on, also a secret that is another
// one under the same name.
func TestS3SecretChanges(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	file := filepath.Join(t.TempDir(), "credentials")
	write := func(secret string) {
		if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = "+server.AccessKey+"\naws_secret_access_key = "+secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("mistyped")
	s, err := store.Open(t.Context(), store.Options{URL: server.URL(server.Bucket(t, false)), CredentialsFile: file})
	if err != nil {
		t.Fatal(err)
	}
	for i, secret := range []string{"mistyped", server.SecretKey, "revoked", server.SecretKey} {
		write(secret)
		_, err := storetest.Keys(t.Context(), s, "", "", 0)
		if right := secret == server.SecretKey; right && err != nil || !right && !errors.Is(err, store.ErrDenied) {
			t.Errorf("%d: %s: %v", i, secret, err)
		}
	}
}

// Nobody listens: that is said, after all attempts.
func TestS3Unreachable(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	var log bytes.Buffer
	s, err := store.Open(t.Context(), store.Options{
		URL: storetest.URL("http://127.0.0.1:1", "bucket"), CredentialsFile: server.CredentialsFile, Attempts: 2, Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "k", storetest.Bytes(nil)); !errors.Is(err, store.ErrUnreachable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	if n := s.(store.Counter).Counts().Requests; n != 2 {
		t.Errorf("%d attempts were counted", n)
	}
	if strings.Count(log.String(), "trying again") != 1 {
		t.Errorf("log: %s", log.String())
	}
	if _, err := storetest.Read(t.Context(), s, "k"); errors.Is(err, fs.ErrNotExist) || !errors.Is(err, store.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}
