package shell

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
)

var testKeyCommand = []string{"/usr/bin/mirror-shell"}

// newTestKey makes an ed25519 key; the line has no comment and no newline.
func newTestKey(t testing.TB) (key ssh.PublicKey, line string) {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sshTestKey(t, pub)
}

func sshTestKey(t testing.TB, pub any) (ssh.PublicKey, string) {
	t.Helper()
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// testKeys is an authorized_keys in a new directory, and key files beside it.
type testKeys struct {
	t   testing.TB
	dir string
	AuthorizedKeys
}

func newTestKeys(t testing.TB) testKeys {
	dir := t.TempDir()
	return testKeys{t, dir, AuthorizedKeys{Path: filepath.Join(dir, ".ssh", "authorized_keys"), Command: testKeyCommand}}
}

func (k testKeys) pub(file, content string) string {
	k.t.Helper()
	path := filepath.Join(k.dir, file)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		k.t.Fatal(err)
	}
	return path
}

func (k testKeys) put(content string) {
	k.t.Helper()
	if err := os.MkdirAll(filepath.Dir(k.Path), 0o700); err != nil {
		k.t.Fatal(err)
	}
	if err := os.WriteFile(k.Path, []byte(content), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

func (k testKeys) want(content string) {
	k.t.Helper()
	data, err := os.ReadFile(k.Path)
	if err != nil {
		k.t.Fatal(err)
	}
	if diff := cmp.Diff(content, string(data)); diff != "" {
		k.t.Errorf("authorized_keys (-want +got):\n%s", diff)
	}
}

func (k testKeys) mustAdd(kind KeyKind, file, content string) KeyEntry {
	k.t.Helper()
	e, changed, err := k.Add(kind, k.pub(file, content))
	if err != nil || !changed {
		k.t.Fatalf("add %s: changed %v, %v", file, changed, err)
	}
	return e
}

func ourKeyLine(kind, name, file, key string) string {
	return fmt.Sprintf(`command="/usr/bin/mirror-shell %s %s",restrict %s mirror-shell:%s:%s #`, kind, name, key, kind, file)
}

func wantKeyError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q lacks %q", err, w)
		}
	}
}

func TestKeysAddToNothing(t *testing.T) {
	k := newTestKeys(t)
	key, line := newTestKey(t)
	got := k.mustAdd(KeyPeer, "sam.pub", "# sam's\n\n"+line+" git@sam\r\n")
	want := KeyEntry{KeyPeer, "sam", "sam.pub", "ssh-ed25519", ssh.FingerprintSHA256(key), 1, ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	k.want(ourKeyLine("peer", "sam", "sam.pub", line) + "\n")
	for path, mode := range map[string]fs.FileMode{k.Path: 0o600, filepath.Dir(k.Path): 0o700 | fs.ModeDir, k.Path + ".lock": 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v %v, want %v", path, info.Mode(), err, mode)
		}
	}
}

// The two faults of gitolite's sskeys script that must not come back: sam's line
// taken for sam2's, and nothing added where a marker line is missing.
func TestKeysTouchOneLineOnly(t *testing.T) {
	k := newTestKeys(t)
	_, foreign := newTestKey(t)
	_, sam := newTestKey(t)
	_, sam2 := newTestKey(t)
	_, alice := newTestKey(t)
	_, laptop := newTestKey(t)
	before := "\n# keys\r\n  \t\n" + foreign + " mirror-shell\r\n" +
		"garbage \x00\xff\r\n" +
		`command="unclosed ` + foreign + "\n" +
		ourKeyLine("peer", "sam2", "sam2.pub", sam2) + "\n" +
		ourKeyLine("peer", "sam", "sam.pub", sam) + "\r\n"
	after := ourKeyLine("user", "alice", "alice.pub", alice) + "\n" +
		"\n\n" + ourKeyLine("user", "alice", "alice@laptop.pub", laptop) + "\n" +
		"# the end, without a newline"
	k.put(before + after)

	_, newSam := newTestKey(t)
	if e := k.mustAdd(KeyPeer, "sam.pub", newSam); e.Line != 8 {
		t.Errorf("line %d", e.Line)
	}
	before = strings.Replace(before, sam, newSam, 1)
	k.want(before + after)

	_, bob := newTestKey(t)
	k.mustAdd(KeyUser, "bob.pub", bob)
	bobLine := ourKeyLine("user", "bob", "bob.pub", bob) + "\n"
	k.want(before + after + "\n" + bobLine)

	removed, err := k.Remove(KeyUser, "alice@laptop")
	if err != nil || len(removed) != 1 || removed[0].Line != 12 {
		t.Fatal(removed, err)
	}
	after = strings.Replace(after, ourKeyLine("user", "alice", "alice@laptop.pub", laptop)+"\n", "", 1)
	k.want(before + after + "\n" + bobLine)

	if _, err := k.Remove(KeyPeer, "sam.pub"); err != nil {
		t.Fatal(err)
	}
	before = strings.Replace(before, ourKeyLine("peer", "sam", "sam.pub", newSam)+"\r\n", "", 1)
	k.want(before + after + "\n" + bobLine)
}

func TestKeysRemove(t *testing.T) {
	k := newTestKeys(t)
	if _, err := k.Remove(KeyUser, "alice"); err == nil {
		t.Fatal("removed from nothing")
	}
	if _, err := os.Stat(filepath.Dir(k.Path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("remove made the directory: %v", err)
	}
	for _, file := range []string{"alice.pub", "alice@laptop.pub", "alice2.pub", "al.pub"} {
		_, line := newTestKey(t)
		k.mustAdd(KeyUser, file, line)
	}
	_, line := newTestKey(t)
	k.mustAdd(KeyPeer, "alice.pub", line)

	removed, err := k.Remove(KeyUser, "alice")
	if err != nil || len(removed) != 2 {
		t.Fatal(removed, err)
	}
	left, err := k.List()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range left {
		names = append(names, fmt.Sprint(e.Line, e.Kind, e.File))
	}
	if diff := cmp.Diff([]string{"1useralice2.pub", "2useral.pub", "3peeralice.pub"}, names); diff != "" {
		t.Error(diff)
	}
	_, err = k.Remove(KeyUser, "alice")
	wantKeyError(t, err, "alice", k.Path, "user alice2", "peer alice")
	for _, bad := range []string{"", "a b", "../x", "*", "alice@", "alice@*", "-x"} {
		if _, err := k.Remove(KeyUser, bad); err == nil {
			t.Errorf("remove %q: no error", bad)
		}
	}
}

func TestKeysUnchangedIsNotWritten(t *testing.T) {
	k := newTestKeys(t)
	_, line := newTestKey(t)
	k.mustAdd(KeyUser, "alice.pub", line)
	before, _ := os.Stat(k.Path)
	e, changed, err := k.Add(KeyUser, filepath.Join(k.dir, "alice.pub"))
	if err != nil || changed || e.Line != 1 {
		t.Fatal(e, changed, err)
	}
	after, _ := os.Stat(k.Path)
	if !os.SameFile(before, after) {
		t.Error("the file was replaced")
	}
}

func TestKeysSameKeyTwice(t *testing.T) {
	k := newTestKeys(t)
	_, line := newTestKey(t)
	_, foreign := newTestKey(t)
	k.put("# one\n" + `from="10.0.0.1" ` + foreign + " bob@desk\n")
	_, _, err := k.Add(KeyUser, k.pub("bob.pub", foreign))
	wantKeyError(t, err, "line 2", "bob@desk", "first match")

	k.mustAdd(KeyPeer, "sam.pub", line)
	for kind, file := range map[KeyKind]string{KeyPeer: "gollum.pub", KeyUser: "sam.pub"} {
		_, _, err = k.Add(kind, k.pub(file, line))
		wantKeyError(t, err, "line 3", "peer sam", "sam.pub")
	}
}

// Lines that an administrator edited: kept restrictions, and a mark that no
// longer tells the truth.
func TestKeysChangedByHand(t *testing.T) {
	_, line := newTestKey(t)
	_, other := newTestKey(t)
	k := newTestKeys(t)
	k.put(`from="10.0.0.0/8,\"x",command="/old/mirror-shell --config '/a b' peer sam",no-pty ` + line + " mirror-shell:peer:sam.pub my note\n")
	k.mustAdd(KeyPeer, "sam.pub", other)
	k.want(`command="/usr/bin/mirror-shell peer sam",restrict,from="10.0.0.0/8,\"x",no-pty ` + other + " mirror-shell:peer:sam.pub #\n")

	for _, options := range []string{
		"",
		"restrict ",
		`command="/bin/sh",restrict `,
		`command="/usr/bin/mirror-shell peer gollum",restrict `,
		`command="/usr/bin/mirror-shell user sam",restrict `,
		`command="/usr/bin/mirror-shell; peer sam",restrict `,
		`command="/usr/bin/mirror-shell peer sam",nonsense `,
		`command="/usr/bin/mirror-shell peer sam",cert-authority `,
		`command="peer sam" `,
	} {
		content := options + line + " mirror-shell:peer:sam.pub\n"
		k.put(content)
		_, _, err := k.Add(KeyPeer, k.pub("sam.pub", other))
		wantKeyError(t, err, "line 1", "by hand")
		_, err = k.Remove(KeyPeer, "sam")
		wantKeyError(t, err, "line 1", "by hand")
		k.want(content)
		if list, err := k.List(); len(list) != 0 || err != nil {
			t.Errorf("%q is listed: %v %v", options, list, err)
		}
		k.mustAdd(KeyPeer, "sam2.pub", other) // is not in the way of another
	}
}

// A line copied by hand must not keep the old key alive.
func TestKeysReplaceEveryCopy(t *testing.T) {
	k := newTestKeys(t)
	_, a := newTestKey(t)
	_, b := newTestKey(t)
	_, c := newTestKey(t)
	k.put(ourKeyLine("user", "alice", "alice.pub", a) + "\n#\n" + ourKeyLine("user", "alice", "alice.pub", b))
	k.mustAdd(KeyUser, "alice.pub", c)
	k.want(ourKeyLine("user", "alice", "alice.pub", c) + "\n#\n")
}

func TestKeysLookup(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	key, line := newTestKey(t)
	_, other := newTestKey(t)
	ours := ourKeyLine("user", "alice", "alice.pub", line)
	with := func(options string) string { return options + "," + ours }
	for _, c := range []struct {
		name, content string
		want          int // the line, 0 for none
	}{
		{"ours", ours, 1},
		{"first of ours", other + "\n" + ours + "\n" + ours, 2},
		{"foreign first", line + "\n" + ours, 2},
		{"foreign only", line + "\nrestrict " + line, 0},
		{"other key", ourKeyLine("peer", "sam", "sam.pub", other), 0},
		{"commented out", "#" + ours, 0},
		{"indented, CRLF", "\r\n \t" + ours + "\r\n", 2},
		{"expired", with(`expiry-time="20261122115959Z"`), 0},
		{"expired, then good", with(`expiry-time="20261121Z"`) + "\n" + ours, 2},
		{"not yet expired", with(`expiry-time="202611221201Z"`), 1},
		{"one of two expired", with(`expiry-time="20271122Z",expiry-time="20251122Z"`), 0},
		{"bad expiry", with(`expiry-time="tomorrow"`), 0},
		{"from", with(`from="*"`), 0},
		{"principals", with(`principals="x"`), 0},
		{"verify-required", with(`verify-required`), 0},
		{"unknown option", with(`frobnicate`), 0},
		{"two commands", with(`command="x"`), 0},
		{"other case", strings.Replace(ours, "command=", "COMMAND=", 1), 1},
		{"harmless options", with(`no-pty,environment="A=b"`), 1},
		{"after NUL", "x\x00 " + ours, 0},
		{"truncated", ours[:strings.Index(ours, " mirror-shell:")], 0},
	} {
		e, ok := findKeyLine(splitKeyLines([]byte(c.content)), key, now)
		if e.Line != c.want || ok != (c.want > 0) || ok && (e.Name != "alice" || e.Kind != KeyUser) {
			t.Errorf("%s: %+v %v, want line %d", c.name, e, ok, c.want)
		}
	}

	k := newTestKeys(t)
	if _, ok, err := k.Lookup(key); ok || err != nil {
		t.Error("missing file:", ok, err)
	}
	k.put(ours)
	if e, ok, err := k.Lookup(key); e.Name != "alice" || !ok || err != nil {
		t.Error(e, ok, err)
	}
	k.Path = k.dir
	if _, _, err := k.Lookup(key); err == nil {
		t.Error("a directory is read")
	}
}

func BenchmarkKeysLookup(b *testing.B) {
	k := newTestKeys(b)
	var content strings.Builder
	var last ssh.PublicKey
	for i := range 10000 {
		key, line := newTestKey(b)
		last = key
		name := fmt.Sprintf("user%d", i)
		content.WriteString(ourKeyLine("user", name, name+".pub", line) + "\n")
	}
	k.put(content.String())
	for b.Loop() {
		if _, ok, err := k.Lookup(last); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
