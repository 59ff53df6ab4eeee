package refset

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var (
	zero = strings.Repeat("0", 40)
	oidA = strings.Repeat("a", 40)
	oidB = strings.Repeat("b", 40)
	oidC = strings.Repeat("c", 64)
)

const (
	refMain = "refs/heads/main"
	refX    = "refs/heads/x"
)

func open(t testing.TB, path string) *Log {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	return string(b)
}

// both checks a log, and what another process would load of its file.
func both(t *testing.T, l *Log, check func(t *testing.T, l *Log)) {
	t.Helper()
	t.Run("kept", func(t *testing.T) { check(t, l) })
	t.Run("loaded", func(t *testing.T) { check(t, open(t, l.path)) })
}

func TestLife(t *testing.T) {
	path := Path(t.TempDir(), "sam")
	l := open(t, path)
	if _, err := os.Stat(filepath.Dir(filepath.Dir(path))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open made directories: %v", err)
	}
	if _, known := l.Confirmed(refMain); known || l.Ours(refMain, oidA) || !l.Ours(refMain, zero) {
		t.Error("a new log knows something")
	}

	ok(t, l.Sending([]Entry{{refMain, oidA}, {refX, oidA}, {"HEAD", "ref:" + refMain}}))
	both(t, l, func(t *testing.T, l *Log) {
		if _, known := l.Confirmed(refMain); known || !l.Ours(refMain, oidA) || l.Ours(refMain, oidB) || !l.Ours(refMain, zero) {
			t.Error("being sent is not remembered, or taken for confirmed")
		}
	})
	// That push was cut off; the next one has another value; both may arrive.
	ok(t, l.Sending([]Entry{{refMain, oidB}, {refX, zero}}))
	both(t, l, func(t *testing.T, l *Log) {
		if !l.Ours(refMain, oidA) || !l.Ours(refMain, oidB) || !l.Ours(refX, zero) || !l.Ours(refX, oidA) {
			t.Error("attempts do not accumulate")
		}
	})
	ok(t, l.Confirm([]Entry{{refMain, oidB}, {refX, zero}, {"HEAD", "!ref:" + refMain}}))
	both(t, l, func(t *testing.T, l *Log) {
		if oid, known := l.Confirmed(refMain); !known || oid != oidB || l.Ours(refMain, oidA) || l.Ours(refMain, zero) {
			t.Error("confirming does not supersede")
		}
		if _, known := l.Confirmed(refX); known || l.Ours(refX, oidA) || !l.Ours(refX, zero) {
			t.Error("absent is not remembered as absent")
		}
		if head, _ := l.Confirmed("HEAD"); head != "!ref:"+refMain {
			t.Errorf("HEAD %q", head)
		}
	})
	// A deletion that is under way.
	ok(t, l.Sending([]Entry{{refMain, zero}}))
	both(t, l, func(t *testing.T, l *Log) {
		if oid, _ := l.Confirmed(refMain); oid != oidB || !l.Ours(refMain, zero) || !l.Ours(refMain, oidB) {
			t.Error("sending a deletion")
		}
	})
	want := strings.Join([]string{
		"> " + oidA + " refs/heads/main", "> " + oidA + " refs/heads/x", "> ref:refs/heads/main HEAD",
		"> " + oidB + " refs/heads/main", "> " + zero + " refs/heads/x",
		"= " + oidB + " refs/heads/main", "= " + zero + " refs/heads/x", "= !ref:refs/heads/main HEAD",
		"> " + zero + " refs/heads/main", ""}, "\n")
	if d := cmp.Diff(want, read(t, path)); d != "" {
		t.Error(d)
	}
}

func TestModes(t *testing.T) {
	state := t.TempDir()
	path := Path(state, "sam")
	ok(t, open(t, path).Sending([]Entry{{refMain, oidA}}))
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700, Dir(state): 0o700} {
		fi, err := os.Stat(p)
		ok(t, err)
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %o", p, fi.Mode().Perm())
		}
	}
}

// A sync that finds nothing new writes nothing; nor does a push repeated for ever.
func TestOnlyNews(t *testing.T) {
	path := Path(t.TempDir(), "sam")
	l := open(t, path)
	ok(t, l.Confirm([]Entry{{refX, zero}}))
	ok(t, l.Confirm(nil))
	ok(t, l.Sending(nil))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made for nothing: %v", err)
	}
	e := []Entry{{refMain, oidA}}
	for range 3 {
		ok(t, l.Sending(e))
	}
	for range 3 {
		ok(t, l.Confirm(e))
	}
	ok(t, l.Sending(e))
	if got, want := read(t, path), "> "+oidA+" refs/heads/main\n= "+oidA+" refs/heads/main\n"; got != want {
		t.Errorf("file:\n%swant:\n%s", got, want)
	}
}

func TestRefusesWhatItCouldNotRead(t *testing.T) {
	l := open(t, Path(t.TempDir(), "sam"))
	for _, e := range []Entry{{"", oidA}, {"main", oidA}, {"refs/", oidA}, {"refs/a b", oidA}, {"refs/a\nb", oidA}, {"refs/" + strings.Repeat("x", 1<<16), oidA}, {refMain, ""}, {refMain, oidA[1:]},
		{refMain, strings.ToUpper(oidA)}, {refMain, "ref:" + refX}, {"HEAD", "ref:"}, {"HEAD", "ref:main"}, {"HEAD", "!" + oidA}, {"HEAD", "!!ref:" + refX}} {
		if l.Sending([]Entry{{refX, oidA}, e}) == nil || l.Confirm([]Entry{e}) == nil {
			t.Errorf("%.80q is accepted", e)
		}
	}
	if l.Sending([]Entry{{refX, oidA}, {refX, oidB}}) == nil {
		t.Error("two values at once are accepted")
	}
	if l.Ours(refX, oidA) {
		t.Error("something of a refused call was recorded")
	}
}

func TestCorrupt(t *testing.T) {
	good := "= " + oidA + " refs/heads/main\n"
	for name, bad := range map[string]string{
		"empty line": "\n", "mark": "? " + oidA + " refs/heads/main\n", "oid": "= 12 refs/heads/main\n", "no ref": "= " + oidA + "\n", "no name": "= " + oidA + " \n",
		"zeros from a lost block": strings.Repeat("\x00", 60) + "\n", "two spaces": "=  " + oidA + " refs/x\n", "CR": "= " + oidA + " refs/x\r\n", "endless": "= " + oidA + " refs/" + strings.Repeat("x", (1<<17)) + "\n",
		"symbolic": "= ref:refs/heads/x refs/heads/main\n",
	} {
		path := filepath.Join(t.TempDir(), "a.refs")
		ok(t, os.WriteFile(path, []byte(good+bad+good), 0o600))
		l, err := Open(path)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || corrupt.Line != 2 || l != nil || !strings.HasPrefix(err.Error(), path+":2: ") || len(err.Error()) > 2000 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The file cut at every byte of the last append: what was there before is there still, the
// cut line is forgotten and makes no trouble later.
func TestTornAppend(t *testing.T) {
	path := Path(t.TempDir(), "sam")
	l := open(t, path)
	ok(t, l.Sending([]Entry{{refMain, oidA}}))
	ok(t, l.Confirm([]Entry{{refMain, oidA}}))
	before := len(read(t, path))
	ok(t, l.Sending([]Entry{{refMain, oidB}, {refX, oidC}}))
	whole := read(t, path)
	firstLine := before + len("> "+oidB+" refs/heads/main\n")
	for cut := before; cut <= len(whole); cut++ {
		ok(t, os.WriteFile(path, []byte(whole[:cut]), 0o600))
		l := open(t, path)
		if oid, _ := l.Confirmed(refMain); oid != oidA || l.Ours(refMain, oidB) != (cut >= firstLine) || l.Ours(refX, oidC) != (cut == len(whole)) {
			t.Fatalf("cut at %d: confirmed %q, being sent %v %v", cut, oid, l.Ours(refMain, oidB), l.Ours(refX, oidC))
		}
		ok(t, l.Sending([]Entry{{"refs/tags/t", oidA}}))
		ok(t, l.Close())
		l = open(t, path)
		if !l.Ours("refs/tags/t", oidA) || !l.Ours(refMain, oidA) {
			t.Fatalf("cut at %d, then appended: lost", cut)
		}
		ok(t, l.Close())
	}
}

// limitFileSize makes every write beyond n bytes fail, after writing what fits.
func limitFileSize(t *testing.T, n int) (lift func()) {
	signal.Ignore(syscall.SIGXFSZ)
	var old syscall.Rlimit
	ok(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	ok(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(n), Max: old.Max}))
	return func() { ok(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)) }
}

func TestDiskFull(t *testing.T) {
	path := Path(t.TempDir(), "sam")
	l := open(t, path)
	ok(t, l.Sending([]Entry{{refMain, oidA}}))
	before := read(t, path)
	lift := limitFileSize(t, len(before)+10)
	err := l.Sending([]Entry{{refMain, oidB}})
	lift()
	if !errors.Is(err, syscall.EFBIG) || l.Ours(refMain, oidB) || read(t, path) != before {
		t.Errorf("error %v; file:\n%s", err, read(t, path))
	}
	ok(t, l.Sending([]Entry{{refMain, oidB}}))
	if want := before + "> " + oidB + " refs/heads/main\n"; read(t, path) != want {
		t.Errorf("file:\n%s", read(t, path))
	}
}

func TestCompaction(t *testing.T) {
	path := Path(t.TempDir(), "sam")
	l := open(t, path)
	l.spare = 20
	ok(t, l.Sending([]Entry{{"refs/heads/kept", oidC}}))
	most := 0
	for i := range 300 {
		oid := fmt.Sprintf("%040x", i+1)
		ok(t, l.Sending([]Entry{{refMain, oid}}))
		ok(t, l.Confirm([]Entry{{refMain, oid}, {refX, zero}}))
		most = max(most, strings.Count(read(t, path), "\n"))
	}
	if most > 2*3+20+2 {
		t.Errorf("the file grew to %d lines", most)
	}
	both(t, l, func(t *testing.T, l *Log) {
		if oid, _ := l.Confirmed(refMain); oid != fmt.Sprintf("%040x", 300) || !l.Ours("refs/heads/kept", oidC) {
			t.Errorf("main is %q, kept is lost: %v", oid, !l.Ours("refs/heads/kept", oidC))
		}
	})
	if _, err := os.Stat(path + tmpSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("temporary file: %v", err)
	}
}

// A compaction that cannot be done loses nothing, disturbs no push and is not hidden.
func TestCompactionFails(t *testing.T) {
	path := Path(t.TempDir(), "sam")
	l := open(t, path)
	l.spare = 4
	ok(t, os.MkdirAll(path+tmpSuffix+"/in the way", 0o700))
	for i := range 20 {
		ok(t, l.Confirm([]Entry{{refMain, fmt.Sprintf("%040x", i+1)}}))
	}
	both(t, l, func(t *testing.T, l *Log) {
		if oid, _ := l.Confirmed(refMain); oid != fmt.Sprintf("%040x", 20) {
			t.Errorf("main is %q", oid)
		}
	})
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "compact") {
		t.Errorf("Close: %v", err)
	}
}

func TestPath(t *testing.T) {
	seen := map[string]string{}
	for _, peer := range []string{"sam", "sam2", ".", "..", "", "%", "%.", "a/b", "a%2Fb", "x/../.."} {
		path := Path("/repo.git", peer)
		if dir := filepath.Dir(path); dir != "/repo.git/mirror-shell/peers" {
			t.Errorf("%q is kept in %s", peer, path)
		}
		if other, twice := seen[path]; twice {
			t.Errorf("%q and %q are both %s", peer, other, path)
		}
		seen[path] = peer
	}
	if got := Path("/repo.git", "sam"); got != "/repo.git/mirror-shell/peers/sam.refs" {
		t.Error(got)
	}
}

func TestRemove(t *testing.T) {
	repo := t.TempDir()
	ok(t, Remove(repo))
	for _, peer := range []string{"sam", "gollum"} {
		ok(t, open(t, Path(repo, peer)).Sending([]Entry{{refMain, oidA}}))
	}
	ok(t, os.WriteFile(Path(repo, "sam")+".lock", nil, 0o600))
	ok(t, open(t, Received(repo)).Sending([]Entry{{refMain, oidA}}))
	ok(t, Remove(repo))
	left, _ := filepath.Glob(filepath.Join(Dir(repo), "peers", "*"))
	if want := []string{Path(repo, "sam") + ".lock"}; !slices.Equal(left, want) {
		t.Errorf("left %v", left)
	}
	if _, err := os.Stat(Received(repo)); err != nil {
		t.Error(err)
	}
}

// model is what the package comment promises, in two maps.
type model struct {
	confirmed map[string]string
	sending   map[string]map[string]bool
}

func (m *model) check(t *rapid.T, l *Log, refs, oids []string) {
	for _, ref := range refs {
		if got, _ := l.Confirmed(ref); got != m.confirmed[ref] {
			t.Fatalf("%s confirmed %q, want %q", ref, got, m.confirmed[ref])
		}
		for _, oid := range oids {
			want := m.sending[ref][oid] || m.confirmed[ref] == oid || m.confirmed[ref] == "" && oid == zero
			if got := l.Ours(ref, oid); got != want {
				t.Fatalf("%s %s ours: %v, want %v", ref, oid, got, want)
			}
		}
	}
}

// Any sequence of pushes, restarts and torn lines keeps what was promised.
func TestModel(t *testing.T) {
	refs := []string{refMain, refX, "refs/tags/t", "HEAD"}
	oids := []string{zero, oidA, oidB, oidC}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "refset")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "state", "a.refs")
		m := model{map[string]string{}, map[string]map[string]bool{}}
		var l *Log
		reopen := func(t *rapid.T) {
			if l, err = Open(path); err != nil {
				t.Fatal(err)
			}
			l.spare = 5
		}
		reopen(t)
		defer func() { l.Close() }()
		draw := func(t *rapid.T) (entries []Entry) {
			for _, ref := range rapid.SliceOfDistinct(rapid.SampledFrom(refs), rapid.ID).Draw(t, "refs") {
				entries = append(entries, Entry{ref, rapid.SampledFrom(oids).Draw(t, "oid")})
			}
			return entries
		}
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				entries := draw(t)
				if err := l.Sending(entries); err != nil {
					t.Fatal(err)
				}
				for _, e := range entries {
					if m.sending[e.Ref] == nil {
						m.sending[e.Ref] = map[string]bool{}
					}
					m.sending[e.Ref][e.OID] = true
				}
			},
			"confirm": func(t *rapid.T) {
				entries := draw(t)
				if err := l.Confirm(entries); err != nil {
					t.Fatal(err)
				}
				for _, e := range entries {
					delete(m.sending, e.Ref)
					m.confirmed[e.Ref] = e.OID
					if e.OID == zero {
						delete(m.confirmed, e.Ref)
					}
				}
			},
			"restart": func(t *rapid.T) {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				if f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0); err == nil {
					f.WriteString(rapid.SampledFrom([]string{"", ">", "= " + oidA, "\x00\x00"}).Draw(t, "torn"))
					f.Close()
				}
				reopen(t)
			},
			"": func(t *rapid.T) { m.check(t, l, refs, oids) },
		})
	})
}

func FuzzLoad(f *testing.F) {
	f.Add("= " + oidA + " refs/heads/main\n> " + zero + " refs/heads/x\n= ref:refs/heads/main HEAD\n= !ref:refs/heads/main HEAD\n> " + oidC + " refs/heads/x")
	f.Add("= " + oidA + " refs/heads/main\n\n")
	f.Add("> " + oidA + " refs/heads/main\n> " + oidB + " refs/heads/main\n= " + zero + " refs/heads/main\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "a.refs")
		l := &Log{path: path, known: map[string]known{}, spare: spareLines}
		if err := l.load(text); err != nil {
			if strings.Count(text, "\n") == 0 {
				t.Fatalf("a torn line is an error: %v", err)
			}
			return
		}
		if int(l.size) != strings.LastIndex(text, "\n")+1 {
			t.Fatalf("size %d", l.size)
		}
		// What was understood survives being written anew.
		if _, err := l.writeCompact(path); err != nil {
			t.Fatal(err)
		}
		if again := open(t, path); cmp.Diff(l.known, again.known, cmp.AllowUnexported(known{})) != "" {
			t.Fatal(cmp.Diff(l.known, again.known, cmp.AllowUnexported(known{})))
		}
	})
}

func BenchmarkPushOfOneAmong50000(b *testing.B) {
	path := Path(b.TempDir(), "sam")
	l := open(b, path)
	var entries []Entry
	for i := range 50_000 {
		entries = append(entries, Entry{fmt.Sprintf("refs/heads/topic-%05d", i), fmt.Sprintf("%040x", i+1)})
	}
	ok(b, l.Confirm(entries))
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			open(b, path).Close()
		}
	})
	b.Run("append", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			e := []Entry{{"refs/heads/topic-00001", fmt.Sprintf("%040x", i+1<<20)}}
			ok(b, l.Sending(e))
			ok(b, l.Confirm(e))
		}
	})
}
