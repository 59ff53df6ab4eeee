package testenv

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// child is a process that runs beside the test, and dies with it.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed after Wait
}

// startChild starts cmd with its output appended to a file.
func startChild(t testing.TB, cmd *exec.Cmd, output string) *child {
	t.Helper()
	file, err := os.OpenFile(output, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // a test that is killed cleans nothing up
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		cmd.Wait() // how it ended is in ProcessState
	}()
	return c
}

func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// end sends a signal, waits, and returns how the process ended. One that does not
// listen is killed.
func (c *child) end(signal syscall.Signal) *os.ProcessState {
	c.cmd.Process.Signal(signal)
	select {
	case <-c.done:
	case <-time.After(Timeout):
		c.cmd.Process.Kill()
		<-c.done
	}
	return c.cmd.ProcessState
}
