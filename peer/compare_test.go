package peer

import (
	"bytes"
	"maps"
	"strings"
	"testing"
)

func TestStandingsRoundTrip(t *testing.T) {
	want := map[string]Standing{
		"ip1":   {Digest: strings.Repeat("0a", 32), Head: "refs/heads/main"},
		"a/b":   {Digest: strings.Repeat("ff", 32)},
		"@odd":  {Reason: "ref refs/heads/x is broken", Head: "refs/heads/main"},
		"gone.": {Reason: "x"},
	}
	var stream bytes.Buffer
	for repo, s := range want {
		if err := WriteStanding(&stream, repo, s); err != nil {
			t.Fatal(err)
		}
	}
	WriteEnd(&stream, len(want), "sam")
	WriteNote(&stream, "ip1", "not\napplied\x1b: x")
	WriteNote(&stream, "ip1", "twice")
	WriteNote(&stream, "other", "not among them")
	s := want["ip1"]
	s.Says = "not applied : x"
	want["ip1"] = s
	got, hostname, err := ReadStandings(&stream)
	if err != nil || hostname != "sam" || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestStandingsRefused(t *testing.T) {
	line := strings.Repeat("0a", 32) + " - ip1\n"
	for name, text := range map[string]string{
		"nothing":        "",
		"without END":    line,
		"cut in END":     line + "END ",
		"nobody's":       line + "END 1\n",
		"wrong count":    line + "END 2 sam\n",
		"twice":          line + line + "END 2 sam\n",
		"short digest":   line[1:] + "END 1 sam\n",
		"bad name":       strings.Repeat("0a", 32) + " - ../x\nEND 1 sam\n",
		"no reason":      "!  - ip1\nEND 1 sam\n",
		"login noise":    "Welcome!\nEND 0 sam\n",
		"over-long line": strings.Repeat("x", maxStanding+1) + "\nEND 0 sam\n",
	} {
		if got, _, err := ReadStandings(strings.NewReader(text)); err == nil {
			t.Errorf("%s: %v is accepted", name, got)
		}
	}
}

// What stands after the END is told or not, and takes nothing away from what stands before; a peer that goes on
// for ever is not listened to.
func TestStandingsNotes(t *testing.T) {
	head := strings.Repeat("0a", 32) + " - ip1\nEND 1 sam\n"
	for name, c := range map[string]struct{ after, says string }{
		"cut off":       {"NOTE ip1 it is wr", "it is wr"},
		"no note":       {"NOTE ip1\n", ""},
		"something new": {"MORE ip1 x\nNOTE ip1 y\n", "y"},
		"too late":      {strings.Repeat("MORE\n", maxNotes) + "NOTE ip1 y\n", ""},
		"over-long":     {"NOTE ip1 " + strings.Repeat("x", maxStanding) + "\nNOTE ip1 y\n", ""},
		"long":          {"NOTE ip1 " + strings.Repeat("x", 4000) + "\n", strings.Repeat("x", maxPeerNote/2) + "…" + strings.Repeat("x", maxPeerNote/2)},
	} {
		got, _, err := ReadStandings(strings.NewReader(head + c.after))
		if err != nil || got["ip1"].Says != c.says || got["ip1"].Digest == "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func FuzzStandings(f *testing.F) {
	f.Add(strings.Repeat("0a", 32) + " refs/heads/main a/b\n! no such thing - ip1\nEND 2 sam\n")
	f.Add(strings.Repeat("0a", 32) + " - a/b\nEND 1 sam\nNOTE a/b it is wrong\nNOTE \nNOTE x\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, hostname, err := ReadStandings(strings.NewReader(text))
		if err != nil {
			return
		}
		var stream bytes.Buffer
		for repo, s := range got {
			WriteStanding(&stream, repo, s)
		}
		WriteEnd(&stream, len(got), hostname)
		for repo, s := range got {
			if s.Says != "" {
				WriteNote(&stream, repo, s.Says)
			}
		}
		if again, _, err := ReadStandings(&stream); err != nil || !maps.Equal(got, again) {
			t.Fatalf("%q reads as %v, and written as %v, %v", text, got, again, err)
		}
	})
}
