package mirrorcfg

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseDefaults(t *testing.T) {
	t.Setenv("HOME", "/home/git")
	s, err := Parse("x.toml", `hostname = "frodo"`)
	if err != nil {
		t.Fatal(err)
	}
	if s.RepoBase != "/home/git/repositories" || s.StateDir != "/home/git/.local/state/mirror-shell" || s.Worker.Jobs != 8 ||
		s.Worker.JobsPerPeer != 4 || time.Duration(s.Worker.StallTimeout) != time.Minute || time.Duration(s.Worker.RetryMax) != 15*time.Minute || s.Guard.MaxDeletePercent != 50 || time.Duration(s.Notify.Lag) != time.Hour {
		t.Errorf("defaults: %+v", s)
	}
}

func TestParseEveryKey(t *testing.T) {
	_, err := Parse("x.toml", `
hostname = "frodo"
repo_base = "/srv/git"
state_dir = "/var/lib/x"
[users]
authorize = ["/usr/bin/allow", "--strict"]
exec = ["/usr/bin/gitolite-shell"]
[accept]
create = ["projects/**"]
delete = ["tmp/*"]
[queue]
url = "postgres://git@db/mirror"
[worker]
jobs = 2
jobs_per_peer = 1
stall_timeout = "90s"
retry_max = "1h"
[guard]
max_delete_percent = 10
keep_rescued = "2160h"
[notify]
command = ["/usr/local/bin/tell", "--loud"]
webhook = "https://chat.example.org/hooks/x?y=z"
webhook_token_file = "/etc/mirror-shell/token"
lag = "30m"
[ssh]
listen = "127.0.0.1:2222"
[http]
listen = "[::1]:8080"
[peer.vault]
kind = "backup"
url = "s3://git-backups/site-a?region=eu-west-1"
credentials_file = "/etc/mirror-shell/s3"
lock = "720h"
lock_mode = "compliance"
recipients = ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@rohan"]
recipients_file = "/etc/mirror-shell/recipients"
identity_file = "~/identity"
include = ["description", "hooks/**"]
exclude = ["hooks/*.sample"]
schedule = "15 3 * * 1-5"
bytes_per_second = "10MB"
requests_per_second = 50
concurrency = 8
grace = "48h"
keep_last = 10
keep_hourly = 24
keep_daily = 7
keep_weekly = 5
keep_monthly = 12
keep_yearly = 3
keep_within = "168h"
[peer.attic]
kind = "backup"
url = "~/attic"
bytes_per_second = 1000000
schedule = "@hourly"
[peer.sam]
kind = "ssh"
`)
	if err != nil {
		t.Fatal(err)
	}
}

// An error names the file, the key, and what would be right.
func TestParseMistakes(t *testing.T) {
	tests := []struct{ text, key, hint string }{
		{``, "hostname", "write hostname"},
		{`hostname = "fr odo"`, "hostname", "use letters"},
		{`hostname = "local"`, "hostname", "may not be"},
		{`hostname = "f"` + "\n" + `repobase = "/x"`, "repobase", "repo_base"},
		{`hostname = "f"` + "\n" + `repo_base = "x"`, "repo_base", "begin it with /"},
		{`hostname = "f"` + "\n" + `state_dir = ""`, "state_dir", "full path"},
		{`hostname = "f"` + "\n[worker]\njob = 1", "worker.job", "jobs_per_peer"},
		{`hostname = "f"` + "\n[worker]\njobs = 0", "worker.jobs", "from 1"},
		{`hostname = "f"` + "\n[worker]\njobs_per_peer = 9", "worker.jobs_per_peer", "worker.jobs (8)"},
		{`hostname = "f"` + "\n[worker]\nstall_timeout = 60", "stall_timeout", ""},
		{`hostname = "f"` + "\n[worker]\nstall_timeout = \"1m30\"", "stall_timeout", "write it like"},
		{`hostname = "f"` + "\n[worker]\nstall_timeout = \"1ms\"", "worker.stall_timeout", "at least"},
		{`hostname = "f"` + "\n[worker]\nretry_max = \"-1s\"", "worker.retry_max", "at least"},
		{`hostname = "f"` + "\n[guard]\nmax_delete_percent = 101", "guard.max_delete_percent", "0 to 100"},
		{`hostname = "f"` + "\n[guard]\nkeep_rescued = \"90d\"", "90d", "duration"},
		{`hostname = "f"` + "\n[guard]\nkeep_rescued = \"1m\"", "guard.keep_rescued", "2160h"},
		{`hostname = "f"` + "\n[ssh]\nlisten = \"2222\"", "ssh.listen", "ADDRESS:PORT"},
		{`hostname = "f"` + "\n[notify]\ncommand = [\"tell\"]", "notify.command", "full path"},
		{`hostname = "f"` + "\n[notify]\nwebhook = \"http://chat/secret\"", "notify.webhook", "https://"},
		{`hostname = "f"` + "\n[notify]\nwebhook = \"https://me:secret@chat/\"", "notify.webhook", "without user"},
		{`hostname = "f"` + "\n[notify]\nwebhook = \"http://localhost.evil/secret\"", "notify.webhook", "https://"},
		{`hostname = "f"` + "\n[notify]\nwebhook_token_file = \"/x\"", "notify.webhook_token_file", "set both"},
		{`hostname = "f"` + "\n[notify]\nwebhook = \"https://x\"\nwebhook_token_file = \"x\"", "notify.webhook_token_file", "full path"},
		{`hostname = "f"` + "\n[notify]\nlag = \"0s\"", "notify.lag", "at least"},
		{`hostname = "f"` + "\n[notify]\nemail = \"x\"", "notify.email", "webhook_token_file"},
		{`hostname = "f"` + "\n[http]\nlisten = \"localhost\"", "http.listen", "ADDRESS:PORT"},
		{`hostname = "f"` + "\n[queue]\nurl = \"mysql://u:secret@h/d\"", "queue.url", "postgres://"},
		{`hostname = "f"` + "\n[users]\nauthorize = [\"allow\"]", "users.authorize", "full path"},
		{`hostname = "f"` + "\n[users]\nexec = \"/bin/x\"", "users.exec", ""},
		{`hostname = "f"` + "\n[accept]\ncreate = [\"[\"]", "accept.create", "glob"},
		{`hostname = "f"` + "\n[accept]\ndelete = [\"\"]", "accept.delete", "glob"},
		{`hostname = "f"` + "\n[peer.vault]\nkind = \"backup\"", "peer.vault.url", "place"},
		{`hostname = "f"` + "\n[peer.vault]\nkind = \"tape\"", "peer.vault.kind", "the kinds are"},
		{`hostname = "f"` + "\n[peer.sam]\nurl = \"ssh://x\"", "peer.sam.url", "alias"},
		{`hostname = "f"` + "\n[peer.\"a/b\"]\nkind = \"ssh\"", "peer.a/b", "use letters"},
		{`hostname = "f"` + "\n[peer.sam]\nport = 22", "peer.sam.port", "kind; with"},
		{`hostname = `, "", ""},
	}
	for _, tt := range tests {
		_, err := Parse("/etc/x.toml", tt.text)
		if err == nil {
			t.Errorf("%q is accepted", tt.text)
			continue
		}
		for _, want := range []string{"/etc/x.toml", tt.key, tt.hint} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: error %q does not say %q", tt.text, err, want)
			}
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("a password is in the message %q", err)
		}
	}
}

func TestLocate(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv(EnvConfig, "")
	if _, err := os.Stat("/etc/mirror-shell/config.toml"); err != nil {
		if _, err := Load(""); !errors.Is(err, ErrNoConfig) {
			t.Errorf("without any file: %v", err)
		}
	}
	file := filepath.Join(home, ".config/mirror-shell/config.toml")
	os.MkdirAll(filepath.Dir(file), 0o700)
	os.WriteFile(file, []byte("hostname = 'frodo'"), 0o600)
	if s, err := Load(""); err != nil || s.File != file {
		t.Errorf("the user's file: %+v, %v", s, err)
	}
	t.Setenv(EnvConfig, filepath.Join(home, "gone.toml"))
	if _, err := Load(""); !errors.Is(err, ErrNoConfig) {
		t.Errorf("a file that is named and missing: %v", err)
	}
}

func TestMatchGlob(t *testing.T) {
	tests := []struct {
		glob, name string
		want       bool
	}{
		{"ip1", "ip1", true}, {"ip*", "ip1", true}, {"*", "a/b", false}, {"**", "a/b", true}, {"a/**", "a/b/c", true},
		{"a/**/c", "a/c", true}, {"a/**/c", "a/x/y/c", true}, {"a/*", "a/b/c", false}, {"**/x", "x", true}, {"a/**", "ab", false},
	}
	for _, tt := range tests {
		if got := MatchGlob(tt.glob, tt.name); got != tt.want {
			t.Errorf("MatchGlob(%q, %q) = %v", tt.glob, tt.name, got)
		}
	}
}

// serverWith makes a server whose repo_base holds the named repositories.
func serverWith(t *testing.T, names ...string) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{File: "x.toml", Hostname: "frodo", RepoBase: filepath.Join(dir, "repositories"), StateDir: filepath.Join(dir, "state")}
	os.Mkdir(s.RepoBase, 0o700)
	for _, name := range names {
		if out, err := exec.Command("git", "init", "-q", "--bare", filepath.Join(s.RepoBase, name+".git")).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	return s
}

func TestFindAndRepositories(t *testing.T) {
	s := serverWith(t, "ip1", "a/b")
	outside := filepath.Join(t.TempDir(), "secret.git")
	exec.Command("git", "init", "-q", "--bare", outside).Run()
	os.Symlink(outside, filepath.Join(s.RepoBase, "escape.git"))
	os.Symlink(filepath.Dir(outside), filepath.Join(s.RepoBase, "esc"))
	os.Symlink("ip1.git", filepath.Join(s.RepoBase, "alias.git"))
	os.Mkdir(filepath.Join(s.RepoBase, "empty.git"), 0o700)

	for _, name := range []string{"ip1", "a/b.git", "alias"} {
		if _, _, err := s.Find(name); err != nil {
			t.Errorf("Find(%s): %v", name, err)
		}
	}
	for _, name := range []string{"escape", "esc/secret"} {
		if _, _, err := s.Find(name); !errors.Is(err, ErrName) {
			t.Errorf("Find(%s) follows the link out of repo_base: %v", name, err)
		}
	}
	for _, name := range []string{"nothing", "empty", "a"} {
		if _, _, err := s.Find(name); !errors.Is(err, ErrNoRepo) {
			t.Errorf("Find(%s): %v", name, err)
		}
	}
	got, err := s.Repositories()
	if diff := cmp.Diff([]string{"a/b", "alias", "ip1"}, got); diff != "" || err != nil {
		t.Errorf("Repositories: %v (-want +got):\n%s", err, diff)
	}
	if got, err = s.Select([]string{"a/*", "ip1", "**"}); err != nil || strings.Join(got, " ") != "a/b ip1 alias" {
		t.Errorf("Select = %v, %v", got, err)
	}
	if _, err := s.Select([]string{"z*"}); !errors.Is(err, ErrNoRepo) {
		t.Errorf("Select of nothing: %v", err)
	}
	if name, err := s.NameOf(filepath.Join(s.RepoBase, "alias.git")); err != nil || name != "ip1" {
		t.Errorf("NameOf(alias) = %q, %v", name, err)
	}
	if _, err := s.NameOf(outside); err == nil {
		t.Error("NameOf accepts a place outside")
	}
	s.RepoBase += "-gone"
	if _, _, err := s.Find("ip1"); err == nil || !strings.Contains(err.Error(), "correct repo_base in x.toml") {
		t.Errorf("missing repo_base: %v", err)
	}
}

// The effective configuration counts: includes, conditional ones, global.
func TestLoadRepoIsGitsOwnView(t *testing.T) {
	s := serverWith(t, "projects/ip1")
	global := filepath.Join(t.TempDir(), "gitconfig")
	extra := filepath.Join(t.TempDir(), "extra")
	os.WriteFile(extra, []byte("[gitolite \"mirror\"]\n\tslaves = sam\n\tslaves = sam gollum\n"), 0o600)
	os.WriteFile(global, []byte("[gitolite \"mirror\"]\n\tmaster = frodo\n\tRedirectOK = true\n[includeIf \"gitdir:"+s.RepoBase+"/projects/\"]\n\tpath = "+extra+"\n"), 0o600)
	t.Setenv("GIT_CONFIG_GLOBAL", global)
	t.Setenv("GIT_DIR", "/nonexistent") // as in a hook of another repository
	cfg, _, err := s.OpenRepo(context.Background(), "projects/ip1.git")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := cfg.Expand("frodo", SlavesKey)
	if err != nil || strings.Join(peers, " ") != "sam gollum" || cfg.Role("frodo") != Master || !cfg.MayRedirect("frodo", "sam") {
		t.Errorf("slaves %v, %v; role %v", peers, err, cfg.Role("frodo"))
	}
	os.WriteFile(global, []byte("[gitolite \"mirror\"]\n\tslaves\n"), 0o600)
	if _, _, err := s.OpenRepo(context.Background(), "projects/ip1"); err == nil || !strings.Contains(err.Error(), "has no value") {
		t.Errorf("a key without value: %v", err)
	}
	os.WriteFile(global, []byte("[broken"), 0o600)
	if _, _, err := s.OpenRepo(context.Background(), "projects/ip1"); err == nil {
		t.Error("a broken git config passes as an empty one")
	}
}
