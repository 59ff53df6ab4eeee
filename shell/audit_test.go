package shell

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/ssh"
)

// audit lets a session write to an audit log of its own, and returns its lines.
func (r *testRun) audit(t testing.TB) func() []map[string]any {
	var log bytes.Buffer
	r.Audit = func(line []byte) error { log.Write(line); return nil }
	return func() []map[string]any { return auditLines(t, log.Bytes()) }
}

func auditLines(t testing.TB, log []byte) (lines []map[string]any) {
	t.Helper()
	for line := range bytes.Lines(log) {
		fields := map[string]any{}
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		delete(fields, "time")
		lines = append(lines, fields)
	}
	return lines
}

func TestAudit(t *testing.T) {
	s := newTestServer(t, "[users]\nauthorize = [\"/bin/false\"]\n")
	s.Users.Authorize = nil
	s.bare("mine", "master=frodo", "slaves=sam", "redirectOK=true")
	s.bare("sams", "master=sam", "slaves=frodo", "redirectOK=true")
	for _, c := range []struct {
		who, command string
		want         []string // fields of each line, without session and seconds
	}{
		{"user alice", "git-upload-pack 'mine'", []string{
			"event=command from=192.0.2.1:1 repository=mine result=allowed server=frodo user=alice verb=git-upload-pack",
			"event=end from=192.0.2.1:1 repository=mine server=frodo status=0 user=alice verb=git-upload-pack"}},
		{"user alice", "git-receive-pack 'sams'", []string{
			"event=command from=192.0.2.1:1 redirect=sam repository=sams result=allowed server=frodo user=alice verb=git-receive-pack",
			"event=end from=192.0.2.1:1 repository=sams server=frodo status=0 user=alice verb=git-receive-pack"}},
		{"peer sam", "USER=bob SOC=git-receive-pack 'mine'", []string{
			"event=command from=192.0.2.1:1 peer=sam repository=mine result=allowed server=frodo user=bob verb=git-receive-pack via=sam",
			"event=end from=192.0.2.1:1 peer=sam repository=mine server=frodo status=0 user=bob verb=git-receive-pack via=sam"}},
		// What was refused is told with the user that the peer named.
		{"peer gollum", "USER=bob SOC=git-receive-pack 'sams'", []string{
			"event=command from=192.0.2.1:1 peer=gollum reason=frodo <==//== gollum redirected push rejected: frodo is not the master of sams repository=sams result=refused server=frodo user=bob verb=git-receive-pack via=gollum"}},
		{"user alice", "mirror-digest", []string{
			"command=mirror-digest event=command from=192.0.2.1:1 reason=frodo: alice may not send mirror-digest: push and fetch with git, or send info result=refused server=frodo user=alice verb=mirror-digest"}},
		{"user alice", "id\x1b[2J\u009b\u202e", []string{
			`command=id\x1b[2J\u009b\u202e event=command from=192.0.2.1:1 reason=command contains control characters result=refused server=frodo user=alice`}},
		{"peer sam", "mirror-meta 'sams'", []string{
			"event=command from=192.0.2.1:1 peer=sam repository=sams result=allowed server=frodo verb=mirror-meta",
			"event=end from=192.0.2.1:1 peer=sam reason=frodo: metadata: not a JSON object repository=sams server=frodo status=1 verb=mirror-meta"}},
	} {
		r := s.session(c.command)
		lines := r.audit(t)
		if name, isPeer := strings.CutPrefix(c.who, "peer "); isPeer {
			r.peer(t, name)
		} else {
			r.user(t, strings.TrimPrefix(c.who, "user "))
		}
		checkAudit(t, c.who+": "+c.command, lines(), c.want)
		if r.log.Len() > 0 {
			t.Errorf("%s: the log has it, too: %s", c.command, r.log.String())
		}
	}
}

func checkAudit(t *testing.T, what string, lines []map[string]any, want []string) {
	t.Helper()
	var got []string
	session := ""
	for _, line := range lines {
		id, _ := line["session"].(string)
		if session == "" {
			session = id
		}
		if len(id) != 8 || id != session {
			t.Errorf("%s: session %q after %q", what, id, session)
		}
		if seconds, ok := line["seconds"].(float64); ok != (line["event"] == "end") || seconds < 0 || seconds > 60 {
			t.Errorf("%s: seconds: %v", what, line["seconds"])
		}
		delete(line, "session")
		delete(line, "seconds")
		var fields []string
		for key, value := range line {
			fields = append(fields, fmt.Sprintf("%s=%v", key, value))
		}
		slices.Sort(fields)
		got = append(got, strings.Join(fields, " "))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The client is told less than the log.
func TestAuditCause(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("mine", "master=frodo")
	s.Users.Authorize = []string{"/nowhere/may-i"}
	r := s.session("git-upload-pack 'mine'")
	lines := r.audit(t)
	r.user(t, "alice")
	got := lines()
	if len(got) != 1 || got[0]["reason"] != "frodo: repository mine is not here, or is not for alice" || !strings.Contains(fmt.Sprint(got[0]["cause"]), "/nowhere/may-i") {
		t.Errorf("%v", got)
	}
	if strings.Contains(r.err.String(), "nowhere") {
		t.Errorf("told: %q", r.err.String())
	}
}

// A session goes on without its line; the client and the log hear of it once.
func TestAuditFails(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("mine", "master=frodo")
	r := s.session("git-upload-pack 'mine'")
	r.Audit = func([]byte) error { return errors.New("no space left on device") }
	r.user(t, "alice")
	if r.execs != 1 || r.status != 0 {
		t.Errorf("%d programs, exit status %d", r.execs, r.status)
	}
	if got := r.err.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "the audit log cannot be written") {
		t.Errorf("told %q", got)
	}
	if got := r.log.String(); strings.Count(got, "no space left") != 1 || !strings.Contains(got, "msg=accepted") || !strings.Contains(got, "msg=ended") {
		t.Errorf("log %s", got)
	}
}

// A program that cannot be started is told as the end of a session that was allowed.
func TestAuditExecFails(t *testing.T) {
	s := newTestServer(t, "")
	s.bare("mine", "master=frodo")
	r := s.session("git-upload-pack 'mine'")
	lines := r.audit(t)
	r.execStatus, r.execErr = 1, errors.New("no such file")
	r.user(t, "alice")
	if got := lines(); len(got) != 2 || got[1]["status"] != 1.0 || got[1]["reason"] != "frodo: cannot run git: no such file" {
		t.Errorf("%v", got)
	}
}

func TestServerAudit(t *testing.T) {
	w := newSSHWorld(t, "[log]\naudit = true\n", testLimits(nil))
	w.bare("ip1", "master=frodo")
	output(t, w.client("alice"), "git-upload-pack 'ip2'")
	output(t, w.client("alice"), "info")
	if c, err := w.dial(w.newSigner("stranger")); err == nil {
		c.Close()
		t.Error("a stranger came in")
	}
	fingerprint := ssh.FingerprintSHA256(w.signers["alice"].PublicKey())
	var got []string
	eventually(t, "four lines", func() bool {
		got = nil
		data, _ := os.ReadFile(w.AuditFile())
		for _, line := range auditLines(t, data) {
			if line["event"] != "login" && line["key"] != fingerprint {
				t.Errorf("%v, want key %s", line, fingerprint)
			}
			got = append(got, fmt.Sprint(line["event"], " ", line["result"]))
		}
		return len(got) >= 4
	})
	slices.Sort(got)
	if want := []string{"command allowed", "command refused", "end <nil>", "login refused"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestKeyFromSSHD(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", dir+"/key").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("ssh-keygen", "-q", "-s", dir+"/key", "-I", "x", dir+"/key.pub").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	listed, err := exec.Command("ssh-keygen", "-lf", dir+"/key.pub").Output()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(listed))[1]
	auth := filepath.Join(dir, "auth")
	write := func(text string) string {
		if err := os.WriteFile(auth, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return KeyFromSSHD(auth)
	}
	for _, file := range []string{"key.pub", "key-cert.pub"} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(string(data))
		if got := write("password\npublickey ssh-rsa AAAA\npublickey " + words[0] + " " + words[1] + "\n"); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	for _, text := range []string{"", "publickey", "publickey a b c", "publickey ssh-rsa !!", "publickey x-cert-v01@openssh.com AAAA", "hostbased ssh-rsa AAAA"} {
		if got := write(text); got != "" {
			t.Errorf("%q: %q", text, got)
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", dir, fifo, "/nowhere", "/dev/zero"} {
		if got := KeyFromSSHD(path); got != "" {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func FuzzAuthInfo(f *testing.F) {
	f.Add("publickey ssh-ed25519 " + base64.StdEncoding.EncodeToString([]byte("x")))
	f.Add("publickey ssh-ed25519-cert-v01@openssh.com AAAA\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		if got := parseAuthInfo(text); got != "" && (len(got) != 50 || !strings.HasPrefix(got, "SHA256:")) {
			t.Errorf("%q", got)
		}
	})
}

// Whatever a client sends is one line of JSON, of bounded length, and all of it can be
// seen.
func FuzzAuditLine(f *testing.F) {
	f.Add("git-upload-pack 'x'", "192.0.2.1 1 192.0.2.2 22")
	f.Add("\x1b]0;x\a\u202e\xff\"\\\n{}", "::1 1 ::1 22")
	f.Add(strings.Repeat("ä\x00", 70000), strings.Repeat("9", 5000))
	f.Fuzz(func(t *testing.T, command, from string) {
		line := auditLine("frodo", auditCommand, []slog.Attr{text("command", clip(command, maxAuditCommand)), text("from", addressPort(from))})
		fields := map[string]string{}
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if len(line) > 20000 || !utf8.Valid(line) || bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
			t.Errorf("%d bytes: %q", len(line), line)
		}
		if i := bytes.IndexFunc(line[:len(line)-1], func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("at %d: %q", i, line)
		}
		if short := len(command) <= maxAuditCommand; short && visible(command) != fields["command"] {
			t.Errorf("%q became %q", command, fields["command"])
		}
	})
}

// BenchmarkAudit is what a session pays for its line.
func BenchmarkAudit(b *testing.B) {
	s := newTestServer(b, "")
	for b.Loop() {
		r := &Session{Server: s.Server, From: "192.0.2.1 50000 192.0.2.2 22", Audit: s.AppendAudit, Key: "SHA256:lxKdIuNCm0tpG78SPVo5tVkma93zQ4juK4ro4gHWVq8"}
		r.trail.user, r.trail.request = "alice", Request{Verb: ReceivePack, Repo: "projects/ip1"}
		r.auditAllowed("user alice", Decision{Action: RunGit})
	}
}
