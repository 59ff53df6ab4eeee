package bench

import (
	"fmt"
	"math"
)

// Relation says how a target compares two medians, or one with a limit.
type Relation string

const (
	atMostTimes  Relation = "at most times"  // of ≤ limit × against
	atLeastTimes Relation = "at least times" // of × limit ≤ against
	atMost       Relation = "at most"        // of ≤ limit, in the case's unit
)

// Target is what a case must reach. AtMostTimes, Faster and AtMost make one.
type Target struct {
	Of       string   `json:"of"`                // contestant
	Against  string   `json:"against,omitempty"` // its rival
	Relation Relation `json:"relation"`
	Limit    float64  `json:"limit"`
}

// AtMostTimes: a contestant costs at most limit times what its rival does.
func AtMostTimes(of, against string, limit float64) Target {
	return Target{of, against, atMostTimes, limit}
}

// Faster: a contestant is at least limit times as fast as its rival.
func Faster(of, against string, limit float64) Target {
	return Target{of, against, atLeastTimes, limit}
}

// AtMost: a contestant's median is at most limit, in the case's unit.
func AtMost(of string, limit float64) Target { return Target{of, "", atMost, limit} }

// verdict is a target and what was measured.
type verdict struct {
	Target
	Value value `json:"value"` // what Limit limits
	Met   bool  `json:"met"`

	unit Unit
}

// value is a number, or in JSON null when there is none: contestants whose
// difference to the base is lost in noise have no ratio.
type value float64

func (v value) MarshalJSON() ([]byte, error) {
	if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
		return []byte("null"), nil
	}
	return fmt.Appendf(nil, "%g", float64(v)), nil
}

// judge compares a target with the medians. What could not be measured is not
// met.
func (c Case) judge(t Target) verdict {
	v := verdict{Target: t, unit: c.Unit}
	of := c.median(t.Of)
	switch t.Relation {
	case atMost:
		v.Value = value(of)
		v.Met = of <= t.Limit
	case atMostTimes:
		v.Value = ratio(of, c.median(t.Against))
		v.Met = float64(v.Value) <= t.Limit
	case atLeastTimes:
		v.Value = ratio(c.median(t.Against), of)
		v.Met = float64(v.Value) >= t.Limit
	default:
		panic(fmt.Sprintf("bench: unknown relation %q", t.Relation))
	}
	return v
}

// ratio of two medians, NaN when noise has made one of them nothing or less.
func ratio(a, b float64) value {
	if a <= 0 || b <= 0 {
		return value(math.NaN())
	}
	return value(a / b)
}

func (v verdict) word() string {
	if v.Met {
		return "met"
	}
	return "MISSED"
}

// measured and limit are for people, in the same terms.
func (v verdict) measured() string { return v.text(float64(v.Value)) }

func (v verdict) limit() string {
	if v.Relation == atLeastTimes {
		return "≥ " + v.text(v.Limit)
	}
	return "≤ " + v.text(v.Limit)
}

func (v verdict) text(f float64) string {
	if v.Relation == atMost {
		return v.unit.text(f)
	}
	return fmt.Sprintf("%.4g ×", f)
}

// what says what is compared.
func (v verdict) what() string {
	switch v.Relation {
	case atMost:
		return v.Of
	case atLeastTimes:
		return v.Of + " faster than " + v.Against
	}
	return v.Of + " against " + v.Against
}

func (v verdict) String() string {
	return fmt.Sprintf("%s, %s: %s, %s", v.what(), v.limit(), v.measured(), v.word())
}
