package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// gitoliteBin is where Debian's package has gitolite-shell.
const gitoliteBin = "/usr/share/gitolite3"

// HostMirrorShell does what an administrator does who puts mirror-shell beside
// gitolite: gitolite's own mirroring is switched off, our trigger module and our hooks are
// installed, and our configuration says that gitolite is here. More is added to
// that configuration.
func (g *Gitolite) HostMirrorShell(t testing.TB, more string) {
	t.Helper()
	rc := readFile(t, g.host.Home(".gitolite.rc"))
	for _, change := range [][2]string{
		{`'Mirroring',`, `# 'Mirroring',`},
		{"# LOCAL_CODE                =>  \"$ENV{HOME}/local\",",
			fmt.Sprintf("LOCAL_CODE => \"$ENV{HOME}/local\",\n    MIRROR_SHELL => '%s',\n    PRE_GIT => ['MirrorShell::pre_git'],", g.env.program("mirror-shell"))},
	} {
		if strings.Count(rc, change[0]) != 1 {
			t.Fatalf("gitolite's configuration does not have %q once:\n%s", change[0], rc)
		}
		rc = strings.Replace(rc, change[0], change[1], 1)
	}
	g.host.write(t, ".gitolite.rc", 0o600, rc)
	g.host.Configure(t, fmt.Sprintf("[gitolite]\nprograms = %q\n%s", gitoliteBin, more))
	g.host.mkdir(t, "local")
	g.host.MustRun(t, "cp", "-r", contrib(t, "gitolite/lib"), g.host.Home("local"))
	g.host.MustRun(t, "git", "config", "--global", "transfer.hideRefs", "refs/mirror")
	g.host.MustRun(t, "mirror-shell", "install-hooks", "--gitolite")
}

// contrib is a copy of something in contrib/ that every unix user can read.
func contrib(t testing.TB, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := worldDir(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	source := filepath.Join(filepath.Dir(strings.TrimSpace(string(out))), "contrib", name)
	if out, err := exec.Command("cp", "-r", source, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	target := filepath.Join(dir, filepath.Base(name))
	if out, err := exec.Command("chmod", "-R", "a+rX", target).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return target
}

// PeerWith makes the host and a server peers by mirror-shell, in both directions.
func (g *Gitolite) PeerWith(t testing.TB, servers ...*Server) {
	t.Helper()
	for _, s := range servers {
		g.introduceTo(t, s)
		(&Gitolite{Name: s.Name, host: s}).introduceTo(t, g.host)
		g.host.MustRun(t, "mirror-shell", "add-peer", s.PublicKey())
		s.MustRun(t, "mirror-shell", "add-peer", g.PublicKey())
	}
}

// PeerWithGitolite makes the host, which has mirror-shell, and gitolites that have none
// peers: the host's key is server-NAME there, and theirs is a peer's here.
func (g *Gitolite) PeerWithGitolite(t testing.TB, others ...*Gitolite) {
	t.Helper()
	for _, other := range others {
		other.AddPeer(t, g.host)
		g.introduceTo(t, other.host)
		g.host.MustRun(t, "mirror-shell", "add-peer", other.PublicKey())
	}
}
