package mirrorcfg

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"mirror-shell/internal/lazyregexp"
)

// Server is this server's configuration. Every path is absolute.
type Server struct {
	File     string `toml:"-"` // where it was read
	Hostname string `toml:"hostname"`
	RepoBase string `toml:"repo_base"`
	StateDir string `toml:"state_dir"`

	Users   Users                 `toml:"users"`
	Receive Receive               `toml:"receive"`
	Log     Log                   `toml:"log"`
	Accept  Accept                `toml:"accept"`
	Map     MapConfig             `toml:"map"`
	Queue   Queue                 `toml:"queue"`
	Worker  Worker                `toml:"worker"`
	Guard   Guard                 `toml:"guard"`
	Notify  Notify                `toml:"notify"`
	SSH     Listen                `toml:"ssh"`
	HTTP    Listen                `toml:"http"`
	Peers   map[string]PeerConfig `toml:"peer"`

	Gitolite Gitolite `toml:"gitolite"`
}

// Users says what people may do here. Peers have rules of their own.
type Users struct {
	// Authorize is a command run as CMD… USER R|W REPO: exit status 0 allows.
	// Empty: everyone with a key may read and write.
	Authorize []string `toml:"authorize"`
	// Exec is a command that an authorised user's session is handed to, as
	// CMD… USER with SSH_ORIGINAL_COMMAND set.
	Exec []string `toml:"exec"`
}

// Accept says what masters may do here, as globs of repository names.
type Accept struct {
	Create []string `toml:"create"`
	Delete []string `toml:"delete"`
	// Config are the config keys that a master may set; nil stands for those that
	// only gitweb and cgit show. See CheckKeyPattern.
	Config *[]string `toml:"config"`
	// CreatePerDay is how many repositories each master may create or rename in a day.
	CreatePerDay int `toml:"create_per_day"`
	// Created is a command run as CMD… REPO after a master has created one.
	Created []string `toml:"created"`
}

// Receive says what is demanded of a push that arrives here.
type Receive struct {
	// FsckObjects is git's receive.fsckObjects for every push through a session
	// of ours; nil leaves it to the git config.
	FsckObjects *bool `toml:"fsck_objects"`
}

// MapConfig says which repository has the mirror map of this server. It is the server's
// own administrator who says so, and no key of a repository's git config: a push, or
// a front end that writes such keys for people with fewer rights, could make
// another map the one that decides.
type MapConfig struct {
	Repository string `toml:"repository"` // "": none, maps are applied by hand
	File       string `toml:"file"`       // its path in HEAD's tree
	Keys       string `toml:"keys"`       // a directory there with users' key files; "": none
}

// Queue says where the jobs table is: "" for SQLite in the state directory.
type Queue struct {
	URL string `toml:"url"`
}

// Worker limits what runs at a time and how long it is tried.
type Worker struct {
	Jobs         int      `toml:"jobs"`
	JobsPerPeer  int      `toml:"jobs_per_peer"`
	StallTimeout Duration `toml:"stall_timeout"` // no byte for this long abandons a push
	RetryMax     Duration `toml:"retry_max"`     // cap of the backoff
}

// Guard says which syncs wait for a person.
type Guard struct {
	MaxDeletePercent int `toml:"max_delete_percent"`
	// KeepRescued is how long rescued refs are kept; 0: for ever.
	KeepRescued Duration `toml:"keep_rescued"`
	// KeepTrash is how long deleted repositories are kept; 0: for ever.
	KeepTrash Duration `toml:"keep_trash"`
}

// Notify says who is told when a copy needs a person, and when it is well again.
// Nobody is when neither Command nor Webhook is set.
type Notify struct {
	// Command is run with one event as JSON on its standard input.
	Command []string `toml:"command"`
	// Webhook is an address that one event as JSON is posted to. It may be a
	// secret in itself: it is never part of a message.
	Webhook string `toml:"webhook"`
	// WebhookTokenFile holds a token that is sent with it, as a Bearer; read
	// anew each time.
	WebhookTokenFile string `toml:"webhook_token_file"`
	// Lag is how long a copy may lack something before that is worth telling:
	// also to who pushes, and to status --failing.
	Lag Duration `toml:"lag"`
}

// Listen is a server that is off unless an address is set.
type Listen struct {
	Listen string `toml:"listen"`
}

// Duration is a time.Duration written as "90s" or "15m".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration: write it like \"60s\" or \"15m\"", text)
	}
	*d = Duration(v)
	return nil
}

// ErrNoConfig is wrapped by the error of Load when no file was found.
var ErrNoConfig = fmt.Errorf("no server configuration: %w", fs.ErrNotExist)

// EnvConfig names the environment variable that points to the file. The other
// two tell the hooks whose push it is: a session of ours sets one of them, and
// drops what a client sent.
const (
	EnvConfig = "MIRROR_SHELL_CONFIG"
	EnvPeer   = "MIRROR_SHELL_PEER"
	EnvUser   = "MIRROR_SHELL_USER"
)

// Locate returns the configuration file to use: flag if given, else
// $MIRROR_SHELL_CONFIG, else the user's, else the system's. The last two are
// taken only when they exist.
func Locate(flag string) (string, error) {
	if flag == "" {
		flag = os.Getenv(EnvConfig)
	}
	if flag != "" {
		return filepath.Abs(flag)
	}
	return DefaultFile()
}

// DefaultFile returns the configuration file that is used where nobody names one.
func DefaultFile() (string, error) {
	candidates := []string{"/etc/mirror-shell/config.toml"}
	if home, err := os.UserHomeDir(); err == nil {
		candidates = append([]string{filepath.Join(home, ".config/mirror-shell/config.toml")}, candidates...)
	}
	for _, file := range candidates {
		if _, err := os.Stat(file); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return file, nil
		}
	}
	return "", fmt.Errorf("%w: write %s with at least hostname = \"…\"", ErrNoConfig, strings.Join(candidates, " or "))
}

// Load reads and checks the configuration file that Locate names. An error
// names the file, the key and what would be right.
func Load(flag string) (*Server, error) {
	file, err := Locate(flag)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s does not exist: write it with at least hostname = \"…\"", ErrNoConfig, file)
	}
	if err != nil {
		return nil, fmt.Errorf("server configuration: %w", err)
	}
	return Parse(file, string(data))
}

// Parse reads the text of a configuration file.
func Parse(file, text string) (*Server, error) {
	s := &Server{
		File:     file,
		RepoBase: "~/repositories",
		StateDir: "~/.local/state/mirror-shell",
		Worker:   Worker{Jobs: 8, JobsPerPeer: 4, StallTimeout: Duration(time.Minute), RetryMax: Duration(15 * time.Minute)},
		Guard:    Guard{MaxDeletePercent: 50},
		Notify:   Notify{Lag: Duration(time.Hour)},
		Log:      Log{Audit: true, Target: LogFile},
		Accept:   Accept{CreatePerDay: 1000},
	}
	md, err := toml.Decode(text, s)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if unknown := md.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("%s: unknown key %s: the keys are %s", file, unknown[0], s.knownKeys(unknown[0]))
	}
	if err := s.checkKindKeys(md); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	s.setGitoliteDefaults()
	return s, nil
}

// knownKeys lists the keys of the table that an unknown key stands in.
func (s *Server) knownKeys(key toml.Key) string {
	if key[0] == "peer" && len(key) > 2 {
		return s.peerKeys(key[1])
	}
	tables := map[string]string{
		"users": "authorize, exec", "receive": "fsck_objects", "log": "audit, target, file",
		"accept": "create, delete, config, create_per_day, created", "map": "repository, file, keys", "queue": "url",
		"worker": "jobs, jobs_per_peer, stall_timeout, retry_max",
		"notify": "command, webhook, webhook_token_file, lag",
		"guard":  "max_delete_percent, keep_rescued, keep_trash", "ssh": "listen", "http": "listen",
		"gitolite": "programs",
	}
	if keys, ok := tables[key[0]]; ok && len(key) > 1 {
		return keys
	}
	return "hostname, repo_base, state_dir, and the tables users, receive, log, accept, map, queue, worker, guard, notify, ssh, http, gitolite, peer"
}

// check makes paths absolute and refuses impossible values.
func (s *Server) check() error {
	if s.Hostname == "" {
		return errors.New(`hostname is not set: write hostname = "…", the short name by which the other servers know this one`)
	}
	if s.Hostname == "local" {
		return errors.New(`hostname may not be "local", which is the word for repositories that are not mirrored`)
	}
	if err := CheckHost(s.Hostname); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	for key, dir := range map[string]*string{"repo_base": &s.RepoBase, "state_dir": &s.StateDir} {
		abs, err := expandHome(*dir)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		*dir = abs
	}
	return errors.Join(s.checkGitolite(), s.checkCommands(), s.checkGlobs(), s.checkMap(), s.checkWorker(), s.checkURLs(), s.checkNotify(), s.checkLog(), s.checkPeers())
}

func (s *Server) checkCommands() error {
	for key, argv := range map[string][]string{"users.authorize": s.Users.Authorize, "users.exec": s.Users.Exec, "notify.command": s.Notify.Command, "accept.created": s.Accept.Created} {
		if len(argv) > 0 && !filepath.IsAbs(argv[0]) {
			return fmt.Errorf("%s: %q: name the program with its full path", key, argv[0])
		}
	}
	return nil
}

func (s *Server) checkGlobs() error {
	for key, globs := range map[string][]string{"accept.create": s.Accept.Create, "accept.delete": s.Accept.Delete} {
		for _, glob := range globs {
			if err := CheckGlob(glob); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	if n := s.Accept.CreatePerDay; n < 1 || n > 1_000_000 {
		return fmt.Errorf("accept.create_per_day = %d: write a number from 1 to 1000000", n)
	}
	if s.Accept.Config == nil {
		return nil
	}
	for _, pattern := range *s.Accept.Config {
		if err := CheckKeyPattern(pattern); err != nil {
			return fmt.Errorf("accept.config: %w", err)
		}
	}
	return nil
}

// defaultMapFile is the name of the map in its repository.
const defaultMapFile = "mirror.toml"

func (s *Server) checkMap() error {
	m := &s.Map
	if m.Repository == "" {
		if m.File != "" || m.Keys != "" {
			return errors.New("map.file or map.keys is set, and map.repository is not: say which repository has them")
		}
		return nil
	}
	name, err := CleanRepo(m.Repository)
	if err != nil {
		return fmt.Errorf("map.repository: %w", err)
	}
	m.Repository = name
	if m.File == "" {
		m.File = defaultMapFile
	}
	if !fs.ValidPath(m.File) || !strings.HasSuffix(m.File, ".toml") {
		return fmt.Errorf("map.file = %q: write the path of a .toml file in the repository, such as %q", m.File, defaultMapFile)
	}
	if m.Keys != "" && (!fs.ValidPath(m.Keys) || m.Keys == ".") {
		return fmt.Errorf("map.keys = %q: write the path of a directory in the repository, such as \"keys\"", m.Keys)
	}
	return nil
}

func (s *Server) checkWorker() error {
	w := s.Worker
	switch {
	case w.Jobs < 1 || w.Jobs > 1000:
		return fmt.Errorf("worker.jobs = %d: write a number from 1 to 1000", w.Jobs)
	case w.JobsPerPeer < 1 || w.JobsPerPeer > w.Jobs:
		return fmt.Errorf("worker.jobs_per_peer = %d: write a number from 1 to worker.jobs (%d)", w.JobsPerPeer, w.Jobs)
	case time.Duration(w.StallTimeout) < time.Second:
		return fmt.Errorf("worker.stall_timeout = %q: write at least \"1s\"", time.Duration(w.StallTimeout))
	case time.Duration(w.RetryMax) < time.Second:
		return fmt.Errorf("worker.retry_max = %q: write at least \"1s\"", time.Duration(w.RetryMax))
	case s.Guard.MaxDeletePercent < 0 || s.Guard.MaxDeletePercent > 100:
		return fmt.Errorf("guard.max_delete_percent = %d: write a number from 0 to 100", s.Guard.MaxDeletePercent)
	case s.Guard.KeepRescued != 0 && time.Duration(s.Guard.KeepRescued) < time.Hour:
		return fmt.Errorf("guard.keep_rescued = %q: write at least \"1h\" (90 days are \"2160h\"), or \"0\" to keep them for ever", time.Duration(s.Guard.KeepRescued))
	case s.Guard.KeepTrash != 0 && time.Duration(s.Guard.KeepTrash) < time.Hour:
		return fmt.Errorf("guard.keep_trash = %q: write at least \"1h\" (90 days are \"2160h\"), or \"0\" to keep it for ever", time.Duration(s.Guard.KeepTrash))
	}
	return nil
}

// postgresURL is enough of the form to find a mistake before it is queued.
var postgresURL = lazyregexp.New(`^postgres(ql)?://[^/\s]+/[^\s]*$|^postgres(ql)?:///[^\s]+$`)

// listenAddress is ADDRESS:PORT; package net, which could tell better, would
// cost every hook a start of its own.
var listenAddress = lazyregexp.New(`^([^:\s]*|\[[0-9A-Fa-f:.%a-z]+\]):[0-9]{1,5}$`)

func (s *Server) checkURLs() error {
	for key, addr := range map[string]string{"ssh.listen": s.SSH.Listen, "http.listen": s.HTTP.Listen} {
		if addr != "" && !listenAddress.MatchString(addr) {
			return fmt.Errorf("%s = %q: write \"ADDRESS:PORT\", such as \"127.0.0.1:2222\"", key, addr)
		}
	}
	if s.Queue.URL == "" {
		return nil
	}
	// The value may carry a password: it is never part of a message.
	if !postgresURL.MatchString(s.Queue.URL) {
		return errors.New(`queue.url: write "postgres://USER@HOST/DATABASE", or leave it empty for SQLite in state_dir`)
	}
	return nil
}

// webhookURL is where a webhook may be: without encryption on this machine only.
// A password belongs into the token's file, and never into a process list or a log.
var webhookURL = lazyregexp.New(`^(https://[^/\s@?#]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?)([/?][^\s#]*)?$`)

func (s *Server) checkNotify() error {
	n := &s.Notify
	if n.Webhook != "" && !webhookURL.MatchString(n.Webhook) { // it may be a secret
		return errors.New(`notify.webhook: write "https://HOST/PATH", without user or password`)
	}
	if n.WebhookTokenFile != "" {
		if n.Webhook == "" {
			return errors.New("notify.webhook_token_file is set, and notify.webhook is not: set both, or neither")
		}
		abs, err := expandHome(n.WebhookTokenFile)
		if err != nil {
			return fmt.Errorf("notify.webhook_token_file: %w", err)
		}
		n.WebhookTokenFile = abs
	}
	if time.Duration(n.Lag) < time.Second {
		return fmt.Errorf("notify.lag = %q: write at least \"1s\"", time.Duration(n.Lag))
	}
	return nil
}

func (s *Server) checkPeers() error {
	for name, p := range s.Peers {
		key := "peer." + name
		if err := CheckHost(name); err != nil {
			return fmt.Errorf("[%s]: %w", key, err)
		}
		switch p.Kind {
		case "", "ssh":
		case "backup":
			if err := p.Backup.check(); err != nil {
				return fmt.Errorf("%s.%w", key, err)
			}
			s.Peers[name] = p
		default:
			return fmt.Errorf("%s.kind = %q: the kinds are \"ssh\" and \"backup\"", key, p.Kind)
		}
	}
	return nil
}

// CheckGlob checks a glob of repository names: path.Match's syntax, and "**"
// for any number of path elements.
func CheckGlob(glob string) error {
	if _, err := path.Match(glob, ""); err != nil || glob == "" {
		return fmt.Errorf("glob %q: write a repository name with * ? [a-z] or **, such as \"projects/**\"", glob)
	}
	return nil
}

// MatchGlob reports whether a repository's name matches a glob that CheckGlob
// accepted. A "*" stays within one path element; "**" as an element is any
// number of them.
func MatchGlob(glob, name string) bool {
	return matchElements(strings.Split(glob, "/"), strings.Split(name, "/"))
}

func matchElements(glob, name []string) bool {
	for len(glob) > 0 {
		if glob[0] == "**" {
			for skip := 0; skip <= len(name); skip++ {
				if matchElements(glob[1:], name[skip:]) {
					return true
				}
			}
			return false
		}
		if len(name) == 0 {
			return false
		}
		if ok, err := path.Match(glob[0], name[0]); err != nil || !ok {
			return false
		}
		glob, name = glob[1:], name[1:]
	}
	return len(name) == 0
}

// expandHome replaces a leading ~ and demands an absolute path.
func expandHome(dir string) (string, error) {
	if dir == "~" || strings.HasPrefix(dir, "~/") {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("%q: %w: write the full path", dir, err)
		}
		return filepath.Join(home, dir[1:]), nil
	}
	if !filepath.IsAbs(dir) {
		return "", fmt.Errorf("%q is not a full path: begin it with / or ~/", dir)
	}
	return filepath.Clean(dir), nil
}
