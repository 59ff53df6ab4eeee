package peer

import (
	"crypto"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func TestHostKeys(t *testing.T) {
	s := newSSHD(t, "")
	good := read(t, s.dir+"/known_hosts")
	lines := strings.SplitAfter(good, "\n") // ed25519, ecdsa
	name, _, _ := strings.Cut(good, " ")
	_, ed, _ := strings.Cut(lines[0], " ")
	_, stranger := makeKey(t, "ed25519")
	other := string(ssh.MarshalAuthorizedKey(stranger))
	hashed := exec.Command("ssh-keygen", "-H", "-f", s.dir+"/hashed")
	write(t, s.dir+"/hashed", lines[0])
	if out, err := hashed.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, test := range []struct {
		name, known, config string
		errors              []string // none when the host is to be known
	}{
		{"both keys", good, "", nil},
		{"ed25519 alone", lines[0], "", nil},
		{"ecdsa alone", lines[1], "", nil},
		{"hashed", read(t, s.dir+"/hashed"), "", nil},
		{"one of two", name + " " + other + lines[0], "", nil},
		{"wildcard", "127.0.0.* " + ed, "", nil},
		{"alias", "frodo.shire " + ed, "HostKeyAlias frodo.shire", nil},
		{"alias of another", "frodo.shire " + other, "HostKeyAlias frodo.shire", []string{"has changed", "/known_hosts:1", "ssh-keygen -R 'frodo.shire'"}},
		{"nobody", "", "", []string{"the host key of frodo", "is not known", "ssh frodo once"}},
		{"nobody, nobody asks", "", "StrictHostKeyChecking yes", []string{"is not known"}},
		{"changed", "# comment\n" + name + " " + other, "", []string{"has changed", "/known_hosts:2", "ssh-keygen -R '" + name + "'"}},
		{"negated", "127.0.0.*,!127.0.0.1 " + ed, "", []string{"is not known"}},
		{"revoked", good + "@revoked * " + ed, "HostKeyAlgorithms ssh-ed25519", []string{"revoked", "/known_hosts:3"}},
		{"an authority's key is no host's", "@cert-authority " + name + " " + ed, "HostKeyAlgorithms ssh-ed25519", []string{"is not known"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			write(t, s.dir+"/known_hosts", test.known)
			s.config(t, test.config)
			c := keep(t, s, Options{})
			if test.errors != nil {
				mustFail(t, c, test.errors...)
				return
			}
			say(t, c, "true")
			if how, err := c.Describe(t.Context(), "frodo"); err != nil || !strings.Contains(how, "in this process") {
				t.Errorf("%s, %v", how, err)
			}
		})
	}
}

// Lines that OpenSSH skips and the library does not make it OpenSSH's to judge.
func TestKnownHostsWithStrangeLines(t *testing.T) {
	s := newSSHD(t, "")
	write(t, s.dir+"/known_hosts", "frodo ssh-unknown AAAA\n"+read(t, s.dir+"/known_hosts"))
	s.config(t, "")
	c := keep(t, s, Options{})
	say(t, c, "true")
	if how, err := c.Describe(t.Context(), "frodo"); err != nil || !strings.Contains(how, "with the ssh program") || !strings.Contains(how, "known_hosts:1") {
		t.Errorf("%s, %v", how, err)
	}
}

func TestHostCertificate(t *testing.T) {
	s := newSSHD(t, "")
	ca := writeKeyFile(t, s.dir+"/ca", "ed25519", "")
	public, err := ssh.ParsePrivateKey([]byte(read(t, s.dir+"/host_ed25519")))
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.dir+"/host_ed25519.pub", string(ssh.MarshalAuthorizedKey(public.PublicKey())))
	if out, err := exec.Command("ssh-keygen", "-s", s.dir+"/ca", "-I", "frodo", "-h", "-n", "frodo.shire", s.dir+"/host_ed25519.pub").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.stop()
	s.extra = "HostCertificate " + s.dir + "/host_ed25519-cert.pub"
	s.start(t)
	write(t, s.dir+"/known_hosts", "@cert-authority *.shire "+ca+"\n")
	s.config(t, "HostKeyAlias frodo.shire")
	say(t, keep(t, s, Options{}), "true")
	s.config(t, "HostKeyAlias sam.shire")
	mustFail(t, keep(t, s, Options{}), "the host key of frodo", "not accepted")
	s.config(t, "HostKeyAlias frodo.shire\nCASignatureAlgorithms rsa-sha2-512")
	mustFail(t, keep(t, s, Options{}), "CASignatureAlgorithms")
}

// startAgent serves an agent with the keys on a socket.
func startAgent(t testing.TB, keys ...crypto.Signer) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, key := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(t.TempDir(), "a")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	serveConns(t, l, func(conn net.Conn) { _ = agent.ServeAgent(ring, conn) })
	return socket
}

func TestKeys(t *testing.T) {
	s := newSSHD(t, "")
	s.config(t, "")
	mine := read(t, s.dir+"/authorized_keys")
	locked, lockedPublic := makeKey(t, "ed25519")
	writeKeyTo(t, s.dir+"/locked", locked, "secret")
	lockedLine := string(ssh.MarshalAuthorizedKey(lockedPublic))
	rsaLine := writeKeyFile(t, s.dir+"/rsa", "rsa", "")
	write(t, s.dir+"/locked.only.pub", lockedLine)
	strangers := make([]crypto.Signer, 7) // one more than sshd listens to
	for i := range strangers {
		strangers[i], _ = makeKey(t, "ed25519")
	}
	agents := map[string]string{"": "none", "locked": startAgent(t, locked), "full": startAgent(t, append(strangers, locked)...)}
	for _, test := range []struct {
		name, authorized, identity, agent, config string
		errors                                    []string
		openSSH                                   bool
	}{
		{name: "file", authorized: mine, identity: "id"},
		{name: "rsa", authorized: rsaLine, identity: "rsa"},
		{name: "rsa with one signature", authorized: rsaLine, identity: "rsa", config: "PubkeyAcceptedAlgorithms rsa-sha2-256"},
		{name: "not authorised", authorized: rsaLine, identity: "id", errors: []string{s.user + "@127.0.0.1:", "refuses our keys", s.dir + "/id", "add one"}},
		{name: "none authorised", authorized: "", identity: "id", errors: []string{"refuses our keys"}},
		{name: "encrypted", authorized: lockedLine, identity: "locked", openSSH: true, errors: []string{"no key can be used", "locked is encrypted and not in the agent", "ssh-add"}},
		{name: "encrypted and in the agent", authorized: lockedLine, identity: "locked", agent: "locked"},
		{name: "named by its public half", authorized: lockedLine, identity: "locked.only", agent: "locked"},
		{name: "the agent's that no file names", authorized: lockedLine, identity: "id", agent: "locked", config: "IdentitiesOnly no"},
		{name: "the same, identities only", authorized: lockedLine, identity: "id", agent: "locked", errors: []string{"refuses our keys"}},
		{name: "the file names which of the agent's goes first", authorized: lockedLine, identity: "locked", agent: "full", config: "IdentitiesOnly no"},
		{name: "the agent's others are too many", authorized: mine, identity: "id", agent: "full", config: "IdentitiesOnly no", errors: []string{"refuses our keys"}},
		{name: "the same, identities only, well", authorized: mine, identity: "id", agent: "full"},
		{name: "no such file", authorized: mine, identity: "nothing", openSSH: true, errors: []string{"no key can be used"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			write(t, s.dir+"/authorized_keys", test.authorized)
			s.config(t, "")
			text := strings.Replace(read(t, s.dir+"/ssh_config"), "IdentityFile "+s.dir+"/id\n", "IdentityFile "+s.dir+"/"+test.identity+"\n", 1)
			text = strings.Replace(text, "IdentityAgent none", "IdentityAgent "+agents[test.agent], 1)
			write(t, s.dir+"/ssh_config", strings.Replace(text, "Host frodo\n", "Host frodo\n"+test.config+"\n", 1))
			c := keep(t, s, Options{})
			if test.errors != nil {
				mustFail(t, c, test.errors...)
			} else {
				say(t, c, "true")
			}
			want := "in this process"
			if test.openSSH {
				want = "with the ssh program"
			}
			if how, err := c.Describe(t.Context(), "frodo"); err != nil || !strings.Contains(how, want) {
				t.Errorf("%s, %v", how, err)
			}
		})
	}
	t.Run("a file that others can read", func(t *testing.T) {
		write(t, s.dir+"/authorized_keys", mine)
		s.config(t, "")
		if err := os.Chmod(s.dir+"/id", 0o644); err != nil {
			t.Fatal(err)
		}
		mustFail(t, keep(t, s, Options{}), "chmod 600")
	})
}
