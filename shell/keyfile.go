package shell

// Reading FILE.pub, the file that add-peer and add-user are given.

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"mirror-shell/internal/lazyregexp"
)

// maxKeyFile is far above the largest key sshd takes (16384 bits of RSA are 3 KiB).
const maxKeyFile = 16 << 10

// minKeyRSA is in bits. sshd itself still takes 1024, which NIST has disallowed since 2013.
const minKeyRSA = 2048

var (
	// keyName is the grammar of peers, users and the place in alice@laptop.
	keyName = lazyregexp.New(`^[0-9A-Za-z][0-9A-Za-z._+-]*$`)

	// keyArmor opens RFC 4716 and PEM files.
	keyArmor = lazyregexp.New(`(?m)^-{4,5} ?BEGIN `)
)

// keyFileName gives the peer or user that a key file's base name stands for:
// sam.pub is sam; alice@laptop.pub, users only, is alice.
func keyFileName(kind KeyKind, file string) (string, error) {
	stem, ok := strings.CutSuffix(file, ".pub")
	if !ok {
		return "", fmt.Errorf("%q does not end in .pub; give the public key file, named NAME.pub", file)
	}
	name, place, placed := strings.Cut(stem, "@")
	switch {
	case kind != KeyPeer && kind != KeyUser:
		return "", fmt.Errorf("%q is no kind of key; it is %s or %s", kind, KeyPeer, KeyUser)
	case placed && kind == KeyPeer:
		return "", fmt.Errorf("a peer has one key and its file name no @; rename %q to NAME.pub", file)
	case !keyName.MatchString(name), placed && !keyName.MatchString(place), strings.HasSuffix(stem, ".pub"):
		return "", fmt.Errorf("%q gives no valid %s name; name the file after the %s, with letters, digits and . _ + - only", file, kind, kind)
	}
	return name, nil
}

// readKeyFile reads the one public key in path and the name that its file name gives.
func readKeyFile(kind KeyKind, path string) (KeyEntry, ssh.PublicKey, error) {
	file := filepath.Base(path)
	data, err := slurpKeyFile(path)
	if err != nil {
		return KeyEntry{}, nil, err
	}
	// Before the name is looked at: who gives id_ed25519 instead of
	// id_ed25519.pub should hear the reason that matters.
	if keyFileIsPrivate(data) {
		return KeyEntry{}, nil, fmt.Errorf("%s holds a private key: that is the secret half and must never be copied to another machine; give the public half, %s.pub (ssh-keygen -y prints it)",
			path, strings.TrimSuffix(path, ".pub"))
	}
	name, err := keyFileName(kind, file)
	if err != nil {
		return KeyEntry{}, nil, err
	}
	key, err := parseKeyFile(data)
	if err != nil {
		return KeyEntry{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	return KeyEntry{Kind: kind, Name: name, File: file, Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key)}, key, nil
}

// slurpKeyFile reads a regular file of at most maxKeyFile bytes.
func slurpKeyFile(path string) ([]byte, error) {
	info, err := os.Stat(path) // before opening, which would wait on a named pipe
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file; give a public key file, named NAME.pub", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("%s is longer than %d KiB and no public key; give the file that ssh-keygen made, named NAME.pub", path, maxKeyFile>>10)
	}
	return data, nil
}

// keyFileIsPrivate knows PEM, OpenSSH's and PuTTY's formats by their first words.
func keyFileIsPrivate(data []byte) bool {
	return bytes.Contains(data, []byte("PRIVATE KEY-----")) || bytes.Contains(data, []byte("PuTTY-User-Key-File"))
}

// parseKeyFile reads the contents of a public key file.
func parseKeyFile(data []byte) (ssh.PublicKey, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if keyArmor.Get().Match(data) {
		return nil, errors.New("this is a public key in another format; convert it with ssh-keygen -i")
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, errors.New("not plain text (UTF-16?); save it as ASCII")
	}
	var found []keyLine
	// A lone CR ends a line too, here: no second key may hide behind one.
	for _, l := range splitKeyLines(bytes.ReplaceAll(data, []byte("\r"), []byte("\n"))) {
		if s := strings.TrimSpace(l.text); s != "" && s[0] != '#' {
			found = append(found, l)
		}
	}
	switch {
	case len(found) == 0:
		return nil, errors.New("no key in it; give the file that ssh-keygen made")
	case len(found) > 1:
		return nil, fmt.Errorf("%d lines where one key is expected; put each key into a file of its own, such as alice.pub and alice@laptop.pub", len(found))
	case found[0].blob == nil:
		return nil, errors.New("not a public key; expected TYPE BASE64 COMMENT on one line, as ssh-keygen writes it")
	case found[0].options != nil || found[0].refused:
		return nil, errors.New("the key has options before it, and mirror-shell sets its own; remove them from the file")
	}
	key, err := ssh.ParsePublicKey(found[0].blob)
	if err != nil {
		return nil, fmt.Errorf("not a key that can be used (%w); make one with ssh-keygen -t ed25519", err)
	}
	return key, checkKeyType(key)
}

// checkKeyType refuses keys that are not keys of a person or server, and weak ones.
func checkKeyType(key ssh.PublicKey) error {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return nil
	case ssh.KeyAlgoRSA:
		crypto, ok := key.(ssh.CryptoPublicKey)
		if !ok {
			return errors.New("cannot learn the size of the RSA key; make one with ssh-keygen -t ed25519")
		}
		pub, ok := crypto.CryptoPublicKey().(*rsa.PublicKey)
		if !ok || pub.N.BitLen() < minKeyRSA {
			return fmt.Errorf("the RSA key is shorter than %d bits; make one with ssh-keygen -t ed25519", minKeyRSA)
		}
		return nil
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return errors.New("this is a certificate, not a plain public key; give the .pub file without -cert in its name")
	}
	return fmt.Errorf("keys of type %s are not accepted; make one with ssh-keygen -t ed25519", key.Type())
}
