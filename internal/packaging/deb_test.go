package packaging

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sourceTree is the root of the module, from here.
const sourceTree = "../.."

// run runs a program for at most five minutes, and fails the test when it fails.
func run(t testing.TB, dir string, argv ...string) string {
	t.Helper()
	out, err := try(t, dir, argv...)
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	return out
}

func try(t testing.TB, dir string, argv ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "HOME="+home(t, dir), "GOFLAGS=-buildvcs=false")
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// home is the scratch directory, but Go's own home where it builds.
func home(t testing.TB, dir string) string {
	if dir == sourceTree {
		return os.Getenv("HOME")
	}
	return dir
}

// onlyOne keeps a second run of these tests on the machine waiting: there is one
// database of packages.
func onlyOne(t *testing.T) {
	t.Helper()
	lock, err := os.OpenFile("/run/lock/mirror-shell-packaging-test", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Second) {
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("another run of this test does not end")
		}
	}
}

// debVersion is the version of the package that these tests build, and of no other.
const debVersion = "0.0.1+7.g0123456"

// buildPackage builds the package and returns its path.
func buildPackage(t *testing.T, dir string) string {
	t.Helper()
	out := run(t, sourceTree, "contrib/packaging/build", dir, "v0.0.1-7-g0123456")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}

// The module that makes the package is not part of the main one.
func TestPackagingModule(t *testing.T) {
	run(t, sourceTree, "go", "-C", "contrib/packaging", "vet", "./...")
	run(t, sourceTree, "go", "-C", "contrib/packaging", "test", "./...")
}

// The package is installed, used and removed on this machine, and leaves nothing.
func TestDebianPackage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can install a package")
	}
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("dpkg is not here: not a Debian")
	}
	onlyOne(t)
	dir := t.TempDir()
	out, err := try(t, dir, "dpkg-query", "-W", "-f", "${db:Status-Abbrev}|${Version}", "mirror-shell")
	switch state, version, _ := strings.Cut(out, "|"); {
	case err != nil || strings.HasPrefix(state, "un"):
	case version == debVersion:
		dpkg(t, dir, "-P", "mirror-shell") // a run that was killed has left it
	default:
		t.Skip("a mirror-shell is installed here, which this test would remove")
	}
	deb := buildPackage(t, dir)
	if want := "mirror-shell_" + debVersion + "_"; !strings.HasPrefix(filepath.Base(deb), want) {
		t.Errorf("the package is %s, want %s", deb, want)
	}
	lintian(t, dir, deb)
	accounts := accountsHere(t)
	t.Cleanup(func() { dpkg(t, dir, "-P", "mirror-shell") })
	before := existing(t, dir, deb)
	said := dpkg(t, dir, "-i", deb)
	if !strings.Contains(said, "no account was made, and nothing was started or enabled") {
		t.Errorf("the installation does not say what is left to do:\n%s", said)
	}
	files := strings.Fields(dpkg(t, dir, "-L", "mirror-shell"))
	useInstalled(t, dir)
	if accountsHere(t) != accounts {
		t.Error("an account was made")
	}
	if links, _ := filepath.Glob("/etc/systemd/system/*.wants/mirror*"); len(links) > 0 {
		t.Errorf("units were enabled: %q", links)
	}
	if said := dpkg(t, dir, "-i", deb); strings.Contains(said, "no account was made") { // as an upgrade
		t.Errorf("said again:\n%s", said)
	}
	dpkg(t, dir, "-r", "mirror-shell")
	dpkg(t, dir, "-P", "mirror-shell")
	for _, file := range files {
		if _, err := os.Lstat(file); err == nil && !slices.Contains(before, file) {
			t.Errorf("%s is left", file)
		}
	}
	if len(files) < 20 {
		t.Errorf("only %d files were installed", len(files))
	}
	if accountsHere(t) != accounts {
		t.Error("the accounts have changed")
	}
}

// accountsHere are the accounts of this machine, without those that other tests make
// and remove at the same time.
func accountsHere(t testing.TB) string {
	t.Helper()
	var here strings.Builder
	for line := range strings.Lines(readFile(t, "/etc/passwd")) {
		if !strings.HasPrefix(line, "msh-") {
			here.WriteString(line)
		}
	}
	return here.String()
}

// dpkg runs dpkg, and waits while another program has the database of packages.
func dpkg(t testing.TB, dir string, args ...string) string {
	t.Helper()
	for tries := 60; ; tries-- {
		out, err := try(t, dir, append([]string{"dpkg"}, args...)...)
		if err == nil {
			return out
		}
		if tries == 0 || !strings.Contains(out, "lock") {
			t.Fatalf("dpkg %q: %v\n%s", args, err, out)
		}
		time.Sleep(time.Second)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// existing are the paths of the package that are here already: directories.
func existing(t *testing.T, dir, deb string) []string {
	t.Helper()
	list := []string{"/."}
	for line := range strings.Lines(run(t, dir, "dpkg-deb", "-c", deb)) {
		fields := strings.Fields(line)
		path := filepath.Clean("/" + fields[5])
		info, err := os.Stat(path)
		if err == nil && info.IsDir() {
			list = append(list, path)
		} else if err == nil {
			t.Fatalf("%s is here already, and belongs to no package", path)
		}
	}
	return list
}

// lintian checks the package, where it is installed. Errors count.
func lintian(t *testing.T, dir, deb string) {
	t.Helper()
	if _, err := exec.LookPath("lintian"); err != nil {
		t.Log("lintian is not here to check the package")
		return
	}
	out, err := try(t, dir, "lintian", "--fail-on", "error", "--no-tag-display-limit",
		"--suppress-tags", "statically-linked-binary,hardening-no-pie,no-manual-page", deb)
	if err != nil {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}

// useInstalled looks at what was installed as its user would.
func useInstalled(t *testing.T, dir string) {
	t.Helper()
	if version := run(t, dir, "/usr/bin/mirror-shell", "--version"); strings.TrimSpace(version) != "0.0.1-7-g0123456" {
		t.Errorf("--version: %s", version)
	}
	// A push between three servers through the installed programs, hooks included.
	repo := filepath.Join(dir, "repo")
	run(t, dir, "git", "init", "-q", "-b", "main", repo)
	run(t, repo, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "one")
	if out := run(t, repo, "/usr/bin/mirror-shell", "demo"); !strings.Contains(out, "all three copies are equal") {
		t.Errorf("demo:\n%s", out)
	}
	run(t, dir, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "alice"))
	run(t, dir, "mirror-shell", "add-user", "alice.pub", "--authorized-keys", filepath.Join(dir, "keys"))
	if keys := readFile(t, filepath.Join(dir, "keys")); !strings.HasPrefix(keys, `command="/usr/lib/mirror-shell/mirror-shell user alice",restrict `) {
		t.Errorf("authorized_keys: %s", keys)
	}
	for _, page := range [][]string{{"1", "mirror-shell"}, {"1", "mirrord"}, {"5", "mirror-shell.toml"}} {
		if _, err := exec.LookPath("man"); err == nil && !excluded("/usr/share/man/") {
			run(t, dir, "man", "-w", page[0], page[1])
		}
	}
	for _, file := range []string{"README.md", "lib/Gitolite/Triggers/MirrorShell.pm"} {
		if readFile(t, "/usr/share/mirror-shell/gitolite/"+file) != readFile(t, sourceTree+"/contrib/gitolite/"+file) {
			t.Errorf("%s for gitolite is another file", file)
		}
	}
	const complete = `source /usr/share/bash-completion/completions/mirror-shell
COMP_WORDS=(mirror-shell request-p); COMP_CWORD=1; _mirror_shell; printf '%s\n' "${COMPREPLY[@]}"`
	if out := run(t, dir, "bash", "--norc", "-c", complete); out != "request-push\n" {
		t.Errorf("completion: %q", out)
	}
	if _, err := exec.LookPath("systemd-analyze"); err == nil {
		checkUnits(t, "/usr/lib/systemd/system", nil)
	}
}

// excluded reports whether dpkg is told to leave out files there, as in the images
// of containers.
func excluded(prefix string) bool {
	found := false
	for _, file := range glob("/etc/dpkg/dpkg.cfg.d/*") {
		data, _ := os.ReadFile(file)
		found = found || bytes.Contains(data, []byte("path-exclude="+prefix)) || bytes.Contains(data, []byte("path-exclude "+prefix))
	}
	return found
}

func glob(pattern string) []string {
	files, _ := filepath.Glob(pattern)
	return files
}
