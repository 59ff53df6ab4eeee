package digest

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var (
	a = strings.Repeat("a", 40)
	b = strings.Repeat("b", 40)
	c = strings.Repeat("c", 64)
)

// The wanted values were made with printf and sha256sum.
func TestVectors(t *testing.T) {
	for want, refs := range map[string]map[string]string{
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855": {},
		"9678e5211ce05223dca0b92936a256908e5e1e4b6ea130959b563ee2ca060c8c": {"refs/heads/main": a},
		// Bytes decide the order: Z before a, a-b before a/b, ä last.
		"4798b12bef5f22bda316068a099882a0799813b2fbc3381ca549c8b914f59849": {"refs/heads/ä": a, "refs/heads/a/b": b, "refs/heads/a-b": a, "refs/heads/Z": a, "refs/heads/a": b},
		"6c18e9c38b0c1f74a2799769d5abb949c6f603f331d58246a96c3bf7ffad100c": {"refs/heads/main": c, "refs/tags/v1": c},
	} {
		if got := Of(refs); got != want {
			t.Errorf("Of(%v) = %s, want %s", refs, got, want)
		}
	}
	if Of(nil) != Of(map[string]string{}) {
		t.Error("nil differs from empty")
	}
}

// What git and coreutils make of many refs is the same.
func TestAgreesWithSha256sum(t *testing.T) {
	refs, lines := map[string]string{}, []string{}
	for i := range 3000 {
		oid, name := fmt.Sprintf("%040x", i*7919), fmt.Sprintf("refs/heads/%d/topic", i)
		refs[name] = oid
		lines = append(lines, oid+" "+name+"\n")
	}
	slices.SortFunc(lines, func(x, y string) int { return strings.Compare(x[41:len(x)-1], y[41:len(y)-1]) })
	cmd := exec.Command("sha256sum")
	cmd.Stdin = strings.NewReader(strings.Join(lines, ""))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := Of(refs); !strings.HasPrefix(string(out), got+" ") {
		t.Errorf("Of = %s, sha256sum says %s", got, out)
	}
}

// Any change of the refs changes the digest.
func TestEveryChangeShows(t *testing.T) {
	gen := rapid.MapOf(rapid.StringMatching(`refs/[a-c]{1,2}`), rapid.StringMatching(`[0-3]{4}`))
	rapid.Check(t, func(t *rapid.T) {
		x, y := gen.Draw(t, "x"), gen.Draw(t, "y")
		equal := fmt.Sprint(x) == fmt.Sprint(y) // maps print sorted
		if (Of(x) == Of(y)) != equal {
			t.Errorf("%v and %v: equal digests %v, want %v", x, y, !equal, equal)
		}
	})
}

func BenchmarkOf50000(bm *testing.B) {
	refs := map[string]string{}
	for i := range 50_000 {
		refs[fmt.Sprintf("refs/heads/topic-%05d", i)] = fmt.Sprintf("%040x", i)
	}
	for bm.Loop() {
		Of(refs)
	}
}
