package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file whose name no snapshot can hold breaks no backup, and nobody finds out at the restore that it is not there.
func TestNamesThatCannotBeKept(t *testing.T) {
	v, _ := testVault(t)
	v.Include = []string{"hooks/**", "secrets"}
	r := newSource(t)
	src := sourceOf(t, r)
	commitTo(t, r, "refs/heads/main", "1 first")
	put := func(name string) {
		t.Helper()
		path := filepath.Join(r.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Skipf("this file system has no such names: %v", err)
		}
	}
	put("hooks/good")
	put("hooks/update.lock") // half written, and none of ours to tell of
	put("elsewhere-\xff")    // nobody asked for it
	if taken := takeNow(t, v, src); taken.Note != "" {
		t.Errorf("note %q", taken.Note)
	}
	put("hooks/two\nlines")
	put("hooks/latin\xe9")
	put("hooks/d\xe9p/below")
	put(`hooks/back\slash`)
	if err := os.Symlink("nowhere", filepath.Join(r.Dir, "hooks/link\xff")); err != nil {
		t.Fatal(err)
	}
	want := `4 files or directories have names that no snapshot can hold, and were left out: "hooks/back\\slash", "hooks/d\xe9p/", "hooks/latin\xe9", "hooks/two\nlines"`
	taken := takeNow(t, v, src) // nothing else has changed, and a worker that was asked tells all the same
	if !taken.Unchanged || taken.Note != want {
		t.Errorf("%+v\nnot %s", taken, want)
	}
	commitTo(t, r, "refs/heads/main", "2 second")
	if taken := takeNow(t, v, src); taken.Unchanged || taken.Note != want {
		t.Errorf("%+v\nnot %s", taken, want)
	}
	for i := range 20 {
		put(fmt.Sprintf("hooks/\n%02d", i))
	}
	commitTo(t, r, "refs/heads/main", "3 third")
	if taken := takeNow(t, v, src); !strings.Contains(taken.Note, `24 files`) || !strings.HasSuffix(taken.Note, `"hooks/\n04" and 19 more`) {
		t.Errorf("%s", taken.Note)
	}
}
