package git

import (
	"io"
	"maps"
	"strings"
	"testing"
	"unicode"
)

// What git sets for its hooks, and what anybody else may have set, points
// nothing of ours elsewhere.
func TestOuterEnvironment(t *testing.T) {
	r, other := newRepo(t), newRepo(t)
	a, b := r.commit("a"), other.commit("b")
	r.git("update-ref", "refs/heads/main", a)
	other.git("update-ref", "refs/heads/other", b)
	r.git("config", "gitolite.mirror.master", "frodo")
	for name, value := range map[string]string{
		"GIT_DIR": other.Dir, "GIT_WORK_TREE": other.Dir, "GIT_COMMON_DIR": other.Dir, "GIT_NAMESPACE": "x",
		"GIT_OBJECT_DIRECTORY": other.Dir + "/objects", "GIT_ALTERNATE_OBJECT_DIRECTORIES": other.Dir + "/objects",
		"GIT_QUARANTINE_PATH": other.Dir + "/objects", "GIT_CONFIG_PARAMETERS": "'gitolite.mirror.master'='sam'",
		"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "gitolite.mirror.master", "GIT_CONFIG_VALUE_0": "sam",
		"GIT_CONFIG": other.Dir + "/config", "GIT_TRACE": "1", "GIT_REPLACE_REF_BASE": "refs/heads/", "LANGUAGE": "de", "LC_ALL": "de_DE.UTF-8",
	} {
		t.Setenv(name, value)
	}
	if refs, err := r.Refs(ctx); err != nil || !maps.Equal(refs, map[string]string{"refs/heads/main": a}) {
		t.Errorf("refs %v, %v", refs, err)
	}
	if found, err := r.Existing(ctx, []string{a, b}); err != nil || !maps.Equal(found, map[string]bool{a: true}) {
		t.Errorf("existing %v, %v", found, err)
	}
	if entries, err := r.Config(ctx, "^gitolite"); err != nil || len(entries) != 1 || entries[0].Value != "frodo" {
		t.Errorf("config %v, %v", entries, err)
	}
	if err := r.Pack(ctx, io.Discard, []string{b}, nil, PackOptions{}); err == nil || !strings.Contains(err.Error(), "bad object") {
		t.Errorf("pack of another's object: %v", err)
	}
	if err := r.SetHead(ctx, "refs/heads/trunk"); err != nil {
		t.Errorf("set HEAD, with a quarantine: %v", err)
	}
	if head, err := other.Head(ctx); head != "refs/heads/main" || err != nil {
		t.Errorf("HEAD of the other repository: %s, %v", head, err)
	}
	if dir, err := r.HooksDir(ctx); err != nil || !strings.HasPrefix(dir, r.Dir) {
		t.Errorf("hooks in %s, %v", dir, err)
	}
}

// A replacement or a graft here must not change what travels.
func TestReplaced(t *testing.T) {
	r := newRepo(t)
	a := r.commit("a")
	b := r.commit("b", a)
	r.git("replace", b, r.commit("other"))
	found, err := r.Unreachable(ctx, []string{a}, []string{b})
	if err != nil || len(found) > 0 {
		t.Errorf("%v, %v", found, err)
	}
}

func TestHooksDir(t *testing.T) {
	r := newRepo(t)
	check := func(want string) {
		t.Helper()
		if dir, err := r.HooksDir(ctx); dir != want || err != nil {
			t.Errorf("%q, %v, want %q", dir, err, want)
		}
	}
	check(r.Dir + "/hooks")
	r.git("config", "core.hooksPath", "/etc/hooks")
	check("/etc/hooks")
}

func TestVersion(t *testing.T) {
	if v, err := Version(ctx); err != nil || !unicode.IsDigit(rune(v[0])) || !strings.Contains(v, ".") {
		t.Errorf("%q, %v", v, err)
	}
}
