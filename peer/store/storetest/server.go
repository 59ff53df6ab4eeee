package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"mirror-shell/peer/store"
)

// Version of versitygw, the S3 server of the tests. .ci/setup names it, too.
const Version = "v1.8.0"

// Server is a real S3 server on loopback, with versions and object lock.
type Server struct {
	Endpoint        string // http://127.0.0.1:PORT
	AccessKey       string
	SecretKey       string
	CredentialsFile string // for store.Options, with both keys

	dir string
	cmd *exec.Cmd
	log *bytes.Buffer // what it printed; read it after Wait only
}

// shared is the server of this test binary: started by the first test that asks,
// ended when the last one that did has ended.
var shared struct {
	sync.Mutex
	server *Server
	users  int
}

// S3 returns a server that this test binary's tests share. Each makes its own
// buckets.
func S3(t testing.TB) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		server, err := start(t)
		if err != nil {
			t.Fatalf("start the S3 server: %v", err)
		}
		shared.server = server
	}
	shared.users++
	t.Cleanup(func() {
		shared.Lock()
		defer shared.Unlock()
		if shared.users--; shared.users == 0 {
			shared.server.stop()
			shared.server = nil
		}
	})
	return shared.server
}

// Bucket makes an empty bucket, with versions and object lock or with neither.
func (s *Server) Bucket(t testing.TB, lock bool) string {
	t.Helper()
	name := "b" + strings.ToLower(rand.Text())
	in := &s3.CreateBucketInput{Bucket: &name}
	if lock {
		in.ObjectLockEnabledForBucket = aws.Bool(true)
	}
	if _, err := s.Client().CreateBucket(t.Context(), in); err != nil {
		t.Fatalf("make a bucket: %v", err)
	}
	if lock {
		_, err := s.Client().PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
			Bucket: &name, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
		})
		if err != nil {
			t.Fatalf("give the bucket versions: %v", err)
		}
	}
	return name
}

// URL returns a store's URL for a bucket, which may have "/PREFIX" after its name.
func (s *Server) URL(bucket string) string { return URL(s.Endpoint, bucket) }

// URL returns the URL of a store on a server that listens on endpoint.
func URL(endpoint, bucket string) string {
	return "s3://" + bucket + "?" + url.Values{"endpoint": {endpoint}, "region": {region}}.Encode()
}

// Open opens a store on the server. Options may lack URL and CredentialsFile; the
// bucket is the URL's then.
func (s *Server) Open(t testing.TB, bucket string, o store.Options) store.Store {
	t.Helper()
	if o.URL == "" {
		o.URL = s.URL(bucket)
	}
	if o.CredentialsFile == "" {
		o.CredentialsFile = s.CredentialsFile
	}
	opened, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

// Client returns the plain S3 client, for what no store does.
func (s *Server) Client() *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &s.Endpoint, UsePathStyle: true, Region: region,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey}, nil
		}),
	})
}

const region = "us-east-1"

func start(t testing.TB) (_ *Server, err error) {
	program, err := versitygw()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "s3-")
	if err != nil {
		return nil, err
	}
	s := &Server{AccessKey: "AK" + rand.Text(), SecretKey: rand.Text() + rand.Text(), dir: dir, CredentialsFile: filepath.Join(dir, "credentials")}
	for _, sub := range []string{"root", "versions"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, err
		}
	}
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s.AccessKey, s.SecretKey)
	if err := os.WriteFile(s.CredentialsFile, []byte(text), 0o600); err != nil {
		return nil, err
	}
	for range 5 { // the port may be taken by somebody else in between
		if err = s.run(program); err == nil {
			return s, nil
		}
	}
	os.RemoveAll(dir)
	return nil, err
}

// run starts the server on a free port and waits until it answers.
func (s *Server) run(program string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := l.Addr().String()
	l.Close()
	s.Endpoint = "http://" + address
	s.log = new(bytes.Buffer)
	s.cmd = exec.Command(program, "--port", address, "--region", region, "--quiet", "--keep-alive", "--iam-dir", "",
		"posix", "--versioning-dir", filepath.Join(s.dir, "versions"), filepath.Join(s.dir, "root"))
	s.cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.SecretKey, "PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}
	s.cmd.Dir = s.dir
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that is killed cleans nothing up
	if err := s.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		s.cmd.Wait() // how it ended is in ProcessState
		close(ended)
	}()
	for begun := time.Now(); time.Since(begun) < 30*time.Second; time.Sleep(20 * time.Millisecond) {
		select {
		case <-ended:
			return fmt.Errorf("versitygw ended: %s", s.log)
		default:
		}
		// It has to be this server that answers, not another one on its port.
		if _, err := s.Client().ListBuckets(context.Background(), nil, func(o *s3.Options) { o.RetryMaxAttempts = 1 }); err == nil {
			return nil
		}
	}
	s.cmd.Process.Kill()
	<-ended
	return fmt.Errorf("versitygw does not answer: %s", s.log)
}

func (s *Server) stop() {
	s.cmd.Process.Kill()
	http.DefaultClient.CloseIdleConnections()
	for range 100 { // it may be writing still
		if os.RemoveAll(s.dir) == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// versitygw returns the server's program. It is built when it is missing, which takes one or two
// minutes, and kept in the user's cache for later.
func versitygw() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "mirror-shell-tests")
	program := filepath.Join(dir, "versitygw-"+Version)
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(program+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // other packages' tests want it, too
		return "", err
	}
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	return program, build(dir, program)
}

func build(dir, program string) error {
	temp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	cmd := exec.Command("go", "install", "github.com/versity/versitygw/cmd/versitygw@"+Version)
	cmd.Dir = temp // outside of this module, whose versions are other ones
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+temp, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build versitygw %s: %w: %s", Version, err, out)
	}
	return os.Rename(filepath.Join(temp, "versitygw"), program)
}
