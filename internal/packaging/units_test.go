package packaging

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mirror-shell/mirrorcfg"
)

// checkUnits has systemd read the units in dir, which must have nothing to say about
// them, and judge how much a service of ours can do. Neither talks to an init.
func checkUnits(t *testing.T, dir string, env []string) {
	t.Helper()
	units := append(glob(filepath.Join(dir, "mirror*.service")), glob(filepath.Join(dir, "mirror*.timer"))...)
	if len(units) != 11 {
		t.Fatalf("%d units in %s: %q", len(units), dir, units)
	}
	cmd := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for _, unit := range glob(filepath.Join(dir, "mirror*.service")) {
		// 2.5 of 10; at worst a service without any restriction has 9.6.
		out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=25", "--no-pager", unit).CombinedOutput()
		if err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			t.Errorf("systemd-analyze security %s: %v: %s", filepath.Base(unit), err, lines[len(lines)-1])
		}
	}
}

// offline reports whether this systemd-analyze can judge without an init (since 250).
func offline() bool {
	out, err := exec.Command("systemd-analyze", "--help").CombinedOutput()
	return err == nil && strings.Contains(string(out), "--offline")
}

func TestUnits(t *testing.T) {
	if !offline() {
		t.Skip("no systemd-analyze that works without an init")
	}
	dir := t.TempDir()
	for _, file := range glob("../../contrib/systemd/*") {
		// The programs need only be there.
		text := strings.ReplaceAll(readFile(t, file), "/usr/local/bin/mirror-shell", "/bin/true")
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	checkUnits(t, dir, []string{"SYSTEMD_UNIT_PATH=" + dir + ":"})
}

// Whatever of ours can be enabled is disabled before its program goes.
func TestRemovalDisables(t *testing.T) {
	script := strings.Fields(readFile(t, "../../contrib/packaging/prerm"))
	enabled := 0
	for _, file := range glob("../../contrib/systemd/*") {
		if !strings.Contains(readFile(t, file), "\n[Install]\n") {
			continue
		}
		enabled++
		if !slices.Contains(script, filepath.Base(file)) {
			t.Errorf("prerm leaves %s enabled", filepath.Base(file))
		}
	}
	if enabled == 0 {
		t.Error("nothing can be enabled")
	}
}

// TestLogrotate rotates both logs, between lines of the audit log.
func TestLogrotate(t *testing.T) {
	if _, err := exec.LookPath("logrotate"); err != nil {
		if _, err := os.Stat("/usr/sbin/logrotate"); err != nil {
			t.Skip("logrotate is not here")
		}
		t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin")
	}
	dir := t.TempDir()
	server, err := mirrorcfg.Parse("config.toml", fmt.Sprintf("hostname = \"frodo\"\nstate_dir = %q\n", dir+"/state"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := server.OpenLog()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(log, "log")
	log.Close()
	who, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(who.Gid)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("/home/git/.local/state/mirror-shell", dir+"/state", "su git git", "su "+who.Username+" "+group.Name).
		Replace(readFile(t, "../../contrib/logrotate/mirror-shell"))
	config := filepath.Join(dir, "logrotate.conf")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"one\n", "two\n", "three\n"} {
		if err := server.AppendAudit([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("logrotate", "-f", "-s", dir+"/status", config).CombinedOutput(); err != nil {
			t.Fatalf("logrotate: %v\n%s", err, out)
		}
	}
	if got := readFile(t, server.AuditFile()+".1"); got != "three\n" {
		t.Errorf("audit.log.1 has %q", got)
	}
	for _, file := range []string{"audit.log.2.gz", "audit.log.3.gz", "mirror-shell.log.1"} {
		if _, err := os.Stat(filepath.Join(server.StateDir, file)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(server.StateDir, "mirror-shell.log")); err == nil {
		t.Error("mirror-shell.log was not rotated")
	}
}
