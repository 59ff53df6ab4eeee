package git

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What git writes and reads is what we read.
func TestAlternates(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	odd := filepath.Join(base, "a \"b\" é.git")
	git("init", "-q", "--bare", odd)
	git("clone", "-q", "--bare", "--shared", odd, filepath.Join(base, "fork.git"))
	fork := Repo{Dir: filepath.Join(base, "fork.git")}
	if got, err := fork.Alternates(); err != nil || !slices.Equal(got, []string{odd + "/objects"}) {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := (Repo{Dir: odd}).Alternates(); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.Symlink(odd, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	text := "# " + base + "\n../../link/objects/\n\n\"" + base + "/\\303\\251/objects\"\n\"/not quoted\n/gone"
	if err := os.WriteFile(fork.AlternatesFile(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{odd + "/objects", base + "/é/objects", filepath.Join(fork.Dir, "objects", "\"/not quoted"), "/gone"}
	if got, err := fork.Alternates(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzParseAlternates(f *testing.F) {
	f.Add("/a/objects\n# no\n../b\n\"/c \\\"\\n\"\n\"\"\n\"")
	f.Fuzz(func(t *testing.T, text string) {
		paths := parseAlternates(text)
		if slices.Contains(paths, "") || len(paths) > strings.Count(text, "\n")+1 {
			t.Errorf("%q: %q", text, paths)
		}
		for _, p := range paths { // round trip of what needs no quotes
			if strings.ContainsAny(p, "\n\"#") {
				return
			}
		}
		if again := parseAlternates(strings.Join(paths, "\n")); !slices.Equal(again, paths) {
			t.Errorf("%q: %q, again %q", text, paths, again)
		}
	})
}
