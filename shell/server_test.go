package shell

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestServerInfo(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	w.bare("ip1", "master=sam")
	for name, want := range map[string]string{
		"sam":   "Hello sam, I am frodo.\n",
		"alice": "Hello alice, I am frodo.\n slave   ip1 (master: sam)\n",
	} {
		c := w.client(name)
		if out, stderr, status := output(t, c, "info"); out != want || stderr != "" || status != 0 {
			t.Errorf("%s: %q, %q, %d", name, out, stderr, status)
		}
		sess, err := c.NewSession() // no command at all
		if err != nil {
			t.Fatal(err)
		}
		var buf bytes.Buffer
		sess.Stdout = &buf
		if err := sess.Shell(); err != nil {
			t.Fatal(err)
		}
		if err := sess.Wait(); err != nil || buf.String() != want {
			t.Errorf("%s: %v, %q", name, err, buf.String())
		}
	}
	if _, stderr, status := output(t, w.client("alice"), "info; id"); status != 1 || !strings.HasPrefix(stderr, "fatal: unknown command") {
		t.Errorf("%d, %q", status, stderr)
	}
}

func TestServerOpenSSH(t *testing.T) {
	needSSH(t)
	w := newSSHWorld(t, "", testLimits(nil))
	bare := w.bare("a/ip1", "master=frodo", "slaves=sam")
	w.bare("sams", "master=sam", "slaves=frodo")
	work := filepath.Join(w.dir, "work")
	testGit(t, "", "init", "-q", "-b", "main", work)
	oid := testCommit(t, work, "one")

	if out, err := w.git("alice", work, "push", "ssh://frodo/a/ip1.git", "main"); err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	if got := testGit(t, bare, "rev-parse", "main"); got != oid {
		t.Fatalf("pushed %s, want %s", got, oid)
	}
	for _, url := range []string{"frodo:a/ip1", "ssh://frodo/a/ip1"} { // a user's, with both protocols
		for _, version := range []string{"0", "2"} {
			out, err := w.git("alice", work, "-c", "protocol.version="+version, "ls-remote", url, "refs/heads/main")
			if err != nil || !strings.HasPrefix(out, oid) {
				t.Errorf("ls-remote %s: %v, %s", url, err, out)
			}
		}
	}
	clone := filepath.Join(w.dir, "clone")
	if out, err := w.git("sam", "", "clone", "-q", "frodo:a/ip1", clone); err != nil { // a slave's
		t.Fatalf("clone: %v\n%s", err, out)
	}
	if out, err := w.git("alice", "", "archive", "--format=tar", "--remote=frodo:a/ip1", "main"); err != nil {
		t.Errorf("archive: %v\n%s", err, out)
	}
	// The mirror push of the master, to a slave.
	out, err := w.git("sam", work, "push", "--mirror", "frodo:sams")
	if err != nil || !strings.Contains(out, "frodo <=== (sams) ==== sam") {
		t.Errorf("mirror push: %v\n%s", err, out)
	}
	for _, c := range []struct{ name, repo, want string }{
		{"sam", "a/ip1", "fatal: frodo <==//== sam mirror-push rejected: frodo is the master of a/ip1"},
		{"alice", "sams", "fatal: frodo is not the master of sams, please push to sam"},
		{"alice", "gone", "fatal: frodo: repository gone is not here, or is not for alice"},
	} {
		out, err := w.git(c.name, work, "push", "frodo:"+c.repo, "main:other")
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s to %s: %v\n%s", c.name, c.repo, err, out)
		}
	}
	config, _ := w.openSSH("alice")
	for command, want := range map[string]int{"info": 0, "id": 1, "git-upload-pack 'gone'": 1} {
		cmd := exec.Command("ssh", "-F", config, "frodo", command)
		cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("ssh frodo %s: exit status %d, want %d", command, got, want)
		}
	}
	// A client that wants all it can have: the session works, nothing is forwarded.
	text, _ := exec.Command("ssh", "-F", config, "-A", "-X", "-oSetEnv=LC_ALL=C", "-R", "0:127.0.0.1:1", "frodo", "info").CombinedOutput()
	if !strings.Contains(string(text), "Hello alice, I am frodo.") || !strings.Contains(string(text), "remote port forwarding failed") {
		t.Errorf("ssh -A -X -R: %s", text)
	}
	text, _ = exec.Command("ssh", "-F", config, "-tt", "frodo", "info").CombinedOutput()
	if !strings.Contains(string(text), "PTY allocation request failed") {
		t.Errorf("ssh -tt: %s", text)
	}
}

func TestServerStrangers(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	stranger := w.newSigner("stranger")
	plain := w.newSigner("plain")
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(plain.PublicKey())))
	forged := w.newSigner("forged")
	forgedKey := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(forged.PublicKey())))
	w.addLine(key + " alice@laptop")                                                                                      // somebody's own shell login
	w.addLine(`command="/usr/bin/mirror-shell peer sam",restrict ` + key + " other")                                      // without a mark
	w.addLine(`command="/usr/bin/mirror-shell user alice",restrict ` + forgedKey + " mirror-shell:peer:sam.pub")          // mark and command disagree
	w.addLine(`command="/bin/sh -c 'mirror-shell peer sam'; id",restrict ` + forgedKey + " mirror-shell:peer:gollum.pub") // another command
	w.addLine("# " + ourKeyLine("peer", "sam", "sam.pub", forgedKey))
	for name, signer := range map[string]ssh.Signer{"unknown key": stranger, "line without mark": plain, "forged line": forged} {
		if c, err := w.dial(signer); err == nil {
			out, _, _ := output(t, c, "info")
			t.Errorf("%s: was let in: %s", name, out)
			c.Close()
		}
	}
	for name, auth := range map[string]ssh.AuthMethod{
		"password":             ssh.Password(""),
		"keyboard-interactive": ssh.KeyboardInteractive(func(_, _ string, q []string, _ []bool) ([]string, error) { return make([]string, len(q)), nil }),
	} {
		if _, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}); err == nil {
			t.Errorf("%s: was let in", name)
		}
	}
	if _, err := ssh.Dial("tcp", w.addr, &ssh.ClientConfig{User: "root", HostKeyCallback: ssh.InsecureIgnoreHostKey()}); err == nil {
		t.Error("no authentication: was let in")
	}
}

// claimSigner offers somebody else's key, and signs with its own.
type claimSigner struct {
	ssh.Signer
	claim ssh.PublicKey
}

func (s claimSigner) PublicKey() ssh.PublicKey { return s.claim }

func TestServerOfferedKeyIsNoProof(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	eve := w.signers["eve"]
	sam := claimSigner{eve, w.signers["sam"].PublicKey()}
	if _, err := w.dial(sam); err == nil {
		t.Fatal("eve was let in with sam's public key")
	}
	// Eve has sam.pub and no private half of it. The server says that the key
	// would do, eve cannot sign, and goes on with her own.
	needSSH(t)
	config, _ := w.openSSH("eve")
	claim := filepath.Join(w.dir, "claim")
	if err := os.WriteFile(claim+".pub", ssh.MarshalAuthorizedKey(sam.claim), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.Command("ssh", "-v", "-F", config, "-oIdentityFile="+claim, "frodo", "info")
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	if n := strings.Count(errs.String(), "Server accepts key"); n != 2 {
		t.Errorf("%d keys were accepted when offered, want 2\n%s", n, errs.String())
	}
	if !strings.HasPrefix(out.String(), "Hello eve, I am frodo.") {
		t.Errorf("%q", out.String())
	}
}

func TestServerRefusesSHA1(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	w.addLine(ourKeyLine("user", "bob", "bob.pub", strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))))
	for algorithm, want := range map[string]bool{ssh.KeyAlgoRSA: false, ssh.KeyAlgoRSASHA256: true, ssh.KeyAlgoRSASHA512: true} {
		s, err := ssh.NewSignerWithAlgorithms(signer.(ssh.AlgorithmSigner), []string{algorithm})
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.dial(s)
		if (err == nil) != want {
			t.Errorf("%s: %v", algorithm, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

func TestServerGivesNothingElse(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	w.Users.Exec = []string{w.script("show", "env | grep -v '^SSH_CONN\\|^PWD=\\|^_=\\|^SHLVL=\\|^OLDPWD=' | cut -d= -f1 | sort | tr '\\n' ' '; echo $GIT_PROTOCOL\n")}
	w.bare("ip1")
	c := w.client("alice")
	if conn, err := c.Dial("tcp", w.addr); err == nil {
		conn.Close()
		t.Error("direct-tcpip was allowed")
	}
	if _, err := c.Dial("unix", "/run/x"); err == nil {
		t.Error("direct-streamlocal was allowed")
	}
	if l, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
		t.Error("tcpip-forward was allowed")
	}
	if l, err := c.Listen("unix", w.dir+"/socket"); err == nil {
		l.Close()
		t.Error("streamlocal-forward was allowed")
	}
	sess, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := sess.RequestPty("xterm", 24, 80, nil); err == nil {
		t.Error("a pty was allowed")
	}
	if err := sess.RequestSubsystem("sftp"); err == nil {
		t.Error("sftp was allowed")
	}
	for _, request := range []string{"auth-agent-req@openssh.com", "x11-req", "eow@openssh.com", "break", "window-change"} {
		if ok, err := sess.SendRequest(request, true, ssh.Marshal(struct{ A, B, C, D uint32 }{})); ok || err != nil {
			t.Errorf("%s: %v, %v", request, ok, err)
		}
	}
	for _, name := range []string{"GIT_DIR", "LD_PRELOAD", "GIT_PROTOCOL=x", "", "MIRROR_SHELL_PEER", "PATH", "GIT_CONFIG_COUNT"} {
		if err := sess.Setenv(name, "1"); err == nil {
			t.Errorf("environment variable %q was taken", name)
		}
	}
	if err := sess.Setenv("GIT_PROTOCOL", "version=2"); err != nil {
		t.Error(err)
	}
	if err := sess.Setenv("GIT_PROTOCOL", "version=1"); err == nil {
		t.Error("a second GIT_PROTOCOL was taken")
	}
	out, err := sess.Output("git-upload-pack 'ip1'")
	if err != nil {
		t.Fatal(err)
	}
	names, version, _ := strings.Cut(strings.TrimSpace(string(out)), "SSH_ORIGINAL_COMMAND ")
	for _, name := range strings.Fields(names) {
		if strings.HasPrefix(name, "LD_") || name == "GIT_DIR" || name == "MIRROR_SHELL_PEER" || name == "GIT_CONFIG_COUNT" {
			t.Errorf("%s arrived", name)
		}
	}
	if !strings.HasSuffix(version, "version=2") {
		t.Errorf("GIT_PROTOCOL: %q", out)
	}
	if err := sess.Start("info"); err == nil {
		t.Error("a second command on one channel")
	}
}

func TestServerRemovedKey(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	c := w.client("sam")
	if out, _, _ := output(t, c, "info"); out == "" {
		t.Fatal("no greeting")
	}
	if _, err := w.keys.Remove(KeyPeer, "sam"); err != nil {
		t.Fatal(err)
	}
	if out, stderr, status := output(t, c, "info"); out != "" || status != 1 || !strings.Contains(stderr, "fatal: key is not authorized any more") {
		t.Errorf("%q, %q, %d", out, stderr, status)
	}
	if _, err := w.dial(w.signers["sam"]); err == nil {
		t.Error("sam was let in again")
	}
	if err := os.Remove(w.keys.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := w.dial(w.signers["alice"]); err == nil {
		t.Error("let in without an authorized_keys")
	}
}

func TestServerExitStatus(t *testing.T) {
	w := newSSHWorld(t, "", testLimits(nil))
	w.bare("ip1")
	c := w.client("alice")
	for script, want := range map[string]int{"exit 0": 0, "exit 42": 42, "exit 255": 255, "kill -9 $$": 1} {
		w.Users.Exec = []string{w.script("program", script+"\n")}
		if _, _, status := output(t, c, "git-upload-pack 'ip1'"); status != want {
			t.Errorf("%s: exit status %d, want %d", script, status, want)
		}
	}
	w.Users.Exec = []string{"/nowhere/program"}
	if _, stderr, status := output(t, c, "git-upload-pack 'ip1'"); status != 1 || !strings.HasPrefix(stderr, "fatal: frodo: cannot run program") {
		t.Errorf("missing program: %d, %q", status, stderr)
	}
}
