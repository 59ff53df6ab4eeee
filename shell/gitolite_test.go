package shell

import (
	"slices"
	"strings"
	"testing"
)

// gitolite's access checks are bypassed by a master's mirror push, and by nothing else.
func TestGitoliteBypass(t *testing.T) {
	s := newTestServer(t, "[gitolite]\nprograms = \"/usr/share/gitolite3\"\n")
	s.bare("mine", "master=frodo", "slaves=sam", "redirectOK=true")
	s.bare("sams", "master=sam", "slaves=frodo")
	t.Setenv("GL_BYPASS_ACCESS_CHECKS", "1")
	for _, c := range []struct {
		run    *testRun
		bypass bool
	}{
		{s.session("git-receive-pack 'sams'").peer(t, "sam"), true},
		{s.session("git-upload-pack 'sams'").peer(t, "sam"), false},
		{s.session("git-upload-pack 'mine'").peer(t, "sam"), false},
		{s.session("USER=alice SOC=git-receive-pack 'mine'").peer(t, "sam"), false},
		{s.session("git-receive-pack 'mine'").user(t, "alice"), false},
		{s.session("git-upload-pack 'sams'").user(t, "alice"), false},
	} {
		if c.run.execs != 1 {
			t.Fatalf("%s: %s", c.run.Command, c.run.err.String())
		}
		bypass := slices.ContainsFunc(c.run.env, func(v string) bool { return strings.HasPrefix(v, "GL_BYPASS") })
		if bypass != c.bypass {
			t.Errorf("%s: environment %q", c.run.Command, c.run.env)
		}
		if user := strings.Contains(c.run.Command, "alice") || c.run.argv[0] != "git"; user && c.run.argv[0] != "/usr/share/gitolite3/gitolite-shell" {
			t.Errorf("%s runs %q", c.run.Command, c.run.argv)
		}
	}
	if r := s.session("git-receive-pack 'mine'").peer(t, "sam"); r.execs != 0 {
		t.Errorf("refused, and runs %q", r.argv)
	}
}
