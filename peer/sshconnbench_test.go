package peer

import (
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/proc"
)

// BenchmarkOpen runs `true` in each way, by turns, and reports the medians in
// milliseconds.
func BenchmarkOpen(b *testing.B) {
	s := newSSHD(b, "")
	direct := s.config(b, "")
	shared := s.dir + "/shared_config"
	write(b, shared, strings.Replace(read(b, direct), "Host frodo\n", "Host frodo\nCompression yes\n", 1)) // which only ssh does
	here := keep(b, s, Options{ConfigFile: direct})
	master := keep(b, s, Options{ConfigFile: shared})
	ways := []struct {
		name string
		run  func() error
		took []time.Duration
	}{
		{name: "kept", run: func() error { return once(b, here) }},
		{name: "ControlMaster", run: func() error { return once(b, master) }},
		{name: "new-ssh", run: func() error {
			argv := proc.SSH("frodo", "true")
			_, err := proc.Run(proc.Command(b.Context(), nil, slices.Concat(argv[:1], []string{"-F", direct}, argv[1:])...))
			return err
		}},
	}
	for _, way := range ways {
		if err := way.run(); err != nil { // connects
			b.Fatal(way.name, err)
		}
	}
	for b.Loop() {
		for i := range ways {
			began := time.Now()
			if err := ways[i].run(); err != nil {
				b.Fatal(err)
			}
			ways[i].took = append(ways[i].took, time.Since(began))
		}
	}
	for _, way := range ways {
		slices.Sort(way.took)
		b.ReportMetric(float64(way.took[len(way.took)/2].Microseconds())/1000, way.name+"-ms")
	}
}

func once(b *testing.B, c Transport) error {
	_, _, err := run(b.Context(), c, "true", "")
	return err
}

// BenchmarkThroughput sends 64 MiB to `cat` and back.
func BenchmarkThroughput(b *testing.B) {
	s := newSSHD(b, "")
	s.config(b, "")
	c := keep(b, s, Options{})
	big := strings.Repeat("0123456789abcdef", 4<<20)
	b.SetBytes(int64(2 * len(big)))
	for b.Loop() {
		if out, _, err := run(b.Context(), c, "cat", big); err != nil || len(out) != len(big) {
			b.Fatal(len(out), err)
		}
	}
}
