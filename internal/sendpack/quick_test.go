package sendpack

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	quickZeros = strings.Repeat("0", 40)
	quickOnes  = strings.Repeat("1", 40)
	quickTwos  = strings.Repeat("2", 40)
)

func TestQuickRequest(t *testing.T) {
	want := QuickRequest{Format: "sha1", Head: "refs/heads/main", Peer: "sam", Commands: []Command{
		{Ref: "refs/heads/a", Old: quickOnes, New: quickZeros}, {Ref: "refs/tags/ä+", Old: quickZeros, New: quickTwos},
	}}
	var text bytes.Buffer
	if err := WriteQuickRequest(&text, want); err != nil {
		t.Fatal(err)
	}
	text.WriteString("PACK")
	in := bufio.NewReaderSize(&text, 16)
	got, err := ReadQuickRequest(in)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if rest, _ := io.ReadAll(in); string(rest) != "PACK" {
		t.Errorf("rest %q", rest)
	}
}

func TestQuickRequestRefused(t *testing.T) {
	command := quickOnes + " " + quickTwos + " refs/heads/a\n"
	for name, text := range map[string]string{
		"nothing":            "",
		"another version":    "push 2 sha1 - sam\nend 0\n",
		"unknown format":     "push 1 md5 - sam\nend 0\n",
		"no head":            "push 1 sha1 sam\nend 0\n",
		"no end":             "push 1 sha1 - sam\n" + command,
		"cut in end":         "push 1 sha1 - sam\n" + command + "end 1",
		"wrong count":        "push 1 sha1 - sam\n" + command + "end 2\n",
		"twice":              "push 1 sha1 - sam\n" + command + command + "end 2\n",
		"no change":          "push 1 sha1 - sam\n" + quickOnes + " " + quickOnes + " refs/heads/a\nend 1\n",
		"other format":       "push 1 sha256 - sam\n" + command + "end 1\n",
		"outside refs":       "push 1 sha1 - sam\n" + quickOnes + " " + quickTwos + " other/a\nend 1\n",
		"rescued":            "push 1 sha1 - sam\n" + quickOnes + " " + quickTwos + " refs/mirror/rescued/x\nend 1\n",
		"all that is ours":   "push 1 sha1 - sam\n" + quickOnes + " " + quickTwos + " refs/mirror\nend 1\n",
		"no valid name":      "push 1 sha1 - sam\n" + quickOnes + " " + quickTwos + " refs/heads/../a\nend 1\n",
		"upper case":         "push 1 sha1 - sam\n" + strings.Repeat("A", 40) + " " + quickTwos + " refs/heads/a\nend 1\n",
		"a line without end": "push 1 sha1 - sam\n" + strings.Repeat("x", 1<<20),
	} {
		if q, err := ReadQuickRequest(bufio.NewReader(strings.NewReader(text))); err == nil {
			t.Errorf("%s: %+v", name, q)
		}
	}
}

// names is an endless request with the longest names.
type names struct{ n int }

func (r *names) Read(p []byte) (int, error) {
	r.n++
	line := fmt.Sprintf("%s %s refs/heads/%d%s\n", quickOnes, quickTwos, r.n, strings.Repeat("/x", 30<<10))
	return copy(p, line), nil
}

func TestQuickRequestIsBounded(t *testing.T) {
	endless := io.MultiReader(strings.NewReader("push 1 sha1 - sam\n"), &names{})
	q, err := ReadQuickRequest(bufio.NewReaderSize(endless, 128<<10))
	if err == nil || !strings.Contains(err.Error(), "bytes of commands") || len(q.Commands) > 1100 {
		t.Errorf("%d commands, %v", len(q.Commands), err)
	}
}

func TestQuickAnswer(t *testing.T) {
	for _, want := range []QuickAnswer{
		{Digest: strings.Repeat("ab", 32), Head: "refs/heads/main"}, {Digest: strings.Repeat("ab", 32)}, {Stock: "hook declined"},
		{Digest: strings.Repeat("ab", 32), Head: "refs/heads/main", Note: "gitolite has not compiled conf/gitolite.conf"},
	} {
		var text bytes.Buffer
		WriteWorking(&text)
		WriteWorking(&text)
		if err := WriteQuickAnswer(&text, want); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadQuickAnswer(bufio.NewReader(&text)); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	for _, text := range []string{"", ".", ".\n", "done\n", "done x -\n", "done " + strings.Repeat("ab", 32) + "\n", "stock \n", "else\n", "stock x",
		"note x\n", "note x\nnote y\ndone " + strings.Repeat("ab", 32) + " -\n", "note \ndone " + strings.Repeat("ab", 32) + " -\n"} {
		if got, err := ReadQuickAnswer(bufio.NewReader(strings.NewReader(text))); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func FuzzQuickRequest(f *testing.F) {
	f.Add([]byte("push 1 sha1 refs/heads/main sam\n" + quickOnes + " " + quickZeros + " refs/heads/a\nend 1\nPACK"))
	f.Add([]byte("push 1 sha256 - sam\nend 0\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		q, err := ReadQuickRequest(bufio.NewReader(bytes.NewReader(text)))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := WriteQuickRequest(&again, q); err != nil {
			t.Fatal(err)
		}
		if q2, err := ReadQuickRequest(bufio.NewReader(&again)); err != nil || !cmp.Equal(q, q2) {
			t.Errorf("%+v reads back as %+v, %v", q, q2, err)
		}
	})
}

func FuzzQuickAnswer(f *testing.F) {
	f.Add([]byte(".\ndone " + strings.Repeat("ab", 32) + " refs/heads/main\n"))
	f.Add([]byte("stock the objects were not stored\n"))
	f.Add([]byte("note \x1b[2Jthe rules are old\n.\ndone " + strings.Repeat("ab", 32) + " -\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := ReadQuickAnswer(bufio.NewReader(bytes.NewReader(text)))
		if err != nil {
			return
		}
		var again bytes.Buffer
		WriteQuickAnswer(&again, a)
		if b, err := ReadQuickAnswer(bufio.NewReader(&again)); err != nil || a != b {
			t.Errorf("%+v reads back as %+v, %v", a, b, err)
		}
	})
}
