package shell

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
)

// fuzzTestKey is the same key in every run, so that fuzzing is repeatable.
func fuzzTestKey(t testing.TB) (ssh.PublicKey, string) {
	seed := make([]byte, ed25519.SeedSize)
	return sshTestKey(t, ed25519.NewKeyFromSeed(seed).Public())
}

func TestKeyCommandWords(t *testing.T) {
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"/usr/bin/mirror-shell", "peer", "sam"}, `/usr/bin/mirror-shell peer sam`},
		{[]string{"/opt/my shell", "--config", "/e/x's", "peer", "sam"}, `'/opt/my shell' --config '/e/x'\''s' peer sam`},
		{[]string{`/a\"b`, ""}, `'/a\"b' ''`},
		{[]string{"/$HOME/`x`;&|<>(){}[]*?!#~", "A=b"}, "'/$HOME/`x`;&|<>(){}[]*?!#~' 'A=b'"},
		{[]string{"/köln"}, `'/köln'`},
	} {
		got, err := joinKeyCommand(c.words)
		if err != nil || got != c.want {
			t.Errorf("join %q: %s, %v, want %s", c.words, got, err, c.want)
		}
		back, ok := splitKeyCommand(got)
		if !ok || !slices.Equal(back, c.words) {
			t.Errorf("split %s: %q %v", got, back, ok)
		}
	}
	for _, s := range []string{`a"b`, "a;b", "$a", "a$(b)", "`a`", "'a", `a\b`, `\`, "a\tb", "a\nb", "~/a", "A=b", "a&", "a|b", "a>b", "#", "*"} {
		if words, ok := splitKeyCommand(s); ok {
			t.Errorf("split %q: %q, want a refusal", s, words)
		}
	}
}

// FuzzKeyLine: no line panics the parser, every file comes back byte for byte,
// and what is listed as ours is found and can be removed.
func FuzzKeyLine(f *testing.F) {
	key, line := fuzzTestKey(f)
	ours := ourKeyLine("user", "alice", "alice@laptop.pub", line)
	for _, s := range []string{
		"", "#", "\n\r\n", line, ours, "\r" + ours + "\r\n", ours + " note\n" + ours, "restrict," + ours,
		`from="a,b",` + ours, `command="a\"b` + ours, `command="\\",` + line, "a\x00" + ours, `expiry-time="20260101",` + ours,
		`command="'/a b' --config 'x'\''y' peer sam" ` + line + " mirror-shell:peer:sam.pub",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		lines := splitKeyLines(data)
		if !bytes.Equal(joinKeyLines(lines), data) {
			t.Fatal("the file does not come back")
		}
		for _, l := range lines {
			l.admits(time.Unix(1795000000, 0))
		}
		for _, e := range listKeyLines(lines) {
			if !keyName.MatchString(e.Name) {
				t.Fatalf("name %q", e.Name)
			}
			if checkKeyMarks(lines, func(k KeyKind, file string) bool { return k == e.Kind && file == e.File }) != nil {
				continue
			}
			kept, removed, err := removeKeyLines(lines, e.Kind, strings.TrimSuffix(e.File, ".pub"))
			if err != nil {
				continue // another key of the name was changed by hand
			}
			if len(kept)+len(removed) != len(lines) {
				t.Fatal("lines were lost")
			}
		}
		edited, n, err := addKeyLine(lines, KeyEntry{Kind: KeyUser, Name: "bob", File: "bob.pub"}, testKeyCommand, key)
		if err != nil {
			return // the key or the mark is taken
		}
		again := splitKeyLines(joinKeyLines(edited))
		if len(again) != len(edited) || len(edited) > len(lines)+1 {
			t.Fatalf("%d lines of %d", len(again), len(edited))
		}
		if e, ok := again[n-1].entry(); !ok || e.Name != "bob" || !bytes.Equal(again[n-1].blob, key.Marshal()) {
			t.Fatalf("line %d is not bob's: %q", n, again[n-1].text)
		}
	})
}

// FuzzKeyCommand: whatever the path of the program and its config, our line
// reads back as the same words, by our parser and by x/crypto's.
func FuzzKeyCommand(f *testing.F) {
	key, _ := fuzzTestKey(f)
	for _, s := range []string{"/etc/x.toml", "", `a\"b`, `\`, `"`, `'`, `'\''`, "a b", "a,b=\"", " ", "\x7f", "é", `\\"`} {
		f.Add("/usr/bin/mirror-shell", s)
		f.Add(s, "x")
	}
	f.Fuzz(func(t *testing.T, program, config string) {
		command := []string{program, "--config", config}
		l, err := renderKeyLine(keyLine{end: "\n"}, KeyEntry{Kind: KeyUser, Name: "alice", File: "alice@laptop.pub"}, command, key)
		if err != nil {
			return
		}
		if strings.ContainsAny(l.text, "\r\n\x00") {
			t.Fatalf("%q is more than one line", l.text)
		}
		if e, ok := l.entry(); !ok || e.Name != "alice" || e.File != "alice@laptop.pub" {
			t.Fatalf("%q is not alice's", l.text)
		}
		o, _ := l.option("command")
		words, ok := splitKeyCommand(o.value)
		if diff := cmp.Diff(append(command, "user", "alice"), words); diff != "" || !ok {
			t.Fatalf("%q: %s", l.text, diff)
		}
		_, comment, options, _, err := ssh.ParseAuthorizedKey([]byte(l.text))
		if err != nil || comment != "mirror-shell:user:alice@laptop.pub #" || len(options) != 2 || options[1] != "restrict" {
			t.Fatalf("%q: %v %q %q", l.text, err, comment, options)
		}
	})
}

// The last word on the format is OpenSSH's: sshd must run our forced command,
// through the login shell, with the very words; and skip the lines that we say
// it skips.
func TestKeyLineInSSHD(t *testing.T) {
	t.Parallel()
	k := newTestKeys(t)
	s := newKeySSHD(t, k)
	s.program = filepath.Join(k.dir, `my "mirror" \"shell's\ $HOME;x`)
	script := "#!/bin/sh\nfor w in \"$@\"; do echo \"<$w>\"; done\necho \"$SSH_ORIGINAL_COMMAND\"\n"
	if err := os.WriteFile(s.program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	config := `/etc/a b'"\" ü=%h$(id),x\`
	k.Command = []string{s.program, "--config", config}
	k.mustAdd(KeyUser, "alice@laptop.pub", s.pub)
	want := "<--config>\n<" + config + ">\n<user>\n<alice>\ngit-upload-pack 'x'\n"
	if got, err := s.login(); err != nil || got != want {
		t.Fatalf("got %q, %v\nwant %q", got, err, want)
	}
	out, err := exec.Command("ssh-keygen", "-l", "-f", k.Path).CombinedOutput()
	list, _ := k.List()
	if err != nil || len(list) != 1 || !strings.Contains(string(out), list[0].Fingerprint) {
		t.Errorf("ssh-keygen -l: %s %v; list: %+v", out, err, list)
	}

	// What sshd makes of hand-made lines, and what we say it makes of them.
	s.program = filepath.Join(k.dir, "shell")
	if err := os.WriteFile(s.program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{
		`restrict,command="%" `, `command="%",no-pty,port-forwarding `, `RESTRICT,Command="%" `,
		`command="%",restrict `, "\t" + `command="%"` + "\t ", `command="%",expiry-time="20010101" `,
		`command="%",expiry-time="never" `, `command="%",expiry-time="20991231",expiry-time="20010101" `,
		`command="%",bogus `, `command="%",command="%" `, `command="%", `, `,command="%" `, `command="%",,pty `,
		`command="%"pty `, `command="%",restrict=yes `, `command="%",no-restrict `, `command="%",environment="A=b" `,
		`command="%",cert-authority `, `command="%",permitopen="h:1",permitopen="h:2" `, `command="%",tunnel="1",tunnel="2" `,
	} {
		options = strings.ReplaceAll(options, "%", s.program+" user alice")
		k.put(options + s.pub + " mirror-shell:user:alice.pub\r\n")
		got, err := s.login()
		sshd := err == nil && strings.HasPrefix(got, "<user>\n<alice>\n")
		key, _, _, _, _ := ssh.ParseAuthorizedKey([]byte(s.pub))
		_, us, err := k.Lookup(key)
		if sshd != us || err != nil {
			t.Errorf("%q: sshd %v, we %v (%v)", options, sshd, us, err)
		}
	}
}

// keySSHD is a login by OpenSSH's client at an sshd that lives as long as the
// connection: sshd -i at the other end of ProxyCommand, without a port.
type keySSHD struct {
	t       *testing.T
	program string
	args    []string
	pub     string
}

func newKeySSHD(t *testing.T, k testKeys) *keySSHD {
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		sshd = "/usr/sbin/sshd"
	}
	for _, program := range []string{sshd, "ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v: install openssh-server and openssh-client", err)
		}
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's privilege separation wants it
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(k.dir, name) }
	for _, name := range []string{"host", "login"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", at(name)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	config := "HostKey " + at("host") + "\nAuthorizedKeysFile " + k.Path + "\nStrictModes no\nUsePAM no\n" +
		"PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
	k.pub("sshd_config", config)
	pub, err := os.ReadFile(at("login.pub"))
	if err != nil {
		t.Fatal(err)
	}
	return &keySSHD{t: t, pub: strings.Join(strings.Fields(string(pub))[:2], " "), args: []string{
		"-F", "none", "-i", at("login"), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "ProxyCommand=" + sshd + " -i -e -f " + at("sshd_config") + " 2>" + at("sshd.log"),
		"localhost", "git-upload-pack 'x'",
	}}
}

func (s *keySSHD) login() (stdout string, err error) {
	var stderr strings.Builder
	cmd := exec.CommandContext(s.t.Context(), "ssh", s.args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), err
}
