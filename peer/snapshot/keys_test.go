package snapshot

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"
)

func secretFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// sshKey returns a key pair as OpenSSH writes them.
func sshKey(t *testing.T) (public, private string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "backup")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(key)), string(pem.EncodeToMemory(block))
}

func TestKeysRoundTrip(t *testing.T) {
	plain, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	quantum, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	public, private := sshKey(t)
	for name, pair := range map[string][2]string{
		"age":              {"# a comment\r\n\r\n  " + plain.Recipient().String() + " \r\n", "# created\r\n" + plain.String() + "\r\n"},
		"age post-quantum": {quantum.Recipient().String(), quantum.String()},
		"ssh":              {public, private},
	} {
		t.Run(name, func(t *testing.T) {
			recipients, err := LoadRecipients(secretFile(t, pair[0]))
			if err != nil || len(recipients) != 1 {
				t.Fatal(recipients, err)
			}
			identities, err := LoadIdentities(secretFile(t, pair[1]))
			if err != nil || len(identities) != 1 {
				t.Fatal(identities, err)
			}
			v := &Vault{Recipients: recipients, Identities: identities}
			var stored bytes.Buffer
			w, err := v.encode(&stored, encodingBoth)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, "the content")
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := v.decode(&stored, encodingBoth)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); string(got) != "the content" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestBadKeys(t *testing.T) {
	id, _ := age.GenerateX25519Identity()
	locked := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x")}))
	ecdsa := "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg="
	for what, says := range map[string]string{
		"":                         "no public key in it",
		"# only\n":                 "no public key in it",
		id.String():                "secret key",
		"age1xyz":                  "no age recipient",
		"\nssh-ed25519 AAAA":       "recipient 2",
		ecdsa:                      "no public key",
		strings.Repeat("x", 2<<20): "no file of keys",
	} {
		if _, err := LoadRecipients(secretFile(t, what)); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "SECRET-KEY") {
			t.Errorf("recipients %.30q: %v, want %q", what, err, says)
		}
	}
	for what, says := range map[string]string{
		"":                                 "AGE-SECRET-KEY-1",
		id.String()[:40]:                   "line 1",
		"\nnonsense HUNTER2":               "line 2",
		locked:                             "passphrase",
		"-----BEGIN JUNK-----\nx\n":        "no private key",
		"age-encryption.org/v1\n-> scrypt": "age -d",
	} {
		_, err := LoadIdentities(secretFile(t, what))
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "HUNTER2") || strings.Contains(err.Error(), id.String()[20:40]) {
			t.Errorf("identities %.30q: %v, want %q", what, err, says)
		}
	}
	open := secretFile(t, id.String())
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentities(open); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others may read: %v", err)
	}
	if _, err := LoadIdentities(open + "x"); err == nil || !strings.Contains(err.Error(), "identity_file") {
		t.Errorf("no file: %v", err)
	}
}

func FuzzKeys(f *testing.F) {
	id, _ := age.GenerateX25519Identity()
	for _, s := range []string{id.String(), id.Recipient().String(), "ssh-ed25519 AAAA", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "# x\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ids, err := parseIdentities([]byte(s)); err == nil && len(ids) == 0 {
			t.Error("no identity, and no error")
		}
		ParseRecipients(strings.Split(s, "\n"))
	})
}
