package bench_test

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/bench"
)

// figures makes a case of three contestants and a base.
func figures() bench.Case {
	ms := float64(time.Millisecond)
	return bench.Case{Name: "walk", Unit: bench.Nanoseconds, Samples: []bench.Sample{
		{Name: "ours", Values: []float64{30 * ms, 12 * ms, 11 * ms}},
		{Name: "rival", Values: []float64{50 * ms, 50 * ms, 10 * ms}},
		{Name: "base", Values: []float64{2 * ms}},
	}}.Above()
}

func TestTargets(t *testing.T) {
	ms := float64(time.Millisecond)
	for _, tc := range []struct {
		target bench.Target
		want   string
	}{
		{bench.AtMostTimes("rival", "ours", 4.8), "rival against ours, ≤ 4.8 ×: 4.8 ×, met"},
		{bench.AtMostTimes("rival", "ours", 4.7), "rival against ours, ≤ 4.7 ×: 4.8 ×, MISSED"},
		{bench.Faster("ours", "rival", 4.8), "ours faster than rival, ≥ 4.8 ×: 4.8 ×, met"},
		{bench.Faster("ours", "rival", 5), "ours faster than rival, ≥ 5 ×: 4.8 ×, MISSED"},
		{bench.AtMost("ours", 10*ms), "ours, ≤ 10.00 ms: 10.00 ms, met"},
		{bench.AtMost("ours", 9*ms), "ours, ≤ 9.00 ms: 10.00 ms, MISSED"},
	} {
		var out bytes.Buffer
		if err := figures().Must(tc.target).Print(&out); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "target: "+tc.want+"\n") {
			t.Errorf("want %q in\n%s", tc.want, out.String())
		}
	}
}

// TestLostInNoise: a contestant that seems to cost less than the base has no
// ratio, and reaches nothing by that.
func TestLostInNoise(t *testing.T) {
	c := figures()
	c.Samples[0].Values = []float64{1}
	c = c.Must(bench.AtMostTimes("ours", "rival", 4), bench.Faster("ours", "rival", 4))
	var out bytes.Buffer
	if err := bench.JSON(&out, []bench.Case{c}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), `"value":null,"met":false`); n != 2 {
		t.Errorf("%d of 2 targets are unknown: %s", n, out.String())
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	memory := bench.Case{Name: "memory", Unit: bench.Bytes, Samples: []bench.Sample{{Name: "rss", Values: []float64{3 << 20}}}}
	if err := bench.JSON(&out, []bench.Case{figures().Must(bench.Faster("ours", "rival", 5)), memory.Must(bench.AtMost("rss", 4<<20))}); err != nil {
		t.Fatal(err)
	}
	var got []struct {
		Name, Unit string
		Samples    []struct{ Values []float64 }
		Base       *struct{ Name string }
		Targets    []struct {
			Of, Against, Relation string
			Limit, Value          float64
			Met                   bool
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Base == nil || got[0].Base.Name != "base" || len(got[0].Samples[0].Values) != 3 || got[1].Unit != "bytes" {
		t.Errorf("%+v", got)
	}
	if f := got[0].Targets[0]; math.Abs(f.Value-4.8) > 1e-9 || f.Limit != 5 || f.Met || f.Relation != "at least times" {
		t.Errorf("%+v", f)
	}
	if m := got[1].Targets[0]; m.Value != 3<<20 || !m.Met || m.Against != "" {
		t.Errorf("%+v", m)
	}
}

func TestUnknownContestant(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a target of a contestant that does not exist is accepted")
		}
	}()
	figures().Must(bench.AtMost("hours", 1))
}
