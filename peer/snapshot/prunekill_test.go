package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"mirror-shell/internal/git"
	"mirror-shell/internal/proc"
	"mirror-shell/peer/store"
)

// Backups and prunes of one repository by several processes on a directory, each killed by SIGKILL again and again, while others
// forget the repository, which goes on being backed up. Every other vault is encrypted.
// Whenever a manifest is there everything that it names is, byte for byte.
// PRUNE_SECONDS is how long it lasts.
func TestPruneUnderSIGKILL(t *testing.T) {
	if role := os.Getenv("PRUNE_ROLE"); role != "" {
		killable(t, role)
		return
	}
	long := 8 * time.Second
	if n, err := strconv.Atoi(os.Getenv("PRUNE_SECONDS")); err == nil {
		long = time.Duration(n) * time.Second
	}
	for _, key := range []string{"", newKey(t)} {
		t.Run(fmt.Sprintf("sealed %v", key != ""), func(t *testing.T) {
			t.Parallel()
			underSIGKILL(t, long, key)
		})
	}
}

func newKey(t *testing.T) string {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func underSIGKILL(t *testing.T, long time.Duration, key string) {
	dir := t.TempDir()
	roles := []string{"take-0", "take-1", "prune-0", "prune-1", "forget-0"}
	for _, role := range roles[:2] {
		repo := git.Repo{Dir: filepath.Join(dir, role+".git")}
		killGit("", ".", "init", "-q", "--bare", "-b", "main", repo.Dir)
		killCommit(repo.Dir, "refs/heads/main", "first of "+role)
	}
	v := killVault(t, dir, "judge", key)
	end := time.Now().Add(long)
	killed := 0
	running := map[string]*exec.Cmd{}
	for time.Now().Before(end) {
		for _, role := range roles {
			if running[role] == nil {
				running[role] = startRole(t, dir, role, key)
			}
		}
		time.Sleep(time.Duration(rand.Int64N(int64(time.Second))))
		role := roles[rand.IntN(len(roles))]
		running[role].Process.Kill()
		running[role].Wait()
		running[role] = nil
		killed++
		judge(t, v)
	}
	for _, cmd := range running {
		if cmd != nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	judge(t, v)
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	count := func(what string) int { return strings.Count(string(log), what+"\n") }
	t.Logf("%d processes killed; %d snapshots, %d of them after a second look; %d prunes that removed, %d that deleted, %d busy; forgotten %d times, %d ends; errors:\n%s",
		killed, count("taken"), count("again"), count("removed"), count("deleted"), count("busy"), count("forgotten"), count("gone"), errorsIn(string(log)))
	if count("taken") == 0 || count("removed") == 0 || long > 30*time.Second && count("forgotten") == 0 {
		t.Errorf("nothing was tried:\n%s", log)
	}
	if strings.Contains(string(log), ErrDamaged.Error()) {
		t.Errorf("something was damaged:\n%s", errorsIn(string(log)))
	}
}

func errorsIn(log string) string {
	var lines []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, " ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[:min(len(lines), 10)], "")
}

func killVault(t testing.TB, dir, name, key string) *Vault {
	t.Helper()
	place, err := store.Open(t.Context(), store.Options{URL: "file://" + filepath.Join(dir, "vault")})
	if err != nil {
		t.Fatal(err)
	}
	v := &Vault{Store: place, Scratch: filepath.Join(dir, "scratch-"+name), Server: name, Program: "test", Grace: 2 * time.Second}
	if key != "" {
		id, err := age.ParseX25519Identity(key)
		if err != nil {
			t.Fatal(err)
		}
		v.Recipients, v.Identities = []age.Recipient{id.Recipient()}, []age.Identity{id}
	}
	return v
}

func startRole(t testing.TB, dir, role, key string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestPruneUnderSIGKILL$", "-test.timeout=10m")
	cmd.Env = proc.Env("PRUNE_ROLE="+role, "PRUNE_DIR="+dir, "PRUNE_KEY="+key)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// killable does what its role says until it is killed. It ends by itself when its parent did.
func killable(t *testing.T, role string) {
	dir := os.Getenv("PRUNE_DIR")
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	v := killVault(t, dir, role, os.Getenv("PRUNE_KEY"))
	parent := os.Getppid()
	for os.Getppid() == parent {
		switch kind, _, _ := strings.Cut(role, "-"); kind {
		case "prune":
			killablePrune(t, v, log)
		case "forget":
			killableForget(t, v, log)
		default:
			killableTake(t, v, log, git.Repo{Dir: filepath.Join(dir, role+".git")}, filepath.Join(dir, "memory-"+role))
		}
	}
}

func killablePrune(t *testing.T, v *Vault, log io.Writer) {
	time.Sleep(time.Duration(rand.Int64N(int64(300 * time.Millisecond))))
	r, err := v.Prune(t.Context(), "ip1", Policy{Last: 1 + rand.IntN(3)})
	if len(r.Removed) > 0 {
		fmt.Fprintln(log, "removed")
	}
	if r.Deleted.Blobs > 0 {
		fmt.Fprintln(log, "deleted")
	}
	switch {
	case errors.Is(err, ErrBusy):
		fmt.Fprintln(log, "busy")
	case err != nil && !errors.Is(err, ErrNoSnapshot):
		fmt.Fprintln(log, "prune:", err)
	}
}

// killableForget forgets the repository now and then, and ends what was begun.
func killableForget(t *testing.T, v *Vault, log io.Writer) {
	time.Sleep(time.Duration(rand.Int64N(int64(time.Second))))
	forget := func() (ForgetReport, error) { return v.FinishForgetting(t.Context(), "ip1") }
	if rand.IntN(2) == 0 {
		forget = func() (ForgetReport, error) { return v.Forget(t.Context(), "ip1", ForgetOptions{}) }
	}
	r, err := forget()
	if r.Removed > 0 {
		fmt.Fprintln(log, "forgotten")
	}
	if r.Gone {
		fmt.Fprintln(log, "gone")
	}
	if err != nil && !errors.Is(err, ErrNoSnapshot) && !errors.Is(err, ErrBusy) && !strings.Contains(err.Error(), "meanwhile") {
		fmt.Fprintln(log, "forget:", err)
	}
}

// killableTake changes the repository so that old content goes and comes back.
func killableTake(t *testing.T, v *Vault, log io.Writer, r git.Repo, memory string) {
	for range 1 + rand.IntN(2) {
		branch := fmt.Sprintf("refs/heads/b%d", rand.IntN(3))
		switch rand.IntN(4) {
		case 0:
			killGit("", r.Dir, "update-ref", "-d", branch)
		case 1:
			os.WriteFile(filepath.Join(r.Dir, "description"), fmt.Appendf(nil, "%d", rand.IntN(3)), 0o600)
		case 2:
			killGit("", r.Dir, "update-ref", branch, "refs/heads/main")
		default:
			killCommit(r.Dir, branch, fmt.Sprintf("%d content", rand.IntN(5)))
		}
	}
	if rand.IntN(10) == 0 {
		killGit("", r.Dir, "repack", "-adq")
	}
	began := time.Now()
	slow := time.Duration(0)
	if rand.IntN(4) == 0 {
		slow = time.Duration(rand.Int64N(int64(2 * v.grace())))
	}
	result, err := v.Take(t.Context(), Source{Repository: "ip1", Repo: r, Memory: memory, Progress: func(stage string, done, total int64) {
		if stage == "upload" && done == total { // all is put, and nothing is published
			time.Sleep(slow)
		}
	}})
	switch {
	case err != nil:
		fmt.Fprintln(log, "take:", err)
	case !result.Unchanged:
		fmt.Fprintln(log, "taken")
		if time.Since(began) > v.grace()/2 {
			fmt.Fprintln(log, "again")
		}
	}
}

// killGit runs git and returns what it prints. It may fail: whatever was killed before left it so.
func killGit(stdin, dir string, args ...string) string {
	cmd := exec.Command("git", append([]string{"-c", "gc.auto=0", "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
	cmd.Dir, cmd.Stdin, cmd.Env = dir, strings.NewReader(stdin), proc.Env("LC_ALL=C", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, _ := cmd.Output()
	return strings.TrimSpace(string(out))
}

// killCommit sets a ref to a new commit without parents.
func killCommit(dir, ref, text string) {
	blob := killGit(text, dir, "hash-object", "-w", "--stdin")
	tree := killGit("100644 blob "+blob+"\tfile\n", dir, "mktree")
	killGit("", dir, "update-ref", ref, killGit("", dir, "commit-tree", tree, "-m", text))
}

// judge reads all that every manifest names. A manifest may go meanwhile.
func judge(t *testing.T, v *Vault) {
	t.Helper()
	names, err := v.manifests(t.Context(), "ip1")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := whole(t.Context(), v, n); err != nil {
			now, _ := v.manifests(t.Context(), "ip1")
			if slices.Contains(now, n) {
				t.Fatalf("%s: %v", n.Key(), err)
			}
		}
	}
}

func whole(ctx context.Context, v *Vault, n Name) error {
	m, err := v.Load(ctx, n)
	if err != nil {
		return err
	}
	for _, o := range m.Objects() {
		r, err := v.open(ctx, o)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
