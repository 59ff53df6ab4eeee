package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// ways are the two in which a child's words are kept.
func ways(t *testing.T) map[string]func(*exec.Cmd) *Captured {
	return map[string]func(*exec.Cmd) *Captured{
		"files": func(cmd *exec.Cmd) *Captured {
			files, err := memoryFiles(2)
			if err != nil {
				t.Fatal(err)
			}
			return capture(cmd, files)
		},
		"pipes":  func(cmd *exec.Cmd) *Captured { return capture(cmd, nil) },
		"either": Capture,
	}
}

func TestCapture(t *testing.T) {
	for name, start := range ways(t) {
		t.Run(name, func(t *testing.T) {
			ask := func(script string) (string, string, error) {
				out, said, err := start(Command(context.Background(), nil, "sh", "-c", script)).Wait()
				return string(out), said, err
			}
			if out, said, err := ask("printf 'a\\0b\\n'; echo ' a word ' >&2; echo c"); out != "a\x00b\nc\n" || said != "a word" || err != nil {
				t.Errorf("%q, %q, %v", out, said, err)
			}
			if out, said, err := ask(":"); out != "" || said != "" || err != nil {
				t.Errorf("%q, %q, %v", out, said, err)
			}
			out, said, err := ask("echo before; echo one >&2; echo two >&2; exit 3")
			if out != "before\n" || said != "one\ntwo" || ExitCode(err) != 3 || err.Error() != "sh: exit status 3: one two" {
				t.Errorf("%q, %q, %v", out, said, err)
			}
			if out, _, err := ask("head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; kill -9 $$"); len(out) != 300000 || ExitCode(err) != -1 {
				t.Errorf("%d bytes, %v", len(out), err)
			}
			if _, _, err := start(Command(context.Background(), nil, "/nonexistent/program")).Wait(); ExitCode(err) != -1 || !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		})
	}
}

// Files are no way for a grandchild to hold us at all, and the context ends a child.
func TestCaptureEndsWithContext(t *testing.T) {
	for name, start := range ways(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			began := time.Now()
			out, _, err := start(Command(ctx, nil, "sh", "-c", "echo here; exec sleep 600")).Wait()
			if took := time.Since(began); err == nil || strings.TrimSpace(string(out)) != "here" || took > waitDelay+10*time.Second {
				t.Errorf("%q, %v after %s", out, err, took)
			}
		})
	}
}
