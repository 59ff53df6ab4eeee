package faults

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"mirror-shell/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// TestFaults plays a short history, or with make faults the one that the
// environment asks for.
func TestFaults(t *testing.T) {
	o := Options{
		Seed: number(t, "SEED", 1), Pushes: int(number(t, "PUSHES", 36)), Faults: int(number(t, "FAULTS", 12)),
		Dir: os.Getenv("MIRROR_SHELL_FAULTS_DIR"),
	}
	o.Keep = o.Dir != ""
	if o.Dir == "" {
		o.Dir = filepath.Join(os.TempDir(), "mirror-shell-faults", strconv.FormatInt(time.Now().UnixNano(), 36))
	}
	o.Kinds = AllKinds()
	if os.Getenv("MIRROR_SHELL_FAULTS_DATABASE") != "" {
		o.Kinds = append(o.Kinds, DatabaseKinds()...)
	}
	report := Run(t, o)
	if len(report.Problems) > 0 {
		t.Errorf("%s", report)
	} else {
		t.Logf("%s", report)
	}
}

// number reads a setting of make faults.
func number(t *testing.T, name string, normally uint64) uint64 {
	t.Helper()
	text := os.Getenv("MIRROR_SHELL_FAULTS_" + name)
	if text == "" {
		return normally
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
