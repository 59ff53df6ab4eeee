package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mirror-shell/internal/proc"
)

var ctx = context.Background()

// repo is a Repo in a test.
type repo struct {
	Repo
	t testing.TB
}

func newRepo(t testing.TB) repo {
	t.Helper()
	r := repo{Repo{filepath.Join(t.TempDir(), "r.git")}, t}
	cmd := exec.Command("git", "init", "-q", "--bare", "--initial-branch=main", r.Dir)
	cmd.Env = environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

func environ() []string {
	return append(proc.Env(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=alice", "GIT_AUTHOR_EMAIL=a@example.org",
		"GIT_COMMITTER_NAME=alice", "GIT_COMMITTER_EMAIL=a@example.org")
}

func (r repo) in(stdin string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", append([]string{"--git-dir=" + r.Dir}, args...)...)
	cmd.Env, cmd.Stdin = environ(), strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("git %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

func (r repo) git(args ...string) string { r.t.Helper(); return r.in("", args...) }

// commit makes a commit of one file.
func (r repo) commit(content string, parents ...string) string {
	r.t.Helper()
	tree := r.in("100644 blob "+r.in(content, "hash-object", "-w", "--stdin")+"\tf\n", "mktree")
	args := []string{"commit-tree", "-m", content, tree}
	for _, p := range parents {
		args = append(args, "-p", p)
	}
	return r.git(args...)
}

func (r repo) write(name, text string) {
	r.t.Helper()
	file := filepath.Join(r.Dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		r.t.Fatal(err)
	}
	_ = os.Remove(file) // objects are read-only
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r repo) damage(oid, text string) { r.t.Helper(); r.write("objects/"+oid[:2]+"/"+oid[2:], text) }

func (r repo) remove(name string) {
	r.t.Helper()
	if err := os.Remove(filepath.Join(r.Dir, name)); err != nil {
		r.t.Fatal(err)
	}
}

func TestIsRepository(t *testing.T) {
	r := newRepo(t)
	if !IsRepository(r.Dir) || IsRepository(r.Dir+"/refs") || IsRepository("/nonexistent") {
		t.Error("IsRepository")
	}
	r.remove("HEAD")
	if IsRepository(r.Dir) {
		t.Error("a directory without HEAD is no repository")
	}
}

func TestConfig(t *testing.T) {
	r := newRepo(t)
	r.write("included", "[gitolite \"mirror\"]\n\thourly = from include\n")
	file, err := os.OpenFile(filepath.Join(r.Dir, "config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(file, "[gitolite \"mirror\"]\n\tmaster = frodo\n\tSLAVES = sam \\\n merry\n\tflag\n\tempty =\n\tmaster = \"sam \\n x\"\n[include]\n\tpath = %s/included\n[other]\n\ta = b\n", r.Dir)
	file.Close()
	got, err := r.Config(ctx, `^gitolite\.mirror\.`)
	want := []ConfigEntry{
		{Key: "gitolite.mirror.master", Value: "frodo"},
		{Key: "gitolite.mirror.slaves", Value: "sam  merry"},
		{Key: "gitolite.mirror.flag", Implicit: true},
		{Key: "gitolite.mirror.empty"},
		{Key: "gitolite.mirror.master", Value: "sam \n x"},
		{Key: "gitolite.mirror.hourly", Value: "from include"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	if got, err := r.Config(ctx, `^nothing\.`); got != nil || err != nil {
		t.Errorf("no match: %v, %v", got, err)
	}
	r.write("config", "[gitolite\n")
	if _, err := r.Config(ctx, `^gitolite\.`); err == nil || !strings.Contains(err.Error(), "bad config line 1") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a config that cannot be read: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add("a.b", "c", false, "d.e.f", "", true)
	f.Add("x.y\nz.q", "v\nw", true, "", "", false)
	f.Fuzz(func(t *testing.T, key1, value1 string, implicit1 bool, key2, value2 string, implicit2 bool) {
		clean := func(key, value string, implicit bool) (e ConfigEntry, ok bool) {
			if implicit {
				value = ""
			}
			return ConfigEntry{key, value, implicit}, key != "" && !strings.ContainsAny(key, "\n\x00") && !strings.Contains(value, "\x00")
		}
		var out bytes.Buffer
		var want []ConfigEntry
		for _, e := range []struct {
			key, value string
			implicit   bool
		}{{key1, value1, implicit1}, {key2, value2, implicit2}} {
			entry, ok := clean(e.key, e.value, e.implicit)
			if !ok {
				continue
			}
			want = append(want, entry)
			out.WriteString(entry.Key)
			if !entry.Implicit {
				out.WriteString("\n" + entry.Value)
			}
			out.WriteByte(0)
		}
		if diff := cmp.Diff(want, parseConfig(out.Bytes())); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		parseConfig([]byte(key1 + value1 + key2)) // whatever it is
	})
}

func TestRefs(t *testing.T) {
	r := newRepo(t)
	if refs, err := r.Refs(ctx); len(refs) != 0 || err != nil {
		t.Fatalf("an empty repository: %v, %v", refs, err)
	}
	a, b := r.commit("a"), r.commit("b")
	r.git("update-ref", "refs/heads/main", a)
	r.git("update-ref", "refs/heads/dir/ünï", b)
	r.git("tag", "-m", "t", "v1", a)
	r.git("pack-refs", "--all")
	r.git("update-ref", "refs/heads/main", b) // loose over packed
	r.git("symbolic-ref", "refs/heads/alias", "refs/heads/main")
	want := map[string]string{"refs/heads/main": b, "refs/heads/dir/ünï": b, "refs/tags/v1": r.git("rev-parse", "v1"), "refs/heads/alias": b}
	check := func(what string) {
		t.Helper()
		refs, err := r.Refs(ctx)
		if diff := cmp.Diff(want, refs); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", what, err, diff)
		}
	}
	check("loose, packed, symbolic")
	// A symbolic ref to nothing has no value. Git does not warn of it, nor do we fail.
	r.git("symbolic-ref", "refs/heads/dangling", "refs/heads/none")
	check("dangling")
	// A missing object is another's trouble: that ref is named when it is packed.
	r.write("refs/heads/missing", strings.Repeat("1", 40)+"\n")
	want["refs/heads/missing"] = strings.Repeat("1", 40)
	check("missing object")
	r.remove("refs/heads/missing")
	delete(want, "refs/heads/missing")

	for name, text := range map[string]string{
		"refs/heads/zero": "", "refs/heads/short": a[:12] + "\n", "refs/heads/text": "hello\n", "refs/heads/null": strings.Repeat("0", 40) + "\n",
		"refs/heads/bad..name": a + "\n",
	} {
		r.write(name, text)
		refs, err := r.Refs(ctx)
		if err == nil || refs != nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v", name, refs, err)
		}
		r.remove(name)
	}
	r.write("refs/heads/main", "") // the packed value must not shine through
	if refs, err := r.Refs(ctx); err == nil || !strings.Contains(err.Error(), "refs/heads/main") {
		t.Errorf("zero bytes over a packed ref: %v, %v", refs, err)
	}
	r.write("refs/heads/main", b+"\n")
	check("mended")
	r.write("packed-refs", "garbage\n")
	if _, err := r.Refs(ctx); err == nil || !strings.Contains(err.Error(), "packed-refs") {
		t.Errorf("broken packed-refs: %v", err)
	}
	r.remove("packed-refs")
	r.remove("HEAD")
	if _, err := r.Refs(ctx); err == nil {
		t.Error("not a repository")
	}
}

func TestManyRefs(t *testing.T) {
	r := newRepo(t)
	a := r.commit("a")
	var in strings.Builder
	want := map[string]string{}
	for i := range 5000 {
		want[fmt.Sprintf("refs/heads/%d", i)] = a
		fmt.Fprintf(&in, "create refs/heads/%d %s\n", i, a)
	}
	r.in(in.String(), "update-ref", "--stdin")
	if refs, err := r.Refs(ctx); err != nil || !maps.Equal(refs, want) {
		t.Errorf("%d loose refs, %v", len(refs), err)
	}
	r.git("pack-refs", "--all")
	if refs, err := r.Refs(ctx); err != nil || !maps.Equal(refs, want) {
		t.Errorf("%d packed refs, %v", len(refs), err)
	}
}

func TestHead(t *testing.T) {
	r := newRepo(t)
	a := r.commit("a")
	for _, c := range []struct{ text, want string }{
		{"ref: refs/heads/main\n", "refs/heads/main"}, // unborn
		{"ref: refs/heads/x/y", "refs/heads/x/y"},
		{"ref:   refs/heads/spaced\n", "refs/heads/spaced"},
		{"ref:\trefs/heads/tab  \n\n", "refs/heads/tab"},
		{"ref: refs/meta/config\n", "refs/meta/config"},
		{a + "\n", ""},
	} {
		r.write("HEAD", c.text)
		if head, err := r.Head(ctx); head != c.want || err != nil {
			t.Errorf("%q: %q, %v, want %q", c.text, head, err, c.want)
		}
	}
	for _, text := range []string{"", "garbage", "ref: refs/heads/.invalid\n", "ref: refs/heads/a\nrefs/heads/b\n", "ref: refs/heads/a b\n"} {
		r.write("HEAD", text)
		if head, err := r.Head(ctx); err == nil {
			t.Errorf("%q: %q", text, head)
		}
	}
	r.remove("HEAD")
	if err := os.Symlink("refs/heads/linked", filepath.Join(r.Dir, "HEAD")); err != nil {
		t.Fatal(err)
	}
	if head, err := r.Head(ctx); head != "refs/heads/linked" || err != nil {
		t.Errorf("a symbolic link: %q, %v", head, err)
	}
	if err := r.SetHead(ctx, "refs/heads/new"); err != nil {
		t.Fatal(err)
	}
	if head, err := r.Head(ctx); head != "refs/heads/new" || err != nil {
		t.Errorf("SetHead: %q, %v", head, err)
	}
	if err := r.SetHead(ctx, "refs/heads/a..b"); err == nil {
		t.Error("SetHead takes a name that is none")
	}
}

func TestExisting(t *testing.T) {
	r := newRepo(t)
	commit, other, empty, junk, packed := r.commit("a"), r.commit("b"), r.commit("c"), r.commit("d"), r.commit("e")
	r.git("update-ref", "refs/heads/packed", packed)
	r.git("repack", "-dq")
	blob := r.git("rev-parse", commit+":f")
	r.damage(empty, "")
	r.damage(junk, "junkjunkjunk")
	missing := strings.Repeat("1", 40)
	got, err := r.Existing(ctx, []string{commit, missing, other, blob, empty, junk, packed, commit})
	want := map[string]bool{commit: true, other: true, blob: true, packed: true}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	if got, err := r.Existing(ctx, nil); len(got) != 0 || err != nil {
		t.Errorf("nothing: %v, %v", got, err)
	}
	many := slices.Repeat([]string{commit, missing}, 50_000) // more than any pipe holds
	if got, err := r.Existing(ctx, many); len(got) != 1 || err != nil {
		t.Errorf("many: %v, %v", got, err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.Existing(cancelled, many); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	r := newRepo(t)
	a := r.commit("a")
	b := r.commit("b", a)
	c := r.commit("c", b)
	side := r.commit("side", a)
	tag := func(name, of string) string { r.git("tag", "-m", name, name, of); return r.git("rev-parse", name) }
	inner := tag("inner", b)
	outer := tag("outer", inner)
	lone := tag("lone", a)
	tree, blob := r.git("rev-parse", c+"^{tree}"), r.git("rev-parse", c+":f")
	sideTree := r.git("rev-parse", side+"^{tree}")
	for _, q := range []struct {
		oids, tips, want []string
	}{
		{[]string{a, b, c}, []string{c}, nil},
		{[]string{a, b, c}, []string{b}, []string{c}},
		{[]string{side, a}, []string{c}, []string{side}},
		{[]string{side}, []string{c, side}, nil},
		{[]string{a, b}, nil, []string{a, b}},
		{[]string{inner, b, a}, []string{outer}, nil},
		{[]string{lone}, []string{outer, c}, []string{lone}}, // a tag is an object of its own
		{[]string{outer}, []string{outer}, nil},
		{[]string{tree, blob}, []string{tree}, nil},
		{[]string{tree, blob}, []string{c}, []string{tree, blob}}, // cautious
		{[]string{sideTree, r.git("rev-parse", side+":f")}, []string{c}, []string{sideTree, r.git("rev-parse", side+":f")}},
		{[]string{blob}, []string{blob}, nil},
		{nil, []string{c}, nil},
	} {
		got, err := r.Unreachable(ctx, q.oids, q.tips)
		want := map[string]bool{}
		for _, oid := range q.want {
			want[oid] = true
		}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v from %v: %v (-want +got)\n%s", q.oids, q.tips, err, diff)
		}
	}
	r.damage(a, "") // also of a history that is not whole
	if _, err := r.Unreachable(ctx, []string{side}, []string{tree}); err == nil {
		t.Error("an incomplete history can be walked")
	}
}

func TestPack(t *testing.T) {
	r := newRepo(t)
	a := r.commit(strings.Repeat("some text that deltas well\n", 500))
	b := r.commit(strings.Repeat("some text that deltas well\n", 500)+"more\n", a)
	size := func(want, have []string, o PackOptions) int {
		t.Helper()
		var pack bytes.Buffer
		if err := r.Pack(ctx, &pack, want, have, o); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(pack.Bytes(), []byte("PACK")) {
			t.Fatalf("no pack: %.20q", pack.Bytes())
		}
		fresh := newRepo(t)
		if len(have) > 0 {
			var base bytes.Buffer
			if err := r.Pack(ctx, &base, have, nil, PackOptions{}); err != nil {
				t.Fatal(err)
			}
			fresh.in(base.String(), "unpack-objects", "-q")
		}
		if !o.Thick { // it needs its bases
			fresh.in(pack.String(), "index-pack", "--stdin", "--fix-thin")
		} else {
			fresh.in(pack.String(), "index-pack", "--stdin")
		}
		fresh.git("rev-list", "--objects", "--quiet", b)
		return pack.Len()
	}
	whole := size([]string{b, a, b}, nil, PackOptions{Thick: true, NoOffsets: true})
	thin, thick := size([]string{b}, []string{a}, PackOptions{}), size([]string{b}, []string{a}, PackOptions{Thick: true})
	if !(thin < thick && thick < whole) {
		t.Errorf("sizes: thin %d, thick %d, whole %d", thin, thick, whole)
	}
	// The error is git's reason, on one line.
	for what, want := range map[string]string{strings.Repeat("1", 40): "bad object 1111", "--all": "not a rev '--all'"} {
		err := r.Pack(ctx, io.Discard, []string{what}, nil, PackOptions{})
		if err == nil || proc.ExitCode(err) != 128 || !strings.Contains(err.Error(), want) || strings.ContainsAny(err.Error(), "\r\n%") {
			t.Errorf("pack %s: %v", what, err)
		}
	}
	blob := r.git("rev-parse", b+":f")
	r.damage(blob, "x\x9cnonsense")
	if err := r.Pack(ctx, io.Discard, []string{b}, nil, PackOptions{}); err == nil || !strings.Contains(err.Error(), blob) {
		t.Errorf("pack of a corrupt object: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := r.Pack(cancelled, io.Discard, []string{a}, nil, PackOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPackable(t *testing.T) {
	r := newRepo(t)
	a := r.commit("a")
	good, noBlob, corruptBlob := r.commit("good", a), r.commit("no blob", a), r.commit("corrupt blob", a)
	noTree, noParent := r.commit("no tree", a), r.commit("no parent")
	child := r.commit("child", noParent)
	r.damage(r.git("rev-parse", noBlob+":f"), "")
	r.damage(r.git("rev-parse", corruptBlob+":f"), "x\x9cnonsense")
	r.damage(r.git("rev-parse", noTree+"^{tree}"), "")
	r.damage(noParent, "")
	for _, c := range []struct {
		tip  string
		want bool
	}{{good, true}, {a, true}, {noBlob, false}, {corruptBlob, false}, {noTree, false}, {child, false}, {strings.Repeat("1", 40), false}} {
		ok, err := r.Packable(ctx, []string{c.tip}, nil)
		if ok != c.want || err != nil {
			t.Errorf("%s: %t, %v", c.tip, ok, err)
		}
	}
	r.damage(r.git("rev-parse", a+":f"), "") // what the peer has need not be here
	if ok, err := r.Packable(ctx, []string{good}, []string{a}); !ok || err != nil {
		t.Errorf("with a damaged history that is not sent: %t, %v", ok, err)
	}
}

func TestLineReader(t *testing.T) {
	oids := slices.Repeat([]string{"0123456789"}, 1000)
	for _, size := range []int{1, 7, 12, 4096} {
		var out bytes.Buffer
		if _, err := io.CopyBuffer(struct{ io.Writer }{&out}, struct{ io.Reader }{lines(oids, "^")}, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if want := strings.Repeat("^0123456789\n", 1000); out.String() != want {
			t.Errorf("by %d: %d bytes, want %d", size, out.Len(), len(want))
		}
	}
}
