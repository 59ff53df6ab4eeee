package mirrorcfg

import (
	"path"
	"regexp"
	"strings"
	"testing"
)

func TestCleanRepo(t *testing.T) {
	good := map[string]string{
		"ip1": "ip1", "ip1.git": "ip1", "a/b/c.git": "a/b/c", "@all": "@all", "gitolite-admin": "gitolite-admin",
		"x.y_z+1@h": "x.y_z+1@h", "a/.hidden": "a/.hidden", "a/-x": "a/-x",
	}
	for name, want := range good {
		if got, err := CleanRepo(name); err != nil || got != want {
			t.Errorf("CleanRepo(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
	bad := []string{
		"", ".git", "..", ".", "/ip1", "ip1/", "a//b", "a/../b", "a/./b", "-x", "a b", "a\nb", "a'b", `a"b`, "a;b", "a$b", "a\\b",
		"ip1.git.git", "a.git/b", "ü", "a\x00b", "a~b", "a*b", strings.Repeat("a", 600), "x/" + strings.Repeat("a", 201), "@", "@/x",
		"a/.mirror-shell", "a/.mirror-shell/b", "a/.mirror-shell-new-1", "a/.mirror-shell-new-1/b",
	}
	for _, name := range bad {
		if got, err := CleanRepo(name); err == nil {
			t.Errorf("CleanRepo(%q) = %q, want an error", name, got)
		}
	}
}

func TestCheckHost(t *testing.T) {
	for _, name := range []string{"frodo", "sam.example.org", "host-1", "a@b"} {
		if err := CheckHost(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "-oProxyCommand=x", "a/b", "a b", ".x", "a\n", "sam*", strings.Repeat("a", 129)} {
		if CheckHost(name) == nil || CheckUser(name) == nil {
			t.Errorf("name %q is accepted", name)
		}
	}
}

func FuzzCleanRepo(f *testing.F) {
	for _, s := range []string{"ip1", "ip1.git", "a/../b", "@x/y.git", "a/b.git.git", "'x'", "--help"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := CleanRepo(name)
		if err != nil {
			return
		}
		if again, err := CleanRepo(clean); err != nil || again != clean {
			t.Fatalf("CleanRepo(%q) = %q, which is not clean: %q, %v", name, clean, again, err)
		}
		if path.Clean("/b/"+clean) != "/b/"+clean || strings.ContainsAny(clean, " '\"\\$`;&|<>\n\x00~*?") || clean[0] == '-' {
			t.Fatalf("CleanRepo(%q) = %q", name, clean)
		}
	})
}

// The two loops say what these expressions say.
func FuzzIsName(f *testing.F) {
	repo := regexp.MustCompile(`^@?[0-9A-Za-z][0-9A-Za-z._@/+-]*$`)
	host := regexp.MustCompile(`^@?[0-9A-Za-z][0-9A-Za-z._@+-]*$`)
	for _, s := range []string{"", "@", "@@a", "ip1", "a@b/c+d-e_f.g", "@/x", "-x", "a\n", "\xff", "ü", "a:b", "[", "`", "{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if got, want := isName(name, "/"), repo.MatchString(name); got != want {
			t.Errorf("repository %q: %t, want %t", name, got, want)
		}
		if got, want := isName(name, ""), host.MatchString(name); got != want {
			t.Errorf("host %q: %t, want %t", name, got, want)
		}
	})
}
