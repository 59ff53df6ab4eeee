package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
)

// Whoever may push names refs with any bytes. JSON knows text only, and two names that differ in
// what is no text would be one.
func TestTakeRefsThatAreNoText(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	id := commitTo(t, r, "refs/heads/main", "1 first")
	for _, name := range []string{"refs/heads/\xff", "refs/heads/\xfe", "refs/heads/caf\u00e9", "refs/heads/\ufffd", "refs/heads/x5cff"} {
		run(t, r.Dir, "update-ref", name, id)
	}
	run(t, r.Dir, "symbolic-ref", "HEAD", "refs/heads/\xff")
	src := sourceOf(t, r)
	first := takeNow(t, v, src)
	if again := take1(t, v, src); !again.Unchanged {
		t.Errorf("%+v", again)
	}
	commitTo(t, r, "refs/heads/\xfe", "2 second")
	second := takeNow(t, v, src)
	if second.Note != "" {
		t.Error(second.Note)
	}
	for _, name := range []Name{first.Name, second.Name} {
		if _, err := v.Restore(t.Context(), name, filepath.Join(t.TempDir(), "r.git"), RestoreOptions{}); err != nil {
			t.Error(err)
		}
	}
}

// Data that is used again has to be readable with the keys that the new snapshot is encrypted for.
func TestTakeForOtherRecipients(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	restore := func(name Name) {
		t.Helper()
		if _, err := v.Restore(t.Context(), name, filepath.Join(t.TempDir(), "r.git"), RestoreOptions{}); err != nil {
			t.Error(err)
		}
	}
	plain := takeNow(t, v, src)
	restore(plain.Name)

	seal(t, v)
	sealed := takeNow(t, v, src)
	m, err := v.Load(t.Context(), sealed.Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range m.Objects() {
		if !strings.HasSuffix(o.Encoding, encodingAge) {
			t.Errorf("%s is not encrypted", o.Key)
		}
	}

	seal(t, v) // the old key is lost, or is not to be trusted any more
	rotated := takeNow(t, v, src)
	if rotated.Unchanged || rotated.Note == "" {
		t.Errorf("%+v", rotated)
	}
	restore(rotated.Name)
	commitTo(t, r, "refs/heads/main", "2 second")
	restore(takeNow(t, v, src).Name)
	if again := take1(t, v, src); !again.Unchanged {
		t.Errorf("%+v", again)
	}

	v.Recipients, v.Identities = nil, nil
	open := takeNow(t, v, src)
	restore(open.Name)
}

// The order in which recipients are written down changes nothing.
func TestSealedFor(t *testing.T) {
	v := &Vault{}
	if v.sealedFor() != "" {
		t.Error("nothing is encrypted")
	}
	public, _ := sshKey(t)
	lines := []string{public, age1(t), age1(t)}
	seen := map[string]bool{}
	for _, of := range [][]string{lines, {lines[2], lines[1], lines[0]}, {lines[0], lines[1], lines[2], lines[1]}, lines[:2], lines[:1]} {
		var err error
		if v.Recipients, err = ParseRecipients(of); err != nil {
			t.Fatal(err)
		}
		seen[v.sealedFor()] = true
	}
	if len(seen) != 3 {
		t.Errorf("%v", seen)
	}
}

func age1(t *testing.T) string {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id.Recipient().String()
}

// A failed drill is no acquittal of a snapshot that is known to be bad.
func TestDrillDoesNotAcquit(t *testing.T) {
	v, m := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	src.Memory = ""
	first := takeNow(t, v, src)
	for key := range m.blobs {
		if strings.HasSuffix(key, ".pack") {
			delete(m.blobs, key)
		}
	}
	found, err := v.Verify(t.Context(), src.Repository, VerifyOptions{Drill: true})
	if err != nil || found.OK() || found.Drill == nil || found.Drill.Error == "" {
		t.Fatalf("%+v %v", found, err)
	}
	second := takeNow(t, v, src) // everything anew
	if second.Name.Sum == first.Name.Sum {
		t.Error("the bad one counts as a backup")
	}
	if found, err := v.Verify(t.Context(), src.Repository, VerifyOptions{Latest: true, Drill: true}); err != nil || !found.OK() {
		t.Errorf("%+v %v", found, err)
	}
}

// What was damaged in the store heals with the next backup after a verification has found it.
func TestVerifyHasItMended(t *testing.T) {
	v, m := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	takeNow(t, v, src)
	commitTo(t, r, "refs/heads/main", "2 second")
	takeNow(t, v, src)
	m.spoilPacks()
	if found, err := v.Verify(t.Context(), src.Repository, VerifyOptions{}); err != nil || !found.OK() {
		t.Fatalf("without reading the data: %+v %v", found, err)
	}
	if found, err := v.Verify(t.Context(), src.Repository, VerifyOptions{ReadData: true}); err != nil || found.OK() {
		t.Fatalf("%+v %v", found, err)
	}
	commitTo(t, r, "refs/heads/main", "3 third")
	takeNow(t, v, src)
	if found, err := v.Verify(t.Context(), src.Repository, VerifyOptions{Latest: true, ReadData: true, Drill: true}); err != nil || !found.OK() {
		t.Fatalf("%+v %v", found, err)
	}
}

// A snapshot of a repository that lacks something is whole as far as the store goes; it is not called good for that.
func TestVerifySaysWhatIsKnown(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	name := takeNow(t, v, src).Name
	if err := v.record(t.Context(), src.Repository, Check{Kind: checkBad, Snapshot: name.Sum, Error: "objects are missing", Time: v.now().Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	if found, err := v.Verify(t.Context(), src.Repository, VerifyOptions{ReadData: true}); err != nil || len(found.Faults) != 1 || found.Faults[0].Key != name.Key() {
		t.Errorf("%+v, %v", found, err)
	}
}

// A first backup whose history nobody has walked through yet is not built on, by no machine.
func TestTakeUncheckedElsewhere(t *testing.T) {
	v, m := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	run(t, r.Dir, "repack", "-adq")
	defer func(old int64) { smallPacks = old }(smallPacks)
	smallPacks = 0 // else it is walked through before it is published
	src := sourceOf(t, r)
	ctx, kill := context.WithCancel(t.Context())
	m.before = func(op, key string) error {
		if op == "put" && strings.HasPrefix(key, "snapshots/") {
			kill() // while it is being published
		}
		return nil
	}
	first, err := v.Take(ctx, src)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	m.before = nil
	src.Memory = filepath.Join(t.TempDir(), "another machine")
	commitTo(t, r, "refs/heads/main", "2 second")
	second := takeNow(t, v, src)
	if second.Note == "" || second.Name.Sum == first.Name.Sum {
		t.Errorf("%+v", second)
	}
	commitTo(t, r, "refs/heads/main", "3 third")
	src.Memory = filepath.Join(t.TempDir(), "a third machine")
	if third := takeNow(t, v, src); third.Note != "" {
		t.Errorf("%+v", third)
	}
}

// A snapshot stands for the time until the next one: the oldest moment within the span has its own.
func TestWithinKeepsWhatWasThenTheLatest(t *testing.T) {
	at := func(days int) time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC).AddDate(0, 0, -days) }
	names := []Name{named(at(0), 0, ""), named(at(1), 1, ""), named(at(30), 2, ""), named(at(40), 3, ""), named(at(50), 4, "")}
	stay, _ := Policy{Within: 7 * 24 * time.Hour}.choose(names, map[string]bool{names[2].Sum: true}, nil, at(0))
	if len(stay) != 3 || stay[2] != names[3] {
		t.Errorf("%v", stay)
	}
}

// A restore tidies up after its like only, and not what one to a target with a similar name is making.
func TestRestoreLeavesOthersAlone(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	name := takeNow(t, v, sourceOf(t, r)).Name
	base := t.TempDir()
	// What a restore to "ip1.git.mirror-shell-restore-1.git" is making.
	other := filepath.Join(base, ".ip1.git.mirror-shell-restore-1.git.mirror-shell-restore-2")
	if err := errors.Join(os.Mkdir(other, 0o700), os.WriteFile(filepath.Join(other, halfMade), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Restore(t.Context(), name, filepath.Join(base, "ip1.git"), RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(other, halfMade)); err != nil {
		t.Error(err)
	}
}

// Prune waits as long as the most patient of those who back up.
func TestPruneHeedsLongerGrace(t *testing.T) {
	w := newMonths(t)
	slow := *w.Vault
	slow.Grace = 100 * 24 * time.Hour
	m := w.manifest()
	m.Grace = int64(slow.Grace / time.Second)
	w.snapshotOf(m, w.object("a"))
	w.pass(24 * time.Hour)
	m = w.manifest()
	m.Grace = int64(slow.Grace / time.Second)
	w.snapshotOf(m, w.object("b"))
	for range 30 {
		w.prune(Policy{Last: 1})
		w.pass(3 * 24 * time.Hour)
	}
	if !w.has("a") {
		t.Error("deleted within the grace period of the server that backs up")
	}
	w.pass(100 * 24 * time.Hour)
	w.prune(Policy{Last: 1})
	if w.has("a") {
		t.Error("never deleted")
	}
}

// A config with a password in it, which nobody else may read, is not restored for all to read.
func TestPrivateFilesStayPrivate(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t, "--object-format=sha256") // git rewrites its config
	config := filepath.Join(r.Dir, "config")
	for _, mode := range []os.FileMode{0o600, 0o640, 0o644} {
		if err := os.Chmod(config, mode); err != nil {
			t.Fatal(err)
		}
		name := take1(t, v, sourceOf(t, r)).Name
		for _, without := range []bool{true, false} {
			dir := filepath.Join(t.TempDir(), "r.git")
			if _, err := v.Restore(t.Context(), name, dir, RestoreOptions{WithoutHooks: without}); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(dir, "config"))
			if err != nil || info.Mode() != mode {
				t.Errorf("%v %v, want %v", info.Mode(), err, mode)
			}
		}
	}
}

// Two servers that take each other's repository for their own are told.
func TestTakeAfterAnotherServer(t *testing.T) {
	v, _ := testVault(t)
	r := newSource(t)
	commitTo(t, r, "refs/heads/main", "1 first")
	src := sourceOf(t, r)
	takeNow(t, v, src)
	commitTo(t, r, "refs/heads/main", "2 second")
	v.Server, src.Memory = "sam", ""
	if got := takeNow(t, v, src); !strings.Contains(got.Note, "the snapshot before was made by frodo") {
		t.Errorf("%q", got.Note)
	}
	commitTo(t, r, "refs/heads/main", "3 third")
	if got := takeNow(t, v, src); got.Note != "" {
		t.Errorf("%q", got.Note)
	}
}
