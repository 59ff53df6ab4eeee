package peer

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"mirror-shell/internal/proc"
)

// sshSettings is what `ssh -G` prints: what OpenSSH would use for one host, by
// option in lower case. An option may have several values.
type sshSettings map[string][]string

// parseSettings reads the output of `ssh -G`: one option a line, a space, the
// value. Lines that are none are left out.
func parseSettings(text string) sshSettings {
	s := sshSettings{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if key != "" {
			key = strings.ToLower(key)
			s[key] = append(s[key], value)
		}
	}
	return s
}

// String is the form that parseSettings reads, sorted by option.
func (s sshSettings) String() string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s)) {
		for _, value := range s[key] {
			b.WriteString(key + " " + value + "\n")
		}
	}
	return b.String()
}

// one returns an option's first value, "" when there is none.
func (s sshSettings) one(key string) string {
	if values := s[key]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// on reports whether an option is set to something that is not one of the words
// for nothing.
func (s sshSettings) on(key string) bool {
	switch s.one(key) {
	case "", "no", "false", "none", "off", "0":
		return false
	}
	return true
}

// list splits a value at its commas.
func (s sshSettings) list(key string) []string {
	if s.one(key) == "" {
		return nil
	}
	return strings.Split(s.one(key), ",")
}

// knownHostsFiles returns the known_hosts files, the account's first. ssh -G
// prints several on one line and does not quote them: ok is false when a space
// in a name makes that ambiguous.
func (s sshSettings) knownHostsFiles() (files []string, ok bool) {
	for _, key := range []string{"userknownhostsfile", "globalknownhostsfile"} {
		for _, file := range strings.Fields(s.one(key)) {
			if file == "none" {
				continue
			}
			if !filepath.IsAbs(file) {
				return nil, false
			}
			files = append(files, file)
		}
	}
	return files, true
}

// knownAs is the address under which known_hosts has the host: its name and
// port, or its alias, which has no port.
func (s sshSettings) knownAs() string {
	if alias := s.one("hostkeyalias"); alias != "" {
		return net.JoinHostPort(alias, "22")
	}
	return s.address()
}

func (s sshSettings) address() string { return net.JoinHostPort(s.one("hostname"), s.one("port")) }

// route says how a host is reached: in this process, or with the ssh program
// and why.
type route struct {
	openSSH bool
	reason  string // one line, "" in this process
}

func withOpenSSH(format string, args ...any) route {
	return route{openSSH: true, reason: fmt.Sprintf(format, args...)}
}

// foreignOptions are those that only the ssh program honours, when they are
// set to anything but nothing.
var foreignOptions = []string{
	"proxycommand", "proxyjump", "knownhostscommand", "revokedhostkeys", "pkcs11provider", "certificatefile",
	"hostbasedauthentication", "nohostauthenticationforlocalhost", "verifyhostkeydns", "checkhostip", "bindinterface",
	"compression", "remotecommand", "permitlocalcommand", "tunnel", "forkafterauthentication", "stdinnull",
}

// onlyValues are options of which this process does one thing.
var onlyValues = map[string][]string{
	// "no" and "accept-new" are the ssh program's to honour; here, a host key
	// that is not known is always refused, which is what "ask" comes to as well
	// where nobody can be asked.
	"stricthostkeychecking": {"", "yes", "true", "ask"},
	"pubkeyauthentication":  {"", "yes", "true", "host-bound", "unbound"},
	"sessiontype":           {"", "default"},
	"securitykeyprovider":   {"", "internal", "none"},
	"requiredrsasize":       {"", "0", "1024"},
	"addressfamily":         {"", "any", "inet", "inet6"},
}

// decideRoute tells from the settings alone. Options that are in neither list
// are honoured (hosts, keys, algorithms, timeouts, environment) or do not
// matter to a command without a terminal.
func decideRoute(s sshSettings) route {
	for _, key := range foreignOptions {
		for _, value := range s[key] {
			if (sshSettings{key: {value}}).on(key) {
				return withOpenSSH("%s %s", key, value)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(onlyValues)) {
		if !slices.Contains(onlyValues[key], s.one(key)) {
			return withOpenSSH("%s %s", key, s.one(key))
		}
	}
	if preferred := s.list("preferredauthentications"); preferred != nil && !slices.Contains(preferred, "publickey") {
		return withOpenSSH("preferredauthentications %s", s.one("preferredauthentications"))
	}
	if s.one("hostname") == "" || s.one("port") == "" || s.one("user") == "" {
		return withOpenSSH("ssh -G names no host, port or user")
	}
	if strings.Contains(s.one("user"), "%") {
		return withOpenSSH("user %s", s.one("user"))
	}
	if bind := s.one("bindaddress"); bind != "" && net.ParseIP(bind) == nil {
		return withOpenSSH("bindaddress %s", bind)
	}
	if _, ok := s.knownHostsFiles(); !ok {
		return withOpenSSH("the name of a known_hosts file has a space in it")
	}
	for _, path := range append(slices.Clone(s["identityfile"]), s.one("identityagent")) {
		if _, err := s.expand(path, account{}); err != nil {
			return withOpenSSH("%s: %v", path, err)
		}
	}
	return s.algorithms().route
}

// algorithms is what both the settings allow and the library has.
type algorithms struct {
	ciphers, macs, kex, hostKeys, keys []string
	route                              route // openSSH when one of the lists is empty
}

func (s sshSettings) algorithms() algorithms {
	safe, rest := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	a := algorithms{
		ciphers:  s.common("ciphers", safe.Ciphers, rest.Ciphers),
		macs:     s.common("macs", safe.MACs, rest.MACs),
		kex:      s.common("kexalgorithms", safe.KeyExchanges, rest.KeyExchanges),
		hostKeys: s.common("hostkeyalgorithms", safe.HostKeys, rest.HostKeys),
		keys:     s.common("pubkeyacceptedalgorithms", safe.PublicKeyAuths, rest.PublicKeyAuths),
	}
	if s["pubkeyacceptedalgorithms"] == nil { // its name before OpenSSH 8.5
		a.keys = s.common("pubkeyacceptedkeytypes", safe.PublicKeyAuths, rest.PublicKeyAuths)
	}
	for key, list := range map[string][]string{
		"ciphers": a.ciphers, "macs": a.macs, "kexalgorithms": a.kex, "hostkeyalgorithms": a.hostKeys, "pubkeyacceptedalgorithms": a.keys,
	} {
		if len(list) == 0 {
			a.route = withOpenSSH("%s %s", key, s.one(key))
		}
	}
	// With AES in hardware, GCM is the fastest by far.
	slices.SortStableFunc(a.ciphers, func(x, y string) int { return gcmFirst(x) - gcmFirst(y) })
	return a
}

func gcmFirst(cipher string) int {
	if strings.Contains(cipher, "-gcm@") {
		return 0
	}
	return 1
}

// common returns what is in the setting and in the library, in the setting's
// order. Without the setting, which no OpenSSH leaves out, it is what the library
// holds to be safe.
func (s sshSettings) common(key string, safe, insecure []string) []string {
	if s.one(key) == "" {
		return safe
	}
	var both []string
	for _, name := range s.list(key) {
		if (slices.Contains(safe, name) || slices.Contains(insecure, name)) && !slices.Contains(both, name) {
			both = append(both, name)
		}
	}
	return both
}

// account is whose settings they are.
type account struct {
	name, home, uid, hostname string
}

func thisAccount() account {
	a := account{home: os.Getenv("HOME")}
	// OpenSSH goes by the password file, not by HOME.
	if u, err := user.Current(); err == nil {
		a = account{name: u.Username, home: u.HomeDir, uid: u.Uid}
	}
	a.hostname, _ = os.Hostname()
	return a
}

// expand resolves ~, %TOKENS and ${VARIABLES} in the name of a file, which
// ssh -G leaves in some options.
func (s sshSettings) expand(path string, who account) (string, error) {
	if rest, ok := strings.CutPrefix(path, "~"); ok {
		if rest != "" && rest[0] != '/' {
			return "", fmt.Errorf("the home of another user")
		}
		path = who.home + rest
	}
	short, _, _ := strings.Cut(who.hostname, ".")
	tokens := map[byte]string{
		'%': "%", 'd': who.home, 'h': s.one("hostname"), 'i': who.uid, 'L': short, 'l': who.hostname, 'n': s.one("host"),
		'p': s.one("port"), 'r': s.one("user"), 'u': who.name,
	}
	var out strings.Builder
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '%':
			i++
			if i == len(path) {
				return "", fmt.Errorf("%% at the end")
			}
			value, ok := tokens[path[i]]
			if !ok || path[i] == 'n' && value == "" { // ssh -G names the host since OpenSSH 8.7
				return "", fmt.Errorf("%%%c is not known here", path[i])
			}
			out.WriteString(value)
		case strings.HasPrefix(path[i:], "${"):
			name, _, ok := strings.Cut(path[i+2:], "}")
			if !ok {
				return "", fmt.Errorf("${ without }")
			}
			value, ok := os.LookupEnv(name)
			if !ok {
				return "", fmt.Errorf("${%s} is not set", name)
			}
			out.WriteString(value)
			i += len(name) + 2
		default:
			out.WriteByte(path[i])
		}
	}
	return out.String(), nil
}

// environment returns what SendEnv and SetEnv let a command have of env
// ("NAME=value"), as names and values.
func (s sshSettings) environment(env []string) (pairs [][2]string) {
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		for _, line := range s["sendenv"] {
			if slices.ContainsFunc(strings.Fields(line), func(pattern string) bool { return matchGlob(pattern, name) }) {
				pairs = append(pairs, [2]string{name, value})
				break
			}
		}
	}
	for _, variable := range s["setenv"] {
		if name, value, ok := strings.Cut(variable, "="); ok {
			pairs = append(pairs, [2]string{name, value})
		}
	}
	return pairs
}

// matchGlob is OpenSSH's match_pattern: * and ?, nothing else is special.
func matchGlob(pattern, name string) bool {
	p, n, star, retry := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, retry = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0: // let the last star have one byte more
			retry++
			p, n = star+1, retry
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// resolveTimeout bounds `ssh -G`, which may look up names and run what Match
// exec says.
const resolveTimeout = 15 * time.Second

// resolve asks OpenSSH for a host's settings.
func (c *Connections) resolve(ctx context.Context, host string) (sshSettings, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	argv := c.ssh(host, "true", "-G") // the command only keeps ssh from talking about terminals
	var out strings.Builder
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C"), argv...)
	cmd.Stdout = &out
	if _, err := proc.Run(cmd); err != nil {
		return nil, fmt.Errorf("%w: ssh -G %s failed: correct ssh_config: %w", ErrUnreachable, host, err)
	}
	return parseSettings(out.String()), nil
}

// ssh is proc.SSH with more options.
func (c *Connections) ssh(host, command string, options ...string) []string {
	argv := proc.SSH(host, command)
	if c.opt.ConfigFile != "" {
		options = append([]string{"-F", c.opt.ConfigFile}, options...)
	}
	return slices.Concat(argv[:1], options, argv[1:])
}

// configStamp changes when a file does that OpenSSH reads its settings from.
// Files that those include from elsewhere are not seen.
func (c *Connections) configStamp() string {
	files := []string{c.opt.ConfigFile}
	if c.opt.ConfigFile == "" {
		home := thisAccount().home
		files = []string{filepath.Join(home, ".ssh/config"), "/etc/ssh/ssh_config"}
		for _, pattern := range []string{filepath.Join(home, ".ssh/config.d/*"), "/etc/ssh/ssh_config.d/*"} {
			more, _ := filepath.Glob(pattern) // fails only for a bad pattern
			files = append(files, more...)
		}
	}
	var stamp strings.Builder
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			continue
		}
		fmt.Fprintf(&stamp, "%s %d %d %d\n", file, info.Size(), info.ModTime().UnixNano(), inode(info))
	}
	return stamp.String()
}

func inode(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ino
	}
	return 0
}
