package meta

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

func text(s string) *string { return &s }

func bare(t testing.TB) git.Repo {
	t.Helper()
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	repo, err := git.Init(t.Context(), filepath.Join(t.TempDir(), "x.git"), "sha1")
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func read(t testing.TB, repo git.Repo) (*Data, []string) {
	t.Helper()
	cfg, err := mirrorcfg.LoadRepo(t.Context(), "x", repo)
	if err != nil {
		t.Fatal(err)
	}
	d, notes, err := Read(repo, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d, notes
}

func apply(t testing.TB, repo git.Repo, accept mirrorcfg.Accept, d *Data) *Answer {
	t.Helper()
	a, err := Apply(t.Context(), repo, accept, d)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func config(t testing.TB, repo git.Repo, key string) string {
	t.Helper()
	out, _ := exec.Command("git", "-C", repo.Dir, "config", key).Output()
	return strings.TrimSuffix(string(out), "\n")
}

func put(t testing.TB, repo git.Repo, file, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(repo.Dir, file), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, repo git.Repo, file string) string {
	t.Helper()
	content, err := readText(filepath.Join(repo.Dir, file))
	if err != nil {
		return err.Error()
	}
	return content
}

func set(t testing.TB, repo git.Repo, key, value string) {
	t.Helper()
	if err := repo.SetConfig(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

// What a repository has is, after the wire, what the other has.
func TestTravels(t *testing.T) {
	from, to := bare(t), bare(t)
	if d, notes := read(t, from); !d.Empty() || d.Hash() != "" || len(notes) > 0 {
		t.Errorf("a new repository has %+v %q", d, notes)
	}
	put(t, from, "description", "Erd\u0151s & sons\n")
	put(t, from, "gl-creator", "alice")
	put(t, from, "gl-perms", "WRITERS bob @all\nREADERS\tcarol\n")
	set(t, from, "gitolite.mirror.metaKeys", "gitweb.owner hooks.* core.hooksPath gitolite.mirror.master")
	set(t, from, "gitweb.owner", "-x --global")
	set(t, from, "hooks.a=b.MailingList", "x@example.org")
	d, notes := read(t, from)
	if want := []string{"config core.hooksPath was not sent: settings of git itself never travel", "config gitolite.mirror.master was not sent: settings of git itself never travel"}; !slices.Equal(notes, want) {
		t.Errorf("notes %q", notes)
	}
	var wire bytes.Buffer
	d.Head = "refs/heads/trunk"
	if err := d.Write(&wire); err != nil {
		t.Fatal(err)
	}
	got, err := Parse(&wire)
	if err != nil || got.Hash() != d.Hash() {
		t.Fatalf("%v: %+v", err, got)
	}
	a := apply(t, to, mirrorcfg.Accept{}, got)
	if diff := cmp.Diff(&Answer{1, []string{"hooks.a=b.mailinglist"}}, a); diff != "" {
		t.Error(diff)
	}
	for file, want := range map[string]string{"description": "Erd\u0151s & sons\n", "gl-creator": "alice", "gl-perms": "WRITERS bob @all\nREADERS\tcarol\n", "HEAD": "ref: refs/heads/trunk\n"} {
		if got := get(t, to, file); got != want {
			t.Errorf("%s: %q", file, got)
		}
	}
	if config(t, to, "gitweb.owner") != "-x --global" || config(t, to, "hooks.a=b.mailinglist") != "" {
		t.Error("config is wrong")
	}
	if info, err := os.Stat(filepath.Join(to.Dir, "description")); err != nil || info.Mode().Perm()&0o044 == 0 {
		t.Errorf("gitweb cannot read the description: %v, %v", info.Mode(), err)
	}
	// The administrator accepts more.
	if a := apply(t, to, mirrorcfg.Accept{Config: &[]string{"hooks.*"}}, got); !slices.Equal(a.NotTaken, []string{"gitweb.owner"}) {
		t.Errorf("not taken: %q", a.NotTaken)
	}
	if config(t, to, "hooks.a=b.mailinglist") != "x@example.org" || config(t, to, "gitweb.owner") != "" {
		t.Error("what is accepted no more should be gone, and what is, there")
	}
}

// Only what came from the master is taken away again.
func TestTakenAway(t *testing.T) {
	repo := bare(t)
	put(t, repo, "gl-perms", "WRITERS own\n")
	set(t, repo, "gitweb.category", "own")
	empty := &Data{Description: text(""), Creator: text(""), Perms: text(""), Config: map[string]string{}}
	apply(t, repo, mirrorcfg.Accept{}, empty)
	if get(t, repo, "gl-perms") != "WRITERS own\n" || config(t, repo, "gitweb.category") != "own" || !strings.HasPrefix(get(t, repo, "description"), unnamed) {
		t.Error("the slave's own is gone")
	}
	full := &Data{Description: text("d\n"), Creator: text("alice\n"), Perms: text("READERS x\n"), Config: map[string]string{"gitweb.owner": "a", "gitweb.url": "u"}}
	apply(t, repo, mirrorcfg.Accept{}, full)
	put(t, repo, "description", "changed here\n")
	set(t, repo, "gitweb.url", "changed here")
	apply(t, repo, mirrorcfg.Accept{}, &Data{Head: "refs/heads/x"}) // from an older master
	if get(t, repo, "gl-creator") != "alice\n" || config(t, repo, "gitweb.owner") != "a" {
		t.Error("what was left out is gone")
	}
	apply(t, repo, mirrorcfg.Accept{}, empty)
	if get(t, repo, "gl-perms") != "" || get(t, repo, "gl-creator") != "" || config(t, repo, "gitweb.owner") != "" {
		t.Error("what came from the master is still there")
	}
	if get(t, repo, "description") != "changed here\n" || config(t, repo, "gitweb.url") != "changed here" || config(t, repo, "gitweb.category") != "own" {
		t.Error("what was changed here is gone")
	}
}

// Links are neither followed nor written through.
func TestLinks(t *testing.T) {
	repo := bare(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"description", "gl-perms"} {
		os.Remove(filepath.Join(repo.Dir, file))
		if err := os.Symlink(secret, filepath.Join(repo.Dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	if d, notes := read(t, repo); d.Description != nil || d.Perms != nil || len(notes) != 2 {
		t.Errorf("%+v %q", d, notes)
	}
	apply(t, repo, mirrorcfg.Accept{}, &Data{Perms: text("READERS a\n"), Description: text("")})
	if content, _ := os.ReadFile(secret); string(content) != "secret" || get(t, repo, "gl-perms") != "READERS a\n" {
		t.Errorf("the file behind the link is %q, gl-perms %q", content, get(t, repo, "gl-perms"))
	}
}

// No key of git's own can be had onto a slave, whatever its administrator lists.
func TestKeysOfGit(t *testing.T) {
	for _, pattern := range []string{"core.*", "CORE.hooksPath", "include.path", "includeIf.gitdir:/.path", "filter.x.clean", "diff.x.command", "remote.*",
		"uploadpack.packObjectsHook", "credential.helper", "alias.*", "gitolite.mirror.master", "gitolite-options.*", "hook.x.command", "*", "*.x", "a", "", "gitweb.", ".x", "trailer.x.cmd", "http.proxy", "url.x.insteadOf", "protocol.allow", "receive.fsckobjects", "transfer.hiderefs", "mirror-map.x"} {
		if mirrorcfg.CheckKeyPattern(pattern) == nil {
			t.Errorf("%q may be accepted", pattern)
		}
		key := strings.ToLower(strings.ReplaceAll(pattern, "*", "x"))
		if (mirrorcfg.Accept{Config: &[]string{pattern, "gitweb.*"}}).TakesKey(key) {
			t.Errorf("%q takes %q", pattern, key)
		}
	}
	for _, key := range []string{"gitweb.owner\nx", "gitweb.o\x00", "gitweb.a\nb.owner", "gitweb", "gitweb.", "gitweb.a b", "GITWEB.OWNER", `gitweb.a"b.owner`, "core.gitweb.owner"} {
		if (mirrorcfg.Accept{Config: &[]string{"gitweb.*"}}).TakesKey(key) {
			t.Errorf("%q is taken", key)
		}
	}
	if !(mirrorcfg.Accept{}).TakesKey("gitweb.owner") || (mirrorcfg.Accept{Config: &[]string{}}).TakesKey("gitweb.owner") || (mirrorcfg.Accept{}).TakesKey("cgit.filter") {
		t.Error("the default is wrong")
	}
}

func TestParseRefuses(t *testing.T) {
	many := map[string]string{}
	for i := range maxKeys + 1 {
		many["gitweb.a"+strings.Repeat("x", i)] = ""
	}
	tooMany, _ := json.Marshal(map[string]any{"config": many})
	for body, want := range map[string]string{
		``: "not a JSON object", `null`: "not a JSON object", `[]`: "not a JSON object", `{}x`: "more after", `{} {}`: "more after",
		`{"version":2}`: "version 2 is not known", `{"version":-1}`: "version", `{"x":1}`: "unknown field",
		`{"description":7}`: "cannot unmarshal", `{"description":"a\u0000b"}`: "control", `{"gl-perms":"a\u001b[2J"}`: "control",
		`{"gl-creator":"a b"}`: "bad name", `{"gl-creator":"../x"}`: "bad name", `{"gl-creator":"a\nb"}`: "bad name", `{"gl-creator":"a\n\n"}`: "bad name",
		`{"gl-creator":"-oProxyCommand"}`: "bad name", `{"gl-creator":"@all"}`: "names a group", `{"gl-creator":"@staff\n"}`: "names a group",
		`{"object-format":"md5"}`: "object format", `{"config":{"gitweb.owner":"a\nb"}}`: "not plain text", `{"config":["x"]}`: "cannot unmarshal",
		`{"config":{"` + strings.Repeat("x", 300) + `":""}}`:           "is no key",
		`{"config":{"a.b":"` + strings.Repeat("x", maxValue+1) + `"}}`: "longer than",
		`{"gl-perms":"` + strings.Repeat("x", maxText+1) + `"}`:        "more than",
		string(tooMany): "more than 50 keys",
	} {
		if d, err := Parse(strings.NewReader(body)); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "metadata: ") {
			t.Errorf("%.60s: %+v, %v, want %q", body, d, err, want)
		}
	}
}

// What is taken for an object is written as the same object, and holds what is promised.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{}`, `{"head":"refs/heads/main"}`, `{"version":1,"description":"x","gl-creator":"a","gl-perms":"READERS b\n","config":{"gitweb.owner":"x"}}`,
		`{"config":{}}`, `{"object-format":"sha256"}`, `{"Head":"refs/heads/x"}`, `{"head":"refs/heads/x","HEAD":"refs/heads/..y"}`, `null`, `{"description":null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		d, err := Parse(bytes.NewReader(body))
		if err != nil {
			return
		}
		if err := d.Check(); err != nil {
			t.Fatal(err)
		}
		var wire bytes.Buffer
		if err := d.Write(&wire); err != nil {
			t.Fatal(err)
		}
		again, err := Parse(&wire)
		if err != nil {
			t.Fatalf("%q → %q: %v", body, wire.String(), err)
		}
		if diff := cmp.Diff(d, again); diff != "" || d.Hash() != again.Hash() {
			t.Fatal(diff)
		}
		for key := range d.Config {
			if (mirrorcfg.Accept{Config: &[]string{"gitweb.*"}}).TakesKey(key) && !strings.HasPrefix(key, "gitweb.") {
				t.Fatalf("%q is taken", key)
			}
		}
	})
}

// Our reading of branch names is never wider than git's.
func FuzzBranch(f *testing.F) {
	for _, name := range []string{"refs/heads/main", "refs/heads/a/b", "refs/heads/x..y", "refs/heads/x.lock", "refs/heads/@", "refs/heads/é"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if d := (&Data{Head: name}); len(name) > 4096 || name == "" || d.Check() != nil {
			return
		}
		if out, err := exec.CommandContext(context.Background(), "git", "check-ref-format", name).CombinedOutput(); err != nil {
			t.Fatalf("git refuses %q: %s", name, out)
		}
	})
}

// What was refused is news again after a while.
func TestRecordNew(t *testing.T) {
	now := time.Now().Unix()
	for _, c := range []struct {
		known Record
		want  bool
	}{
		{Record{}, true}, {Record{Hash: "x"}, true}, {Record{Hash: "abc"}, false},
		{Record{Hash: "abc", Again: now + 60}, false}, {Record{Hash: "abc", Again: now - 1}, true}, {Record{Hash: "x", Again: now + 60}, true},
	} {
		if got := c.known.New("abc"); got != c.want {
			t.Errorf("%+v: %t", c.known, got)
		}
	}
	if (Record{}).New("") {
		t.Error("nothing is news")
	}
}

func TestRecord(t *testing.T) {
	repo := bare(t)
	if Known(repo.Dir, "sam") != (Record{}) {
		t.Error("something is known")
	}
	r := Record{Hash: "abc", Note: "a note", Head: Given{Value: "refs/heads/main", Why: "refused", Again: 7}, Description: Given{Value: "One"}}
	if err := r.Save(repo.Dir, "sam"); err != nil || Known(repo.Dir, "sam") != r || Known(repo.Dir, "sam2") != (Record{}) {
		t.Error(err, Known(repo.Dir, "sam"))
	}
	if err := ForgetGiven(repo.Dir, "sam"); err != nil || Known(repo.Dir, "sam") != (Record{Hash: "abc", Note: "a note"}) {
		t.Error(err, Known(repo.Dir, "sam"))
	}
	if err := (Record{}).Save(repo.Dir, "sam"); err != nil || Known(repo.Dir, "sam") != (Record{}) {
		t.Error(err)
	}
	if err := Forget(repo.Dir, "sam"); err != nil {
		t.Error(err)
	}
}

// Whatever Read takes is taken by Parse: what a slave could never read would be sent for ever.
func TestFitsOnTheWire(t *testing.T) {
	for _, fill := range []string{"<", "&", "\"", "\n", "\\", "é", "\u2028", "\u2029"} {
		repo := bare(t)
		long := func(most int) string { return strings.Repeat(fill, most/len(fill)) }
		for _, m := range members {
			if m.file != "gl-creator" {
				put(t, repo, m.file, long(maxText))
			}
		}
		cfg := &mirrorcfg.Repo{Carried: map[string]string{}}
		for i := range maxKeys + 3 {
			cfg.Carried[fmt.Sprintf("hooks.%s.k%d", strings.Repeat("<", maxKey-20), i)] = long(maxValue)
		}
		d, notes, err := Read(repo, cfg)
		if err != nil {
			t.Fatal(err)
		}
		var wire bytes.Buffer
		if err := d.Write(&wire); err != nil {
			t.Fatal(err)
		}
		if got, err := Parse(&wire); err != nil || cmp.Diff(d, got) != "" {
			t.Errorf("%q: %v, %.300q", fill, err, notes)
		}
	}
}
