package sendpack

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mapKeys(m map[string]string) iter.Seq[string] { return maps.Keys(m) }

// encodeAdvert is the peer's side of ReadAdvertisement.
func encodeAdvert(adv *Advertisement) string {
	var rows []string
	for _, name := range slices.Sorted(mapKeys(adv.Refs)) {
		rows = append(rows, adv.Refs[name]+" "+name)
	}
	for _, oid := range adv.Haves {
		rows = append(rows, oid+" .have")
	}
	if len(rows) == 0 {
		n, _ := oidLen(adv.ObjectFormat)
		rows = []string{strings.Repeat("0", n) + " capabilities^{}"}
	}
	rows[0] += "\x00" + strings.Join(adv.Caps, " ")
	var b bytes.Buffer
	for _, row := range rows {
		writePkt(&b, row+"\n")
	}
	b.WriteString(flushPkt)
	return b.String()
}

func TestReadAdvertisement(t *testing.T) {
	sha256 := strings.Repeat("c", 64)
	for name, c := range map[string]struct {
		in   string
		want *Advertisement
		err  string
	}{
		"empty repository": {in: lines(zero1+" capabilities^{}\x00report-status object-format=sha1\n") + flushPkt,
			want: &Advertisement{Refs: map[string]string{}, Caps: Caps{"report-status", "object-format=sha1"}, ObjectFormat: SHA1}},
		"version, refs, haves, shallow": {in: lines("version 1", oidB+" .have\x00 report-status agent=x\n", oidA+" HEAD", oidA+" refs/heads/a\n", oidB+" refs/tags/t", oidA+" refs/tags/t^{}", "shallow "+oidA) + flushPkt,
			want: &Advertisement{Refs: map[string]string{"refs/heads/a": oidA, "refs/tags/t": oidB}, Haves: []string{oidB}, Caps: Caps{"report-status", "agent=x"}, ObjectFormat: SHA1}},
		"sha256": {in: lines(sha256+" refs/heads/a\x00object-format=sha256") + flushPkt,
			want: &Advertisement{Refs: map[string]string{"refs/heads/a": sha256}, Caps: Caps{"object-format=sha256"}, ObjectFormat: SHA256}},
		"nothing at all":      {in: flushPkt, want: &Advertisement{Refs: map[string]string{}, ObjectFormat: SHA1}},
		"no word":             {in: "", err: "without a word"},
		"shell's noise":       {in: "Welcome to \x1b[1mhost\x1b[0m\n" + pkt(oidA+" refs/heads/a") + flushPkt, err: `peer does not speak the git protocol: it said "Welcome to ?[1mhost?[0m`},
		"refusal":             {in: "fatal: frodo <==//== sam: ip1 is local", err: "it said \"fatal: frodo <==//== sam: ip1 is local\""},
		"hex-like noise":      {in: "Dead end\n", err: `it said "Dead end"`},
		"three bytes":         {in: "no\n", err: `it said "no"`},
		"endless noise":       {in: strings.Repeat("blah ", 1000), err: "…"},
		"noise later":         {in: lines(oidA+" refs/heads/a\x00report-status") + "Killed\n", err: `after line 1: not a pkt-line: it begins with "Kill"`},
		"ERR":                 {in: lines("ERR no such repository\n"), err: "peer says: no such repository"},
		"version 2":           {in: lines("version 2\n"), err: "protocol version 2"},
		"broken off":          {in: lines(oidA + " refs/heads/a\x00report-status"), err: "broke off after line 1"},
		"within a line":       {in: lines(oidA+" refs/heads/a\x00report-status") + "0040" + oidA, err: "broke off after line 1"},
		"twice":               {in: lines(oidA+" refs/heads/a\x00", oidA+" refs/heads/a"), err: "advertised twice"},
		"bad name":            {in: lines(oidA+" refs/heads/a..b\x00", oidA+" refs/heads/a"), err: "not a valid ref name"},
		"one level":           {in: lines(oidA + " MAIN\x00"), err: "not a valid ref name"},
		"NUL later":           {in: lines(oidA+" refs/heads/a\x00", oidA+" refs/heads/b\x00x"), err: "not a valid ref name"},
		"mixed lengths":       {in: lines(oidA+" refs/heads/a\x00", sha256+" refs/heads/b"), err: "40 digits"},
		"sha256 unannounced":  {in: lines(sha256 + " refs/heads/a\x00report-status"), err: "40 digits"},
		"upper case":          {in: lines(strings.ToUpper(oidA) + " refs/heads/a\x00report-status"), err: "40 digits"},
		"null id":             {in: lines(zero1 + " refs/heads/a\x00report-status"), err: "broken there"},
		"capabilities later":  {in: lines(oidA+" refs/heads/a\x00", zero1+" capabilities^{}"), err: "broken there"},
		"peeled out of place": {in: lines(oidA+" refs/heads/a\x00", oidA+" refs/heads/b^{}"), err: "not a valid ref name"},
		"unknown format":      {in: lines(oidA + " refs/heads/a\x00object-format=sha3"), err: "sha3"},
		"bad shallow":         {in: lines(oidA+" refs/heads/a\x00", "shallow 12"), err: "shallow"},
		"empty line":          {in: lines(oidA+" refs/heads/a\x00", ""), err: "line 2"},
		"delim":               {in: lines(oidA+" refs/heads/a\x00") + "0001", err: "not allowed"},
		"longest line":        {in: lines(oidA+" refs/"+strings.Repeat("a", maxPayload-40-1-5-1)+"\x00") + "fff1", err: "not allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			// What follows the flush belongs to Push.
			r := io.MultiReader(strings.NewReader(c.in), strings.NewReader("rest"))
			if c.want == nil {
				r = strings.NewReader(c.in)
			}
			got, err := ReadAdvertisement(r)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("error of %d bytes: %v", len(err.Error()), err)
			}
			if d := cmp.Diff(c.want, got); err == nil && d != "" {
				t.Error(d)
			}
			if rest, _ := io.ReadAll(r); err == nil && string(rest) != "rest" {
				t.Errorf("left %q", rest)
			}
		})
	}
}

func TestAdvertisementLimits(t *testing.T) {
	in := encodeAdvert(&Advertisement{Refs: map[string]string{"refs/heads/a": oidA, "refs/heads/b": oidA}, Haves: []string{oidA}, ObjectFormat: SHA1})
	for lim, ok := range map[limits]bool{{3, 1000}: true, {2, 1000}: false, {3, 152}: true, {3, 151}: false} {
		if _, err := readAdvertisement(strings.NewReader(in), lim); (err == nil) != ok {
			t.Errorf("limits %v: %v", lim, err)
		}
	}
}

func FuzzAdvertisement(f *testing.F) {
	f.Add(lines(zero1+" capabilities^{}\x00report-status object-format=sha1\n") + flushPkt)
	f.Add(lines("version 1", oidB+" .have\x00 report-status agent=x\n", oidA+" HEAD", oidA+" refs/heads/a\n", oidB+" refs/tags/t", oidA+" refs/tags/t^{}", "shallow "+oidA) + flushPkt)
	f.Add(lines(strings.Repeat("c", 64)+" refs/heads/a\x00object-format=sha256") + flushPkt)
	f.Add("Welcome\n")
	f.Add(lines("ERR no"))
	f.Fuzz(func(t *testing.T, in string) {
		adv, err := ReadAdvertisement(strings.NewReader(in))
		if err != nil {
			if len(err.Error()) > 3*maxText {
				t.Fatalf("error of %d bytes", len(err.Error()))
			}
			return
		}
		n, _ := oidLen(adv.ObjectFormat)
		for name, oid := range adv.Refs {
			if !ValidRef(name) || !validOID(oid, n) || isZero(oid) {
				t.Fatalf("let through %q %q", oid, name)
			}
		}
		if strings.Contains(strings.Join(adv.Caps, ""), "\n") {
			t.Fatalf("capabilities %q", adv.Caps)
		}
		again, err := ReadAdvertisement(strings.NewReader(encodeAdvert(adv)))
		if err != nil {
			t.Fatalf("round trip: %v", err)
		}
		if d := cmp.Diff(adv, again, equalEmpty); d != "" {
			t.Fatal(d)
		}
	})
}

var equalEmpty = cmp.Transformer("len", func(c Caps) []string { return append([]string{}, c...) })

// git is asked about every name: names of all short combinations of what its rules are about, and longer ones.
func TestValidRefAgreesWithGit(t *testing.T) {
	names := []string{"refs/heads/main", "refs/heads/ä", "refs/heads/\xff", "refs/heads/a.lock", "refs/a.lock/b", "refs/heads/a.lockx", "refs/.lock/b",
		"refs//a", "/refs/a", "refs/a/", "refs/heads/@", "refs/heads/@{", "refs/@/a", "@/a", "refs/a@{b", "refs/heads/a.", "refs/heads./a", "refs/heads/.a",
		"refs/heads/a..b", "refs/heads/-", "main", "@", "HEAD", "refs/heads/a\x7f", "refs/heads/a\tb", "refs/heads/a\nb", "refs/heads/a b", "refs/heads/" + strings.Repeat("x", 5000)}
	for _, c := range "~^:?*[\\.@{}]!\"#$%&'()+,;<=>_`|-" {
		names = append(names, "refs/heads/"+string(c), "refs/a"+string(c)+"b/c", "refs/"+string(c)+".", "a/"+string(c)+"{")
	}
	parts := []string{".", "/", "a", "@", "{", ".lock"}
	for _, a := range parts {
		for _, b := range parts {
			for _, c := range parts {
				names = append(names, "r/"+a+b+c)
			}
		}
	}
	for _, name := range names {
		want := exec.Command("git", "check-ref-format", name).Run() == nil
		if got := ValidRef(name); got != want {
			t.Errorf("ValidRef(%.80q) = %v, git says %v", name, got, want)
		}
	}
	if ValidRef("") || ValidRef("refs/\x00") {
		t.Error("an empty name or a NUL is accepted")
	}
}

func BenchmarkReadAdvertisement50000(b *testing.B) {
	adv := &Advertisement{Refs: map[string]string{}, Caps: allCaps, ObjectFormat: SHA1}
	for i := range 50_000 {
		adv.Refs[fmt.Sprintf("refs/heads/team-%03d/topic-%05d", i%200, i)] = fmt.Sprintf("%040x", i+1)
	}
	in := encodeAdvert(adv)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		got, err := ReadAdvertisement(strings.NewReader(in))
		if err != nil || len(got.Refs) != 50_000 {
			b.Fatal(err)
		}
	}
}
