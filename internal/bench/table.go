// Package bench measures what the project claims, each case beside its rival in
// the same run.
//
// The machines are shared and noisy, so one figure alone says little: a case is
// measured several times, in turns with its rival, and medians, spread and ratio
// are printed. What must be reached is part of the case, and whether it was is
// part of the result; a target missed is no failure of the run.
//
// `make bench` runs all cases. The environment may say otherwise:
//
//	MIRROR_SHELL_BENCH_ONLY=TEXT    only cases whose name contains TEXT
//	MIRROR_SHELL_BENCH_ROUNDS=N     how often each contestant runs; 15
//	MIRROR_SHELL_BENCH_JSON=FILE    also writes all figures there (see JSON)
//
// The cases are tests, because they need the same real servers as tests.
package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
	"time"
)

// Unit is what figures count.
type Unit string

const (
	Nanoseconds Unit = "ns"
	Bytes       Unit = "bytes"
	Count       Unit = "count"
)

// text is a figure for people.
func (u Unit) text(v float64) string {
	switch {
	case u == Count:
		return fmt.Sprintf("%.4g", v)
	case u == Bytes && v < 1<<20:
		return fmt.Sprintf("%.1f KiB", v/(1<<10))
	case u == Bytes:
		return fmt.Sprintf("%.1f MiB", v/(1<<20))
	}
	return fmt.Sprintf("%.2f ms", v/float64(time.Millisecond))
}

// Sample is the figures of one contestant.
type Sample struct {
	Name   string    `json:"name"`
	Values []float64 `json:"values"`
}

// Median returns the middle figure, NaN when there is none.
func (s Sample) Median() float64 { return s.at(1, 2) }

// at returns the figure below which n of m parts of all lie.
func (s Sample) at(n, m int) float64 {
	if len(s.Values) == 0 {
		return math.NaN()
	}
	return slices.Sorted(slices.Values(s.Values))[len(s.Values)*n/m]
}

// Case is contestants that did the same work in turns. The first is ours, the
// ratio in the table is that of each median to it.
type Case struct {
	Name    string
	Unit    Unit
	Samples []Sample
	// Base, when set, is subtracted from every median before ratios are taken:
	// what the work costs without any contestant.
	Base    *Sample
	Targets []Target
}

// Contestant is one way to do a case's work; it returns the time that counts.
type Contestant struct {
	Name string
	Run  func() time.Duration
}

// Measure runs the contestants in turns, after one turn that does not count.
func Measure(name string, rounds int, contestants ...Contestant) Case {
	c := Case{Name: name, Unit: Nanoseconds, Samples: make([]Sample, len(contestants))}
	for round := range rounds + 1 {
		for i, contestant := range contestants {
			took := contestant.Run()
			c.Samples[i].Name = contestant.Name
			if round > 0 {
				c.Samples[i].Values = append(c.Samples[i].Values, float64(took))
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

// Must adds targets. Their contestants must exist.
func (c Case) Must(targets ...Target) Case {
	for _, t := range targets {
		c.median(t.Of)
		if t.Against != "" {
			c.median(t.Against)
		}
	}
	c.Targets = append(c.Targets, targets...)
	return c
}

// median returns a contestant's median above the base. It panics when there is
// no such contestant, which is a mistake in a case.
func (c Case) median(name string) float64 {
	base := 0.0
	if c.Base != nil {
		base = c.Base.Median()
	}
	for _, s := range c.Samples {
		if s.Name == name {
			return s.Median() - base
		}
	}
	panic(fmt.Sprintf("bench: case %q has no contestant %q", c.Name, name))
}

// Print writes a case as a table, with its targets below.
func (c Case) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "%s\tMEDIAN\tMIDDLE HALF\tRUNS\tRATIO TO OURS\n", c.Name)
	line := func(name string, median float64, s Sample, ratio string) {
		fmt.Fprintf(tw, "  %s\t%s\t%s – %s\t%d\t%s\n", name, c.Unit.text(median),
			c.Unit.text(s.at(1, 4)), c.Unit.text(s.at(3, 4)), len(s.Values), ratio)
	}
	if c.Base != nil {
		line("("+c.Base.Name+", taken off the medians below)", c.Base.Median(), *c.Base, "")
	}
	ours := c.median(c.Samples[0].Name)
	for _, s := range c.Samples {
		m := c.median(s.Name)
		line(s.Name, m, s, fmt.Sprintf("%.2f", m/ours))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, t := range c.Targets {
		if _, err := fmt.Fprintf(w, "  target: %s\n", c.judge(t)); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

// PrintTargets writes what became of all targets, one in a line.
func PrintTargets(w io.Writer, cases []Case) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "RESULT\tMEASURED\tTARGET\tCASE\tWHAT")
	for _, c := range cases {
		for _, t := range c.Targets {
			v := c.judge(t)
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", v.word(), v.measured(), v.limit(), c.Name, v.what())
		}
	}
	return tw.Flush()
}

// JSON writes the cases as one array of objects, with every single figure and
// with what became of the targets:
//
//	{"name": …, "unit": "ns" or "bytes", "samples": [{"name": …, "values": […]}],
//	 "base": {"name": …, "values": […]},
//	 "targets": [{"of": …, "against": …, "relation": …, "limit": 4, "value": 3.1, "met": true}]}
func JSON(w io.Writer, cases []Case) error {
	type object struct {
		Name    string    `json:"name"`
		Unit    Unit      `json:"unit"`
		Samples []Sample  `json:"samples"`
		Base    *Sample   `json:"base,omitempty"`
		Targets []verdict `json:"targets"`
	}
	all := []object{}
	for _, c := range cases {
		o := object{c.Name, c.Unit, c.Samples, c.Base, []verdict{}}
		for _, t := range c.Targets {
			o.Targets = append(o.Targets, c.judge(t))
		}
		all = append(all, o)
	}
	return json.NewEncoder(w).Encode(all)
}
