package proc

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	ctx := context.Background()
	sh := func(script string) *exec.Cmd { return Command(ctx, nil, "sh", "-c", script) }
	if stderr, err := Run(sh("echo ' a word ' >&2")); stderr != "a word" || err != nil {
		t.Errorf("%q, %v", stderr, err)
	}
	var also bytes.Buffer
	cmd := sh("echo one >&2; echo two >&2; exit 3")
	cmd.Stderr = &also
	stderr, err := Run(cmd)
	if stderr != "one\ntwo" || also.String() != "one\ntwo\n" || ExitCode(err) != 3 || err.Error() != "sh: exit status 3: one two" {
		t.Errorf("%q, %q, %v", stderr, &also, err)
	}
	if _, err := Run(sh("exit 3")); err.Error() != "sh: exit status 3" {
		t.Error(err)
	}
	if _, err := Run(sh("kill -9 $$")); ExitCode(err) != -1 {
		t.Error(err)
	}
	if _, err := Run(Command(ctx, nil, "/nonexistent/program")); ExitCode(err) != -1 || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if ExitCode(nil) != 0 {
		t.Error("no error is status 0")
	}
}

func TestRunEndsWithContext(t *testing.T) {
	for name, script := range map[string]string{"by TERM": "exec sleep 600", "by KILL": "trap '' TERM; while :; do :; done"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := Run(Command(ctx, nil, "sh", "-c", script))
			if took := time.Since(start); err == nil || took > waitDelay+10*time.Second {
				t.Errorf("%v after %s", err, took)
			}
		})
	}
}

// A grandchild that keeps a pipe holds us for a while and not for its life.
func TestRunWithHeldPipe(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	cmd := Command(context.Background(), nil, "sh", "-c", "sleep 600 & echo $!")
	cmd.Stdout = &out
	start := time.Now()
	_, err := Run(cmd)
	if took := time.Since(start); !errors.Is(err, exec.ErrWaitDelay) || took > waitDelay+10*time.Second {
		t.Errorf("%v after %s", err, took)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestTail(t *testing.T) {
	var tail Tail
	for i := range 100_000 {
		tail.Write([]byte(strconv.Itoa(i) + "\n"))
	}
	if s := tail.String(); len(s) > tailSize || !strings.HasSuffix(s, "99998\n99999") || cap(tail.buf) > 4*tailSize {
		t.Errorf("%d bytes kept, capacity %d", len(s), cap(tail.buf))
	}
	tail.Write(bytes.Repeat([]byte("x"), 3*tailSize))
	if s := tail.String(); s != strings.Repeat("x", tailSize) {
		t.Errorf("%d bytes kept", len(s))
	}
}

func TestEnv(t *testing.T) {
	t.Setenv("GIT_DIR", "/x")
	t.Setenv("LD_PRELOAD", "/x")
	t.Setenv("HOME", "/home/frodo")
	env := Env("A=b")
	if slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "GIT_DIR=") || strings.HasPrefix(s, "LD_") }) ||
		!slices.Contains(env, "HOME=/home/frodo") || env[len(env)-1] != "A=b" {
		t.Errorf("%q", env)
	}
}

func FuzzOneLine(f *testing.F) {
	f.Add("fatal: no\n\x1b[2Jmore \u009b31m \xff\xfe end", 20)
	f.Add("ünï", 2)
	f.Add("txt.\u202egpj.\u2028line\u2066x\ufeff", 50)
	f.Fuzz(func(t *testing.T, s string, max int) {
		if max < 0 || max > 1<<16 {
			return
		}
		got := OneLine(s, max)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsGraphic(r) }) || len(got) > max+len("…") || strings.Contains(got, "  ") {
			t.Errorf("%q, %d: %q", s, max, got)
		}
	})
}

func TestSSH(t *testing.T) {
	argv := SSH("sam", "info")
	if dash := slices.Index(argv, "--"); dash < 0 || !slices.Equal(argv[dash:], []string{"--", "sam", "info"}) || !slices.Contains(argv, "-oBatchMode=yes") {
		t.Errorf("%q", argv)
	}
}
