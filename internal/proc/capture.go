package proc

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Captured is a child that says little, and says it into memory; see Capture.
type Captured struct {
	cmd    *exec.Cmd
	files  []*os.File // standard output and standard error; nil: the buffers are used
	out    bytes.Buffer
	err    Tail
	failed error // to start
}

// Capture starts cmd, and keeps its standard output and standard error in memory whole.
// Wait must be called, and ends it.
//
// The child writes to files without a name instead of pipes. Pipes need a goroutine
// each that copies, and those a thread, the poller, and a dozen switches between
// them, which is too much for a hook that asks git one question.
func Capture(cmd *exec.Cmd) *Captured {
	files, err := memoryFiles(2)
	if err != nil { // a system without memfd_create(2), or where it is forbidden
		files = nil
	}
	return capture(cmd, files)
}

// capture is Capture with these files, or with pipes when there are none.
func capture(cmd *exec.Cmd, files []*os.File) *Captured {
	c := &Captured{cmd: cmd, files: files}
	if files == nil {
		cmd.Stdout, cmd.Stderr = &c.out, &c.err
	} else {
		cmd.Stdout, cmd.Stderr = files[0], files[1]
	}
	c.failed = cmd.Start()
	return c
}

// Wait waits for the end of the child and returns what it has said, of its standard
// error the last kilobytes. A failure is an *Error, with what was said before.
func (c *Captured) Wait() (stdout []byte, stderr string, err error) {
	defer closeAll(c.files)
	if err = c.failed; err == nil {
		err = c.cmd.Wait()
	}
	unread := c.read()
	if err != nil {
		err = &Error{Program: c.cmd.Args[0], Stderr: c.err.String(), Err: err}
	} else {
		err = unread
	}
	return c.out.Bytes(), c.err.String(), err
}

// read moves what the child has written from the files to the buffers.
func (c *Captured) read() error {
	to := []io.Writer{&c.out, &c.err}
	for i, f := range c.files {
		size, err := f.Seek(0, io.SeekEnd) // it writes at the offset that we share
		if err == nil && size > 0 {
			_, err = io.Copy(to[i], io.NewSectionReader(f, 0, size))
		}
		if err != nil {
			return fmt.Errorf("read what %s has said: %w", c.cmd.Args[0], err)
		}
	}
	return nil
}

func memoryFiles(n int) (files []*os.File, err error) {
	for range n {
		fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, os.NewFile(uintptr(fd), "output"))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
