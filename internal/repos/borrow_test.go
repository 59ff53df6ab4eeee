package repos

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mirror-shell/internal/git"
	"mirror-shell/mirrorcfg"
)

func borrowServer(t *testing.T, names ...string) (*mirrorcfg.Server, func(name string) git.Repo) {
	t.Helper()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	server := &mirrorcfg.Server{RepoBase: base, StateDir: t.TempDir()}
	repo := func(name string) git.Repo { return git.Repo{Dir: filepath.Join(base, name+".git")} }
	for _, name := range names {
		for _, dir := range []string{"objects/info", "refs"} {
			if err := os.MkdirAll(filepath.Join(repo(name).Dir, dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(repo(name).Dir, "HEAD"), []byte("ref: refs/heads/main\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return server, repo
}

func lend(t *testing.T, to git.Repo, from ...git.Repo) {
	t.Helper()
	var text strings.Builder
	for _, r := range from {
		fmt.Fprintln(&text, filepath.Join(r.Dir, "objects"))
	}
	if err := os.WriteFile(to.AlternatesFile(), []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// within fails a test that takes too long, rather than to hang.
func within(t *testing.T, d time.Duration, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("it takes longer than %s", d)
	}
}

// Many that borrow from each other are looked at once each, not over every way from one to another.
func TestBorrowersOfEachOther(t *testing.T) {
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("r%d", i))
	}
	server, repo := borrowServer(t, append(names, "alone")...)
	var all []git.Repo
	for _, name := range names {
		all = append(all, repo(name))
	}
	for _, r := range all {
		lend(t, r, all...)
	}
	within(t, 20*time.Second, func() {
		b := FindBorrowers(server)
		if err := b.Refuse(repo("alone"), ""); err != nil || len(b) != 40 {
			t.Errorf("%v of %d", err, len(b))
		}
		if err := b.Refuse(repo("r0"), ""); err == nil || !strings.Contains(err.Error(), "39 repositories") {
			t.Errorf("%v", err)
		}
		if groups := b.InOrder([]string{"r1", "alone"}); len(groups) != 2 || groups[0][0] != "r1" {
			t.Errorf("%q", groups)
		}
	})
}

// A chain is in the order in which its members are to be mended, each before that from which it borrows.
func TestBorrowersOfBorrowers(t *testing.T) {
	server, repo := borrowServer(t, "a", "b", "c", "d")
	lend(t, repo("b"), repo("a"))
	lend(t, repo("c"), repo("b"), repo("a"))
	lend(t, repo("d"), repo("a"), repo("c"))
	b := FindBorrowers(server)
	if got := fmt.Sprint(b.from(repo("a")), b.InOrder([]string{"a", "b", "c", "d"})); got != "[d c b] [[d] [c] [b] [a]]" {
		t.Error(got)
	}
}

// A repository that names itself, also under a second name, is nobody else's; git leaves that line out.
func TestBorrowsFromItself(t *testing.T) {
	server, repo := borrowServer(t, "a")
	lend(t, repo("a"), repo("a"))
	if err := os.Symlink("a.git", repo("link").Dir); err != nil {
		t.Fatal(err)
	}
	if err := FindBorrowers(server).Refuse(repo("a"), ""); err != nil {
		t.Error(err)
	}
	if err := os.Symlink(repo("a").Dir+"/objects", repo("a").Dir+"/more"); err != nil {
		t.Fatal(err)
	}
	if err := FindBorrowers(server).Refuse(repo("link"), ""); err != nil {
		t.Error(err)
	}
}

// A list that is a pipe, with somebody at its other end, or a device, holds nobody up.
func TestAlternatesThatAreNoFile(t *testing.T) {
	server, repo := borrowServer(t, "a", "b")
	pipe := repo("a").AlternatesFile()
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	if err := os.Symlink("/dev/zero", repo("b").AlternatesFile()); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, func() {
		if b := FindBorrowers(server); len(b) != 0 {
			t.Errorf("%v", b)
		}
	})
}
