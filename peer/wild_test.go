package peer

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"mirror-shell/internal/meta"
	"mirror-shell/internal/refset"
)

// What gitolite 3.6.12 says, and the line that is missing there.
func TestWildAdvice(t *testing.T) {
	const batch = "remote: 'batch' mode started, waiting for input (run with '-h' for details).\nremote: Please enter 'cancel' to abort if you did not intend to do this.\n"
	for said, want := range map[string][2]string{
		"remote: FATAL: gollum: 'wild/a' is local\n":                                                {"gollum: 'wild/a' is local", "needs `C = alice`, `option mirror.master = frodo`, `option mirror.copies = gollum`"},
		"remote: FATAL: gollum: 'wild/a' is native\n":                                               {"gollum: 'wild/a' is native", "needs `option mirror.master = frodo`"},
		"remote: FATAL: gollum: 'frodo' is not the master for 'wild/a'\n":                           {"gollum: 'frodo' is not the master for 'wild/a'", "needs `option mirror.master = frodo`"},
		"remote: FATAL: gollum: 'wild/a' is mirrored but not here\n":                                {"gollum: 'wild/a' is mirrored but not here", "needs `option mirror.copies = gollum`"},
		"remote: FATAL: repo does not exist, or you are not authorised\n":                           {"repo does not exist, or you are not authorised", "needs `C = alice`; a copy"},
		batch + "remote: Invalid role 'GARDENERS'; valid roles for this repo:\nremote: perm\tref\n": {"Invalid role 'GARDENERS'", "add it to ROLES"},
		"remote: FATAL: unknown git/gitolite command: 'CREATOR=alice perms -c 'wild/a''":            {"unknown git/gitolite command: 'CREATOR=alice perms -c 'wild/a''", "enable 'Mirroring'"},
		batch: {"", ""},
		"":    {"", ""},
		"remote: FATAL: no room\x1b[2J\nremote: FATAL: more": {"no room [2J", ""},
	} {
		why := gitoliteRefusal(said)
		advice := wildAdvice(why, "alice", "frodo", "gollum", "wild/a")
		if why != want[0] || !strings.Contains(advice, want[1]) || want[1] == "" && advice != "" {
			t.Errorf("%q: %q, %q, want %q", said, why, advice, want)
		}
	}
}

func FuzzGitoliteRefusal(f *testing.F) {
	f.Add("remote: Invalid role 'X'; valid\n")
	f.Add("remote: FATAL: \u202e\x00")
	f.Fuzz(func(t *testing.T, said string) {
		why := gitoliteRefusal(said)
		for _, r := range why {
			if !unicode.IsGraphic(r) {
				t.Fatalf("%q in %q", r, why)
			}
		}
		if len(why) > 2*maxRefusal {
			t.Fatalf("%d bytes", len(why))
		}
	})
}

// wireForm is how gitolite reads the command, with what its own patterns for users and
// repositories admit and no shell minds.
var wireForm = regexp.MustCompile(`^CREATOR=[0-9a-zA-Z][-0-9a-zA-Z._@+]* perms -c '@?[0-9a-zA-Z][-0-9a-zA-Z._@/+]*'\z`)

// Whatever users have written, the command names one user and one repository.
func FuzzWildCommand(f *testing.F) {
	f.Add("wild/a", "alice", "READERS bob\n")
	f.Add("wild/a", "alice perms -c 'x' #", "cancel\n")
	f.Add("wild/../a", "@all", "READERS $(id)\n")
	f.Add("a'b", "alice\n\n", "")
	f.Fuzz(func(t *testing.T, repo, creator, perms string) {
		command, text, err := wildCommand(repo, &meta.Data{Creator: &creator, Perms: &perms})
		if command == "" && err == nil || err != nil && text != "" {
			t.Fatalf("%q, %q, %v", command, text, err)
		}
		if command != "" && !wireForm.MatchString(command) {
			t.Fatalf("%q", command)
		}
		if again, err := meta.ParsePerms(text); err != nil || again != text {
			t.Fatalf("%q, then %q, %v", text, again, err)
		}
	})
}

func FuzzGitoliteGreeting(f *testing.F) {
	f.Add("hello server-frodo, this is git@host running gitolite3 3.6.12-1 (Debian) on git 2.39.5")
	f.Fuzz(func(t *testing.T, text string) {
		if user, version, ok := GitoliteGreeting(text); ok != (user != "" && version != "") || strings.ContainsAny(user, " \n") {
			t.Fatalf("%q, %q, %t", user, version, ok)
		}
	})
}

func TestMakeFirst(t *testing.T) {
	dir, p := t.TempDir(), &Peers{}
	touch := func(path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []bool{false, true, false} {
		switch i {
		case 1:
			touch(filepath.Join(dir, "gl-creator"))
		case 2:
			touch(refset.Path(dir, "gollum"))
		}
		if got := p.MakeFirst(dir, "gollum"); got != want {
			t.Errorf("%d: %t", i, got)
		}
	}
	if !p.MakeFirst(dir, "sam") {
		t.Error("of sam nothing is known")
	}
}
