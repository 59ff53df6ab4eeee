package shell

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestKeyFileRefusals(t *testing.T) {
	_, line := newTestKey(t)
	_, other := newTestKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, good := sshTestKey(t, &rsaKey.PublicKey)
	small := rsaKey.PublicKey
	small.N = rsaKey.Primes[0] // 1024 bits; only the length is looked at
	_, weak := sshTestKey(t, &small)
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	secret := string(pem.EncodeToMemory(block))

	for _, c := range []struct{ kind, file, content, want string }{
		{"user", "alice.pub", good + " c", ""},
		{"user", "alice.pub", "\ufeff" + line, ""},
		{"user", "alice@lap-top.pub", line, ""},
		{"user", "alice.pub", weak, "2048 bits"},
		{"user", "alice.pub", line + "\n" + other, "2 lines"},
		{"user", "alice.pub", line + "\r" + other, "2 lines"},
		{"user", "alice.pub", line + "\nnonsense\n", "2 lines"},
		{"user", "alice.pub", "", "no key"},
		{"user", "alice.pub", "# " + line, "no key"},
		{"user", "alice.pub", secret, "secret half"},
		{"user", "alice", secret, "alice.pub"},
		{"user", "alice.pub", line + "\n" + secret, "secret half"},
		{"user", "alice.pub", "PuTTY-User-Key-File-3: ssh-ed25519\n", "secret half"},
		{"user", "alice.pub", "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n", "ssh-keygen -i"},
		{"user", "alice.pub", "restrict " + line, "options"},
		{"user", "alice.pub", `command="x" ` + line, "options"},
		{"user", "alice.pub", `bogus ` + line, "options"},
		{"user", "alice.pub", `command="x ` + line, "not a public key"},
		{"user", "alice.pub", "ssh-rsa " + strings.Fields(line)[1], "not a public key"},
		{"user", "alice.pub", line[:len(line)-8], "that can be used"},
		{"user", "alice.pub", strings.Fields(line)[0], "not a public key"},
		{"user", "alice.pub", "s\x00s\x00h\x00", "UTF-16"},
		{"user", "alice.pub", strings.Repeat("#\n", maxKeyFile/2) + line, "16 KiB"},
		{"user", "alice.pub", testDSAKey(t, rsaKey.N), "ssh-dss are not"},
		{"user", "alice.pub", testCertificate(t), "certificate"},
		{"user", "alice.txt", line, ".pub"},
		{"user", "ALICE.PUB", line, ".pub"},
		{"user", ".pub", line, "valid user name"},
		{"user", "@laptop.pub", line, "valid user name"},
		{"user", "alice@.pub", line, "valid user name"},
		{"user", "alice@a@b.pub", line, "valid user name"},
		{"user", "al ice.pub", line, "valid user name"},
		{"user", "al\"ice.pub", line, "valid user name"},
		{"user", "alice\nx.pub", line, "valid user name"},
		{"user", "..pub", line, "valid user name"},
		{"user", "-x.pub", line, "valid user name"},
		{"user", "älice.pub", line, "valid user name"},
		{"user", "alice.pub.pub", line, "valid user name"},
		{"peer", "sam@x.pub", line, "no @"},
		{"admin", "sam.pub", line, "no kind"},
	} {
		k := newTestKeys(t)
		_, _, err := k.Add(KeyKind(c.kind), k.pub(c.file, c.content))
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.file, err)
			}
			continue
		}
		wantKeyError(t, err, c.want)
		if _, err := os.Stat(filepath.Dir(k.Path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s %q: refused, but the directory was made", c.file, c.want)
		}
	}

	k := newTestKeys(t)
	_, _, err = k.Add(KeyUser, k.dir)
	wantKeyError(t, err, "regular file")
	fifo := filepath.Join(k.dir, "fifo.pub")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = k.Add(KeyUser, fifo)
	wantKeyError(t, err, "regular file")
	_, _, err = k.Add(KeyUser, filepath.Join(k.dir, "absent.pub"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, command := range [][]string{nil, {"mirror-shell"}, {"/bin/x", "--config", "/a\nb"}, {"/bin/\xff"}} {
		k.Command = command
		if _, _, err := k.Add(KeyUser, k.pub("alice.pub", line)); err == nil {
			t.Errorf("command %q is taken", command)
		}
	}
}

// testDSAKey is a line with a DSA key of the right sizes and no other merit.
func testDSAKey(t testing.TB, n *big.Int) string {
	p := new(big.Int).Rsh(n, 1024)
	blob := ssh.Marshal(struct {
		Type       string
		P, Q, G, Y *big.Int
	}{"ssh-dss", p, new(big.Int).Rsh(p, 864), big.NewInt(2), big.NewInt(4)})
	if _, err := ssh.ParsePublicKey(blob); err != nil {
		t.Fatal(err)
	}
	return "ssh-dss " + base64.StdEncoding.EncodeToString(blob)
}

func testCertificate(t testing.TB) string {
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(cert))
}
