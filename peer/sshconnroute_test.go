package peer

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// plainSettings are what `ssh -G` prints for an ordinary host, as far as it
// matters.
const plainSettings = `host frodo
user git
hostname frodo.example.org
port 22
addressfamily any
batchmode yes
checkhostip no
compression no
gssapiauthentication yes
hostbasedauthentication no
identitiesonly no
nohostauthenticationforlocalhost no
permitlocalcommand no
pubkeyauthentication true
sessiontype default
stdinnull no
forkafterauthentication no
stricthostkeychecking ask
tunnel false
verifyhostkeydns false
requiredrsasize 1024
ciphers chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com
hostkeyalgorithms ssh-ed25519-cert-v01@openssh.com,ssh-ed25519,ecdsa-sha2-nistp256,sk-ssh-ed25519@openssh.com,rsa-sha2-512,rsa-sha2-256
kexalgorithms sntrup761x25519-sha512,curve25519-sha256,diffie-hellman-group16-sha512
casignaturealgorithms ssh-ed25519,rsa-sha2-512
macs umac-64-etm@openssh.com,hmac-sha2-256-etm@openssh.com
securitykeyprovider internal
pubkeyacceptedalgorithms ssh-ed25519,rsa-sha2-512,rsa-sha2-256
identityfile ~/.ssh/id_rsa
identityfile ~/.ssh/id_ed25519
globalknownhostsfile /etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2
userknownhostsfile /root/.ssh/known_hosts /root/.ssh/known_hosts2
sendenv LANG
sendenv LC_*
connecttimeout none
`

// change returns settings with one line in the place of those of the same option.
func change(text, line string) sshSettings {
	s := parseSettings(text)
	for key, values := range parseSettings(line) {
		s[key] = values
	}
	return s
}

func TestDecideRoute(t *testing.T) {
	tests := []struct{ line, reason string }{ // reason "" is in this process
		{"", ""},
		{"port 2222", ""},
		{"hostkeyalias sam", ""},
		{"stricthostkeychecking true", ""},
		{"stricthostkeychecking yes", ""},
		{"stricthostkeychecking false", "stricthostkeychecking false"},
		{"stricthostkeychecking off", "stricthostkeychecking off"},
		{"stricthostkeychecking accept-new", "stricthostkeychecking accept-new"},
		{"proxycommand nc %h %p", "proxycommand nc %h %p"},
		{"proxycommand none", ""},
		{"proxyjump gate,inner", "proxyjump gate,inner"},
		{"proxyjump none", ""},
		{"knownhostscommand /bin/x %h", "knownhostscommand /bin/x %h"},
		{"revokedhostkeys /etc/ssh/revoked", "revokedhostkeys /etc/ssh/revoked"},
		{"pkcs11provider /usr/lib/x.so", "pkcs11provider /usr/lib/x.so"},
		{"pkcs11provider none", ""},
		{"securitykeyprovider /usr/lib/sk.so", "securitykeyprovider /usr/lib/sk.so"},
		{"certificatefile ~/.ssh/id-cert.pub", "certificatefile ~/.ssh/id-cert.pub"},
		{"certificatefile none\ncertificatefile ~/b", "certificatefile ~/b"},
		{"certificatefile none", ""},
		{"hostbasedauthentication yes", "hostbasedauthentication yes"},
		{"nohostauthenticationforlocalhost yes", "nohostauthenticationforlocalhost yes"},
		{"verifyhostkeydns ask", "verifyhostkeydns ask"},
		{"checkhostip yes", "checkhostip yes"},
		{"pubkeyauthentication false", "pubkeyauthentication false"},
		{"preferredauthentications gssapi-with-mic,publickey", ""},
		{"preferredauthentications gssapi-with-mic", "preferredauthentications gssapi-with-mic"},
		{"addressfamily inet6", ""},
		{"bindaddress 192.0.2.1", ""},
		{"bindaddress eth.example.org", "bindaddress eth.example.org"},
		{"bindinterface eth0", "bindinterface eth0"},
		{"compression yes", "compression yes"},
		{"sessiontype none", "sessiontype none"},
		{"remotecommand ls", "remotecommand ls"},
		{"permitlocalcommand yes", "permitlocalcommand yes"},
		{"tunnel point-to-point", "tunnel point-to-point"},
		{"requiredrsasize 3072", "requiredrsasize 3072"},
		{"ciphers aes256-gcm@openssh.com", ""},
		{"ciphers aes256-cbc", "ciphers aes256-cbc"},
		{"macs umac-128@openssh.com", "macs umac-128@openssh.com"},
		{"kexalgorithms sntrup761x25519-sha512", "kexalgorithms sntrup761x25519-sha512"},
		{"hostkeyalgorithms sk-ssh-ed25519@openssh.com", "hostkeyalgorithms sk-ssh-ed25519@openssh.com"},
		{"pubkeyacceptedalgorithms ssh-xmss@openssh.com", "pubkeyacceptedalgorithms ssh-xmss@openssh.com"},
		{"userknownhostsfile /home/a b/known_hosts", "the name of a known_hosts file has a space in it"},
		{"userknownhostsfile none", ""},
		{"user git%u", "user git%u"},
		{"hostname", "ssh -G names no host, port or user"},
		{"identityfile ~/.ssh/%r@%h", ""},
		{"identityfile ~/.ssh/%C", "~/.ssh/%C: %C is not known here"},
		{"identityfile ~other/.ssh/id", "~other/.ssh/id: the home of another user"},
		{"identityagent ${MIRROR_SHELL_NOT_SET}/agent", "${MIRROR_SHELL_NOT_SET}/agent: ${MIRROR_SHELL_NOT_SET} is not set"},
		{"identityagent none", ""},
		{"identityagent SSH_AUTH_SOCK", ""},
		{"serveraliveinterval 5", ""},
		{"canonicaldomains example.org", ""},
		{"updatehostkeys true", ""},
	}
	for _, test := range tests {
		got := decideRoute(change(plainSettings, test.line))
		if got.reason != test.reason || got.openSSH != (test.reason != "") {
			t.Errorf("%q: %+v, want %q", test.line, got, test.reason)
		}
	}
}

func TestCredentialsRoute(t *testing.T) {
	for _, test := range []struct {
		keys   credentials
		reason string
	}{
		{credentials{foreign: "id_sk is a security key", ticket: true}, "id_sk is a security key"},
		{credentials{ticket: true}, "gssapiauthentication yes and a Kerberos ticket"},
		{credentials{notes: []string{"id is encrypted and not in the agent: ssh-add id"}}, "no key can be used; id is encrypted and not in the agent: ssh-add id"},
		{credentials{}, "no key can be used"},
	} {
		if got := test.keys.route(); !got.openSSH || got.reason != test.reason {
			t.Errorf("%+v: %+v", test.keys, got)
		}
	}
}

func TestAlgorithms(t *testing.T) {
	got := change(plainSettings, "").algorithms()
	want := algorithms{
		ciphers:  []string{"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr"},
		macs:     []string{"hmac-sha2-256-etm@openssh.com"},
		kex:      []string{"curve25519-sha256", "diffie-hellman-group16-sha512"},
		hostKeys: []string{"ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256"},
		keys:     []string{"ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(algorithms{}, route{})); diff != "" {
		t.Error(diff)
	}
}

func TestExpand(t *testing.T) {
	t.Setenv("WHERE", "/mnt")
	s := parseSettings("host frodo\nhostname frodo.example.org\nport 2222\nuser git\n")
	who := account{name: "hosting", home: "/home/hosting", uid: "7", hostname: "sam.example.org"}
	for in, want := range map[string]string{
		"~/.ssh/id":                "/home/hosting/.ssh/id",
		"~":                        "/home/hosting",
		"%d/%u-%r@%h:%p-%n":        "/home/hosting/hosting-git@frodo.example.org:2222-frodo",
		"/a/%i.%l.%L.100%%":        "/a/7.sam.example.org.sam.100%",
		"${WHERE}/keys/~x":         "/mnt/keys/~x",
		"relative $WHERE is plain": "relative $WHERE is plain",
	} {
		if got, err := s.expand(in, who); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"~root/id", "/%", "/%C", "/%j", "/${", "/${MIRROR_SHELL_NOT_SET}"} {
		if got, err := s.expand(in, who); err == nil {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	s := parseSettings("sendenv LANG\nsendenv LC_* G?T_PROTOCOL\nsetenv A=b\nsetenv C=d=e f\nsetenv bad\n")
	got := s.environment([]string{"LANG=C", "LC_ALL=C", "GIT_PROTOCOL=version=2", "PATH=/bin", "XLANG=1"})
	want := [][2]string{{"LANG", "C"}, {"LC_ALL", "C"}, {"GIT_PROTOCOL", "version=2"}, {"A", "b"}, {"C", "d=e f"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add(plainSettings)
	f.Add("x\r\n y\n\nHOST  a b \nidentityfile ~/%")
	f.Fuzz(func(t *testing.T, text string) {
		s := parseSettings(text)
		if diff := cmp.Diff(s, parseSettings(s.String())); diff != "" {
			t.Fatal(diff)
		}
		if way := decideRoute(s); way.openSSH != (way.reason != "") {
			t.Fatalf("%+v", way)
		}
		s.knownAs()
		s.environment(os.Environ())
	})
}

func FuzzMatchGlob(f *testing.F) {
	f.Add("LC_*", "LC_ALL")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern)+len(name) > 1000 {
			return
		}
		if !strings.ContainsAny(pattern, "*?") && matchGlob(pattern, name) != (pattern == name) {
			t.Fatal(pattern, name)
		}
		if !matchGlob("*"+name, "x"+name) && !strings.ContainsAny(name, "*?") {
			t.Fatal(name)
		}
	})
}
