package snapshot

import (
	"context"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mirror-shell/peer/store"
)

// fileStore reads blobs from files, as a store in a directory does.
type fileStore struct {
	store.Store
	files map[string]string // key → file
}

func (s fileStore) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if file, ok := s.files[key]; ok {
		return os.Open(file)
	}
	return s.Store.Get(ctx, key, offset, length)
}

func (s fileStore) List(ctx context.Context, prefix, after string, limit int) iter.Seq2[store.Info, error] {
	return s.Store.List(ctx, prefix, after, limit)
}

// BenchmarkRestore restores the repository that MIRROR_SHELL_BENCH_REPO names, which has one pack and all refs packed,
// and its rival clones it from a bundle.
func BenchmarkRestore(b *testing.B) {
	repo := os.Getenv("MIRROR_SHELL_BENCH_REPO")
	if repo == "" {
		b.Skip("MIRROR_SHELL_BENCH_REPO names no repository")
	}
	v, m := testVault(b)
	name := publishRepo(b, v, repo, time.Now())
	files := map[string]string{}
	for key, data := range m.blobs {
		if strings.HasPrefix(key, "data/") {
			files[key] = filepath.Join(b.TempDir(), "blob")
			if err := os.WriteFile(files[key], data, 0o600); err != nil {
				b.Fatal(err)
			}
			delete(m.blobs, key)
		}
	}
	v.Store = fileStore{m, files}
	bundle := filepath.Join(b.TempDir(), "all.bundle")
	run(b, repo, "bundle", "create", "-q", bundle, "--all")
	target := filepath.Join(b.TempDir(), "ip1.git")
	for _, c := range []struct {
		name  string
		check Thoroughness
	}{{"checksums", Checksums}, {"full", Full}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				cpu := processorTime()
				done, err := v.Restore(b.Context(), name, target, RestoreOptions{Check: c.check})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(processorTime()-cpu, "s-cpu")
				b.ReportMetric(done.Download.Seconds(), "s-download")
				b.ReportMetric(done.Check.Seconds(), "s-check")
				os.RemoveAll(target)
			}
		})
	}
	b.Run("rival=clone-from-bundle", func(b *testing.B) {
		for b.Loop() {
			cpu := processorTime()
			if out, err := exec.Command("git", "clone", "-q", "--mirror", bundle, target).CombinedOutput(); err != nil {
				b.Fatal(err, string(out))
			}
			b.ReportMetric(processorTime()-cpu, "s-cpu")
			os.RemoveAll(target)
		}
	})
}

// processorTime is what we and the children that ended have used, in seconds: on a busy machine it says
// more than a clock.
func processorTime() (seconds float64) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var use syscall.Rusage
		if syscall.Getrusage(who, &use) == nil {
			seconds += float64(use.Utime.Nano()+use.Stime.Nano()) / 1e9
		}
	}
	return seconds
}
