package peer

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"mirror-shell/internal/sendpack"
)

// Whatever is to become what: each command is sent once, and no name is created while another
// one that excludes it is there.
func TestPartsOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	zero := strings.Repeat("0", 40)
	excludes := func(refs map[string]string, ref string) bool {
		for have := range refs {
			if strings.HasPrefix(have, ref+"/") || strings.HasPrefix(ref, have+"/") {
				return true
			}
		}
		return false
	}
	refs := func() map[string]string {
		set := map[string]string{}
		for range random.IntN(12) {
			ref := "refs/heads"
			for range 1 + random.IntN(3) {
				ref += "/" + string('a'+rune(random.IntN(3)))
			}
			if !excludes(set, ref) {
				set[ref] = strings.Repeat(string('1'+rune(random.IntN(3))), 40)
			}
		}
		return set
	}
	kind := func(c sendpack.Command) string {
		return map[bool]string{true: "deletion", false: "other"}[c.New == zero]
	}
	for range 3000 {
		ours, theirs := refs(), refs()
		now, size := maps.Clone(theirs), 1+random.IntN(4)
		todo := decide(differences(ours, theirs, zero), zero, knowledge{ours: func(string, string) bool { return true }}).commands
		for _, part := range parts(todo, zero, size) {
			if len(part) > size && len(todo) > size {
				t.Fatalf("a part of %d", len(part))
			}
			part = slices.Clone(part) // as package sendpack sends it, deletions first
			slices.SortStableFunc(part, func(a, b sendpack.Command) int { return strings.Compare(kind(a), kind(b)) })
			for _, c := range part {
				switch {
				case c.Old != zero && now[c.Ref] != c.Old, c.Old == zero && now[c.Ref] != "":
					t.Fatalf("%v when it is at %q", c, now[c.Ref])
				case c.New == zero:
					delete(now, c.Ref)
				case c.Old == zero && excludes(now, c.Ref):
					t.Fatalf("%v is created beside %v; ours %v, theirs %v, parts of %d", c, now, ours, theirs, size)
				default:
					now[c.Ref] = c.New
				}
			}
		}
		if !maps.Equal(now, ours) {
			t.Fatalf("%v became %v", ours, now)
		}
	}
}
