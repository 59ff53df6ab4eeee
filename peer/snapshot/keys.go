package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"
)

// maxKeyFile bounds what is read of a file with keys, in bytes.
const maxKeyFile = 1 << 20

// ParseRecipients reads public keys, one per line: those of age (age1…) and of OpenSSH (ssh-ed25519, ssh-rsa). Empty lines
// and those that begin with # say nothing. An error names the line, counted from 1; and the key only
// when it is a public one.
func ParseRecipients(lines []string) ([]age.Recipient, error) {
	var all []age.Recipient
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		r, err := parseRecipient(line)
		if err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i+1, err)
		}
		all = append(all, r)
	}
	return all, nil
}

func parseRecipient(line string) (age.Recipient, error) {
	switch {
	case strings.HasPrefix(line, "ssh-"):
		r, err := agessh.ParseRecipient(line)
		if err != nil {
			return nil, fmt.Errorf("%w: write the line of a .pub file, ssh-ed25519 or ssh-rsa", err)
		}
		return sshRecipient{r, line}, nil
	case strings.HasPrefix(line, "age1"):
		list, err := age.ParseRecipients(strings.NewReader(line))
		if err != nil || len(list) != 1 {
			return nil, fmt.Errorf("%.100q is no age recipient: %w", line, err)
		}
		return list[0], nil
	case strings.Contains(strings.ToUpper(line), "SECRET") || strings.Contains(line, "PRIVATE"):
		return nil, errors.New("this is a secret key: write the public key here (age1…, or the line of a .pub file), and make a new key if others have seen this")
	}
	return nil, errors.New("no public key: write age1…, ssh-ed25519 … or ssh-rsa …")
}

// sshRecipient is a recipient that knows how it is written, as those of age do.
type sshRecipient struct {
	age.Recipient
	line string
}

// String is the key without its comment.
func (r sshRecipient) String() string {
	words := strings.Fields(r.line)
	return strings.Join(words[:min(2, len(words))], " ")
}

// sealedFor tells sets of recipients apart, in any order: 32 hex digits of the SHA-256 of their keys, sorted, one a line. It
// is "" for none.
func (v *Vault) sealedFor() string {
	if len(v.Recipients) == 0 {
		return ""
	}
	var keys []string
	for _, r := range v.Recipients {
		keys = append(keys, fmt.Sprint(r)+"\n")
	}
	slices.Sort(keys)
	sum := sha256.Sum256([]byte(strings.Join(slices.Compact(keys), "")))
	return hex.EncodeToString(sum[:16])
}

// LoadRecipients reads a file of ParseRecipients' lines. One without any is an error: whoever names it
// means that something is encrypted.
func LoadRecipients(file string) ([]age.Recipient, error) {
	data, err := readKeyFile(file)
	if err != nil {
		return nil, fmt.Errorf("recipients_file: %w", err)
	}
	all, err := ParseRecipients(strings.Split(string(data), "\n"))
	if err != nil {
		return nil, fmt.Errorf("recipients_file %s: %w", file, err)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("recipients_file %s: there is no public key in it: write age1…, ssh-ed25519 … or ssh-rsa …, one per line", file)
	}
	return all, nil
}

// LoadIdentities reads a file of secret keys that decrypt: of age (AGE-SECRET-KEY-1…, one per line) or one private
// key of OpenSSH. Nobody else may read the file, and no key may need a passphrase, because nobody is there to
// type it. No error has anything of a key in it.
func LoadIdentities(file string) ([]age.Identity, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("identity_file: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("identity_file %s: others may read it (mode %04o): chmod 600 it", file, info.Mode().Perm())
	}
	data, err := readKeyFile(file)
	if err != nil {
		return nil, fmt.Errorf("identity_file: %w", err)
	}
	all, err := parseIdentities(data)
	if err != nil {
		return nil, fmt.Errorf("identity_file %s: %w", file, err)
	}
	return all, nil
}

func parseIdentities(data []byte) ([]age.Identity, error) {
	switch {
	case bytes.HasPrefix(data, []byte("-----BEGIN AGE ENCRYPTED FILE")), bytes.HasPrefix(data, []byte("age-encryption.org/")):
		return nil, errors.New("it is encrypted itself: decrypt it with age -d, and keep it readable by this account only")
	case bytes.HasPrefix(data, []byte("-----BEGIN ")):
		id, err := agessh.ParseIdentity(data)
		var locked *ssh.PassphraseMissingError
		if errors.As(err, &locked) {
			return nil, errors.New("the ssh key has a passphrase, which nobody could type: use a key without")
		}
		if err != nil {
			return nil, errors.New("it is no private key of OpenSSH that can decrypt: use ssh-ed25519 or ssh-rsa")
		}
		return []age.Identity{id}, nil
	}
	// Lines end as they do on any system, and may be indented.
	var lines []string
	for line := range strings.SplitSeq(string(data), "\n") {
		lines = append(lines, strings.TrimSpace(line))
	}
	all, err := age.ParseIdentities(strings.NewReader(strings.Join(lines, "\n")))
	if err != nil {
		return nil, fmt.Errorf("%w: write AGE-SECRET-KEY-1…, as age-keygen prints it, one per line", err)
	}
	return all, nil
}

func readKeyFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err == nil && len(data) > maxKeyFile {
		err = fmt.Errorf("%s has more than %d bytes: it is no file of keys", file, maxKeyFile)
	}
	return data, err
}
