package mirrorcfg

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func logServer(t testing.TB, text string) *Server {
	t.Helper()
	dir := t.TempDir()
	s, err := Parse(filepath.Join(dir, "config.toml"), "hostname = \"frodo\"\nstate_dir = \""+dir+"/state\"\n"+text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLogConfig(t *testing.T) {
	if s := logServer(t, ""); !s.Log.Audit || s.Log.Target != LogFile || s.Receive.FsckObjects != nil {
		t.Errorf("defaults: %+v %+v", s.Log, s.Receive)
	}
	s := logServer(t, "[log]\naudit = false\ntarget = \"journal\"\nfile = \"/var/log/x\"\n[receive]\nfsck_objects = false\n")
	if s.Log.Audit || s.Log.Target != LogJournal || s.Log.File != "/var/log/x" || s.Receive.FsckObjects == nil || *s.Receive.FsckObjects {
		t.Errorf("%+v %+v", s.Log, s.Receive)
	}
	for text, want := range map[string]string{
		"[log]\ntarget = \"syslog\"": `log.target = "syslog"`,
		"[log]\nfile = \"x.log\"":    "log.file: \"x.log\" is not a full path",
		"[log]\nlevel = 1":           "the keys are audit, target, file",
		"[receive]\nfsck = true":     "the keys are fsck_objects",
	} {
		if _, err := Parse("f", "hostname = \"frodo\"\n"+text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// Lines of processes that write at the same time stay whole, while the file is
// renamed under them.
func TestAppendAuditTogether(t *testing.T) {
	s := logServer(t, "")
	const writers, lines = 8, 200
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			line := append(bytes.Repeat([]byte{byte('a' + w)}, 700), '\n')
			for range lines {
				if err := s.AppendAudit(line); err != nil {
					t.Error(err)
				}
			}
		})
	}
	time.Sleep(time.Millisecond)
	if err := os.Rename(s.AuditFile(), s.AuditFile()+".1"); err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	all.Wait()
	old, _ := os.ReadFile(s.AuditFile() + ".1")
	data, err := os.ReadFile(s.AuditFile())
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for line := range bytes.Lines(append(old, data...)) {
		count++
		if len(line) != 701 || bytes.Count(line, line[:1]) != 700 {
			t.Fatalf("mixed: %q", line)
		}
	}
	if count != writers*lines {
		t.Errorf("%d lines, want %d", count, writers*lines)
	}
}

func TestAppendAudit(t *testing.T) {
	s := logServer(t, "")
	for _, line := range []string{"one\n", "two\n"} {
		if err := s.AppendAudit([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(s.AuditFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	f, _ := os.OpenFile(s.AuditFile(), os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString("cut")
	f.Close()
	if err := s.AppendAudit([]byte("three\n")); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(s.AuditFile()); string(data) != "one\ntwo\ncut\nthree\n" {
		t.Errorf("%q", data)
	}
	if _, err := os.Stat(s.AuditFailed()); err == nil {
		t.Error("marked as failed")
	}
}

// A pipe that nobody reads, or a directory, must not hold a session.
func TestAppendAuditInTheWay(t *testing.T) {
	for what, put := range map[string]func(string) error{
		"fifo":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		s := logServer(t, "")
		if err := os.Mkdir(s.StateDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := put(s.AuditFile()); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := s.AppendAudit([]byte("x\n")); err == nil || time.Since(begun) > time.Second {
			t.Errorf("%s: %v after %v", what, err, time.Since(begun))
		}
		if err := s.CheckAudit(); err == nil {
			t.Errorf("%s: the check found nothing", what)
		}
		if _, err := os.Stat(s.AuditFailed()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDaemonLog(t *testing.T) {
	var otherwise bytes.Buffer
	if w, err := logServer(t, "").DaemonLog(&otherwise); err != nil || w != &otherwise {
		t.Errorf("%v, %v", w, err)
	}
	file := filepath.Join(t.TempDir(), "logs", "daemon.log")
	w, err := logServer(t, "[log]\nfile = \""+file+"\"").DaemonLog(&otherwise)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"one\n", "two\n"} {
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		os.Rename(file, file+"."+line[:3])
	}
	if data, _ := os.ReadFile(file + ".two"); string(data) != "two\n" {
		t.Errorf("after a rotation: %q", data)
	}
}

// listenSyslog is a system log; lines come out of the function.
func listenSyslog(t testing.TB) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	old := syslogSocket
	syslogSocket = path
	t.Cleanup(func() { l.Close(); syslogSocket = old })
	return func() string {
		buf := make([]byte, 64<<10)
		l.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestJournal(t *testing.T) {
	next := listenSyslog(t)
	s := logServer(t, "[log]\ntarget = \"journal\"\n")
	if err := s.AppendAudit([]byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	if got := next(); !strings.HasPrefix(got, "<86>mirror-shell-audit[") || !strings.HasSuffix(got, "]: {}\n") {
		t.Errorf("%q", got)
	}
	log, err := s.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if n, err := log.Write([]byte("line\n")); n != 5 || err != nil {
		t.Error(n, err)
	}
	if got := next(); !strings.HasPrefix(got, "<30>mirror-shell[") {
		t.Errorf("%q", got)
	}
	if _, err := os.Stat(s.AuditFile()); err == nil {
		t.Error("there is a file, too")
	}
	if err := s.CheckAudit(); err != nil {
		t.Error(err)
	}
}

// A system log that does not read is not waited for.
func TestJournalFull(t *testing.T) {
	listenSyslog(t)
	s := logServer(t, "[log]\ntarget = \"journal\"\n")
	line := append(bytes.Repeat([]byte("x"), 4000), '\n')
	for range 10000 {
		begun := time.Now()
		if err := s.AppendAudit(line); err != nil {
			if took := time.Since(begun); took > time.Second {
				t.Errorf("it took %v", took)
			}
			if _, err := os.Stat(s.AuditFailed()); err == nil {
				t.Error("a state directory that is not there was made for the mark")
			}
			return
		}
	}
	t.Error("the socket takes lines without end")
}

func TestJournalNobody(t *testing.T) {
	old := syslogSocket
	syslogSocket = filepath.Join(t.TempDir(), "nobody")
	defer func() { syslogSocket = old }()
	s := logServer(t, "[log]\ntarget = \"journal\"\n")
	if err := s.AppendAudit([]byte("x\n")); err == nil || !strings.Contains(err.Error(), "is systemd-journald or a syslog daemon running?") {
		t.Error(err)
	}
	if err := s.CheckAudit(); err == nil {
		t.Error("the check found nothing")
	}
}

func BenchmarkAppendAudit(b *testing.B) {
	s := logServer(b, "")
	line := append(bytes.Repeat([]byte("x"), 400), '\n')
	for b.Loop() {
		if err := s.AppendAudit(line); err != nil {
			b.Fatal(err)
		}
	}
}
