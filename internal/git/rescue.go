package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"mirror-shell/internal/proc"
)

// Types returns the type ("commit", "tag", "tree", "blob") of each object that is
// in the repository. It opens their headers: a zero-byte or corrupt loose object is
// left out.
func (r Repo) Types(ctx context.Context, oids []string) (map[string]string, error) {
	types := make(map[string]string, len(oids))
	if len(oids) == 0 {
		return types, nil
	}
	var out bytes.Buffer
	if _, err := r.run(ctx, lines(oids, ""), &out, "cat-file", "--batch-check=%(objectname) %(objecttype)", "--buffer"); err != nil {
		return nil, fmt.Errorf("look up objects: %w", err)
	}
	for line := range strings.Lines(out.String()) {
		oid, kind, _ := strings.Cut(strings.TrimSpace(line), " ")
		if kind != "missing" && !strings.HasPrefix(kind, "missing ") {
			types[oid] = kind
		}
	}
	return types, nil
}

// RefsBelow returns the refs below prefix ("refs/mirror/rescued"). With a broken
// one among them the error is a *BrokenRefs, and the others are returned.
func (r Repo) RefsBelow(ctx context.Context, prefix string) (map[string]string, error) {
	var out bytes.Buffer
	stderr, err := r.run(ctx, nil, &out, "for-each-ref", "--format=%(objectname) %(refname)", "--", prefix)
	if err != nil {
		return nil, fmt.Errorf("read refs below %s: %w", prefix, err)
	}
	refs := map[string]string{}
	for line := range strings.Lines(out.String()) {
		oid, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if !ok {
			return nil, fmt.Errorf("read refs below %s: git printed %q", prefix, line)
		}
		refs[name] = oid
	}
	if stderr != "" {
		return refs, &BrokenRefs{Prefix: prefix, Stderr: stderr}
	}
	return refs, nil
}

// BrokenRefs says that refs were left out because git could not read them.
type BrokenRefs struct{ Prefix, Stderr string }

func (e *BrokenRefs) Error() string {
	return fmt.Sprintf("read refs below %s: git says %q: repair or delete that ref by hand (see git fsck)", e.Prefix, proc.OneLine(e.Stderr, 300))
}

// Quarantine returns the variables with which git shows a pre-receive hook the
// objects of the push, which are not in the repository yet. Every question of this
// package drops them, unless it asks for them.
func Quarantine() []string {
	var env []string
	for _, name := range []string{"GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// CommitsOutside returns those of the commits, all of which must exist, that
// cannot be reached from tips. A tip that is missing, or that is no commit and no tag
// of one, counts for nothing. Env is Quarantine in a pre-receive hook, else nil. An
// incomplete history is an error.
func (r Repo) CommitsOutside(ctx context.Context, commits, tips, env []string) (map[string]bool, error) {
	wanted := make(map[string]bool, len(commits))
	for _, oid := range commits {
		wanted[oid] = true
	}
	found := make(map[string]bool)
	if len(commits) == 0 {
		return found, nil
	}
	out := &lineWriter{line: func(oid string) {
		if wanted[oid] {
			found[oid] = true
		}
	}}
	stdin := io.MultiReader(lines(commits, ""), lines(tips, "^"))
	if _, err := r.runWith(ctx, env, stdin, out, "rev-list", "--ignore-missing", "--stdin"); err != nil {
		return nil, fmt.Errorf("compare histories: %w", err)
	}
	return found, nil
}

// outside are git's arguments for what can be reached from oid and from no ref,
// those below the prefix not counted.
func outside(oid, prefix string) []string {
	return []string{"--ignore-missing", oid, "--not", "--exclude=" + prefix + "/*", "--all", "--"}
}

// CountOutside counts the commits that can be reached from oid, a commit or a tag
// of one, and from no ref but those below prefix ("refs/mirror").
func (r Repo) CountOutside(ctx context.Context, oid, prefix string) (int, error) {
	var out bytes.Buffer
	if _, err := r.run(ctx, nil, &out, append([]string{"rev-list", "--count"}, outside(oid, prefix)...)...); err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out.String()))
}

// LogOutside writes the log of the commits that CountOutside counts to w.
func (r Repo) LogOutside(ctx context.Context, w io.Writer, oid, prefix string) error {
	args := []string{"-c", "log.showSignature=false", "log", "--no-color", "--no-decorate", "--date=iso"}
	_, err := r.run(ctx, nil, w, append(args, outside(oid, prefix)...)...)
	return err
}

// Subject returns the first line of the message of a commit, or of the commit
// that a tag is of.
func (r Repo) Subject(ctx context.Context, oid string) (string, error) {
	var out bytes.Buffer
	_, err := r.run(ctx, nil, &out, "-c", "log.showSignature=false", "log", "-1", "--no-color", "--format=%s", oid, "--")
	return strings.TrimSuffix(out.String(), "\n"), err
}

// ErrRefExists is wrapped when a ref that is to be made is there already.
var ErrRefExists = errors.New("the ref exists")

// CreateRefs makes all the refs (name → object id) or none, and makes them last
// through a power cut. An error wraps ErrRefExists when one of them is there.
func (r Repo) CreateRefs(ctx context.Context, refs map[string]string) error {
	var in bytes.Buffer
	for name, oid := range refs {
		fmt.Fprintf(&in, "create %s\x00%s\x00", name, oid)
	}
	stderr, err := r.run(ctx, &in, nil, "-c", "core.fsync=reference", "update-ref", "--stdin", "-z")
	if err != nil && strings.Contains(stderr, "reference already exists") {
		return fmt.Errorf("%w: %w", ErrRefExists, err)
	}
	return err
}

// DeleteRef deletes a ref that has the value oid.
func (r Repo) DeleteRef(ctx context.Context, name, oid string) error {
	in := strings.NewReader("delete " + name + "\x00" + oid + "\x00")
	_, err := r.run(ctx, in, nil, "update-ref", "--no-deref", "--stdin", "-z")
	return err
}

// FetchObject gets one object, and what belongs to it, from another repository by
// its id. No ref is made. The far side must be willing to give any object. What ssh
// and git say goes to stderr.
func (r Repo) FetchObject(ctx context.Context, url, oid string, stderr io.Writer) error {
	argv := []string{"git", "--git-dir=" + r.Dir, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head",
		"--no-recurse-submodules", "--no-auto-maintenance", "--", url, oid}
	cmd := proc.Command(ctx, proc.Env("LC_ALL=C", "GIT_NO_REPLACE_OBJECTS=1", "GIT_TERMINAL_PROMPT=0"), argv...)
	cmd.Stderr = stderr
	if _, err := proc.Run(cmd); err != nil {
		return fmt.Errorf("fetch %.10s from %s: %w", oid, url, err)
	}
	return nil
}
