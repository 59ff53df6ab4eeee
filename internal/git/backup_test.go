package git

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func newScratch(t testing.TB) Scratch {
	t.Helper()
	s, err := NewScratch(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRefsAndTargets(t *testing.T) {
	r := newRepo(t)
	id := r.commit("1")
	r.git("update-ref", "refs/heads/main", id)
	refs, targets, err := r.RefsAndTargets(ctx)
	if err != nil || !maps.Equal(refs, map[string]string{"refs/heads/main": id}) || len(targets) != 0 {
		t.Errorf("%v, %v, %v", refs, targets, err)
	}
	r.git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/heads/main")
	refs, targets, err = r.RefsAndTargets(ctx)
	if err != nil || refs["refs/remotes/origin/HEAD"] != id || !maps.Equal(targets, map[string]string{"refs/remotes/origin/HEAD": "refs/heads/main"}) {
		t.Errorf("%v, %v, %v", refs, targets, err)
	}
	r.git("symbolic-ref", "refs/heads/chain", "refs/remotes/origin/HEAD")
	r.git("symbolic-ref", "refs/heads/unborn", "refs/heads/next")
	refs, targets, err = r.RefsAndTargets(ctx)
	want := map[string]string{"refs/remotes/origin/HEAD": "refs/heads/main", "refs/heads/chain": "refs/remotes/origin/HEAD", "refs/heads/unborn": "refs/heads/next"}
	if err != nil || len(refs) != 3 || !maps.Equal(targets, want) {
		t.Errorf("%v, %v, %v", refs, targets, err)
	}
	r.write("refs/heads/empty", "")
	if _, _, err := r.RefsAndTargets(ctx); err == nil || !strings.Contains(err.Error(), "refs/heads/empty") {
		t.Errorf("a broken ref: %v", err)
	}
}

func TestDetachedHead(t *testing.T) {
	r := newRepo(t)
	id := r.commit("1")
	r.git("update-ref", "--no-deref", "HEAD", id)
	if got, err := r.DetachedHead(ctx); err != nil || got != id {
		t.Errorf("%q, %v", got, err)
	}
}

func TestObjectFormatAndPartial(t *testing.T) {
	r := newRepo(t)
	check := func(format string, partial bool) {
		t.Helper()
		if got, err := r.ObjectFormat(ctx); err != nil || got != format {
			t.Errorf("%q, %v, want %q", got, err, format)
		}
		if got, err := r.Partial(ctx); err != nil || got != partial {
			t.Errorf("partial %v, %v", got, err)
		}
	}
	check("sha1", false)
	r.git("config", "remote.x.promisor", "false")
	check("sha1", false)
	r.git("config", "remote.x.promisor", "true")
	check("sha1", true)
}

func TestPackTo(t *testing.T) {
	r, s := newRepo(t), newScratch(t)
	first := r.commit("1")
	second := r.commit("2", first)
	// What a user's config says of packs is for other packs.
	r.git("config", "pack.packSizeLimit", "1m")
	name, err := r.PackTo(ctx, s, strings.NewReader(second+"\n^"+first+"\n"), true)
	if err != nil || !strings.HasPrefix(name, "pack-") {
		t.Fatalf("%q, %v", name, err)
	}
	listed := r.git("verify-pack", "-v", s.PackPath(name+".pack"))
	if !strings.Contains(listed, second) || strings.Contains(listed, first) {
		t.Errorf("%s", listed)
	}
	if name, err := r.PackTo(ctx, s, strings.NewReader(first+"\n^"+second+"\n"), true); err != nil || name != "" {
		t.Errorf("nothing to pack: %q, %v", name, err)
	}
	entries, err := os.ReadDir(filepath.Join(r.Dir, "objects/pack"))
	if err != nil || len(entries) != 0 {
		t.Errorf("left in the repository: %v, %v", entries, err)
	}
}

// git packs a loose object without looking whether its content is what its name says.
func TestPackToFindsExchangedObject(t *testing.T) {
	r := newRepo(t)
	id := r.commit("1")
	blob, other := r.git("rev-parse", id+":f"), r.in("2", "hash-object", "-w", "--stdin")
	data, err := os.ReadFile(filepath.Join(r.Dir, "objects", other[:2], other[2:]))
	if err != nil {
		t.Fatal(err)
	}
	r.remove("objects/" + blob[:2] + "/" + blob[2:])
	r.damage(blob, string(data))
	if name, err := r.PackTo(ctx, newScratch(t), strings.NewReader(id+"\n"), true); err == nil {
		t.Errorf("%s has another content than its name says", name)
	}
}

func TestPackToNamesMissing(t *testing.T) {
	r := newRepo(t)
	id := r.commit("1")
	blob := r.git("rev-parse", id+":f")
	r.remove("objects/" + blob[:2] + "/" + blob[2:])
	if _, err := r.PackTo(ctx, newScratch(t), strings.NewReader(id+"\n"), true); err == nil || !strings.Contains(err.Error(), "missing: "+blob) {
		t.Errorf("%v", err)
	}
}

func TestAddsAndNearest(t *testing.T) {
	r := newRepo(t)
	ids := []string{r.commit("0")}
	for i := range 6 {
		ids = append(ids, r.commit(string(rune('1'+i)), ids[i]))
	}
	side := r.commit("side", ids[3])
	commits, edge, all, err := r.Adds(ctx, []string{side}, []string{ids[6]}, 5)
	if err != nil || !all || !slices.Equal(commits, []string{side}) || !slices.Equal(edge, []string{ids[3]}) {
		t.Errorf("%v, %v, %v, %v", commits, edge, all, err)
	}
	if _, _, all, err := r.Adds(ctx, []string{ids[6]}, []string{ids[0]}, 5); err != nil || all {
		t.Errorf("six commits, at most five: %v, %v", all, err)
	}
	known := func(known ...string) func(string) bool {
		return func(id string) bool { return slices.Contains(known, id) }
	}
	for _, c := range []struct {
		want  []string
		known []string
		limit int
		near  []string
		all   bool
	}{
		{[]string{ids[6]}, []string{ids[4], ids[2]}, 10, []string{ids[4]}, true},
		{[]string{ids[6], side}, []string{ids[3]}, 10, []string{ids[3]}, true},
		{[]string{ids[6]}, nil, 3, nil, false},
		{[]string{ids[6]}, nil, 10, nil, true}, // to the root
	} {
		near, all, err := r.Nearest(ctx, c.want, known(c.known...), c.limit)
		if err != nil || all != c.all || !slices.Equal(near, c.near) {
			t.Errorf("%+v: %v, %v, %v", c, near, all, err)
		}
	}
}

func TestComplete(t *testing.T) {
	r := newRepo(t)
	id := r.commit("2", r.commit("1"))
	if err := r.Complete(ctx, nil, []string{id}); err != nil {
		t.Error(err)
	}
	s := newScratch(t)
	if err := r.Complete(ctx, &s, []string{id}); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), id) {
		t.Errorf("nothing is there: %v", err)
	}
	if _, err := r.PackTo(ctx, s, strings.NewReader(id+"\n"), true); err != nil {
		t.Fatal(err)
	}
	if err := r.Complete(ctx, &s, []string{id}); err != nil {
		t.Error(err)
	}
	first, second := r.git("rev-parse", id+":f"), r.git("rev-parse", id+"~1:f")
	for _, blob := range []string{first, second} {
		r.remove("objects/" + blob[:2] + "/" + blob[2:])
	}
	err := r.Complete(ctx, nil, []string{id})
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), second) {
		t.Errorf("%v", err)
	}
	if err := r.Complete(ctx, nil, nil); err != nil {
		t.Error(err)
	}
}
