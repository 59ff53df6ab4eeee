package bench_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// What the repository for backups has at the least: it is meant to cost what a real one does.
const (
	bigCommits = 40000
	bigRefs    = 5500
)

// bigRepository makes a bare repository with the size and the shape of a grown one: the source files of Go's standard
// library, 40,000 commits that each edit some of them, 5,500 branches and tags, repacked as gc does it. It takes a
// minute or two and is kept in the user's cache directory.
func bigRepository(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "mirror-shell-tests", fmt.Sprintf("big-%d-%d-%s.git", bigCommits, bigRefs, runtime.Version()))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), ".big-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	gitIn(t, temp, nil, "init", "-q", "--bare", ".")
	stream, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	files := realFiles(t)
	go func() {
		w := bufio.NewWriterSize(feed, 1<<20)
		writeHistory(w, files)
		w.Flush()
		feed.Close()
	}()
	gitIn(t, temp, stream, "fast-import", "--quiet")
	gitIn(t, temp, nil, "repack", "-adfq", "--depth=50", "--window=5", "--threads=2")
	gitIn(t, temp, nil, "pack-refs", "--all")
	if err := os.Rename(temp, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func gitIn(t testing.TB, dir string, stdin *os.File, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
	cmd.Stdin = stdin
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// source is a file with its lines.
type source struct {
	path  string
	lines []string
}

// realFiles are the files of the standard library.
func realFiles(t testing.TB) []source {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	var files []source
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && len(data) < 200<<10 {
			files = append(files, source{strings.TrimPrefix(path, root+"/"), strings.SplitAfter(string(data), "\n")})
		}
		return err
	})
	if err != nil || len(files) < 1000 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	return files
}

// writeHistory writes commits for git fast-import, the same ones each time.
func writeHistory(w *bufio.Writer, files []source) {
	random := rand.New(rand.NewPCG(1, 2))
	commit := func(n int, changed []*source) {
		fmt.Fprintf(w, "commit refs/heads/main\nmark :%d\ncommitter A U Thor <author@example.com> %d +0000\ndata <<END\nchange %d\n\nEND\n", n, 1500000000+60*n, n)
		if n > 1 {
			fmt.Fprintf(w, "from :%d\n", n-1)
		}
		for _, f := range changed {
			text := strings.Join(f.lines, "")
			fmt.Fprintf(w, "M 100644 inline %s\ndata %d\n%s\n", f.path, len(text), text)
		}
		w.WriteString("\n")
	}
	all := make([]*source, len(files))
	for i := range files {
		all[i] = &files[i]
	}
	commit(1, all)
	for n := 2; n <= bigCommits; n++ {
		changed := make([]*source, 1+random.IntN(3))
		for i := range changed {
			changed[i] = all[random.IntN(len(all))]
			edit(random, changed[i], all[random.IntN(len(all))])
		}
		commit(n, changed)
	}
	for i := range bigRefs {
		kind := []string{"tags", "heads/topic", "heads/team/a"}[i%3]
		fmt.Fprintf(w, "reset refs/%s/r%d\nfrom :%d\n\n", kind, i, 1+random.IntN(bigCommits))
	}
}

// edit takes some lines out of a file and puts some of another one in.
func edit(random *rand.Rand, f, other *source) {
	at := random.IntN(len(f.lines) + 1)
	out := min(random.IntN(8), len(f.lines)-at)
	from := random.IntN(len(other.lines) + 1)
	in := min(1+random.IntN(16), len(other.lines)-from)
	lines := append([]string{}, f.lines[:at]...)
	lines = append(lines, other.lines[from:from+in]...)
	f.lines = append(lines, f.lines[at+out:]...)
}

func TestBigRepository(t *testing.T) {
	if os.Getenv("MIRROR_SHELL_BENCH") == "" {
		t.Skip("run it with make bench")
	}
	t.Log(gitIn(t, bigRepository(t), nil, "count-objects", "-vH"))
}
