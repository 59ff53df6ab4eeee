// Package strace lets a test see which system calls a process makes, and in what order: from that
// can be told what a power cut would leave of its files.
package strace

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Child runs one test of the program that calls it, by its name, as a process of its own, with one more variable ("NAME=value") in
// its environment by which it knows that it is that. It returns the system calls of the process that are named in calls,
// separated by commas, as strace prints them with the paths of descriptors: a line for each, with the thread before it. A call that
// strace shows in two parts stands at the place of the second. The test is skipped where processes cannot be traced.
func Child(t testing.TB, test, variable, calls string) string {
	t.Helper()
	program, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	file := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(program, "-f", "-y", "-s", "300", "-o", file, "-e", "trace="+calls, "--", os.Args[0], "-test.run=^"+test+"$")
	cmd.Env = append(os.Environ(), variable)
	if out, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte("ptrace")) || bytes.Contains(out, []byte("PTRACE")) {
			t.Skipf("processes may not be traced here: %s", out)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	trace, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return joined(string(trace))
}

var resumed = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)

// joined puts calls together that strace shows in two parts.
func joined(trace string) string {
	began := map[string]string{} // by thread
	var out strings.Builder
	for line := range strings.Lines(trace) {
		line = strings.TrimSpace(line)
		thread, _, _ := strings.Cut(line, " ")
		if head, ok := strings.CutSuffix(line, " <unfinished ...>"); ok {
			began[thread] = head
			continue
		}
		if m := resumed.FindStringSubmatch(line); m != nil {
			line = began[thread] + m[2]
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}
