package proc

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process of this machine, by a descriptor: a number may be another's tomorrow.
type Process struct {
	PID int
	fd  int
}

// Pushes returns the processes of git that are taking a push to a repository: git receive-pack works in the
// repository's directory, and stays in it when that is renamed. Dir is what os.Stat said of it. Seen are the
// processes of this account on this machine; of all accounts, by root. Each must be closed.
func Pushes(dir fs.FileInfo) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !takesPush(pid, dir) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return found, os.NewSyscallError("pidfd_open", err)
		}
		p := Process{pid, fd}
		if !takesPush(pid, dir) { // it is another one by now, and the descriptor may be that one's
			p.Close()
			continue
		}
		found = append(found, p)
	}
	return found, nil
}

func takesPush(pid int, dir fs.FileInfo) bool {
	place := filepath.Join("/proc", strconv.Itoa(pid))
	line, err := os.ReadFile(filepath.Join(place, "cmdline"))
	if err != nil {
		return false
	}
	var argv []string
	for word := range bytes.SplitSeq(bytes.TrimSuffix(line, []byte{0}), []byte{0}) {
		argv = append(argv, string(word))
	}
	if gitVerb(argv) != "receive-pack" { // first: a look at a directory on a server that is away may take for ever
		return false
	}
	cwd, err := os.Stat(filepath.Join(place, "cwd"))
	return err == nil && os.SameFile(cwd, dir)
}

// gitVerb is which of git's commands a command line is, "" for none.
func gitVerb(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	name := filepath.Base(argv[0])
	if verb, ok := strings.CutPrefix(name, "git-"); ok {
		return verb
	}
	if name != "git" {
		return ""
	}
	for args := argv[1:]; len(args) > 0; args = args[1:] {
		switch {
		case slices.Contains([]string{"-c", "-C", "--git-dir", "--exec-path", "--work-tree", "--namespace"}, args[0]) && len(args) > 1:
			args = args[1:]
		case !strings.HasPrefix(args[0], "-"):
			return args[0]
		}
	}
	return ""
}

// Ended reports whether the process has ended.
func (p Process) Ended() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// Signal sends a signal. One that has ended is no error.
func (p Process) Signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(p.fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return nil
}

// Close lets go of the process.
func (p Process) Close() { unix.Close(p.fd) }
