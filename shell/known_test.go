package shell

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"mirror-shell/internal/refset"
	"mirror-shell/internal/rescue"
)

func TestMirrorKnown(t *testing.T) {
	s := newTestServer(t, "")
	dir := s.bare("sams", "master=sam")
	sent, confirmed, other := strings.Repeat("a", 40), strings.Repeat("b", 40), strings.Repeat("c", 40)
	log, err := refset.Open(refset.Received(dir))
	if err == nil {
		err = log.Confirm([]refset.Entry{{Ref: "refs/heads/main", OID: confirmed}})
	}
	if err == nil {
		err = log.Sending([]refset.Entry{{Ref: "refs/heads/main", OID: sent}})
	}
	if err != nil {
		t.Fatal(err)
	}
	log.Close()
	ask := func(question string) *testRun {
		r := s.session("mirror-known 'sams'")
		r.Stdin = strings.NewReader(question)
		return r.peer(t, "sam")
	}
	question := confirmed + " refs/heads/main\n" + other + " refs/heads/main\n" + sent + " refs/heads/main\n" + confirmed + " refs/heads/other\n"
	if r := ask(question); r.status != 0 || r.out.String() != "received\nforeign\nreceived\nforeign\nEND 4\n" || r.execs != 0 {
		t.Errorf("%d, %s%s", r.status, r.out.String(), r.err.String())
	}
	if r := ask(""); r.status != 0 || r.out.String() != "END 0\n" {
		t.Errorf("%d, %s", r.status, r.out.String())
	}
	for bad, why := range map[string]string{
		other + " refs/heads/main":                     "line 1 is cut off",
		question + "x\n":                               `line 5, "x\n", is not OID REF`,
		other + " main\n":                              "is not OID REF",
		strings.Repeat("g", 40) + " refs/heads/main\n": "is not OID REF",
		"\n": "is not OID REF",
		other + " refs/" + strings.Repeat("x", 1<<16) + "\n": "longer than",
		strings.Repeat(other+" refs/x\n", maxKnownLines+1):   "more than",
	} {
		r := ask(bad)
		if r.status != 1 || r.out.Len() > 0 || !strings.Contains(r.err.String(), "fatal: frodo: mirror-known: ") || !strings.Contains(r.err.String(), why) {
			t.Errorf("%.60q: %d, %.100s%s", bad, r.status, r.out.String(), r.err.String())
		}
	}
	// Damaged or lost, it knows nothing.
	if err := os.WriteFile(refset.Received(dir), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := ask(question); r.status != 0 || r.out.String() != "foreign\nforeign\nforeign\nforeign\nEND 4\n" {
			t.Errorf("%d, %s%s", r.status, r.out.String(), r.err.String())
		}
		os.Remove(refset.Received(dir))
	}
}

func FuzzAnswerKnown(f *testing.F) {
	f.Add(strings.Repeat("a", 40) + " refs/heads/main\n")
	f.Fuzz(func(t *testing.T, question string) {
		answer, err := answerKnown(strings.NewReader(question), func(ref, oid string) bool {
			if !strings.Contains(question, oid+" "+ref+"\n") {
				t.Errorf("%q is asked for %q %q", question, oid, ref)
			}
			return true
		})
		if lines := strings.Count(question, "\n"); err == nil && strings.Count(string(answer), "received\n") != lines {
			t.Errorf("%q is answered %q", question, answer)
		}
	})
}

func TestMirrorRescued(t *testing.T) {
	s := newTestServer(t, "")
	dir := s.bare("sams", "master=sam")
	if r := s.session("mirror-rescued 'sams'").peer(t, "sam"); r.status != 0 || r.out.String() != "[]\n" {
		t.Errorf("%d, %s%s", r.status, r.out.String(), r.err.String())
	}
	oid := testCommit(t, dir, "one")
	name := "20261122T035557Z-" + oid[:8] + "/refs/heads/main"
	testGit(t, dir, "update-ref", "refs/mirror/rescued/"+name, oid)
	r := s.session("mirror-rescued 'sams'").peer(t, "sam")
	var entries []rescue.Entry
	if err := json.Unmarshal(r.out.Bytes(), &entries); err != nil || len(entries) != 1 || entries[0].Name != name || entries[0].OID != oid || entries[0].Check() != nil {
		t.Errorf("%d, %v, %s", r.status, err, r.out.String())
	}
	s.session("mirror-rescued 'sams'").peer(t, "gollum").refused(t, "the master of sams is sam")
	s.session("mirror-rescued 'sams'").user(t, "alice").refused(t, "alice may not send mirror-rescued")
}
