// Package proc starts child processes, the same way everywhere: by argument
// vector and never through a shell, ended when their context ends, with a limit
// on how long a grandchild that keeps a pipe open can hold us, and with the end
// of their standard error kept for the error message.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// waitDelay is how long Wait goes on after the context ended or the child
// exited while somebody else still holds its pipes. A child of a hook that kept
// stderr open was seen to hold a user's push for its whole life.
const waitDelay = 5 * time.Second

// Command prepares argv[0] with its arguments. A nil env inherits ours. When
// ctx ends the child gets SIGTERM, and SIGKILL five seconds later.
func Command(ctx context.Context, env []string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = waitDelay
	return cmd
}

// Run starts cmd and waits for it. Its standard error is kept (and still goes to
// cmd.Stderr when that is set); a failure is an *Error.
func Run(cmd *exec.Cmd) (stderr string, err error) {
	var tail Tail
	if cmd.Stderr == nil {
		cmd.Stderr = &tail
	} else {
		cmd.Stderr = io.MultiWriter(cmd.Stderr, &tail)
	}
	if err := cmd.Run(); err != nil {
		return tail.String(), &Error{Program: cmd.Args[0], Stderr: tail.String(), Err: err}
	}
	return tail.String(), nil
}

// Error is a child process that could not be started or did not end with exit
// status 0.
type Error struct {
	Program string
	Stderr  string // the last kilobytes, trimmed; may be empty
	Err     error  // *exec.ExitError, *exec.Error or a context's error
}

// maxQuote is how much of a child's standard error is part of a message, in bytes.
const maxQuote = 500

func (e *Error) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("%s: %v", e.Program, e.Err)
	}
	return fmt.Sprintf("%s: %v: %s", e.Program, e.Err, OneLine(e.Stderr, maxQuote))
}

func (e *Error) Unwrap() error { return e.Err }

// ExitCode returns the exit status that err carries: 0 for nil, -1 when the
// child never ran or was ended by a signal.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit interface { // *exec.ExitError, or how a command ended elsewhere
		error
		ExitCode() int
	}
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// tailSize is what a Tail keeps: enough for git's longest useful messages.
const tailSize = 8 << 10

// Tail is a writer that keeps the last 8 KiB. A child that writes without end
// costs no memory.
type Tail struct{ buf []byte }

func (t *Tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String returns what was kept, without surrounding space.
func (t *Tail) String() string { return string(bytes.TrimSpace(t.buf)) }

// passed are the environment variables that sessions and jobs of ours hand to
// git. Everything else, and above all what a client could have sent through
// sshd's AcceptEnv, is dropped.
var passed = []string{"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "SSH_CONNECTION",
	"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH", "GOCOVERDIR"}

// Env returns the environment for a child: the few variables that are passed
// on, then extra ("NAME=value") over them.
func Env(extra ...string) []string {
	env := make([]string, 0, len(passed)+len(extra))
	for _, name := range passed {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return append(env, extra...)
}

// OneLine makes text from elsewhere fit for one line of a log or a terminal:
// what cannot be seen (control characters, and those that separate lines or turn the
// direction of writing) becomes a space, runs of spaces one, at most max bytes.
func OneLine(s string, max int) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool {
		return r == ' ' || !unicode.IsGraphic(r)
	}), " ")
	if len(s) <= max {
		return s
	}
	// What happened often stands at the end, what was tried at the beginning.
	head := max / 2
	return strings.ToValidUTF8(s[:head], "") + "…" + strings.ToValidUTF8(s[len(s)-(max-head):], "")
}

// SSH returns the argument vector that runs command on host, an alias in the
// account's ssh_config. It never asks anything, forwards nothing, and leaves
// everything else to ssh_config; an unknown host key is a failure.
func SSH(host, command string) []string {
	return []string{"ssh", "-T", "-a", "-x", "-oBatchMode=yes", "-oClearAllForwardings=yes", "--", host, command}
}
