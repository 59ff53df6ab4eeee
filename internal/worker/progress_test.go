package worker

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/testenv"
)

// openTerminal returns a terminal, and what was written to it once it is closed.
func openTerminal(t *testing.T) (terminal *os.File, written func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	resize(t, terminal, 25, 100)
	var text bytes.Buffer
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(&text, master) // ends with EIO when the other side is closed
	}()
	return terminal, func() string {
		terminal.Close()
		<-ended
		master.Close()
		return text.String()
	}
}

func resize(t *testing.T, terminal *os.File, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
}

// A terminal that does not say how large it is has a bar, too, and none that is wider than a line.
func TestProgressOnATerminalWithoutSize(t *testing.T) {
	t.Setenv("TERM", "xterm")
	for _, size := range [][2]uint16{{0, 0}, {0, 100}, {25, 0}} {
		terminal, written := openTerminal(t)
		resize(t, terminal, size[0], size[1])
		p := newProgress(terminal, false)
		p.Stage("repositories", 12).Done(12)
		fmt.Fprintln(p, "a line")
		p.Close()
		text := written()
		for _, want := range []string{"repositories", "12/12", "[=", "a line\r\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("%v: %q lacks %q", size, text, want)
			}
		}
		for line := range strings.SplitSeq(text, "\r\n") {
			if _, after, ok := strings.Cut(line, "\x1b[J"); ok {
				line = after
			}
			if len(line) > defaultColumns {
				t.Errorf("%v: a line has %d columns: %q", size, len(line), line)
			}
		}
	}
}

// What is said last is seen, whether bars are done by then or not.
func TestProgressLastLine(t *testing.T) {
	t.Setenv("TERM", "xterm")
	for done := range int64(13) {
		terminal, written := openTerminal(t)
		p := newProgress(terminal, false)
		p.Stage("repositories", 12).Done(done)
		if done%2 == 0 {
			p.end()
		}
		fmt.Fprintln(p, "a line")
		p.Close()
		fmt.Fprintln(p, "another")
		p.Close()
		if text := written(); !strings.Contains(text, "a line\r\n") || !strings.HasSuffix(text, "another\r\n") || strings.Contains(text, "\n\r\n") {
			t.Errorf("%d: %q", done, text)
		}
	}
}

func TestProgressOnATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	terminal, written := openTerminal(t)
	p := newProgress(terminal, false)
	looked := p.Stage("repositories", 12)
	for range 12 {
		looked.Done(1)
	}
	p.Stage("nothing", 0).Done(1)
	pushed := p.Stage("copies pushed", 5)
	sent := p.Bytes("sent")
	sent.Expect(4_000_000)
	sent.Expect(4_000_000)
	sent.Done(5_000_000)
	pushed.Done(2)
	fmt.Fprintln(p, "ip1 to sam: failed")
	p.Close()
	p.Close()
	fmt.Fprintln(p, "afterwards")
	text := written()
	for _, want := range []string{"repositories", "12/12", "copies pushed", "2/5", "sent", "5.0 MB of 8.0 MB", "ip1 to sam: failed\r\n", "[="} {
		if !strings.Contains(text, want) {
			t.Errorf("%q lacks %q", text, want)
		}
	}
	if strings.Contains(text, "nothing") || !strings.HasSuffix(text, "afterwards\r\n") {
		t.Errorf("terminal: %q", text)
	}
}

// A log file, a pipe and cron's mail get lines, and no bar.
func TestProgressElsewhere(t *testing.T) {
	t.Setenv("TERM", "xterm")
	use := func(p *progress) {
		p.Stage("repositories", 2).Done(2)
		p.Bytes("read").Done(1000)
		fmt.Fprintln(p, "a line")
		p.Close()
	}
	var out bytes.Buffer
	use(newProgress(&out, false))
	if out.String() != "a line\n" {
		t.Errorf("a writer got %q", out.String())
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	use(newProgress(w, false))
	w.Close()
	if text, _ := io.ReadAll(r); string(text) != "a line\n" {
		t.Errorf("a pipe got %q", text)
	}
	terminal, written := openTerminal(t)
	use(newProgress(terminal, true))
	if text := written(); text != "a line\r\n" {
		t.Errorf("a terminal that is to be quiet got %q", text)
	}
	t.Setenv("TERM", "dumb")
	terminal, written = openTerminal(t)
	use(newProgress(terminal, false))
	if text := written(); text != "a line\r\n" {
		t.Errorf("a dumb terminal got %q", text)
	}
}

// The whole program draws bars for whoever watches, and none with --quiet or --json.
func TestSyncOnATerminal(t *testing.T) {
	env := testenv.New(t, "frodo", "sam")
	env.CreateRepo(t, "ip1", map[string]string{"master": "frodo", "slaves": "sam"})
	frodo := env.Server(t, "frodo")
	frodo.Git(t, "ip1", "update-ref", "refs/heads/main", newCommit(t, frodo))
	sync := func(args ...string) string {
		t.Helper()
		terminal, written := openTerminal(t)
		cmd := frodo.Command(t.Context(), append([]string{"mirror-shell", "sync"}, args...)...)
		cmd.Env = append(cmd.Env, "TERM=xterm")
		cmd.Stderr = terminal
		if out, err := cmd.Output(); err != nil {
			t.Fatalf("sync %q: %v\n%s%s", args, err, out, written())
		}
		return written()
	}
	text := sync()
	for _, want := range []string{"repositories", "peers asked", "copies pushed", "1/1"} {
		if !strings.Contains(text, want) {
			t.Errorf("terminal: %q, want %q", text, want)
		}
	}
	for _, flag := range []string{"--quiet", "--json"} {
		if text := sync(flag); text != "" {
			t.Errorf("sync %s wrote %q", flag, text)
		}
	}
}

// newCommit makes a commit in ip1 that no ref names.
func newCommit(t *testing.T, s *testenv.Server) string {
	t.Helper()
	tree := strings.TrimSpace(s.Git(t, "ip1", "write-tree"))
	return strings.TrimSpace(s.Git(t, "ip1", "commit-tree", "-m", "one", tree))
}
