package mirrorcfg

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Log says where sessions, hooks and workers write what they do.
type Log struct {
	// Audit has every command of a peer or user told in one line each; see
	// AppendAudit.
	Audit bool `toml:"audit"`
	// Target is LogFile, for files in the state directory, or LogJournal.
	Target string `toml:"target"`
	// File is the log of the daemon; "": its standard error, which systemd
	// gives to the journal.
	File string `toml:"file"`
}

// Where logs go. The journal is reached through the socket of syslog: systemd
// listens there, and on machines without it a syslog daemon does.
const (
	LogFile    = "file"
	LogJournal = "journal"
)

// What the journal calls our lines (journalctl -t NAME).
const (
	logTag   = "mirror-shell"
	auditTag = "mirror-shell-audit"
)

// syslogSocket is where syslog's datagrams go; tests have one of their own.
var syslogSocket = "/dev/log"

// syslog's facility and severity in one number.
const (
	daemonInfo = 3<<3 | 6
	authInfo   = 10<<3 | 6 // authpriv: what not everybody should read
)

func (s *Server) checkLog() error {
	l := &s.Log
	if l.Target != LogFile && l.Target != LogJournal {
		return fmt.Errorf("log.target = %q: write %q for files in state_dir, or %q", l.Target, LogFile, LogJournal)
	}
	if l.File == "" {
		return nil
	}
	abs, err := expandHome(l.File)
	if err != nil {
		return fmt.Errorf("log.file: %w", err)
	}
	l.File = abs
	return nil
}

// OpenLog opens the log that sessions, hooks and drain append to: the file
// mirror-shell.log in the state directory, or the journal. Each opens it anew, so
// that the file can be rotated by renaming it. One Write is one line.
func (s *Server) OpenLog() (io.WriteCloser, error) {
	if s.Log.Target == LogJournal {
		return openSyslog(daemonInfo, logTag)
	}
	return openAppend(filepath.Join(s.StateDir, "mirror-shell.log"))
}

// DaemonLog is what the daemon logs to: the file of [log] file, else otherwise,
// its standard error. An error is a file that cannot be opened now.
func (s *Server) DaemonLog(otherwise io.Writer) (io.Writer, error) {
	if s.Log.File == "" {
		return otherwise, nil
	}
	f, err := openAppend(s.Log.File)
	if err != nil {
		return nil, fmt.Errorf("log.file: %w", err)
	}
	return appendFile(s.Log.File), f.Close()
}

// AuditFile is the audit log, where [log] target is "file".
func (s *Server) AuditFile() string { return filepath.Join(s.StateDir, "audit.log") }

// AuditFailed is an empty file that says that lines are missing in the audit log,
// since its time of change. Who has mended the cause removes it.
func (s *Server) AuditFailed() string { return filepath.Join(s.StateDir, "audit.failed") }

// AppendAudit adds one line, which ends in a newline, to the audit log: with one
// write(2), so that lines of sessions that run at the same time stay whole. It waits for
// nobody. A failure is an error and leaves the file AuditFailed.
func (s *Server) AppendAudit(line []byte) error {
	var err error
	if s.Log.Target == LogJournal {
		err = appendSyslog(authInfo, auditTag, line)
	} else {
		_, err = appendFile(s.AuditFile()).Write(line)
	}
	if err == nil {
		return nil
	}
	// On most file systems there is room for a name when there is none for a line.
	if mark, merr := os.OpenFile(s.AuditFailed(), os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o600); merr == nil {
		mark.Close()
	}
	return fmt.Errorf("audit log: %w", err)
}

// CheckAudit reports whether a line could be added to the audit log now, without
// adding one.
func (s *Server) CheckAudit() error {
	open := func() (io.Closer, error) { return openAppend(s.AuditFile()) }
	if s.Log.Target == LogJournal {
		open = func() (io.Closer, error) { return openSyslog(authInfo, auditTag) }
	}
	f, err := open()
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return f.Close()
}

// openAppend opens a log file, and makes it, and its directory, where they are
// missing. Anything but a file is refused: a pipe that nobody reads would hold the
// session of whoever writes to it.
func openAppend(path string) (*os.File, error) {
	const flags = os.O_APPEND | os.O_CREATE | os.O_RDWR | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(path, flags, 0o600)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is not a file: remove it, or name another", path))
	}
	return f, nil
}

// appendFile is a log file that is opened anew for each line: it can be renamed
// at any time, and nobody has to be told.
type appendFile string

// Write adds one line. After one that a full disk cut short it begins a new one.
func (a appendFile) Write(line []byte) (n int, err error) {
	f, err := openAppend(string(a))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if !cutShort(f) {
		return f.Write(line)
	}
	n, err = f.Write(append([]byte{'\n'}, line...))
	return max(n-1, 0), err
}

// cutShort reports whether the last line of the file has no end. One that
// another process is writing at this moment looks like that, too, and is given the
// time to be done: only what stays as it is was cut.
func cutShort(f *os.File) bool {
	size := int64(-1)
	for range 10 {
		info, err := f.Stat()
		if err != nil || info.Size() == 0 {
			return false
		}
		last := []byte{'\n'}
		if _, err := f.ReadAt(last, info.Size()-1); err != nil || last[0] == '\n' {
			return false
		}
		if info.Size() == size {
			return true
		}
		size = info.Size()
		time.Sleep(time.Millisecond)
	}
	return false
}

// syslog is a socket of the system's log. Package log/syslog would load package
// net into every hook.
type syslog struct {
	fd     int
	to     syscall.SockaddrUnix
	prefix string
}

func openSyslog(priority int, tag string) (*syslog, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	l := &syslog{fd: fd, to: syscall.SockaddrUnix{Name: syslogSocket}, prefix: "<" + strconv.Itoa(priority) + ">" + tag + "[" + strconv.Itoa(os.Getpid()) + "]: "}
	if err := syscall.Connect(fd, &l.to); err != nil {
		l.Close()
		return nil, fmt.Errorf("%s: %w: is systemd-journald or a syslog daemon running?", syslogSocket, err)
	}
	return l, nil
}

// maxDatagram is below what every syslog daemon takes; ours are far shorter.
const maxDatagram = 8 << 10

// syslogPatience is how long a log that has no room is waited for.
const syslogPatience = 20 * time.Millisecond

// Write sends one line.
func (l *syslog) Write(line []byte) (int, error) {
	text := append([]byte(l.prefix), line[:min(len(line), maxDatagram)]...)
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		_, err := syscall.Write(l.fd, text)
		switch {
		case err == nil:
			return len(line), nil
		case err != syscall.EAGAIN && err != syscall.EINTR && err != syscall.ENOBUFS || time.Since(begun) > syslogPatience:
			return 0, fmt.Errorf("%s: %w", syslogSocket, err)
		}
	}
}

func (l *syslog) Close() error { return syscall.Close(l.fd) }

func appendSyslog(priority int, tag string, line []byte) error {
	l, err := openSyslog(priority, tag)
	if err != nil {
		return err
	}
	defer l.Close()
	_, err = l.Write(line)
	return err
}
