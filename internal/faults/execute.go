package faults

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// result is how a program ended.
type result struct {
	stdout, stderr string
	status         int // exit status, -1 when a signal ended it or it could not be started
	late           bool
}

func (r result) String() string {
	late := ""
	if r.late {
		late = ", ended by us because it took too long"
	}
	return fmt.Sprintf("[exit status %d%s] %s", r.status, late, oneLine(r.stdout+" "+r.stderr))
}

// oneLine makes text fit into a history.
func oneLine(text string) string {
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	if len(text) > 600 {
		text = text[:300] + " … " + text[len(text)-300:]
	}
	return text
}

// program prepares a program of the administrator's, who is root.
func program(argv ...string) func(context.Context) *exec.Cmd {
	return func(ctx context.Context) *exec.Cmd { return exec.CommandContext(ctx, argv[0], argv[1:]...) }
}

// execute runs a program, and kills it and its children when it takes too long.
func execute(limit time.Duration, stdin string, prepare func(context.Context) *exec.Cmd) result {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := prepare(ctx)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	r := result{stdout.String(), stderr.String(), -1, ctx.Err() != nil}
	if cmd.ProcessState != nil {
		r.status = cmd.ProcessState.ExitCode()
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		r.stderr += " " + err.Error()
	}
	return r
}
