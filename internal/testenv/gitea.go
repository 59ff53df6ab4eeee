package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Gitea is a Gitea that runs as the unix user of a server, on loopback, with SQLite, an ssh
// server of its own and an administrator who has a token for everything.
//
// Its repositories are those of the server: repositories/OWNER/NAME.git in the
// home of the unix user.
type Gitea struct {
	URL   string // http://127.0.0.1:PORT, without a slash at the end
	Admin string // name of the administrator; so is the password, with "-secret" after it
	Token string // of the administrator

	server  *Server
	sshPort int
	child   *child
}

// giteaBuild is the directory that build-gitea made, found once.
var giteaBuild = sync.OnceValues(func() (string, error) {
	_, err := os.Stat("../testenv/build-gitea")
	script := "../testenv/build-gitea"
	if err != nil {
		var root []byte
		if root, err = exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "mirror-shell").Output(); err != nil {
			return "", err
		}
		script = filepath.Join(strings.TrimSpace(string(root)), "internal/testenv/build-gitea")
	}
	cmd := exec.Command(script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build Gitea: %w\n%s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
})

// giteaConfig is app.ini. Everything that would look for other machines is off.
const giteaConfig = `APP_NAME = Gitea
RUN_USER = %[1]s
RUN_MODE = prod
WORK_PATH = %[2]s/gitea
[server]
PROTOCOL = http
HTTP_ADDR = 127.0.0.1
HTTP_PORT = %[3]d
ROOT_URL = http://127.0.0.1:%[3]d/
STATIC_ROOT_PATH = %[4]s
OFFLINE_MODE = true
START_SSH_SERVER = true
SSH_LISTEN_HOST = 127.0.0.1
SSH_LISTEN_PORT = %[5]d
SSH_PORT = %[5]d
SSH_DOMAIN = 127.0.0.1
LFS_START_SERVER = true
[database]
DB_TYPE = sqlite3
[repository]
ROOT = %[2]s/repositories
DEFAULT_BRANCH = main
[git.config]
init.templateDir = %[2]s/.config/mirror-shell/template
[security]
INSTALL_LOCK = true
PASSWORD_HASH_ALGO = pbkdf2_v2
[service]
DISABLE_REGISTRATION = true
[migrations]
ALLOW_LOCALNETWORKS = true
[webhook]
ALLOWED_HOST_LIST = *
[log]
MODE = console
LEVEL = Info
[cron.update_checker]
ENABLED = false
[actions]
ENABLED = false
`

// StartGitea starts a Gitea on the server. It ends with the test. It is version
// 1.26, built once for this machine, which takes some minutes.
func (s *Server) StartGitea(t testing.TB) *Gitea {
	t.Helper()
	built, err := giteaBuild()
	if err != nil {
		t.Fatal(err)
	}
	files := s.giteaFiles()
	// Hard links: the build is in a directory that the unix user cannot enter.
	if exec.Command("cp", "-al", built, files).Run() != nil {
		os.RemoveAll(files)
		if out, err := exec.Command("cp", "-a", built, files).CombinedOutput(); err != nil {
			t.Fatalf("copy Gitea: %v\n%s", err, out)
		}
	}
	g := &Gitea{Admin: "root-of-gitea", server: s, sshPort: freePort(t)}
	port := freePort(t)
	g.URL = fmt.Sprintf("http://127.0.0.1:%d", port)
	for _, dir := range []string{"gitea", "gitea/custom", "gitea/custom/conf"} {
		s.mkdir(t, dir)
	}
	s.write(t, "gitea/custom/conf/app.ini", 0o600, fmt.Sprintf(giteaConfig, s.account.Name, s.account.Home, port, files, g.sshPort))
	g.CLI(t, "migrate")
	g.CLI(t, "admin", "user", "create", "--admin", "--username", g.Admin, "--password", g.Admin+"-secret", "--email", g.Admin+"@example.com", "--must-change-password=false")
	out := g.CLI(t, "admin", "user", "generate-access-token", "--username", g.Admin, "--token-name", "test", "--scopes", "all", "--raw")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	g.Token = lines[len(lines)-1]
	g.Start(t)
	t.Cleanup(func() { g.end(t) })
	return g
}

func (s *Server) giteaFiles() string { return filepath.Join(s.dir(), "gitea-files") }
func (g *Gitea) log() string         { return filepath.Join(g.server.dir(), "gitea.log") }

// argv is a command of Gitea's.
func (g *Gitea) argv(args ...string) []string {
	return append([]string{filepath.Join(g.server.giteaFiles(), "gitea"), "--config", g.server.Home("gitea/custom/conf/app.ini")}, args...)
}

// CLI runs a command of Gitea's, such as "admin", "regenerate", "hooks", and
// returns its standard output.
func (g *Gitea) CLI(t testing.TB, args ...string) string {
	t.Helper()
	return g.server.MustRun(t, g.argv(args...)...)
}

// Start starts Gitea again after Stop.
func (g *Gitea) Start(t testing.TB) {
	t.Helper()
	g.child = startChild(t, g.server.Command(context.Background(), g.argv("web")...), g.log())
	ready := Poll(func() bool {
		if !g.child.running() {
			return true
		}
		r, err := http.Get(g.URL + "/api/healthz")
		if err == nil {
			r.Body.Close()
		}
		return err == nil && r.StatusCode == http.StatusOK
	})
	if !ready || !g.child.running() {
		g.logTail(t)
		t.Fatal("Gitea does not start")
	}
}

// Stop ends Gitea, as a service manager does.
func (g *Gitea) Stop(t testing.TB) {
	t.Helper()
	if g.child != nil && g.child.running() {
		g.child.end(syscall.SIGTERM)
	}
}

func (g *Gitea) end(t testing.TB) {
	g.Stop(t)
	if t.Failed() {
		g.logTail(t)
	}
}

func (g *Gitea) logTail(t testing.TB) {
	text, _ := os.ReadFile(g.log())
	t.Logf("Gitea:\n%s", text[max(0, len(text)-maxLog):])
}

// API asks Gitea's API as the administrator: path is what follows /api/v1, body nil or
// something for JSON, and the answer is decoded into reply unless that is nil. It returns the
// status.
func (g *Gitea) API(t testing.TB, method, path string, body, reply any) int {
	t.Helper()
	var sent io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		sent = bytes.NewReader(data)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, g.URL+"/api/v1"+path, sent)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "token "+g.Token)
	request.Header.Set("Content-Type", "application/json")
	// A renamed repository's old address answers with another one, which a test should see.
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err == nil && reply != nil && r.StatusCode < 300 {
		err = json.Unmarshal(data, reply)
	}
	if err != nil {
		t.Fatalf("%s %s: %d: %v: %s", method, path, r.StatusCode, err, data)
	}
	if r.StatusCode >= 300 {
		t.Logf("%s %s: %d: %s", method, path, r.StatusCode, data)
	}
	return r.StatusCode
}

// MustAPI is API, and a status of 300 or more is a failure of the test.
func (g *Gitea) MustAPI(t testing.TB, method, path string, body, reply any) {
	t.Helper()
	if status := g.API(t, method, path, body, reply); status >= 300 {
		t.Fatalf("%s %s: %d", method, path, status)
	}
}

// AddUser makes a person a user of Gitea, with their ssh key, and "gitea" an alias of their
// ssh for Gitea's own ssh server.
func (g *Gitea) AddUser(t testing.TB, c *Client) {
	t.Helper()
	g.MustAPI(t, "POST", "/admin/users", map[string]any{"username": c.Name, "email": c.Name + "@example.com", "password": c.Name + "-secret", "must_change_password": false}, nil)
	g.MustAPI(t, "POST", "/admin/users/"+c.Name+"/keys", map[string]any{"title": "test", "key": readFile(t, c.PublicKey())}, nil)
	config := filepath.Join(c.Dir, "ssh_config")
	alias := fmt.Sprintf("Host gitea\n\tHostName 127.0.0.1\n\tPort %d\n\tUser %s\n\tStrictHostKeyChecking accept-new\n\tHostKeyAlias gitea\n", g.sshPort, g.server.account.Name)
	writeFile(t, config, 0o644, 0, 0, alias+readFile(t, config))
}

// CreateRepo makes a private repository of a user's.
func (g *Gitea) CreateRepo(t testing.TB, owner, name string) {
	t.Helper()
	g.MustAPI(t, "POST", "/admin/users/"+owner+"/repos", map[string]any{"name": name, "private": true, "default_branch": "main"}, nil)
}

// HTTP is the address of a repository over HTTP, with a user's name and password.
func (g *Gitea) HTTP(user, repo string) string {
	return strings.Replace(g.URL, "://", "://"+user+":"+user+"-secret@", 1) + "/" + repo + ".git"
}

// SSH is the address of a repository over Gitea's ssh server, for those whom AddUser has added.
func (g *Gitea) SSH(repo string) string { return "gitea:" + repo + ".git" }
