package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"mirror-shell/internal/git"
	"mirror-shell/internal/sendpack"
)

// value makes an object id of a letter.
func value(letter string) string { return fmt.Sprintf("%040x", []byte(letter)) }

// refsOf makes refs of "main=a topic=b".
func refsOf(text string) map[string]string {
	refs := map[string]string{}
	for word := range strings.FieldsSeq(text) {
		name, letter, _ := strings.Cut(word, "=")
		refs["refs/heads/"+name] = value(letter)
	}
	return refs
}

func TestGuard(t *testing.T) {
	for _, c := range []struct {
		name         string
		ours, theirs string
		unknown      string // values of the peer's that are neither on record nor contained
		received     string // of them, those that the peer had from us
		contained    string // values that our refs contain
		here         string // values that exist here
		past         string // "ab": a is an ancestor of b
		norecord     bool   // nothing is on record of any ref
		restored     bool
		percent      int // 0: 50
		want         []string
		asked        string // of the lookups
	}{
		{name: "nothing to do", ours: "main=a", theirs: "main=a"},
		{name: "first sync", ours: "main=a x=b", norecord: true},
		{name: "empty both"},
		{name: "one commit", ours: "main=b x=c y=c", theirs: "main=a x=c y=c"},
		{name: "a branch is forced back", ours: "main=a x=c", theirs: "main=b x=c", past: "ab"},
		{name: "two deletions of three", ours: "main=a", theirs: "main=a x=b y=c"},
		{name: "renamed only branch", ours: "trunk=a", theirs: "main=a"},
		{name: "three renamed", ours: "trunk=a x2=b y2=c", theirs: "main=a x=b y=c"},

		{name: "empty source", theirs: "main=a", want: []string{"is empty here and has 1 refs on sam"}},
		{name: "three deletions of four", ours: "main=a", theirs: "main=a x=b y=c z=d", want: []string{"3 of 4 refs on sam would be deleted"}, asked: "contained"},
		{name: "three merged branches", ours: "main=m", theirs: "main=a x=b y=c z=d", contained: "abcd", asked: "contained"},
		{name: "two merged, three not, of six", ours: "main=m", theirs: "main=a v=e w=f x=b y=c z=d", contained: "ef", asked: "contained"},
		{name: "half is not more than half", ours: "main=a b=a c=a", theirs: "main=a b=a c=a x=b y=c z=d"},
		{name: "three of many", ours: "main=a b=a c=a d=a", theirs: "main=a b=a c=a d=a x=b y=c z=d"},
		{name: "lower limit", ours: "main=a b=a c=a d=a", theirs: "main=a b=a c=a d=a x=b y=c z=d", percent: 10, want: []string{"3 of 7 refs"}, asked: "contained"},
		{name: "no limit", ours: "main=a", theirs: "main=a x=b y=c z=d", percent: 100},

		{name: "two refs go back", ours: "main=a x=c", theirs: "main=b x=d", past: "ab cd", want: []string{"refs/heads/main, refs/heads/x would go back to older commits on sam"}, asked: "back"},
		{name: "one of two goes back", ours: "main=a x=d", theirs: "main=b x=c", past: "ab cd", asked: "back"},
		{name: "two go forward", ours: "main=b x=d", theirs: "main=a x=c", past: "ab cd", asked: "back"},

		{name: "our own former value", ours: "main=a", theirs: "main=b", unknown: "b", received: "b", want: []string{"ip1 was rolled back or replaced here, or rolled back there: sam once got from its master what is not known here (refs/heads/main at "}},
		{name: "somebody else's value", ours: "main=a", theirs: "main=b", unknown: "b"},
		{name: "all of it somebody else's", ours: "main=a", theirs: "main=b x=c", unknown: "bc"},

		{name: "replaced", ours: "main=a", theirs: "main=b x=c", unknown: "bc", norecord: true, want: []string{"has nothing in common with"}, asked: "exist"},
		{name: "replaced, as the peer knows", ours: "main=a", theirs: "main=b x=c", unknown: "bc", received: "bc", norecord: true, want: []string{"was rolled back or replaced here"}},
		{name: "a common commit", ours: "main=a", theirs: "main=b x=c", unknown: "b", norecord: true},
		{name: "a common object", ours: "main=a", theirs: "main=b x=c", unknown: "bc", here: "c", norecord: true, asked: "exist"},

		{name: "restored, and equal", ours: "main=a", theirs: "main=a", restored: true},
		{name: "restored, peer behind", ours: "main=b x=c", theirs: "main=a", contained: "a", restored: true, asked: "contained"},
		{name: "restored, peer ahead", ours: "main=a", theirs: "main=b", restored: true, want: []string{"was restored from a backup here, and sam is ahead of it (refs/heads/main)"}, asked: "contained"},
		{name: "restored, ref missing", ours: "main=a", theirs: "main=a x=a", restored: true, contained: "a", want: []string{"ahead of it (refs/heads/x)"}},
		{name: "restored, peer unknown", ours: "main=a", theirs: "main=b", unknown: "b", restored: true, want: []string{"ahead of it (1 refs)"}},
		{name: "several reasons", ours: "main=a", theirs: "main=b x=c y=d z=e", unknown: "b", received: "b", want: []string{"was rolled back", "3 of 4 refs"}, asked: "contained"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := guardView{repo: "ip1", peer: "sam", zero: zero1, ours: refsOf(c.ours), theirs: refsOf(c.theirs), restored: c.restored, maxDelete: c.percent}
			if c.percent == 0 {
				v.maxDelete = 50
			}
			in := func(set, oid string) bool {
				return slices.ContainsFunc(strings.Split(set, ""), func(l string) bool { return value(l) == oid })
			}
			for _, d := range differences(v.ours, v.theirs, zero1) {
				if d.Old != zero1 && in(c.unknown, d.Old) {
					v.unknown++
					if in(c.received, d.Old) {
						v.received = append(v.received, d)
					}
				} else {
					v.commands = append(v.commands, d)
				}
			}
			var asked []string
			among := func(what, set string) func(oids []string) (map[string]bool, error) {
				return func(oids []string) (map[string]bool, error) {
					if len(oids) == 0 {
						return nil, nil
					}
					asked = append(asked, what)
					found := map[string]bool{}
					for _, oid := range oids {
						if in(set, oid) {
							found[oid] = true
						}
					}
					return found, nil
				}
			}
			reasons, err := v.reasons(lookups{
				contained: among("contained", c.contained), exist: among("exist", c.here),
				knows: func(string) bool { return !c.norecord },
				back: func(updates []sendpack.Command) (back []sendpack.Command, err error) {
					asked = append(asked, "back")
					for _, u := range updates {
						for pair := range strings.FieldsSeq(c.past) {
							if u.New == value(pair[:1]) && u.Old == value(pair[1:]) {
								back = append(back, u)
							}
						}
					}
					return back, nil
				},
			})
			if err != nil || len(reasons) != len(c.want) {
				t.Fatalf("%q, %v; want %q", reasons, err, c.want)
			}
			for i, want := range c.want {
				if !strings.Contains(reasons[i], want) {
					t.Errorf("reason %q, want %q", reasons[i], want)
				}
			}
			if got := strings.Join(asked, " "); got != c.asked {
				t.Errorf("asked %q, want %q", got, c.asked)
			}
		})
	}
}

// What cannot be looked up is an error, and never leave to go on.
func TestGuardLookupFails(t *testing.T) {
	broken := errors.New("broken")
	fail := func([]string) (map[string]bool, error) { return nil, broken }
	for name, v := range map[string]guardView{
		"replaced": {ours: refsOf("main=a"), theirs: refsOf("main=b"), unknown: 1},
		"restored": {ours: refsOf("main=a"), theirs: refsOf("main=b"), restored: true, commands: differences(refsOf("main=a"), refsOf("main=b"), zero1)},
		"deletion": {ours: refsOf("main=a"), theirs: refsOf("main=a x=b y=c z=d"), commands: differences(refsOf("main=a"), refsOf("main=a x=b y=c z=d"), zero1)},
		"back":     {ours: refsOf("main=a x=a"), theirs: refsOf("main=b x=b"), commands: differences(refsOf("main=a x=a"), refsOf("main=b x=b"), zero1)},
	} {
		v.zero = zero1
		_, err := v.reasons(lookups{contained: fail, exist: fail, knows: func(string) bool { return false },
			back: func([]sendpack.Command) ([]sendpack.Command, error) { return nil, broken }})
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadKnown(t *testing.T) {
	if got, err := readKnown(strings.NewReader("received\nforeign\nEND 2\n"), 2); err != nil || !slices.Equal(got, []bool{true, false}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := readKnown(strings.NewReader("END 0\n"), 0); err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	for name, text := range map[string]string{
		"nothing": "", "no end": "received\nforeign\n", "too few": "received\nEND 1\n", "too many": "received\nreceived\nreceived\nEND 3\n",
		"lies": "received\nforeign\nEND 3\n", "noise": "Welcome!\nreceived\nforeign\nEND 2\n", "half an end": "received\nforeign\nEND",
		"an empty line": "received\n\nEND 2\n", "a long line": strings.Repeat("x", 1<<17),
	} {
		if got, err := readKnown(strings.NewReader(text), 2); err == nil {
			t.Errorf("%s: %v is accepted", name, got)
		}
	}
}

func FuzzReadKnown(f *testing.F) {
	f.Add("received\nforeign\nEND 2\n", 2)
	f.Fuzz(func(t *testing.T, text string, n int) {
		got, err := readKnown(strings.NewReader(text), max(0, n%1000))
		if err != nil {
			return
		}
		var again bytes.Buffer
		for _, received := range got {
			io.WriteString(&again, map[bool]string{true: "received\n", false: "foreign\n"}[received])
		}
		fmt.Fprintf(&again, "END %d\n", len(got))
		same, err := readKnown(&again, max(0, n%1000))
		if err != nil || !slices.Equal(got, same) {
			t.Errorf("%v becomes %v, %v", got, same, err)
		}
	})
}

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		name, ours, theirs, past                   string
		created, forwarded, kept, updated, skipped string
	}{
		{name: "equal", ours: "main=a", theirs: "main=a", skipped: "1 0"},
		{name: "came back", ours: "main=a", theirs: "main=a x=b x2=c", created: "x x2", skipped: "1 0"},
		{name: "forward", ours: "main=a", theirs: "main=b", past: "ab", forwarded: "main", skipped: "0 0"},
		{name: "newer here", ours: "main=b only=c", theirs: "main=a", past: "ab", skipped: "0 1"},
		{name: "diverged", ours: "main=b", theirs: "main=c", past: "ab ac", kept: "main", skipped: "0 0"},
		{name: "kept before", ours: "main=b", theirs: "main=k", kept: "main", skipped: "0 0"},
		{name: "two tags of one commit", ours: "v1=a", theirs: "v1=b", past: "ab ba", kept: "v1", skipped: "0 0"},
		{name: "a directory here", ours: "x/y=a", theirs: "x=b", kept: "x", skipped: "0 0"},
		{name: "a file here", ours: "x=a", theirs: "x/y/z=b x1=c", created: "x1", kept: "x/y/z", skipped: "0 0"},
	} {
		m := merger{
			ours: refsOf(c.ours), everything: refsOf(c.ours),
			ancestor: func(a, b string) bool {
				return slices.ContainsFunc(strings.Fields(c.past), func(p string) bool { return value(p[:1]) == a && value(p[1:]) == b })
			},
			keep: func(ref, oid string) (string, bool) {
				return "refs/mirror/rescued/" + oid[38:] + "/" + ref, oid != value("k")
			},
		}
		pulled, updates := m.merge(refsOf(c.theirs))
		short := func(refs []string) string { return strings.ReplaceAll(strings.Join(refs, " "), "refs/heads/", "") }
		var kept []string
		for ref := range pulled.Kept {
			kept = append(kept, ref)
		}
		if short(pulled.Created) != c.created || short(pulled.Forwarded) != c.forwarded || short(kept) != c.kept ||
			fmt.Sprint(pulled.Equal, pulled.Newer) != c.skipped {
			t.Errorf("%s: %+v", c.name, pulled)
		}
		changed := len(pulled.Created) + len(pulled.Forwarded)
		for _, ref := range kept {
			if refsOf(c.theirs)[ref] != value("k") {
				changed++
			}
		}
		if len(updates) != changed || slices.ContainsFunc(updates, func(u git.RefUpdate) bool { return strings.Trim(u.New, "0") == "" }) {
			t.Errorf("%s: %v", c.name, updates)
		}
	}
}

func TestRefElement(t *testing.T) {
	for peer, want := range map[string]string{"sam": "sam", "sam.example.com": "sam.example.com", "a..b": "a__b", "x.lock": "x_lock", "end.": "end_"} {
		if got := refElement(peer); got != want {
			t.Errorf("%s: %s", peer, got)
		}
	}
}
