package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
)

// credentials are the keys that may let us in, in the order in which OpenSSH
// offers them: those of the agent that identity files name, the agent's others
// (unless IdentitiesOnly), those that are only in files.
type credentials struct {
	signers []ssh.Signer
	names   []string // of the signers, for people
	notes   []string // keys that cannot be used, and what to do
	foreign string   // a key that the ssh program could use and we cannot, and why
	ticket  bool     // Kerberos might let the ssh program in
	agent   net.Conn // the signers' way to the agent, nil without
}

func (c *credentials) close() {
	if c.agent != nil {
		c.agent.Close()
	}
}

// route tells whether the keys do.
func (c *credentials) route() route {
	switch {
	case c.foreign != "":
		return withOpenSSH("%s", c.foreign)
	case c.ticket:
		return withOpenSSH("gssapiauthentication yes and a Kerberos ticket")
	case len(c.signers) == 0:
		return withOpenSSH("%s", strings.Join(append([]string{"no key can be used"}, c.notes...), "; "))
	}
	return route{}
}

// identity is a key that settings name by file.
type identity struct {
	file   string
	public ssh.PublicKey // nil when it cannot be told
	signer ssh.Signer    // nil when the file does not hold a key that we can use
	note   string        // why it cannot be used, when that is worth telling
	alien  string        // only the ssh program may be able to use it
}

// findCredentials reads the identity files and asks the agent.
func findCredentials(ctx context.Context, s sshSettings) *credentials {
	who := thisAccount()
	c := &credentials{}
	if s.on("gssapiauthentication") {
		_, err := os.Stat("/tmp/krb5cc_" + who.uid)
		c.ticket = err == nil
	}
	var files []identity
	for _, name := range s["identityfile"] {
		file, err := s.expand(name, who)
		if err != nil || name == "none" {
			continue
		}
		id := readIdentity(file)
		known := slices.ContainsFunc(files, func(other identity) bool { return other.public != nil && sameKey(other.public, id.public) })
		if !known {
			files = append(files, id)
		}
	}
	c.add(ctx, s, who, files)
	return c
}

// add puts the keys in order.
func (c *credentials) add(ctx context.Context, s sshSettings, who account, files []identity) {
	accepted := s.algorithms().keys
	var others []ssh.Signer
	for _, signer := range c.askAgent(ctx, s, who) {
		i := slices.IndexFunc(files, func(id identity) bool { return sameKey(id.public, signer.PublicKey()) })
		if i >= 0 {
			c.offer(signer, files[i].file+" (agent)", accepted)
			files = slices.Delete(files, i, i+1)
		} else if !s.on("identitiesonly") {
			others = append(others, signer)
		}
	}
	for _, signer := range others {
		c.offer(signer, "agent "+ssh.FingerprintSHA256(signer.PublicKey()), accepted)
	}
	for _, id := range files {
		switch {
		case id.signer != nil:
			c.offer(id.signer, id.file, accepted)
		case id.alien != "" && c.foreign == "":
			c.foreign = id.alien
		case id.note != "":
			c.notes = append(c.notes, id.note)
		}
	}
}

// offer adds a key with the signatures that are accepted for it, if any.
func (c *credentials) offer(signer ssh.Signer, name string, accepted []string) {
	format := signer.PublicKey().Type()
	allowed := []string{format}
	if cert, ok := signer.PublicKey().(*ssh.Certificate); ok {
		allowed = []string{cert.Key.Type()}
	}
	if allowed[0] == ssh.KeyAlgoRSA {
		allowed = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	allowed = slices.DeleteFunc(allowed, func(name string) bool { return !slices.Contains(accepted, name) })
	if with, ok := signer.(ssh.AlgorithmSigner); ok && len(allowed) > 0 {
		if limited, err := ssh.NewSignerWithAlgorithms(with, allowed); err == nil {
			c.signers, c.names = append(c.signers, limited), append(c.names, name)
			return
		}
	}
	c.notes = append(c.notes, fmt.Sprintf("%s is of a kind (%s) that PubkeyAcceptedAlgorithms excludes", name, format))
}

// askAgent returns the agent's keys, none when there is no agent that answers.
func (c *credentials) askAgent(ctx context.Context, s sshSettings, who account) []ssh.Signer {
	socket := s.one("identityagent")
	switch {
	case socket == "none":
		return nil
	case socket == "" || socket == "SSH_AUTH_SOCK":
		socket = os.Getenv("SSH_AUTH_SOCK")
	case strings.HasPrefix(socket, "$") && !strings.HasPrefix(socket, "${"):
		socket = os.Getenv(socket[1:])
	default:
		socket, _ = s.expand(socket, who) // decideRoute has tried it
	}
	if socket == "" {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // fails when it is closed already
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil || len(signers) == 0 {
		conn.Close()
		return nil
	}
	c.agent = conn
	return signers
}

func sameKey(a, b ssh.PublicKey) bool {
	return a != nil && b != nil && bytes.Equal(a.Marshal(), b.Marshal())
}

// readIdentity looks at an identity file, and at the public key beside it: a
// file may hold the private key, or only name, by its public half, one that the
// agent has.
func readIdentity(file string) identity {
	id := identity{file: file}
	data, err := os.ReadFile(file)
	if beside, err := os.ReadFile(file + ".pub"); err == nil {
		id.public, _, _, _, _ = ssh.ParseAuthorizedKey(beside) // nil when it is no key
	}
	if _, certErr := os.Stat(file + "-cert.pub"); certErr == nil {
		id.alien = file + "-cert.pub is a certificate"
		id.public = nil
		return id
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			id.note = fmt.Sprintf("%v: let this user read it", err)
		}
		return id
	}
	if public, _, _, _, err := ssh.ParseAuthorizedKey(data); err == nil {
		id.public = public
		return id
	}
	signer, err := ssh.ParsePrivateKey(data)
	var locked *ssh.PassphraseMissingError
	switch {
	case err == nil && tooOpen(file):
		id.note = file + " can be read by other users, and ssh ignores such keys: chmod 600 " + file
		id.public = signer.PublicKey()
	case err == nil:
		id.signer, id.public = signer, signer.PublicKey()
	case errors.As(err, &locked):
		id.note = file + " is encrypted and not in the agent: ssh-add " + file
		if locked.PublicKey != nil {
			id.public = locked.PublicKey
		}
	case id.public != nil && strings.HasPrefix(id.public.Type(), "sk-"):
		id.alien = file + " is a security key"
	default:
		id.alien = file + " is a key of another kind"
	}
	return id
}

// tooOpen is OpenSSH's test of a private key's mode.
func tooOpen(file string) bool {
	info, err := os.Stat(file)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Uid == uint32(os.Getuid()) && info.Mode().Perm()&0o077 != 0
}

// knownHosts verifies a host's key.
type knownHosts struct {
	host     string // the alias, for messages
	as       string // the address that known_hosts has
	db       *knownhosts.HostKeyDB
	files    []string
	caAlgos  []string // signatures that a host certificate may have
	refused  error    // why the key was refused, of the handshake that has failed
	offered  []string // every algorithm that may be negotiated
	fallback route
}

// readKnownHosts reads the files that exist. One that the library cannot read
// is for the ssh program, which skips lines that it does not understand.
func readKnownHosts(host string, s sshSettings) *knownHosts {
	k := &knownHosts{host: host, as: s.knownAs(), offered: s.algorithms().hostKeys, caAlgos: s.list("casignaturealgorithms")}
	files, _ := s.knownHostsFiles() // decideRoute has looked
	for _, file := range files {
		if _, err := os.Stat(file); err == nil {
			k.files = append(k.files, file)
		}
	}
	var err error
	if k.db, err = knownhosts.NewDB(k.files...); err != nil {
		k.fallback = withOpenSSH("%v", err)
	}
	return k
}

// algorithms puts those first for which a key is known: a server that has
// several kinds of keys must show the one that can be verified.
func (k *knownHosts) algorithms() []string {
	known := k.db.HostKeyAlgorithms(k.as)
	first := slices.DeleteFunc(slices.Clone(known), func(name string) bool { return !slices.Contains(k.offered, name) })
	rest := slices.DeleteFunc(slices.Clone(k.offered), func(name string) bool { return slices.Contains(first, name) })
	return append(first, rest...)
}

// check is the ssh.HostKeyCallback.
func (k *knownHosts) check(_ string, remote net.Addr, key ssh.PublicKey) error {
	k.refused = k.verify(remote, key)
	return k.refused
}

func (k *knownHosts) verify(remote net.Addr, key ssh.PublicKey) error {
	err := k.db.HostKeyCallback()(k.as, remote, key)
	cert, isCert := key.(*ssh.Certificate)
	if isCert && err == nil && k.caAlgos != nil && !slices.Contains(k.caAlgos, cert.Signature.Format) {
		return fmt.Errorf("the host certificate of %s is signed with %s, which CASignatureAlgorithms excludes", k.host, cert.Signature.Format)
	}
	if err == nil && !isCert && !slices.ContainsFunc(k.db.HostKeys(k.as), func(known knownhosts.PublicKey) bool {
		return !known.Cert && sameKey(known.PublicKey, key)
	}) {
		// The library also takes an authority's key for a host's own.
		err = &xknownhosts.KeyError{}
	}
	if err == nil {
		return nil
	}
	return k.explain(err, key)
}

// explain says what is wrong with a host key, and what to do.
func (k *knownHosts) explain(err error, key ssh.PublicKey) error {
	name := knownhosts.Normalize(k.as)
	offered := key.Type() + " " + ssh.FingerprintSHA256(key)
	var revoked *xknownhosts.RevokedError
	var mismatch *xknownhosts.KeyError
	switch {
	case errors.As(err, &revoked):
		return fmt.Errorf("the host key of %s (%s) is revoked by %s:%d: somebody may be in between, or the server needs a new key",
			k.host, offered, revoked.Revoked.Filename, revoked.Revoked.Line)
	case errors.As(err, &mismatch) && len(mismatch.Want) > 0:
		want := mismatch.Want[0]
		for _, other := range mismatch.Want {
			if other.Key.Type() == key.Type() {
				want = other
				break
			}
		}
		return fmt.Errorf("the host key of %s has changed: it shows %s, and %s:%d has another: somebody may be in between; if the change is right, run ssh-keygen -R '%s' -f %s and, to accept the new key, ssh %s once by hand",
			k.host, offered, want.Filename, want.Line, name, want.Filename, k.host)
	case errors.As(err, &mismatch):
		return fmt.Errorf("the host key of %s (%s) is not known as %s in %s: run ssh %s once by hand, as this user, and compare the fingerprint",
			k.host, offered, name, strings.Join(k.files, " "), k.host)
	}
	return fmt.Errorf("the host key of %s (%s) is not accepted: %w", k.host, offered, err)
}
