package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"

	"mirror-shell/peer/store"
	"mirror-shell/peer/store/storetest"
)

// writerEnv makes this test binary a writer: it puts one blob into the store of this
// URL, after a byte on its standard input, and says how that ended.
const writerEnv = "MIRROR_SHELL_TEST_WRITER"

func TestMain(m *testing.M) {
	if url, ok := os.LookupEnv(writerEnv); ok {
		os.Exit(writer(url))
	}
	os.Exit(m.Run())
}

func writer(url string) int {
	s, err := store.Open(context.Background(), store.Options{URL: url, CredentialsFile: os.Getenv("CREDENTIALS")})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if os.Getenv("FULL") != "" { // no file may grow beyond 1 MiB
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	b := storetest.Bytes(storetest.Random(uint64(os.Getpid()), 3<<20))
	if os.Getenv("HANG") != "" {
		b.Size *= 10
		b.Open = func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, 9<<20)), hanging{})), nil
		}
	}
	if err := s.Put(context.Background(), "one/key", b); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("won", os.Getpid())
	return 0
}

// hanging says that it hangs, and does.
type hanging struct{}

func (hanging) Read([]byte) (int, error) {
	fmt.Println("hangs")
	select {}
}

type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *lines
}

// lines collects a child's output, and tells when a word is in it.
type lines struct {
	mu   sync.Mutex
	cond *sync.Cond
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cond.Broadcast()
	return l.text.Write(p)
}

func (l *lines) await(word string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !strings.Contains(l.text.String(), word) {
		l.cond.Wait()
	}
}

func startWriter(t *testing.T, prefix []string, env ...string) *child {
	t.Helper()
	out := &lines{}
	out.cond = sync.NewCond(&out.mu)
	argv := append(prefix, os.Args[0])
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &child{cmd, stdin, out}
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	for name, o := range map[string]store.Options{
		"directory": {URL: t.TempDir() + "/s"},
		"s3":        {URL: server.URL(server.Bucket(t, true)), CredentialsFile: server.CredentialsFile},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, o)
			var children []*child
			for range 5 {
				c := startWriter(t, nil, writerEnv+"="+o.URL, "CREDENTIALS="+o.CredentialsFile)
				c.out.await("ready")
				children = append(children, c)
			}
			for _, c := range children {
				c.stdin.Close()
			}
			won := 0
			for _, c := range children {
				err := c.cmd.Wait()
				text := c.out.text.String()
				switch {
				case err == nil && strings.Contains(text, "won"):
					won++
					got, err := storetest.Read(t.Context(), s, "one/key")
					if err != nil || !bytes.Equal(got, storetest.Random(uint64(c.cmd.Process.Pid), 3<<20)) {
						t.Errorf("%d bytes, %v: not what the winner wrote", len(got), err)
					}
				case !strings.Contains(text, store.ErrExists.Error()):
					t.Errorf("%v: %s", err, text)
				}
			}
			if won != 1 {
				t.Errorf("%d writers have won", won)
			}
		})
	}
}

// A writer that is killed in the middle leaves no blob.
func TestKilledWriter(t *testing.T) {
	t.Parallel()
	server := storetest.S3(t)
	for name, o := range map[string]store.Options{
		"directory": {URL: t.TempDir() + "/s"},
		"s3":        {URL: server.URL(server.Bucket(t, false)), CredentialsFile: server.CredentialsFile},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, o)
			c := startWriter(t, nil, writerEnv+"="+o.URL, "CREDENTIALS="+o.CredentialsFile, "HANG=1")
			c.stdin.Close()
			c.out.await("hangs")
			c.cmd.Process.Kill()
			c.cmd.Wait()
			if keys, err := storetest.Keys(t.Context(), s, "", "", 0); len(keys) > 0 || err != nil {
				t.Errorf("%q, %v are there", keys, err)
			}
			if err := s.Put(t.Context(), "one/key", storetest.Bytes([]byte("x"))); err != nil {
				t.Error(err)
			}
		})
	}
}

// A disk that is full or broken fails the Put, and leaves nothing behind.
func TestDirectoryDiskFaults(t *testing.T) {
	t.Parallel()
	inject := func(fault string) []string {
		call, _, _ := strings.Cut(fault, ":")
		return []string{"strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call, "-e", "inject=" + fault}
	}
	for name, c := range map[string]struct {
		prefix []string
		env    string
		want   string
	}{
		"full":              {nil, "FULL=1", "file too large"},
		"fsync":             {inject("fsync:error=EIO"), "", "input/output error"},
		"link":              {inject("linkat:error=EIO"), "", "input/output error"},
		"link, full":        {inject("linkat:error=ENOSPC"), "", "no space left"},
		"no links":          {inject("linkat:error=EPERM"), "", "won"},
		"neither of both":   {inject("linkat,renameat2:error=EPERM"), "", store.ErrDenied.Error()},
		"read only":         {inject("mkdirat:error=EROFS"), "", store.ErrDenied.Error()},
		"not our directory": {inject("mkdirat:error=EACCES"), "", store.ErrDenied.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if len(c.prefix) > 0 {
				if _, err := exec.LookPath(c.prefix[0]); err != nil {
					t.Skip("strace is not here")
				}
			}
			dir := t.TempDir()
			w := startWriter(t, c.prefix, writerEnv+"="+dir, c.env)
			w.stdin.Close()
			w.cmd.Wait()
			if text := w.out.text.String(); !strings.Contains(text, c.want) {
				t.Errorf("%s", text)
			}
			if entries, _ := os.ReadDir(dir + "/.tmp"); len(entries) > 0 {
				t.Errorf("left: %v", entries)
			}
			keys, err := storetest.Keys(t.Context(), open(t, store.Options{URL: dir}), "", "", 0)
			if want := c.want == "won"; err != nil || want != (len(keys) == 1) {
				t.Errorf("%q, %v are there", keys, err)
			}
		})
	}
}
