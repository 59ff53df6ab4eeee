package cli

import (
	"os/exec"
	"strings"
	"testing"
)

// What is printed for people to paste is one command, whatever a ref is called.
func TestQuoted(t *testing.T) {
	for word, want := range map[string]string{
		"mirror-shell": "mirror-shell", "20261122T035557Z-1234abcd/refs/heads/main": "20261122T035557Z-1234abcd/refs/heads/main", "": "''",
		"refs/heads/$(id)": "'refs/heads/$(id)'", "it's": `'it'\''s'`, "a;b": "'a;b'", "ö": "'ö'",
	} {
		if got := quoted(word); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func FuzzQuoted(f *testing.F) {
	f.Add("it's $(id) `id` \\ \"x\" #")
	f.Fuzz(func(t *testing.T, word string) {
		if strings.ContainsRune(word, 0) {
			return
		}
		out, err := exec.Command("sh", "-c", "printf %s. "+quoted(word)).Output()
		if err != nil || string(out) != word+"." {
			t.Errorf("%q becomes %q, %v", word, out, err)
		}
	})
}

// However the text arrives in pieces, only what can do no harm gets through.
func TestPrintable(t *testing.T) {
	text := "Grüße €𝄞\tx\n\x1b[2J\u009b1m\x7f\r\u202e\n"
	for size := 1; size <= len(text); size++ {
		var out strings.Builder
		p := &printable{w: &out}
		for i := 0; i < len(text); i += size {
			if n, err := p.Write([]byte(text[i:min(i+size, len(text))])); err != nil || n != min(size, len(text)-i) {
				t.Fatal(n, err)
			}
		}
		if want := "Grüße €𝄞\tx\n?[2J?1m???\n"; out.String() != want {
			t.Errorf("in pieces of %d: %q", size, out.String())
		}
	}
}

func TestRescuedUsage(t *testing.T) {
	for name, c := range map[string]struct {
		cmd RescuedCmd
		ok  bool
	}{
		"list": {RescuedCmd{}, true}, "some": {RescuedCmd{Repositories: []string{"a*", "b"}}, true},
		"show": {RescuedCmd{Show: "x", Repositories: []string{"a"}}, true}, "show where": {RescuedCmd{Show: "x"}, false},
		"show in several": {RescuedCmd{Show: "x", Repositories: []string{"a", "b"}}, false}, "drop everywhere": {RescuedCmd{Drop: "x", Repositories: []string{"*"}}, false},
		"restore": {RescuedCmd{Restore: "x", As: "y", Repositories: []string{"a"}}, true}, "restore as what": {RescuedCmd{Restore: "x", Repositories: []string{"a"}}, false},
		"as": {RescuedCmd{As: "x"}, false}, "from": {RescuedCmd{From: "sam", Show: "x", Repositories: []string{"a"}}, false},
	} {
		if err := c.cmd.check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
