package store

import (
	"context"
	"net/url"
	"strings"
	"testing"
)

func TestParsePlace(t *testing.T) {
	for text, want := range map[string]place{
		"/srv/backup":            {dir: "/srv/backup"},
		"/srv//backup/../b/":     {dir: "/srv/b"},
		"/srv/with space?x=#":    {dir: "/srv/with space?x=#"},
		"file:///srv/x%20y":      {dir: "/srv/x y"},
		"file://localhost/srv/x": {dir: "/srv/x"},
		"s3://bucket":            {kind: kindS3, bucket: "bucket"},
		"s3://bucket/":           {kind: kindS3, bucket: "bucket"},
		"s3://my.bucket-1/a/b/?region=eu-west-1&profile=p": {
			kind: kindS3, bucket: "my.bucket-1", prefix: "a/b/", profile: "p", params: url.Values{"region": {"eu-west-1"}, "profile": {"p"}}},
		"s3://bucket?endpoint=http://127.0.0.1:7070":        {kind: kindS3, bucket: "bucket", endpoint: "http://127.0.0.1:7070", pathStyle: true},
		"s3://bucket?endpoint=http://localhost:7070":        {kind: kindS3, bucket: "bucket", endpoint: "http://localhost:7070", pathStyle: true},
		"s3://bucket?endpoint=http://[::1]:7070":            {kind: kindS3, bucket: "bucket", endpoint: "http://[::1]:7070", pathStyle: true},
		"s3://bucket?endpoint=https%3A%2F%2Fs3.example.org": {kind: kindS3, bucket: "bucket", endpoint: "https://s3.example.org", pathStyle: true},
		"s3://bucket?endpoint=http://minio:9000&insecure=true&use_path_style=false": {
			kind: kindS3, bucket: "bucket", endpoint: "http://minio:9000"},
	} {
		got, err := parsePlace(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got.params.Encode() != want.params.Encode() {
			t.Errorf("%s: parameters %v, want %v", text, got.params, want.params)
		}
		got.params, want.params = nil, nil
		if got.kind != want.kind || got.dir != want.dir || got.bucket != want.bucket || got.prefix != want.prefix ||
			got.endpoint != want.endpoint || got.pathStyle != want.pathStyle || got.profile != want.profile {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

// What is wrong is said, and no secret that stands in the wrong place.
func TestOpenRefuses(t *testing.T) {
	const secret = "S3cr3tS3cr3t"
	for text, says := range map[string]string{
		"": "s3://BUCKET", "srv/backup": "absolute path", "/": "root directory", "file:///": "root directory", "/a\x00b": "zero byte",
		"file://host/srv": "three slashes", "file:srv": "absolute path", "file:///srv?x=1": "no parameters", "gs://bucket": `"gs"`,
		"s3:bucket": "s3://BUCKET", "s3://": "bucket's name", "s3://Bucket": "bucket's name", "s3://b": "bucket's name", "s3://bucket:80": "bucket's name",
		"s3://bucket/../x": "prefix", "s3://bucket/.x": "prefix", "s3://bucket/a%20b": "prefix", "s3://bucket/" + strings.Repeat("a", 121): "prefix",
		"s3://bucket#x": "#", "s3://AKIA:" + secret + "@bucket": "credentials file", "s3://AKIA:" + secret + "@bucket%zz": "cannot be read",
		"s3://AKIA:" + secret + "/x@bucket": "cannot be read", "s3://bucket?secret=" + secret: "is not known", "s3://bucket?region=a&region=b": "twice",
		"s3://bucket?endpoint=http://minio:9000": "insecure=true", "s3://bucket?endpoint=minio:9000": "https://HOST",
		"s3://bucket?endpoint=https://u:" + secret + "@minio": "https://HOST", "s3://bucket?endpoint=ftp://x": "https://HOST", "s3://bucket?insecure=perhaps": "true or false",
		"s3://bucket?endpoint=http://127.0.0.1.example.org": "insecure=true", "s3://bucket?use_path_style=": "empty", "s3://bucket?region=%zz" + secret: "cannot be read",
		"s3://bucket?dualstack=maybe&region=x": "configuration",
	} {
		s, err := Open(context.Background(), Options{URL: text, CredentialsFile: "/dev/null"})
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v, %v; want an error about %q", text, s, err, says)
		}
	}
	if _, err := Open(context.Background(), Options{URL: "/tmp", LockMode: "forever"}); err == nil {
		t.Error("an unknown lock mode was taken")
	}
}

func FuzzParsePlace(f *testing.F) {
	for _, text := range []string{"/srv/x", "file:///srv/x", "s3://bucket/prefix?region=x&endpoint=http://127.0.0.1:1", "s3://a:b@bucket", "s3://bucket?insecure=true&endpoint=http://x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePlace(text)
		switch {
		case err != nil:
			return
		case p.kind == kindDirectory && (!strings.HasPrefix(p.dir, "/") || p.dir == "/"):
			t.Errorf("%q: directory %q", text, p.dir)
		case p.kind == kindS3:
			if !bucketName.MatchString(p.bucket) || p.prefix != "" && CheckKey(strings.TrimSuffix(p.prefix, "/")) != nil {
				t.Errorf("%q: %+v", text, p)
			}
			if u, err := url.Parse(p.endpoint); err != nil || u.Scheme == "http" && !isLoopback(u.Hostname()) && !strings.Contains(text, "insecure") {
				t.Errorf("%q: endpoint %q, %v", text, p.endpoint, err)
			}
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes 5-5/6", "bytes */10", "bytes 9-0/10", "bytes -1-2/3", "bytes 0-99999999999999999999/3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if first, last, size, ok := parseContentRange(s); ok && (first < 0 || last < first || size <= last) {
			t.Errorf("%q: %d-%d/%d", s, first, last, size)
		}
	})
}

func TestRangeEnd(t *testing.T) {
	for _, c := range []struct{ size, offset, length, end int64 }{{10, 0, -1, 10}, {10, 10, -1, 10}, {10, 2, 3, 5}, {10, 10, 0, 10}, {10, 11, -1, -1}, {10, 0, 11, -1}, {10, -1, 1, -1}, {10, 5, 1<<63 - 1, -1}} {
		end, err := rangeEnd(c.size, c.offset, c.length)
		if err != nil && c.end >= 0 || err == nil && end != c.end {
			t.Errorf("%+v: %d, %v", c, end, err)
		}
	}
}
