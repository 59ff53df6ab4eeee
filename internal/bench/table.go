// Package bench measures what the project claims, each case beside its rival in
// the same run.
//
// The machines are shared and noisy, so one figure alone says little: a case is
// measured several times, in turns with its rival, and medians, spread and ratio
// are printed. `make bench` runs all cases; MIRROR_SHELL_BENCH_ROUNDS sets how
// often. The cases are tests, because they need the same real servers as tests.
package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// Sample is the times of one contestant.
type Sample struct {
	Name  string          `json:"name"`
	Times []time.Duration `json:"times_ns"`
}

// Median returns the middle time, 0 when there is none.
func (s Sample) Median() time.Duration {
	if len(s.Times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s.Times))
	return sorted[len(sorted)/2]
}

// quartiles returns the spread that holds the middle half.
func (s Sample) quartiles() (low, high time.Duration) {
	sorted := slices.Sorted(slices.Values(s.Times))
	return sorted[len(sorted)/4], sorted[len(sorted)*3/4]
}

// Case is contestants that did the same work in turns. The first is ours, the
// ratio is that of each rival's median to it.
type Case struct {
	Name    string   `json:"name"`
	Samples []Sample `json:"samples"`
	// Base, when set, is subtracted from every median before ratios are taken:
	// what the work costs without any contestant.
	Base *Sample `json:"base,omitempty"`
}

// Contestant is one way to do a case's work; it returns the time that counts.
type Contestant struct {
	Name string
	Run  func() time.Duration
}

// Measure runs the contestants in turns, after one turn that does not count.
func Measure(name string, rounds int, contestants ...Contestant) Case {
	c := Case{Name: name, Samples: make([]Sample, len(contestants))}
	for round := range rounds + 1 {
		for i, contestant := range contestants {
			took := contestant.Run()
			c.Samples[i].Name = contestant.Name
			if round > 0 {
				c.Samples[i].Times = append(c.Samples[i].Times, took)
			}
		}
	}
	return c
}

// Above takes the last contestant out of the race and makes it the base.
func (c Case) Above() Case {
	last := len(c.Samples) - 1
	base := c.Samples[last]
	c.Samples, c.Base = c.Samples[:last], &base
	return c
}

// Print writes the cases as a table.
func Print(w io.Writer, cases []Case) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "CASE\tCONTESTANT\tMEDIAN\tMIDDLE HALF\tRUNS\tRATIO TO OURS")
	for _, c := range cases {
		base := time.Duration(0)
		if c.Base != nil {
			base = c.Base.Median()
			fmt.Fprintf(tw, "%s\t(base: %s)\t%s\t%s\t%d\t\n", c.Name, c.Base.Name, ms(base), spread(*c.Base), len(c.Base.Times))
		}
		ours := c.Samples[0].Median() - base
		for _, s := range c.Samples {
			m := s.Median() - base
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%.2f\n", c.Name, s.Name, ms(m), spread(s), len(s.Times), float64(m)/float64(ours))
		}
	}
	return tw.Flush()
}

// JSON writes the cases with every single time.
func JSON(w io.Writer, cases []Case) error { return json.NewEncoder(w).Encode(cases) }

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

func spread(s Sample) string {
	low, high := s.quartiles()
	return ms(low) + " – " + ms(high)
}
