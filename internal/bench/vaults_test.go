package bench_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"mirror-shell/peer/store/storetest"
)

// place is where backups go: a directory or a bucket, each with a name that nothing was backed up to yet.
type place string

const (
	toDirectory place = "a directory"
	toS3        place = "S3"
)

// vaults are the places of the cases of backups, and frodo's peers there.
type vaults struct {
	*arena
	s3      *storetest.Server
	bucket  string
	dir     string // below it are directories that are vaults
	counter *counter
	peers   strings.Builder // frodo's configuration
	made    int
}

// big is the name of the repository with many objects on frodo, made from bigRepository.
const big = "big"

// openVaults starts the S3 server and makes the repository, once for all cases.
func (a *arena) openVaults() *vaults {
	if a.vaults != nil {
		return a.vaults
	}
	t := a.t
	v := &vaults{arena: a, s3: storetest.S3(t)}
	v.bucket, v.dir = v.s3.Bucket(t, false), a.frodo.Home("vaults")
	keys, err := os.ReadFile(v.s3.CredentialsFile)
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := a.owner(a.frodo)
	err = errors.Join(os.Mkdir(v.dir, 0o700), os.Chown(v.dir, uid, gid),
		os.WriteFile(v.credentials(), keys, 0o600), os.Chown(v.credentials(), uid, gid))
	if err != nil {
		t.Fatal(err)
	}
	v.counter = newCounter(v)
	a.frodo.MustRun(t, "git", "init", "-q", "--bare", a.frodo.RepoDir(big))
	a.store(a.load(bigRepository(t)), a.frodo, big)
	a.vaults = v
	return v
}

func (v *vaults) credentials() string { return v.frodo.Home("s3-credentials") }

// peer makes a backup peer of frodo with a vault of its own, which is empty.
func (v *vaults) peer(to place) (name string) {
	v.made++
	name = fmt.Sprintf("vault%d", v.made)
	if to == toDirectory {
		v.configure(name, "file://"+filepath.Join(v.dir, name))
	} else {
		v.configure(name, storetest.URL(v.s3.Endpoint, v.bucket+"/"+name))
	}
	return name
}

// counted makes a peer with the same vault on S3 as another one, whose requests are counted.
func (v *vaults) counted(name string) string {
	v.configure(name+"c", storetest.URL(v.counter.URL, v.bucket+"/"+name))
	return name + "c"
}

func (v *vaults) configure(name, url string) {
	fmt.Fprintf(&v.peers, "[peer.%s]\nkind = \"backup\"\nurl = %q\ncredentials_file = %q\n", name, url, v.credentials())
	v.frodo.Configure(v.t, v.peers.String())
}

// manifests is the directory on the disk where a vault's manifests of the big repository are: the S3 server keeps objects as files.
func (v *vaults) manifests(to place, peer string) string {
	return filepath.Join(v.vaultDir(to, peer), "snapshots", big+".git")
}

func (v *vaults) vaultDir(to place, peer string) string {
	if to == toDirectory {
		return filepath.Join(v.dir, peer)
	}
	return filepath.Join(filepath.Dir(v.s3.CredentialsFile), "root", v.bucket, peer)
}

// remove frees the disk of a vault.
func (v *vaults) remove(to place, peer string) {
	if err := os.RemoveAll(v.vaultDir(to, peer)); err != nil {
		v.t.Fatal(err)
	}
}

// rival is what git writes while it runs as frodo, streamed to a place: into a file with fsync, or to S3 in parts of
// which a few are on their way at a time, as our store does it.
func (v *vaults) rival(to place, name string, argv ...string) {
	v.rivalFrom(os.DevNull, to, name, argv...)
}

// rivalFrom is rival with a file as git's standard input.
func (v *vaults) rivalFrom(stdin string, to place, name string, argv ...string) {
	t := v.t
	in, err := os.Open(stdin)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := v.frodo.Command(context.Background(), append([]string{"git", "--git-dir=" + v.frodo.RepoDir(big)}, argv...)...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = in, &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if to == toDirectory {
		err = writeFile(filepath.Join(v.dir, name), out)
	} else {
		err = v.upload(name, out)
	}
	if err = errors.Join(err, cmd.Wait()); err != nil {
		t.Fatalf("git %s: %v: %s", strings.Join(argv, " "), err, stderr.Bytes())
	}
}

func writeFile(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}

// rivalPart is the size of a rival's parts, that of ours.
const rivalPart = 8 << 20

// upload puts a stream of unknown size, small ones in one request.
func (v *vaults) upload(key string, r io.Reader) error {
	ctx, client := context.Background(), v.s3.Client()
	part := make([]byte, rivalPart)
	n, err := io.ReadFull(r, part)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		_, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: &v.bucket, Key: &key, Body: bytes.NewReader(part[:n])})
		return err
	}
	begun, err := client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &v.bucket, Key: &key})
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(4)
	var mu sync.Mutex
	parts := map[int32]*string{}
	for number := int32(1); n > 0; number++ {
		body := bytes.NewReader(part[:n])
		group.Go(func() error {
			sent, err := client.UploadPart(ctx, &s3.UploadPartInput{Bucket: &v.bucket, Key: &key, UploadId: begun.UploadId, PartNumber: &number, Body: body})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				parts[number] = sent.ETag
			}
			return err
		})
		part = make([]byte, rivalPart)
		n, _ = io.ReadFull(r, part)
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var done []types.CompletedPart
	for i := range int32(len(parts)) {
		done = append(done, types.CompletedPart{PartNumber: aws.Int32(i + 1), ETag: parts[i+1]})
	}
	_, err = client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &v.bucket, Key: &key, UploadId: begun.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
	})
	return err
}

// fetch brings what upload put into a file, in the way of our restores: read by ranges would be no
// faster on loopback.
func (v *vaults) fetch(key, path string) error {
	out, err := v.s3.Client().GetObject(context.Background(), &s3.GetObjectInput{Bucket: &v.bucket, Key: &key})
	if err != nil {
		return err
	}
	defer out.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, out.Body)
	return errors.Join(err, f.Close())
}

// counter is a proxy before the S3 server that counts.
type counter struct {
	*httptest.Server
	mu       sync.Mutex
	requests int
	data     int64 // bytes of blobs that were put, without manifests
}

func newCounter(v *vaults) *counter {
	target, err := url.Parse(v.s3.Endpoint)
	if err != nil {
		v.t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target) // leaves the Host alone, which is part of what is signed
	c := &counter{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.requests++
		if strings.Contains(r.URL.Path, "/data/") && r.ContentLength > 0 {
			c.data += r.ContentLength
		}
		c.mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	v.t.Cleanup(c.Close)
	return c
}

// during returns what was asked for and put while f ran.
func (c *counter) during(f func()) (requests int, data int64) {
	c.mu.Lock()
	requests, data = c.requests, c.data
	c.mu.Unlock()
	f()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests - requests, c.data - data
}

// runPeak runs a program of ours as frodo and returns the most memory that it had (VmHWM, in bytes), its
// children apart. It is looked at all the time, because it is gone with the process.
func (v *vaults) runPeak(argv ...string) (peak float64) {
	t := v.t
	cmd := v.frodo.Command(context.Background(), argv...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	status := fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)
	for {
		select {
		case err := <-ended:
			if err != nil || peak == 0 {
				t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out.Bytes())
			}
			return peak
		case <-time.After(2 * time.Millisecond):
		}
		data, _ := os.ReadFile(status)
		for line := range strings.Lines(string(data)) {
			var kB float64
			if scan(line, "VmHWM: %f kB", &kB) {
				peak = max(peak, kB*1024)
			}
		}
	}
}
