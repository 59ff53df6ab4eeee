package testenv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mirror-shell/internal/testenv"
)

// gitolite unlinks what is in the way of a file in LOCAL_CODE/hooks/common. No hook of anybody's
// may be lost by that.
func TestGitoliteKeepsHooks(t *testing.T) {
	t.Parallel()
	g := testenv.New(t).Gitolites(t, "frodo")[0]
	g.HostMirrorShell(t, "")
	own := filepath.Join(g.RepoDir("testing"), "hooks/pre-receive")
	common := filepath.Join(g.Host().Home("local/hooks/common"), "pre-receive.next")
	put := func(file, text string) {
		t.Helper()
		if err := os.RemoveAll(file); err != nil { // it may be a link
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	has := func(file, want string) {
		t.Helper()
		if text, err := os.ReadFile(file); string(text) != want {
			t.Errorf("%s is %.100q, %v, want %q", file, text, err, want)
		}
	}
	install := func(status int, want ...string) {
		t.Helper()
		r := g.Host().Run(t, "mirror-shell", "install-hooks", "--gitolite")
		for _, text := range want {
			if r.Status != status || !strings.Contains(r.Stdout+r.Stderr, text) {
				t.Errorf("%swithout %q", r, text)
			}
		}
	}

	put(own, "#!/bin/sh\n# testing's\n")
	install(0, own+" kept as pre-receive.next, runs after ours", "1 of 2 repositories changed")
	has(own+".next", "#!/bin/sh\n# testing's\n")
	install(0, "0 of 2 repositories changed")
	has(own+".next", "#!/bin/sh\n# testing's\n")

	put(common, "#!/bin/sh\n# everybody's\n")
	install(1, "nothing was changed: gitolite would unlink these hooks", own+".next")
	has(own+".next", "#!/bin/sh\n# testing's\n")

	// Before it has its second name, which everybody's will have.
	put(own, "#!/bin/sh\n# testing's\n")
	if err := os.Remove(own + ".next"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(common, strings.TrimSuffix(common, ".next")+".new"); err != nil {
		t.Fatal(err)
	}
	put(strings.TrimSuffix(common, ".next"), "#!/bin/sh\n# everybody's\n")
	install(1, "nothing was changed: gitolite would unlink these hooks", own)
	has(own, "#!/bin/sh\n# testing's\n")
	has(strings.TrimSuffix(common, ".next"), "#!/bin/sh\n# everybody's\n")

	if err := os.Rename(own, own+"-testing"); err != nil {
		t.Fatal(err)
	}
	install(0, "pre-receive kept as pre-receive.next, runs after ours")
	has(own+".next", "#!/bin/sh\n# everybody's\n")

	// Two of its own, of which none can be kept.
	if err := os.Remove(common); err != nil {
		t.Fatal(err)
	}
	put(own, "#!/bin/sh\n# one\n")
	put(own+".next", "#!/bin/sh\n# two\n")
	install(1, "nothing was changed: gitolite would unlink these hooks", own)
	has(own, "#!/bin/sh\n# one\n")
	has(own+".next", "#!/bin/sh\n# two\n")
}
