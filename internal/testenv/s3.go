package testenv

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"mirror-shell/peer/store/storetest"
)

// Bucket is an empty bucket of a real S3 server, as a server of the Env reaches it: by a line of its own,
// which can be cut.
type Bucket struct {
	URL  string // for [peer.NAME] url
	line *line
}

// CredentialsFile is the file in a server's home directory with the keys of its bucket.
const CredentialsFile = "s3.credentials"

// Bucket makes a bucket, with object lock or without, and writes its keys into CredentialsFile.
func (s *Server) Bucket(t testing.TB, lock bool) *Bucket {
	t.Helper()
	s3 := storetest.S3(t)
	l := &line{to: strings.TrimPrefix(s3.Endpoint, "http://"), at: "127.0.0.1:0"}
	l.open(t)
	t.Cleanup(l.cut)
	s.write(t, CredentialsFile, 0o600, fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s3.AccessKey, s3.SecretKey))
	return &Bucket{URL: storetest.URL("http://"+l.at, s3.Bucket(t, lock)), line: l}
}

// Cut ends all connections to the bucket, and takes no more.
func (b *Bucket) Cut() { b.line.cut() }

// Mend undoes Cut, at the same address.
func (b *Bucket) Mend(t testing.TB) { b.line.open(t) }

// line forwards connections until it is cut.
type line struct {
	to, at string // addresses

	mu       sync.Mutex
	listener net.Listener // nil: cut
	ends     map[net.Conn]bool
}

func (l *line) open(t testing.TB) {
	t.Helper()
	listener, err := net.Listen("tcp", l.at)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at, l.listener, l.ends = listener.Addr().String(), listener, map[net.Conn]bool{}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil { // it was closed
				return
			}
			go l.forward(c)
		}
	}()
}

func (l *line) forward(c net.Conn) {
	defer c.Close()
	out, err := net.Dial("tcp", l.to)
	if err != nil {
		return
	}
	defer out.Close()
	if !l.note(c, out) {
		return
	}
	go func() {
		defer out.Close()
		_, _ = io.Copy(out, c) // a cut line is what tests want
	}()
	_, _ = io.Copy(c, out)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ends, c)
	delete(l.ends, out)
}

// note remembers both ends, unless the line has been cut.
func (l *line) note(ends ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range ends {
		l.ends[c] = true
	}
	return l.listener != nil
}

func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener == nil {
		return
	}
	l.listener.Close()
	l.listener = nil
	for c := range l.ends {
		c.Close()
	}
}

// s3Command is the script command s3.
func s3Command(ts *testscript.TestScript, w *scriptWorld, args []string) {
	s := w.env.Server(w.t, args[len(args)-1])
	switch options := strings.Join(args[:len(args)-1], " "); options {
	case "", "--lock":
		w.bucket = s.Bucket(w.t, options == "--lock")
		ts.Setenv("S3_URL", w.bucket.URL)
	case "-stop":
		w.bucket.Cut()
	case "-start":
		w.bucket.Mend(w.t)
	default:
		ts.Fatalf("usage: s3 [--lock|-stop|-start] SERVER")
	}
}
