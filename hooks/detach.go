package hooks

import (
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"
)

// startAlone starts cmd without any descriptor that we inherited. Go closes its
// own in children, but not those that git got from whoever started it: a worker
// that kept the end of somebody's pipe would make them wait for its whole life.
// They are only hidden meanwhile, because the next hook may be meant to get them.
func startAlone(cmd *exec.Cmd) error {
	hidden := inherited()
	for _, fd := range hidden {
		unix.CloseOnExec(fd)
	}
	err := cmd.Start() // returns after the child's exec
	for _, fd := range hidden {
		unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	return err
}

// inherited lists the descriptors above standard error that a child would get.
func inherited() []int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil // no /proc: nothing can be done, and nothing is known to be wrong
	}
	var fds []int
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= 2 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}
