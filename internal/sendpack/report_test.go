package sendpack

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func parseReport(v2 bool, refs []string, stream string) (Report, error) {
	p := &reportParser{v2: v2}
	for _, ref := range refs {
		p.sent = append(p.sent, Command{Ref: ref})
	}
	err := p.read(newPktReader(strings.NewReader(stream)))
	return p.report, err
}

func lines(ls ...string) string {
	var b strings.Builder
	for _, l := range ls {
		b.WriteString(pkt(l))
	}
	return b.String()
}

func TestReport(t *testing.T) {
	sent := []string{"refs/heads/a", "refs/heads/b"}
	for name, c := range map[string]struct {
		v1   bool
		in   string
		want Report
		err  string
	}{
		"all well":       {in: lines("unpack ok\n", "ok refs/heads/a\n", "ok refs/heads/b") + flushPkt, want: Report{Refs: map[string]string{"refs/heads/a": "", "refs/heads/b": ""}}},
		"refused":        {in: lines("unpack ok\n", "ng refs/heads/a pre-receive hook declined\n", "ng refs/heads/b\n") + flushPkt, want: Report{Refs: map[string]string{"refs/heads/a": "pre-receive hook declined", "refs/heads/b": "refused without a reason"}}},
		"no line":        {in: lines("unpack ok\n", "ok refs/heads/b\n") + flushPkt, want: Report{Refs: map[string]string{"refs/heads/a": "no answer from peer", "refs/heads/b": ""}}},
		"unpack":         {in: lines("unpack eof \x1b]0;\n", "ng refs/heads/a unpacker error") + flushPkt, want: Report{Unpack: "eof ?]0;", Refs: map[string]string{"refs/heads/a": "unpacker error", "refs/heads/b": "no answer from peer"}}},
		"options":        {in: lines("unpack ok\n", "ok refs/heads/a\n", "option refname refs/x/a\n", "option forced-update", "ok refs/heads/a", "ok refs/heads/b") + flushPkt, want: Report{Refs: map[string]string{"refs/heads/a": "", "refs/heads/b": ""}}},
		"option in v1":   {v1: true, in: lines("unpack ok\n", "ok refs/heads/a\n", "option forced-update") + flushPkt, want: Report{Refs: map[string]string{"refs/heads/a": ""}}, err: "unknown line"},
		"option alone":   {in: lines("unpack ok\n", "option forced-update") + flushPkt, want: Report{Refs: map[string]string{}}, err: "unknown line"},
		"unknown line":   {in: lines("unpack ok\n", "maybe refs/heads/a") + flushPkt, want: Report{Refs: map[string]string{}}, err: "unknown line"},
		"no unpack":      {in: lines("ok refs/heads/a") + flushPkt, want: Report{Refs: map[string]string{}}, err: "want unpack"},
		"two unpacks":    {in: lines("unpack ok", "unpack ok") + flushPkt, want: Report{Refs: map[string]string{}}, err: "unknown line"},
		"empty":          {in: flushPkt, want: Report{Refs: map[string]string{}}, err: "empty"},
		"unknown ref":    {in: lines("unpack ok\n", "ok refs/heads/a", "ok refs/heads/c") + flushPkt, want: Report{Refs: map[string]string{"refs/heads/a": ""}}, err: "not sent"},
		"contradiction":  {in: lines("unpack ok\n", "ok refs/heads/a", "ng refs/heads/a no") + flushPkt, want: Report{Refs: map[string]string{"refs/heads/a": ""}}, err: "contradicts"},
		"broken off":     {in: lines("unpack ok\n", "ok refs/heads/a"), want: Report{Refs: map[string]string{"refs/heads/a": ""}}, err: "1 of 2 refs"},
		"ERR":            {in: lines("unpack ok\n", "ERR out of disk"), want: Report{Refs: map[string]string{}}, err: "peer says: out of disk"},
		"empty line":     {in: lines("unpack ok\n", "") + flushPkt, want: Report{Refs: map[string]string{}}, err: "unknown line"},
		"delim not here": {in: lines("unpack ok\n") + "0001", want: Report{Refs: map[string]string{}}, err: "not a pkt-line"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseReport(!c.v1, sent, c.in)
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

// encodeReport is the peer's side.
func encodeReport(rep Report) string {
	var b bytes.Buffer
	writePkt(&b, "unpack "+map[bool]string{true: "ok", false: rep.Unpack}[rep.Unpack == ""])
	for _, ref := range slices.Sorted(mapKeys(rep.Refs)) {
		if why := rep.Refs[ref]; why == "" {
			writePkt(&b, "ok "+ref+"\n")
		} else {
			writePkt(&b, "ng "+ref+" "+why+"\n")
		}
	}
	b.WriteString(flushPkt)
	return b.String()
}

func FuzzReport(f *testing.F) {
	sent := []string{"refs/heads/a", "refs/heads/b"}
	f.Add(true, lines("unpack ok\n", "ok refs/heads/a\n", "option forced-update\n", "ng refs/heads/b hook\n")+flushPkt)
	f.Add(false, lines("unpack ok", "ok refs/heads/a")+flushPkt)
	f.Add(true, lines("unpack x", "ERR y"))
	f.Add(true, "0003")
	f.Add(true, lines("unpack ", "ng refs/heads/a \xff\x00")+flushPkt)
	f.Fuzz(func(t *testing.T, v2 bool, in string) {
		rep, err := parseReport(v2, sent, in)
		for ref, why := range rep.Refs {
			if !slices.Contains(sent, ref) || len(why) > maxText+len("…") {
				t.Fatalf("entry %q: %q", ref, why)
			}
		}
		if err != nil {
			return
		}
		if len(rep.Refs) != len(sent) {
			t.Fatalf("a complete report has entries for %d of %d refs", len(rep.Refs), len(sent))
		}
		again, err := parseReport(v2, sent, encodeReport(rep))
		if d := cmp.Diff(rep, again); err != nil || d != "" {
			t.Fatalf("round trip: %v\n%s", err, d)
		}
	})
}
