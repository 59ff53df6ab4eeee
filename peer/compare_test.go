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

func FuzzStandings(f *testing.F) {
	f.Add(strings.Repeat("0a", 32) + " refs/heads/main a/b\n! no such thing - ip1\nEND 2 sam\n")
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
		if again, _, err := ReadStandings(&stream); err != nil || !maps.Equal(got, again) {
			t.Fatalf("%q reads as %v, and written as %v, %v", text, got, again, err)
		}
	})
}
