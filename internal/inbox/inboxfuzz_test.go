package inbox

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func FuzzParse(f *testing.F) {
	for _, e := range []Event{event("ip1", "sam", "gollum"), event("projects/<&>é", "tahoe")} {
		data, err := encode(e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"repository":"r","peers":["p"],"origin":"list","time":"2026-11-22T03:55:57+01:00"} x`))
	f.Add([]byte(`{"REPOSITORY":"r","peers":["\ud800"],"origin":"explicit","time":"0001-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parse(data)
		if err != nil {
			return
		}
		again, err := encode(e)
		if err != nil {
			if _, merr := e.Time.UTC().MarshalText(); merr != nil || len(data) > maxEventBytes/6 {
				return // a zone that leads out of year 9999 in UTC, or growth by escapes
			}
			t.Fatalf("parsed %q but cannot write it: %v", data, err)
		}
		back, err := parse(again)
		if err != nil {
			t.Fatalf("wrote %q but cannot read it: %v", again, err)
		}
		if !back.Time.Equal(e.Time) {
			t.Fatalf("time %v became %v", e.Time, back.Time)
		}
		back.Time, e.Time = time.Time{}, time.Time{}
		if diff := cmp.Diff(e, back); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzIDOf(f *testing.F) {
	f.Add("1763783757123456789-0a1b2c3d.json")
	f.Add("1763783757123456789-0A1B2C3D.json")
	f.Fuzz(func(t *testing.T, name string) {
		id, ok := idOf(name)
		if ok && name != name[:19]+"-"+id+".json" {
			t.Fatalf("%q → %q", name, id)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	box := New(b.TempDir())
	for b.Loop() {
		mustPut(b, box, event("ip1", "sam", "gollum"))
	}
}
