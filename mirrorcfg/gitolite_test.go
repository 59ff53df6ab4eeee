package mirrorcfg

import (
	"slices"
	"strings"
	"testing"
)

func TestGitolite(t *testing.T) {
	t.Setenv("HOME", "/home/git")
	s, err := Parse("x.toml", "hostname = \"frodo\"\n[gitolite]\nprograms = \"~/bin\"\n")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/home/git/bin/gitolite-shell"}; !slices.Equal(s.Users.Exec, want) {
		t.Errorf("users.exec = %q, want %q", s.Users.Exec, want)
	}
	if want := []string{"GL_BINDIR=/home/git/bin", "GL_LIBDIR=/home/git/bin/lib", "GL_BYPASS_ACCESS_CHECKS=1"}; !slices.Equal(s.Gitolite.Environ(), want) {
		t.Errorf("environment %q", s.Gitolite.Environ())
	}
	s, err = Parse("x.toml", "hostname = \"frodo\"\n[users]\nexec = [\"/x\"]\n[gitolite]\nprograms = \"/g\"\n")
	if err != nil || !slices.Equal(s.Users.Exec, []string{"/x"}) {
		t.Errorf("users.exec = %q, %v", s.Users.Exec, err)
	}
	if env := (Gitolite{}).Environ(); env != nil {
		t.Errorf("without gitolite: %q", env)
	}
	for text, want := range map[string]string{
		"[gitolite]\nprograms = \"bin\"\n": "gitolite.programs: \"bin\" is not a full path",
		"[gitolite]\nprogram = \"/g\"\n":   "the keys are programs",
	} {
		if _, err := Parse("x.toml", "hostname = \"frodo\"\n"+text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
