package gitolite

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/mirrorcfg"
)

func TestKeys(t *testing.T) {
	for name, c := range map[string]struct {
		options Options
		want    map[string]string
	}{
		"none": {Options{}, map[string]string{}},
		"plain": {Options{"mirror.master": "frodo", "mirror.copies": "sam gollum", "mirror.redirectOK": "all"},
			map[string]string{"gitolite.mirror.master": "frodo", "gitolite.mirror.slaves": "gollum sam", "gitolite.mirror.redirectOK": "true"}},
		"kinds": {Options{"mirror.master": "frodo", "mirror.copies-1": "sam", "mirror.copies.sync.x": "gollum", "mirror.copies.nosync": "merry", "mirror.redirectOK-2": "sam gollum"},
			map[string]string{"gitolite.mirror.master": "frodo", "gitolite.mirror.slaves": "gollum sam", "gitolite.mirror.sync": "gollum",
				"gitolite.mirror.nosync": "merry", "gitolite.mirror.redirectOK": "gollum sam"}},
		"all with nosync": {Options{"mirror.copies": "sam", "mirror.copies.nosync": "merry", "mirror.redirectOK": "all"},
			map[string]string{"gitolite.mirror.slaves": "sam", "gitolite.mirror.nosync": "merry", "gitolite.mirror.redirectOK": "merry sam"}},
		// gitolite lets nobody redirect who is no copy
		"trusted and no copy": {Options{"mirror.master": "frodo", "mirror.copies": "sam", "mirror.redirectOK": "sam merry"},
			map[string]string{"gitolite.mirror.master": "frodo", "gitolite.mirror.slaves": "sam", "gitolite.mirror.redirectOK": "sam"}},
		"nobody trusted is a copy": {Options{"mirror.master": "frodo", "mirror.copies": "sam", "mirror.redirectOK": "merry"},
			map[string]string{"gitolite.mirror.master": "frodo", "gitolite.mirror.slaves": "sam"}},
		"one too many for all": {Options{"mirror.copies": "sam", "mirror.redirectOK-1": "all", "mirror.redirectOK-2": "all"},
			map[string]string{"gitolite.mirror.slaves": "sam"}},
		"old words": {Options{"mirror.slaves": "sam", "mirror.slaves.sync": "sam"},
			map[string]string{"gitolite.mirror.slaves": "sam", "gitolite.mirror.sync": "sam"}},
		"last kind wins": {Options{"mirror.copies": "sam", "mirror.copies.sync": "sam", "mirror.copies.nosync": "sam"},
			map[string]string{"gitolite.mirror.nosync": "sam"}},
	} {
		got, err := c.options.Keys()
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	for _, c := range []struct {
		options Options
		want    bool
	}{{Options{"mirror.copies": "sam"}, true}, {Options{"mirror.copies": "sam", "mirror.master": "sam"}, false}, {Options{}, false}} {
		if c.options.Stranded() != c.want {
			t.Errorf("%v: %v", c.options, !c.want)
		}
	}
	if keys, err := (Options{"mirror.master": "../x"}).Keys(); err == nil {
		t.Error(keys)
	}
}

func TestReadRC(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rc")
	for text, want := range map[string]Text{
		"%RC = (\n  UMASK => 0077,\n    # HOSTNAME => \"no\",\n    HOSTNAME   =>  'frodo',\n);\n": {"frodo", false, ""},
		"$GL_UMASK = 0077;\n# $GL_HOSTNAME = \"no\";\n$GL_HOSTNAME = \"sam\";\n":                  {"sam", true, ""},
		"%RC = (\n);\n": {"", false, ""},
		"# " + strings.Repeat("x", 100e3) + "\nHOSTNAME => 'frodo',\n":     {"frodo", false, ""},
		"$REPO_BASE=\"git/repos\"; # here\n$GL_UMASK = 0077;\n":            {"", true, "git/repos"},
		"our $REPO_BASE = '/srv/git' ;\n$GL_UMASK = 0077;\n":               {"", true, "/srv/git"},
		"$REPO_BASE = $ENV{HOME} . \"/x\";\n%RC = ( HOSTNAME => 'a', );\n": {"", false, ""},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadRC(file); got != want || err != nil {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if err := os.WriteFile(file, []byte("$GL_UMASK = 0077;\n$REPO_BASE = \"$ENV{HOME}/x\";\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadRC(file); err == nil {
		t.Errorf("what only Perl knows is read: %+v", got)
	}
	if _, err := ReadRC(file + "x"); err == nil {
		t.Error("a missing file is read")
	}
}

func TestProblems(t *testing.T) {
	local := t.TempDir()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(local, triggerFile)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(local, triggerFile), []byte("1;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	admin := adminBase(t, "conf/gitolite.conf", "keydir/alice.pub", "conf/gitolite.conf-compiled.pm", "logs/later")
	good := RC{AdminBase: admin, Programs: "/g", Hostname: "sam", RepoBase: "/r", LocalCode: local, GitConfigKeys: `foo gitolite\.mirror\..*`, PreGit: []string{"renice 10", "MirrorShell::pre_git"}, Program: "/x/mirror-shell"}
	server := &mirrorcfg.Server{Hostname: "sam", RepoBase: "/r", Gitolite: mirrorcfg.Gitolite{Programs: "/g"}}
	if found := good.Problems(server, "/x/mirror-shell", true); len(found) > 0 {
		t.Errorf("%+v", found)
	}
	for name, change := range map[string]func(rc *RC) bool{
		"base":        func(rc *RC) bool { rc.RepoBase = "/other"; return true },
		"programs":    func(rc *RC) bool { rc.Programs = "/other"; return true },
		"local":       func(rc *RC) bool { rc.LocalCode = ""; return true },
		"no hooks":    func(*RC) bool { return false },
		"keys":        func(rc *RC) bool { rc.GitConfigKeys = "gitweb.*"; return true },
		"trigger":     func(rc *RC) bool { rc.PreGit = []string{"MirrorShell::pre_gitx"}; return true },
		"no file":     func(rc *RC) bool { rc.LocalCode = t.TempDir(); return true },
		"program":     func(rc *RC) bool { rc.Program = ""; return true },
		"conf":        func(rc *RC) bool { rc.AdminBase = adminBase(t, compiled, "conf/sub/x.conf"); return true },
		"key":         func(rc *RC) bool { rc.AdminBase = adminBase(t, compiled, "keydir/bob.pub"); return true },
		"compiled":    func(rc *RC) bool { rc.AdminBase = adminBase(t, "conf/gitolite.conf"); return true },
		"hostname":    func(rc *RC) bool { rc.Hostname = "samwise"; return true },
		"mirroring":   func(rc *RC) bool { rc.PreGit = append(rc.PreGit[:2:2], "Mirroring::pre_git"); return true },
		"moved there": func(rc *RC) bool { rc.Program = "/y/mirror-shell"; return true },
	} {
		rc := good
		installed := change(&rc)
		if found := rc.Problems(server, "/x/mirror-shell", installed); len(found) != 1 || found[0].Do == "" {
			t.Errorf("%s: %+v", name, found)
		}
	}
}

// adminBase is a directory as GL_ADMIN_BASE, whose files were written one after the other.
func adminBase(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	when := time.Now().Add(-time.Hour)
	for i, name := range files {
		file := filepath.Join(dir, name)
		at := when.Add(time.Duration(i) * time.Millisecond)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The Debian package has links to its programs in /usr/bin.
func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	program, link := filepath.Join(dir, "mirror-shell"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(program, nil, 0o700), os.Symlink("mirror-shell", link), os.WriteFile(filepath.Join(dir, "other"), nil, 0o700)); err != nil {
		t.Fatal(err)
	}
	for other, want := range map[string]bool{program: true, link: true, filepath.Join(dir, "other"): false, filepath.Join(dir, "none"): false} {
		if sameFile(other, program) != want {
			t.Errorf("%s: %t", other, !want)
		}
	}
}

func FuzzParseOptions(f *testing.F) {
	f.Add("ip1\tgitolite-options.mirror.master\tfrodo\nip1\tgitolite-options.mirror.copies-1\tsam gollum\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseOptions(text)
		if err != nil {
			return
		}
		for _, options := range all {
			keys, err := options.Keys()
			if err != nil {
				continue
			}
			for key, value := range keys {
				if _, ours := map[string]bool{"gitolite.mirror.master": true, mirrorcfg.SlavesKey: true, mirrorcfg.SyncKey: true, nosyncKey: true, "gitolite.mirror.redirectOK": true}[key]; !ours || value == "" {
					t.Errorf("%q = %q", key, value)
				}
			}
		}
	})
}
