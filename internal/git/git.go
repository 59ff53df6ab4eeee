// Package git is the only place that runs git, and knows how git is asked.
//
// Every question is one process with a clean environment: the variables that git
// sets for hooks (GIT_DIR, GIT_QUARANTINE_PATH, …) would point it at another
// repository, and a translated message could not be compared. Object ids are
// lower-case hexadecimal strings, 40 digits for sha1 and 64 for sha256; nothing
// here depends on which.
package git

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"mirror-shell/internal/proc"
)

// Repo is a bare repository, by the absolute path of its directory.
type Repo struct{ Dir string }

// IsRepository reports whether dir looks like a git directory: git's own test,
// without a process.
func IsRepository(dir string) bool {
	for _, name := range []string{"objects", "refs"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || !info.IsDir() {
			return false
		}
	}
	_, err := os.Lstat(filepath.Join(dir, "HEAD"))
	return err == nil
}

// run runs `git --git-dir=DIR args…`. Naming the directory also means
// that git looks nowhere else when it is damaged.
func (r Repo) run(ctx context.Context, stdin io.Reader, stdout io.Writer, args ...string) (stderr string, err error) {
	return r.runWith(ctx, nil, stdin, stdout, args...)
}

// runWith is run with more variables in git's environment.
func (r Repo) runWith(ctx context.Context, env []string, stdin io.Reader, stdout io.Writer, args ...string) (stderr string, err error) {
	cmd := r.command(ctx, env, args)
	cmd.Stdin, cmd.Stdout = stdin, stdout // none: the null device
	stderr, err = proc.Run(cmd)
	if err != nil {
		return stderr, fmt.Errorf("git %s: %w", subcommand(args), err)
	}
	return stderr, nil
}

func (r Repo) command(ctx context.Context, env, args []string) *exec.Cmd {
	argv := append([]string{"git", "--git-dir=" + r.Dir}, args...)
	env = append(proc.Env("LC_ALL=C", "GIT_OPTIONAL_LOCKS=0", "GIT_NO_REPLACE_OBJECTS=1", "GIT_NO_LAZY_FETCH=1"), env...)
	return proc.Command(ctx, env, argv...)
}

// subcommand returns the first argument that is neither -c nor what follows it.
func subcommand(args []string) string {
	for len(args) > 2 && args[0] == "-c" {
		args = args[2:]
	}
	return args[0]
}

// ConfigEntry is one value of git's effective configuration. Key is in git's
// canonical form: section and variable in lower case, subsection as written.
type ConfigEntry struct {
	Key, Value string
	// Implicit is true for a key written without "= value", which git reads
	// as the boolean true and as no string at all.
	Implicit bool
}

// Config returns every value whose key matches pattern (git's regular
// expression over canonical keys), in the order in which git reads them: of
// several values of a key the last wins. System, global, included and
// conditionally included files count.
func (r Repo) Config(ctx context.Context, pattern string) ([]ConfigEntry, error) {
	return r.AskConfig(ctx, pattern)()
}

// AskConfig is Config for a caller that has something else to do while git reads; the
// function it returns waits for git, and must be called.
func (r Repo) AskConfig(ctx context.Context, pattern string) (answer func() ([]ConfigEntry, error)) {
	asked := proc.Capture(r.command(ctx, nil, []string{"config", "-z", "--get-regexp", pattern}))
	return func() ([]ConfigEntry, error) {
		out, _, err := asked.Wait()
		if proc.ExitCode(err) == 1 {
			return nil, nil // git's way to say that nothing matched
		}
		if err != nil {
			return nil, fmt.Errorf("git config: %w", err)
		}
		return parseConfig(out), nil
	}
}

// ConfigOrigins returns every value of the effective configuration as Config
// does, and the file that each stands in ("" for one that is from no file).
func (r Repo) ConfigOrigins(ctx context.Context) (entries []ConfigEntry, files []string, err error) {
	var out bytes.Buffer
	if _, err := r.run(ctx, nil, &out, "config", "-z", "--show-origin", "--list"); err != nil {
		return nil, nil, err
	}
	items := bytes.Split(bytes.TrimSuffix(out.Bytes(), []byte{0}), []byte{0})
	for i := 0; i+1 < len(items); i += 2 {
		file, _ := strings.CutPrefix(string(items[i]), "file:")
		if file != "" && !filepath.IsAbs(file) {
			file = "" // "command line:", "blob:…"
		}
		entries = append(entries, parseConfig(items[i+1])...)
		files = append(files, file)
	}
	return entries, files, nil
}

// parseConfig reads `git config -z` output: KEY LF VALUE NUL, or KEY NUL for an
// implicit boolean.
func parseConfig(out []byte) []ConfigEntry {
	var entries []ConfigEntry
	for item := range bytes.SplitSeq(bytes.TrimSuffix(out, []byte{0}), []byte{0}) {
		if len(item) == 0 {
			continue
		}
		key, value, ok := bytes.Cut(item, []byte{'\n'})
		entries = append(entries, ConfigEntry{Key: string(key), Value: string(value), Implicit: !ok})
	}
	return entries
}

// Refs returns every ref with its value, symbolic ones resolved, HEAD not
// included. Anything git warns about fails the read and is named in the error:
// for-each-ref leaves out a zero-byte ref with a warning and exit status 0, and
// a mirror push would then delete it everywhere.
func (r Repo) Refs(ctx context.Context) (map[string]string, error) {
	var out bytes.Buffer
	stderr, err := r.run(ctx, nil, &out, "for-each-ref", "--format=%(objectname) %(refname)")
	if err != nil {
		return nil, fmt.Errorf("read refs: %w: repair %s, or restore it (see git fsck); nothing is pushed or deleted until then", err, r.Dir)
	}
	if stderr != "" {
		return nil, fmt.Errorf("read refs: git says %q: repair or delete that ref by hand (see git fsck); nothing is pushed or deleted until then", proc.OneLine(stderr, 300))
	}
	refs := make(map[string]string, bytes.Count(out.Bytes(), []byte{'\n'}))
	for line := range strings.Lines(out.String()) {
		oid, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok {
			return nil, fmt.Errorf("read refs: git printed %q", line)
		}
		refs[name] = oid
	}
	return refs, nil
}

// Head returns the ref that HEAD points to ("refs/heads/main"), whether it
// exists or not, and "" when HEAD is detached.
func (r Repo) Head(ctx context.Context) (string, error) {
	if data, err := os.ReadFile(filepath.Join(r.Dir, "HEAD")); err == nil {
		target, ok := strings.CutPrefix(strings.TrimSuffix(string(data), "\n"), "ref: ")
		// A reftable repository has a HEAD file that says refs/heads/.invalid.
		// Whatever looks unusual is left to git.
		if ok && strings.HasPrefix(target, "refs/heads/") && !strings.Contains(target, "/.") && strings.IndexFunc(target, unusual) < 0 {
			return target, nil
		}
	}
	var out bytes.Buffer
	_, err := r.run(ctx, nil, &out, "symbolic-ref", "-q", "HEAD")
	if proc.ExitCode(err) == 1 {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read HEAD: %w", err)
	}
	return strings.TrimSpace(out.String()), nil
}

func unusual(r rune) bool { return r <= ' ' || r == 0x7f }

// SetHead makes HEAD a symbolic ref to target, which need not exist yet.
func (r Repo) SetHead(ctx context.Context, target string) error {
	_, err := r.run(ctx, nil, nil, "symbolic-ref", "HEAD", target)
	return err
}

// Existing returns which of the objects are in the repository. It opens their
// headers: a zero-byte or corrupt loose object does not count.
func (r Repo) Existing(ctx context.Context, oids []string) (map[string]bool, error) {
	types, err := r.Types(ctx, oids)
	if err != nil {
		return nil, err
	}
	found := make(map[string]bool, len(types))
	for oid := range types {
		found[oid] = true
	}
	return found, nil
}

// Unreachable returns those of the objects, all of which must exist here, that
// cannot be reached from the tips. It is exact for commits and tags. A tree or a
// blob counts as unreachable unless a tip is one that has it. An incomplete
// history may be an error.
func (r Repo) Unreachable(ctx context.Context, oids, tips []string) (map[string]bool, error) {
	return r.unreached(ctx, oids, tips, "--objects", "--no-object-names")
}

// lineWriter calls line for each line written to it that has an end.
type lineWriter struct {
	line    func(string)
	pending []byte
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.pending = append(l.pending, p...)
	rest := l.pending
	for {
		line, after, ok := bytes.Cut(rest, []byte{'\n'})
		if !ok {
			break
		}
		l.line(string(line))
		rest = after
	}
	l.pending = append(l.pending[:0], rest...)
	return len(p), nil
}

// PackOptions say what the reader of a pack does not want.
type PackOptions struct {
	Thick     bool // deltas only against objects in the pack
	NoOffsets bool // deltas name their base by id
}

// Pack writes a pack of what is reachable from want and not from have to w.
// All of have must exist here.
func (r Repo) Pack(ctx context.Context, w io.Writer, want, have []string, o PackOptions) error {
	args := []string{"pack-objects", "--revs", "--stdout", "-q"}
	if !o.Thick {
		args = append(args, "--thin")
	}
	if !o.NoOffsets {
		args = append(args, "--delta-base-offset")
	}
	_, err := r.run(ctx, io.MultiReader(lines(want, ""), lines(have, "^")), w, args...)
	return err
}

// Packable reports whether everything reachable from want, and not from have,
// can be read here. All of have must exist. It makes the pack that Pack would, less tightly, and drops
// it: walking alone does not open the contents of files.
func (r Repo) Packable(ctx context.Context, want, have []string) (bool, error) {
	stdin := io.MultiReader(lines(want, ""), lines(have, "^"))
	_, err := r.run(ctx, stdin, nil, "pack-objects", "--revs", "--stdout", "-q", "--thin", "--delta-base-offset", "--window=0")
	if proc.ExitCode(err) > 0 {
		return false, nil
	}
	return err == nil, err
}

// lines streams the ids one a line with a prefix, without building the text.
func lines(oids []string, prefix string) io.Reader {
	return &lineReader{oids: oids, prefix: prefix}
}

type lineReader struct {
	oids    []string
	prefix  string
	pending []byte
}

func (l *lineReader) Read(p []byte) (int, error) {
	for len(l.pending) < len(p) && len(l.oids) > 0 {
		l.pending = append(append(append(l.pending, l.prefix...), l.oids[0]...), '\n')
		l.oids = l.oids[1:]
	}
	if len(l.pending) == 0 {
		return 0, io.EOF
	}
	n := copy(p, l.pending)
	l.pending = append(l.pending[:0], l.pending[n:]...)
	return n, nil
}

// HooksDir returns the directory in which git looks for the repository's hooks,
// core.hooksPath considered.
func (r Repo) HooksDir(ctx context.Context) (string, error) {
	var out bytes.Buffer
	if _, err := r.run(ctx, nil, &out, "rev-parse", "--git-path", "hooks"); err != nil {
		return "", err
	}
	dir := strings.TrimSuffix(out.String(), "\n")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(r.Dir, dir)
	}
	return dir, nil
}

// Version returns git's version, "2.39.5".
func Version(ctx context.Context) (string, error) {
	var out bytes.Buffer
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C"), "git", "version")
	cmd.Stdout = &out
	if _, err := proc.Run(cmd); err != nil {
		return "", err
	}
	fields := strings.Fields(out.String())
	if len(fields) < 3 {
		return "", fmt.Errorf("git version printed %q", out.String())
	}
	return fields[2], nil
}
