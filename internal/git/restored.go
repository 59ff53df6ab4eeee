package git

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"mirror-shell/internal/proc"
)

// bareConfig keeps what the account and the machine have configured out of a check: its result has to
// be that of the repository alone.
var bareConfig = []string{"GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1"}

// ErrMissing: objects that a history needs are not there.
var ErrMissing = errors.New("objects are missing")

// Fsck is git's own full check, with a clean config. Its findings are in the error.
func (r Repo) Fsck(ctx context.Context) error {
	_, err := r.runWith(ctx, bareConfig, nil, nil, "fsck", "--full", "--no-dangling", "--no-progress")
	return err
}

// SetFormat has a config file say the object format ("sha1" or "sha256"), and nothing of another
// kind of repository than one with refs in files. The file must not be the config of the repository
// that its directory is: git reads that one.
func SetFormat(ctx context.Context, file, format string) error {
	r := Repo{Dir: filepath.Dir(file)}
	set := func(args ...string) error {
		_, err := r.runWith(ctx, bareConfig, nil, nil, append([]string{"config", "--file", file}, args...)...)
		if proc.ExitCode(err) == 5 && args[0] == "--unset-all" { // it was not there
			return nil
		}
		return err
	}
	version := "0"
	for _, key := range []string{"extensions.objectformat", "extensions.compatobjectformat", "extensions.refstorage", "extensions.worktreeconfig"} {
		if err := set("--unset-all", key); err != nil {
			return err
		}
	}
	if format != "sha1" {
		version = "1"
		if err := set("extensions.objectformat", format); err != nil {
			return err
		}
	}
	return set("--replace-all", "core.repositoryformatversion", version)
}

// FileConfig returns the values in a config file. What it includes does not count.
func FileConfig(ctx context.Context, file string) ([]ConfigEntry, error) {
	r := Repo{Dir: filepath.Dir(file)}
	out := &limitedBuffer{max: 16 << 20}
	if _, err := r.runWith(ctx, bareConfig, nil, out, "config", "--file", file, "--no-includes", "-z", "--list"); err != nil {
		return nil, err
	}
	return parseConfig(out.buf.Bytes()), nil
}

// PackedObjects has git unpack every object that is in the packs below objects/pack of a directory, in
// place of the repository's own objects, and calls each with its id, its type and its content, which
// each need not read to its end. When ids is not nil it is these that git unpacks, one id a line, in that
// order; else all, in the packs' order. What git cannot unpack is an error. Ids are those that the indexes say: git compares
// none with the content.
func (r Repo) PackedObjects(ctx context.Context, objects string, ids io.Reader, each func(oid, kind string, size int64, content io.Reader) error) (count int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, in, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	// With the usual 64 KiB both sides wait for each other all the time. Refused, it is as it was.
	unix.FcntlInt(in.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	args := []string{"cat-file", "--batch", "--buffer"}
	if ids == nil {
		args = append(args, "--batch-all-objects", "--unordered")
	}
	ended := make(chan error, 1)
	go func() {
		_, err := r.runWith(ctx, append([]string{"GIT_OBJECT_DIRECTORY=" + objects}, bareConfig...), ids, in, args...)
		in.Close() // the last writer: the reader is at its end now
		ended <- err
	}()
	count, err = readBatch(out, each)
	out.Close() // whoever still writes is ended by that
	if failed := <-ended; failed != nil && (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = failed // the cause
	}
	return count, err
}

// readBatch reads what git cat-file --batch prints: OID SP TYPE SP SIZE LF CONTENT LF.
func readBatch(from io.Reader, each func(oid, kind string, size int64, content io.Reader) error) (count int, err error) {
	in := bufio.NewReaderSize(from, 1<<20)
	for ; ; count++ {
		line, err := in.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			return count, nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return count, fmt.Errorf("git cat-file: %w", err)
		}
		oid, rest, _ := strings.Cut(string(line[:len(line)-1]), " ")
		kind, digits, _ := strings.Cut(rest, " ")
		size, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || size < 0 || size == math.MaxInt64 {
			return count, fmt.Errorf("%w: git cat-file says %q", ErrMissing, proc.OneLine(string(line), 200))
		}
		content := &io.LimitedReader{R: in, N: size + 1}
		if err := each(oid, kind, size, io.LimitReader(content, size)); err != nil {
			return count, err
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return count, fmt.Errorf("git cat-file: %w", err)
		}
		if content.N > 0 {
			return count, fmt.Errorf("git cat-file: %w", io.ErrUnexpectedEOF)
		}
	}
}
