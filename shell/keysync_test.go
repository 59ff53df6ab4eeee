package shell

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// keyFiles makes files of pairs PATH, CONTENT.
func keyFiles(pairs ...string) []UserKeyFile {
	var files []UserKeyFile
	for i := 0; i < len(pairs); i += 2 {
		files = append(files, UserKeyFile{Path: pairs[i], Data: []byte(pairs[i+1])})
	}
	return files
}

// whatChanged is "added alice.pub, …".
func whatChanged(s KeySync) string {
	var words []string
	for _, c := range s.Changes {
		words = append(words, c.What+" "+c.Source)
	}
	return strings.Join(words, ", ")
}

func (k testKeys) text() string {
	k.t.Helper()
	data, err := os.ReadFile(k.Path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		k.t.Fatal(err)
	}
	return string(data)
}

// sync gives the files to SyncUsers, and checks that a dry run said the same before and
// that a second run has nothing to do.
func (k testKeys) sync(keys UserKeys, want string) KeySync {
	k.t.Helper()
	before := k.text()
	dry, err := k.SyncUsers(keys, true)
	if err != nil || k.text() != before {
		k.t.Fatalf("dry run: %v; it changed something: %v", err, k.text() != before)
	}
	s, err := k.SyncUsers(keys, false)
	if err != nil {
		k.t.Fatal(err)
	}
	if whatChanged(s) != want || whatChanged(dry) != want {
		k.t.Errorf("changes are %q and, dry, %q; want %q (%+v)", whatChanged(s), whatChanged(dry), want, s)
	}
	if again, err := k.SyncUsers(keys, false); err != nil || len(again.Changes) > 0 {
		k.t.Errorf("a second run changes %q, %v", whatChanged(again), err)
	}
	return s
}

func told(t *testing.T, lines []string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, w) }) {
			t.Errorf("nobody is told %q, but %q", w, lines)
		}
	}
	if len(want) == 0 && len(lines) > 0 {
		t.Errorf("told %q", lines)
	}
}

func TestSyncUsers(t *testing.T) {
	k := newTestKeys(t)
	_, a := newTestKey(t)
	_, a2 := newTestKey(t)
	_, b := newTestKey(t)
	_, sam := newTestKey(t)
	if _, _, err := k.Add(KeyPeer, k.pub("sam.pub", sam)); err != nil {
		t.Fatal(err)
	}
	foreign := "# by hand\nno-pty " + sam[:len(sam)-4] + "\n"
	if err := os.WriteFile(k.Path, []byte(k.text()+foreign), 0o600); err != nil {
		t.Fatal(err)
	}
	others := k.text()

	files := keyFiles("alice.pub", a+" alice at home", "laptops/alice.pub", a2, "b/o/bob@x.pub", b)
	s := k.sync(UserKeys{Files: files}, "added alice.pub, added b/o/bob@x.pub, added laptops/alice.pub")
	told(t, s.Problems)
	if !strings.HasPrefix(k.text(), others) {
		t.Errorf("other lines have changed:\n%s", k.text())
	}
	for _, line := range []string{
		`command="/usr/bin/mirror-shell user alice",restrict ` + a2 + " mirror-shell:user:alice.pub map:laptops/alice.pub #\n",
		`command="/usr/bin/mirror-shell user bob",restrict ` + b + " mirror-shell:user:bob@x.pub map:b/o/bob@x.pub #\n",
	} {
		if !strings.Contains(k.text(), line) {
			t.Errorf("no line %s in\n%s", line, k.text())
		}
	}

	// An option that the administrator gave the line stays with a new key.
	if err := os.WriteFile(k.Path, []byte(strings.Replace(k.text(), "restrict "+a, `restrict,from="10.*" `+a, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, a3 := newTestKey(t)
	k.sync(UserKeys{Files: keyFiles("alice.pub", a3, "b/o/bob@x.pub", b)}, "replaced alice.pub, removed laptops/alice.pub")
	if !strings.Contains(k.text(), `restrict,from="10.*" `+a3) || strings.Contains(k.text(), a) || strings.Contains(k.text(), a2) {
		t.Errorf("after the replacement:\n%s", k.text())
	}

	// A file that is moved takes its key along.
	k.sync(UserKeys{Files: keyFiles("home/alice.pub", a3, "b/o/bob@x.pub", b)}, "removed alice.pub, added home/alice.pub")

	// A program that has moved, or another config file.
	moved := k
	moved.Command = []string{"/opt/mirror-shell"}
	moved.sync(UserKeys{Files: keyFiles("home/alice.pub", a3, "b/o/bob@x.pub", b)}, "rewritten b/o/bob@x.pub, rewritten home/alice.pub")
	if !strings.HasPrefix(k.text(), others) {
		t.Errorf("other lines have changed:\n%s", k.text())
	}
}

// What is no good stays as it was, and does not stop the others.
func TestSyncUsersBadFiles(t *testing.T) {
	k := newTestKeys(t)
	_, a := newTestKey(t)
	_, b := newTestKey(t)
	_, c := newTestKey(t)
	k.sync(UserKeys{Files: keyFiles("alice.pub", a, "bob.pub", b)}, "added alice.pub, added bob.pub")
	files := keyFiles("alice.pub", "no key", "carol.pub", c, "dave.pub", `command="sh" `+b, "two.pub", a+"\n"+b, "sam/peer sam.pub", a, "a b/eve.pub", b,
		"eve\n.pub", b, strings.Repeat("x", 300)+"/eve.pub", b, "secret.pub", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "long.pub", strings.Repeat("#", maxKeyFile+1),
		"README.md", "", ".gitkeep", "", "alice.pbu", a, "../mallory.pub", b, ".pub", b, "-x.pub", b)
	files = append(files, UserKeyFile{Path: "link.pub", Err: errors.New("not a plain file")})
	s := k.sync(UserKeys{Files: files}, "removed bob.pub, added carol.pub")
	told(t, s.Problems, `"alice.pub": not used: not a public key`, "the key that it had before stays", `"dave.pub": not used: the key has options`, `"two.pub": not used: 2 lines`,
		`"sam/peer sam.pub": not used`, `"a b/eve.pub": not used: the directory "a b"`, `"eve\n.pub"`, "the path is longer", `"secret.pub": not used: this is a private key`,
		`"long.pub": not used: longer than`, `"link.pub": not used: not a plain file`, `"../mallory.pub": not used: the directory ".."`, `".pub"`, `"-x.pub"`)
	told(t, s.Notes, `"alice.pbu": not used`)
	if len(s.Notes) != 1 {
		t.Errorf("notes: %q", s.Notes)
	}
	if text := k.text(); !strings.Contains(text, a) || strings.Contains(text, b) || strings.Count(text, "\n") != 2 {
		t.Errorf("authorized_keys:\n%s", text)
	}
	// carol does not get the key that is still alice's.
	s = k.sync(UserKeys{Files: keyFiles("alice.pub", "no key", "carol.pub", a)}, "removed carol.pub")
	told(t, s.Problems, "carol.pub: not used: the same key is already in line 1", `"alice.pub"`)

	if _, err := k.SyncUsers(UserKeys{Files: make([]UserKeyFile, MaxUserKeys+1)}, false); err == nil {
		t.Error("any number of files is taken")
	}
}

// A key is one person's: a peer's never becomes a user's, nor a user's another
// one's.
func TestSyncUsersSameKey(t *testing.T) {
	k := newTestKeys(t)
	_, sam := newTestKey(t)
	_, a := newTestKey(t)
	_, b := newTestKey(t)
	_, c := newTestKey(t)
	for kind, file := range map[KeyKind]string{KeyPeer: k.pub("sam.pub", sam), KeyUser: k.pub("alice.pub", a)} {
		if _, _, err := k.Add(kind, file); err != nil {
			t.Fatal(err)
		}
	}
	others := k.text()
	s := k.sync(UserKeys{Files: keyFiles("alice.pub", a, "bob.pub", b, "eve.pub", sam, "mallory.pub", a)}, "added bob.pub")
	told(t, s.Problems, "eve.pub: not used: the same key is already in line ", "(peer sam, from sam.pub)", "mallory.pub: not used: ")
	told(t, s.Notes, "alice.pub: the key is that of line ")
	// The one who has it keeps it, whatever the names.
	s = k.sync(UserKeys{Files: keyFiles("a/eve.pub", b, "bob.pub", b)}, "")
	told(t, s.Problems, "a/eve.pub: not used: a/eve.pub, bob.pub hold the same key")
	// Where nobody has it, nobody gets it; one user may have it under two names.
	s = k.sync(UserKeys{Files: keyFiles("bob.pub", b, "x.pub", c, "y.pub", c)}, "")
	told(t, s.Problems, "x.pub: not used", "y.pub: not used")
	s = k.sync(UserKeys{Files: keyFiles("bob.pub", b, "carol.pub", c, "carol@x.pub", c)}, "added carol.pub")
	told(t, s.Problems, "carol@x.pub: not used")
	if !strings.HasPrefix(k.text(), others) {
		t.Errorf("other lines have changed:\n%s", k.text())
	}
	// By hand it is one's own from now on.
	if _, _, err := k.Add(KeyUser, k.pub("dave.pub", c)); err == nil || !strings.Contains(err.Error(), "carol.pub in the mirror map's repository") {
		t.Errorf("the same key by hand: %v", err)
	}
	if removed, err := k.Remove(KeyUser, "carol"); err != nil || len(removed) != 1 || removed[0].Source != "carol.pub" {
		t.Errorf("removed %+v, %v", removed, err)
	}
}

// A mistake in the repository does not lock everybody out.
func TestSyncUsersHeld(t *testing.T) {
	k := newTestKeys(t)
	_, a := newTestKey(t)
	_, b := newTestKey(t)
	k.sync(UserKeys{Files: keyFiles("alice.pub", a, "bob.pub", b)}, "added alice.pub, added bob.pub")
	before := k.text()
	for _, keys := range []UserKeys{{}, {Absent: true}, {Files: keyFiles("README", "")}} {
		if s := k.sync(keys, ""); s.Held == "" || k.text() != before {
			t.Errorf("%+v: held %q:\n%s", keys, s.Held, k.text())
		}
	}
	_, hand := newTestKey(t)
	if _, _, err := k.Add(KeyUser, k.pub("alice@hand.pub", hand)); err != nil {
		t.Fatal(err)
	}
	if s := k.sync(UserKeys{Absent: true}, ""); !strings.Contains(s.Held, "no such directory, and 2 keys came from it") {
		t.Errorf("held %q", s.Held)
	}
	s := k.sync(UserKeys{}, "removed alice.pub, removed bob.pub")
	told(t, s.Notes, "alice still comes in by the key in line 1, which was added by hand: mirror-shell remove-user alice@hand")
	if _, err := k.Remove(KeyUser, "alice"); err != nil {
		t.Fatal(err)
	}
	k.sync(UserKeys{Files: keyFiles("bob.pub", b)}, "added bob.pub")
	k.sync(UserKeys{Absent: true, RemoveAll: true}, "removed bob.pub")
	if k.sync(UserKeys{Absent: true}, "").Held != "" {
		t.Error("held with nothing to remove")
	}
}

// A line of ours that somebody has changed is left to them.
func TestSyncUsersChangedByHand(t *testing.T) {
	k := newTestKeys(t)
	_, a := newTestKey(t)
	_, b := newTestKey(t)
	k.sync(UserKeys{Files: keyFiles("alice.pub", a, "bob.pub", b)}, "added alice.pub, added bob.pub")
	changed := strings.Replace(k.text(), "user alice", "user root", 1)
	if err := os.WriteFile(k.Path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	s := k.sync(UserKeys{Files: keyFiles("alice.pub", a, "bob.pub", b)}, "")
	told(t, s.Problems, "line 1 of authorized_keys has the mark of alice.pub, but was changed by hand", "alice.pub: not used: the same key is already in line 1")
	// The same line twice, by hand, is one line.
	line := strings.SplitAfter(k.text(), "\n")[1]
	if err := os.WriteFile(k.Path, []byte(line+line), 0o600); err != nil {
		t.Fatal(err)
	}
	k.sync(UserKeys{Files: keyFiles("bob.pub", b)}, "removed bob.pub")
	if k.text() != line {
		t.Errorf("authorized_keys:\n%s", k.text())
	}
}

// FuzzSyncUsers: whatever authorized_keys holds and the repository says, lines that did not
// come from there keep their bytes and their order, what is added is a user's with our
// forced command, and a second run has nothing to do.
func FuzzSyncUsers(f *testing.F) {
	_, a := sshTestKey(f, ed25519.NewKeyFromSeed(make([]byte, 32)).Public())
	_, b := sshTestKey(f, ed25519.NewKeyFromSeed([]byte(strings.Repeat("b", 32))).Public())
	line := func(kind, name, key, more string) string {
		return fmt.Sprintf("command=\"/usr/bin/mirror-shell %s %s\",restrict %s mirror-shell:%s:%s.pub%s\n", kind, name, key, kind, name, more)
	}
	f.Add([]byte(line("peer", "sam", a, "")+line("user", "alice", b, " map:alice.pub")), "alice.pub", []byte(a), "x/bob.pub", []byte(b))
	f.Add([]byte(line("peer", "sam", a, " map:sam.pub")+"# x"), "sam.pub", []byte(a), "peer sam.pub", []byte(b))
	f.Add([]byte(line("user", "x", b, " map:y/x.pub")+line("user", "x", b, " map:y/x.pub")), "y/x.pub", []byte("command=\"x\" "+a), "y/x.pub\nmap:z", []byte(a))
	f.Fuzz(func(t *testing.T, authorized []byte, path1 string, key1 []byte, path2 string, key2 []byte) {
		lines := splitKeyLines(authorized)
		keys := UserKeys{Files: []UserKeyFile{{Path: path1, Data: key1}}, RemoveAll: true}
		if path1 == "" {
			keys.Files = nil
		}
		if path2 != path1 && path2 != "" {
			keys.Files = append(keys.Files, UserKeyFile{Path: path2, Data: key2})
		}
		edited, s, err := planUserKeys(lines, keys, testKeyCommand)
		if err != nil {
			t.Fatal(err)
		}
		again := splitKeyLines(joinKeyLines(edited))
		if len(again) != len(edited) {
			t.Fatalf("%d lines are read as %d", len(edited), len(again))
		}
		if got, want := othersText(again), othersText(lines); got != want && got != want+"\n" {
			t.Fatalf("other lines were\n%q\nand are\n%q", want, got)
		}
		for _, l := range again {
			e, ok := l.entry()
			if !ok || e.Source == "" {
				continue
			}
			command, _ := l.option("command")
			if _, restricted := l.option("restrict"); e.Kind != KeyUser || l.refused || slices.ContainsFunc(s.Changes, func(c KeyChange) bool {
				return c.What != "removed" && c.Source == e.Source && (command.value != "/usr/bin/mirror-shell user "+e.Name || !restricted)
			}) {
				t.Fatalf("line %q", l.text)
			}
		}
		if _, s, err := planUserKeys(again, keys, testKeyCommand); err != nil || len(s.Changes) > 0 {
			t.Fatalf("a second run: %v, %+v", err, s.Changes)
		}
	})
}

func othersText(lines []keyLine) string {
	var others []keyLine
	for _, l := range lines {
		if _, ours := fromSource(l); !ours {
			others = append(others, l)
		}
	}
	return string(joinKeyLines(others))
}
