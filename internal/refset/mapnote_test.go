package refset

import (
	"os"
	"testing"
	"time"
)

func TestMapNote(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	check := func(when, want string) {
		t.Helper()
		if got := MapNote(dir, now); got != want {
			t.Errorf("%s: %q, not %q", when, got, want)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check("before any map", "")
	do(EndMap(dir, ""))
	do(BeginMap(dir))
	check("at work", "")
	killed := "the mirror map may be applied in part: what applied it did not come to its end"
	do(os.Chtimes(mapNote(dir), now, now.Add(-time.Hour)))
	check("killed", killed)
	do(BeginMap(dir))
	check("and begun again", killed)
	do(EndMap(dir, "it is wrong"))
	check("wrong", "it is wrong")
	do(BeginMap(dir))
	check("wrong, and begun again", "it is wrong")
	do(EndMap(dir, ""))
	check("right", "")
	if info, err := os.Stat(Dir(dir)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	do(os.Mkdir(mapNote(dir), 0o700))
	if MapNote(dir, now) == "" {
		t.Error("a note that cannot be read is none")
	}
}

// A repository that is gone is not made anew.
func TestMapNoteGone(t *testing.T) {
	dir := t.TempDir() + "/gone"
	if BeginMap(dir) == nil || EndMap(dir, "x") == nil || MapNote(dir, time.Now()) != "" {
		t.Error("noted in a repository that is not there")
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Error("it was made")
	}
}
