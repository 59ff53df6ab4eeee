package testenv

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// accountPrefix begins the names of all unix users that this package makes.
const accountPrefix = "msh-"

// Account is a unix user of this machine, with no password and no way in but
// the keys in its home directory.
type Account struct {
	Name string `json:"name"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	Home string `json:"home"`
}

// addAccount makes the unix user of a server.
func addAccount(t testing.TB, env int32, server, home string) Account {
	t.Helper()
	a := Account{Name: fmt.Sprintf("%s%d-%d-%s", accountPrefix, os.Getpid(), env, server), Home: home}
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	// Password "*" matches nothing. "!", which useradd would put there, is a
	// locked account to sshd, and no key opens it.
	changeAccounts(t, "useradd", "--no-log-init", "--no-create-home", "--home-dir", home,
		"--user-group", "--shell", "/bin/sh", "--password", "*", a.Name)
	u, err := user.Lookup(a.Name)
	if err != nil {
		t.Fatal(err)
	}
	a.UID, a.GID = atoi(t, u.Uid), atoi(t, u.Gid)
	if err := os.Chown(home, a.UID, a.GID); err != nil {
		t.Fatal(err)
	}
	return a
}

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// accountsBusy is the exit status of useradd and userdel while another process
// holds the lock of /etc/passwd; some versions use 10 for /etc/group.
var accountsBusy = map[int]bool{1: true, 10: true}

// accountGone is userdel's exit status for a user that does not exist: another
// test process was quicker.
const accountGone = 6

// changeAccounts runs useradd or userdel, again while another process does.
func changeAccounts(t testing.TB, argv ...string) {
	t.Helper()
	for deadline := time.Now().Add(Timeout); ; time.Sleep(pollEvery) {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err == nil {
			return
		}
		exit, ok := err.(*exec.ExitError)
		if ok && exit.ExitCode() == accountGone && argv[0] == "userdel" {
			return
		}
		if !ok || !accountsBusy[exit.ExitCode()] || time.Now().After(deadline) {
			t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
		}
	}
}

// remove ends the user's processes and removes the user. A worker that a hook
// has started stays for minutes on purpose, so that processes left are normal.
func (a Account) remove(t testing.TB) {
	t.Helper()
	if !Poll(func() bool { return a.kill() == 0 }) {
		t.Errorf("processes of %s do not end", a.Name)
	}
	changeAccounts(t, "userdel", a.Name)
}

// kill sends SIGKILL to every process of the user and returns how many there
// were, zombies aside.
func (a Account) kill() int {
	n := 0
	for _, pid := range a.processes() {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}

// processes lists the user's processes that still run.
func (a Account) processes() []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/status")
	var pids []int
	for _, file := range dirs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && processUser(file) == a.UID {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processUser reads the real user id from /proc/PID/status, -1 for a process
// that has ended.
func processUser(status string) int {
	file, err := os.Open(status)
	if err != nil {
		return -1
	}
	defer file.Close()
	for scan := bufio.NewScanner(file); scan.Scan(); {
		fields := strings.Fields(scan.Text())
		switch {
		case len(fields) < 2:
		case fields[0] == "State:" && fields[1] == "Z":
			return -1
		case fields[0] == "Uid:":
			uid, err := strconv.Atoi(fields[1])
			if err != nil {
				return -1
			}
			return uid
		}
	}
	return -1
}

// removeAbandoned removes the users and directories of test processes that do not
// run any more: a time-out or SIGKILL leaves them no time to clean up.
func removeAbandoned(t testing.TB) {
	t.Helper()
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(passwd)) {
		fields := strings.Split(line, ":")
		if len(fields) < 6 || !abandoned(fields[0], accountPrefix) {
			continue
		}
		t.Logf("removing %s, left by a test process that was killed", fields[0])
		Account{Name: fields[0], UID: atoi(t, fields[2]), GID: atoi(t, fields[3]), Home: fields[5]}.remove(t)
	}
	for _, parent := range worldParents() {
		dirs, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
		for _, dir := range dirs {
			if abandoned(filepath.Base(dir), dirPrefix) {
				full, _ := filepath.Glob(filepath.Join(dir, "servers/*/home", stateDir))
				for _, mount := range full { // see FillState
					syscall.Unmount(mount, syscall.MNT_DETACH)
				}
				os.RemoveAll(dir) // one that cannot be removed hinders nobody
			}
		}
	}
}

// abandoned reports whether a name is PREFIX, the id of a process that does not
// run, and "-…".
func abandoned(name, prefix string) bool {
	rest, ours := strings.CutPrefix(name, prefix)
	number, _, whole := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(number)
	return ours && whole && err == nil && pid > 1 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// credential makes a child process the user's.
func (a Account) credential() *syscall.Credential {
	return &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID)}
}

// environ is the environment of the user's sessions, with our programs first in
// PATH.
func (a Account) environ(programs string) []string {
	return []string{
		"HOME=" + a.Home, "USER=" + a.Name, "LOGNAME=" + a.Name, "SHELL=/bin/sh",
		"PATH=" + searchPath(programs), "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C",
	}
}

// searchPath is a PATH with our programs, and with git as this process finds it.
func searchPath(programs string) string {
	path := programs
	if git, err := exec.LookPath("git"); err == nil {
		path += ":" + filepath.Dir(git)
	}
	return path + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
}
