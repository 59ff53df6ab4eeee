package main

import (
	"os/exec"
	"testing"
	"time"
)

var when = time.Date(2026, 11, 22, 10, 57, 3, 0, time.UTC)

func TestDebianVersion(t *testing.T) {
	for described, want := range map[string]string{
		"v1.2.3":                  "1.2.3",
		"1.2":                     "1.2",
		"v1.2.3-dirty":            "1.2.3+dirty",
		"v1.2.3-rc1":              "1.2.3~rc1",
		"v1.2.3-rc.2-4-g0123abc":  "1.2.3~rc2+4.g0123abc",
		"v1.2.3-5-g0123456":       "1.2.3+5.g0123456",
		"v1.2.3-5-g0123456-dirty": "1.2.3+5.g0123456+dirty",
		"0123456":                 "0.1.0~git20261122105703.0123456",
		"1234567":                 "0.1.0~git20261122105703.1234567",
		"0123456-dirty":           "0.1.0~git20261122105703.0123456+dirty",
		"":                        "0.1.0~git20261122105703",
		"some-tag":                "0.1.0~git20261122105703",
	} {
		if got := debianVersion(described, when); got != want {
			t.Errorf("%s: %s, want %s", described, got, want)
		}
	}
}

// dpkg has the last word on what is newer.
func TestDebianVersionOrder(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("dpkg is not here")
	}
	order := []string{"0123456", "v0.1.0-rc1", "v0.1.0-rc1-3-g0123456", "v0.1.0", "v0.1.0-2-g0123456", "v0.1.0-11-gabcdef0", "v0.1.1", "v0.10.0"}
	for i := range len(order) - 1 {
		a, b := debianVersion(order[i], when), debianVersion(order[i+1], when)
		if out, err := exec.Command("dpkg", "--compare-versions", a, "lt", b).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s is not before %s: %v %s", a, b, err, out)
		}
	}
}
