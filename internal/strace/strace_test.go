package strace

import (
	"os"
	"strings"
	"testing"
)

// Other threads' calls stand where they stood, and each half finds its own other half.
func TestJoined(t *testing.T) {
	const trace = `11 fsync(3</r/a> <unfinished ...>
12 write(1</dev/null>, "x\n", 2 <unfinished ...>
13 mkdir("/r/b", 0700) = 0
12 <... write resumed>) = 2
11 <... fsync resumed>) = 0
`
	const want = `13 mkdir("/r/b", 0700) = 0
12 write(1</dev/null>, "x\n", 2) = 2
11 fsync(3</r/a>) = 0
`
	if got := joined(trace); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

const childEnv = "STRACE_TEST_DIRECTORY"

// TestMakes is the process that TestChild watches.
func TestMakes(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		t.Skip("for TestChild")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestChild(t *testing.T) {
	dir := t.TempDir() + "/made"
	if got := Child(t, "TestMakes", childEnv+"="+dir, "mkdir,mkdirat"); !strings.Contains(got, `"`+dir+`", 0700) = 0`) {
		t.Errorf("got\n%s", got)
	}
}
