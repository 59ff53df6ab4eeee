package sendpack

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	zero1 = "0000000000000000000000000000000000000000"
	oidA  = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	oidB  = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

var allCaps = Caps{"report-status", "report-status-v2", "delete-refs", "side-band-64k", "quiet", "atomic", "ofs-delta", "object-format=sha1", "agent=git/2.39.5"}

// pipePeer runs peer in the place of receive-pack over two kernel pipes, whose
// buffers are finite as a real connection's are.
func pipePeer(t testing.TB, peer func(in, out *os.File)) (r, w *os.File) {
	t.Helper()
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); peer(in, out) }()
	t.Cleanup(func() {
		for _, f := range []*os.File{r, w, in, out} {
			f.Close()
		}
		<-done
	})
	return r, w
}

// mustReturn fails the test when f needs more than a few seconds: it hangs.
func mustReturn(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
	}
}

// readCommands reads what a client sends up to its flush.
func readCommands(r io.Reader) (lines []string, err error) {
	p := newPktReader(r)
	for {
		payload, flush, err := p.next()
		if err != nil || flush {
			return lines, err
		}
		lines = append(lines, string(payload))
	}
}

func pkt(payload string) string { return fmt.Sprintf("%04x%s", 4+len(payload), payload) }

func band(n byte, data string) string {
	var b strings.Builder
	for len(data) > 0 {
		part := data[:min(len(data), maxPayload-1)]
		data = data[len(part):]
		b.WriteString(pkt(string(n) + part))
	}
	return b.String()
}

func okReport(refs ...string) string {
	s := pkt("unpack ok\n")
	for _, ref := range refs {
		s += pkt("ok " + ref + "\n")
	}
	return band(1, s+flushPkt) + flushPkt
}

// fakePack is something that begins like a pack, of n bytes.
func fakePack(n int) []byte {
	return append([]byte(packMagic), make([]byte, n-len(packMagic))...)
}

func writes(b []byte) func(io.Writer) error {
	return func(w io.Writer) error { _, err := w.Write(b); return err }
}

func noPack(t testing.TB) func(io.Writer) error {
	return func(io.Writer) error { t.Error("pack was called"); return nil }
}

func TestCommandsOnTheWire(t *testing.T) {
	for name, c := range map[string]struct {
		caps Caps
		opt  Options
		want string
	}{
		"git":     {allCaps, Options{Agent: "mirror shell/1\n", Quiet: true}, "report-status-v2 side-band-64k delete-refs ofs-delta quiet agent=mirror.shell/1."},
		"old git": {Caps{"report-status", "delete-refs"}, Options{Agent: "x", Quiet: true}, "report-status delete-refs"},
		"plain":   {allCaps, Options{}, "report-status-v2 side-band-64k delete-refs ofs-delta"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := plan(&Advertisement{ObjectFormat: SHA1, Caps: c.caps}, []Command{
				{"refs/heads/b", zero1, oidA}, {"refs/heads/x/y", oidA, zero1}, {"refs/heads/a", oidA, oidB}, {"refs/heads/k", oidB, zero1},
			}, c.opt)
			if err != nil {
				t.Fatal(err)
			}
			var buf bytes.Buffer
			if err := p.writeCommands(&buf); err != nil {
				t.Fatal(err)
			}
			got, err := readCommands(&buf)
			want := []string{
				oidB + " " + zero1 + " refs/heads/k\x00 " + c.want,
				oidA + " " + zero1 + " refs/heads/x/y",
				oidA + " " + oidB + " refs/heads/a",
				zero1 + " " + oidA + " refs/heads/b",
			}
			if err != nil || fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
				t.Errorf("sent %q, %v\nwant %q", got, err, want)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	sha1 := &Advertisement{ObjectFormat: SHA1, Caps: allCaps}
	set := Command{"refs/heads/a", zero1, oidA}
	for name, c := range map[string]struct {
		adv  *Advertisement
		cmds []Command
		opt  Options
		want string
	}{
		"format":      {sha1, []Command{set}, Options{ObjectFormat: SHA256}, "our repository is sha256 but the peer's is sha1"},
		"our format":  {sha1, []Command{set}, Options{ObjectFormat: "md5"}, "unknown"},
		"name":        {sha1, []Command{{"refs/heads/a b", zero1, oidA}}, Options{}, "not a valid ref name"},
		"oid":         {sha1, []Command{{"refs/heads/a", "", oidA}}, Options{}, "40 digits"},
		"upper case":  {sha1, []Command{{"refs/heads/a", zero1, strings.ToUpper(oidA)}}, Options{}, "40 digits"},
		"no change":   {sha1, []Command{{"refs/heads/a", oidA, oidA}}, Options{}, "old and new"},
		"twice":       {sha1, []Command{set, {"refs/heads/b", zero1, oidA}, {"refs/heads/a", oidA, zero1}}, Options{}, "changed twice"},
		"long":        {sha1, []Command{{"refs/heads/" + strings.Repeat("a", 65500), zero1, oidA}}, Options{}, "too long"},
		"no report":   {&Advertisement{ObjectFormat: SHA1, Caps: Caps{"delete-refs"}}, []Command{set}, Options{}, "report-status"},
		"no deletion": {&Advertisement{ObjectFormat: SHA1, Caps: Caps{"report-status"}}, []Command{set, {"refs/heads/b", oidA, zero1}}, Options{}, "delete-refs"},
	} {
		t.Run(name, func(t *testing.T) {
			var sent bytes.Buffer
			_, err := Push(strings.NewReader(""), &sent, c.adv, c.cmds, noPack(t), c.opt)
			if err == nil || !strings.Contains(err.Error(), c.want) || sent.Len() > 0 {
				t.Errorf("error %v after %d bytes, want one with %q before any", err, sent.Len(), c.want)
			}
		})
	}
}

func TestNothingToPush(t *testing.T) {
	var sent bytes.Buffer
	if _, err := Push(strings.NewReader(""), &sent, &Advertisement{ObjectFormat: SHA1}, nil, noPack(t), Options{}); err != nil || sent.String() != "0000" {
		t.Errorf("sent %q, %v; want a flush", sent.String(), err)
	}
}

var setA = []Command{{"refs/heads/a", zero1, oidA}}

// The peer talks far more than a pipe holds before it reads a byte of the pack.
func TestPeerTalksWhileWeSend(t *testing.T) {
	r, w := pipePeer(t, func(in, out *os.File) {
		readCommands(in)
		io.WriteString(out, band(2, strings.Repeat("counting…\r", 200_000)))
		io.Copy(io.Discard, in)
		io.WriteString(out, okReport("refs/heads/a"))
	})
	mustReturn(t, func() {
		var progress bytes.Buffer
		rep, err := Push(r, halfCloser{w}, &Advertisement{ObjectFormat: SHA1, Caps: allCaps}, setA, writes(fakePack(5<<20)), Options{Progress: &progress})
		if err != nil || rep.Unpack != "" || rep.Refs["refs/heads/a"] != "" || progress.Len() != 200_000*len("counting…\r") {
			t.Errorf("report %+v, %v; %d bytes of progress", rep, err, progress.Len())
		}
	})
}

// halfCloser is a pipe's end that knows CloseWrite, as a socket does.
type halfCloser struct{ *os.File }

func (h halfCloser) CloseWrite() error { return h.File.Close() }

// A peer that refuses in the middle and reads no more must not hold us, whatever pack does.
func TestPeerEndsInTheMiddle(t *testing.T) {
	const unpackFailed = "unpack index-pack abnormal exit\n"
	for name, c := range map[string]struct {
		says, want string
		unpack     string
	}{
		"ERR":            {pkt("ERR disk is full\n"), "peer says: disk is full", ""},
		"band 3":         {band(2, "remote: hm\n") + band(3, "fatal: gone \x1b[31mmad"), "peer says: fatal: gone ?[31mmad", ""},
		"silence":        {"", "before its report", ""},
		"last words":     {band(2, "fatal: out of memory\n"), "last words: fatal: out of memory", ""},
		"half a report":  {band(1, pkt("unpack ok\n")+pkt("ng refs/heads/a hook")+"00"), "within its report (1 of 1 refs named)", ""},
		"flush too soon": {flushPkt, "before its report", ""},
		"garbage":        {"Killed\n", "not a pkt-line", ""},
		"whole report":   {band(1, pkt(unpackFailed)+pkt("ng refs/heads/a unpacker error\n")+flushPkt) + flushPkt, "", "index-pack abnormal exit"},
		"early success":  {okReport("refs/heads/a"), "reported before everything was sent", ""},
	} {
		for how, pack := range map[string]func(ctx context.Context, w io.Writer) error{
			"writing": func(ctx context.Context, w io.Writer) error { return endless(w) },
			"thinking": func(ctx context.Context, w io.Writer) error {
				<-ctx.Done()
				return ctx.Err()
			},
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				r, w := pipePeer(t, func(in, out *os.File) {
					readCommands(in)
					io.WriteString(out, c.says)
					out.Close() // in stays open and is not read
				})
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				mustReturn(t, func() {
					rep, err := Push(r, w, &Advertisement{ObjectFormat: SHA1, Caps: allCaps}, setA,
						func(w io.Writer) error { return pack(ctx, w) }, Options{Stop: cancel})
					if rep.Unpack != c.unpack || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
						t.Errorf("report %+v, error %v; want %q", rep, err, c.want)
					}
				})
			})
		}
	}
}

func endless(w io.Writer) error {
	chunk := fakePack(32 << 10)
	for {
		if _, err := w.Write(chunk); err != nil {
			return err
		}
	}
}

// A pack function that heeds nothing is left behind, and can do no harm any more.
func TestDeafPackIsLeftBehind(t *testing.T) {
	r, w := pipePeer(t, func(in, out *os.File) {
		readCommands(in)
		out.Close()
	})
	release, returned := make(chan struct{}), make(chan error)
	mustReturn(t, func() {
		_, err := Push(r, w, &Advertisement{ObjectFormat: SHA1, Caps: allCaps}, setA, func(w io.Writer) error {
			<-release
			_, err := w.Write(fakePack(1 << 20))
			returned <- err
			return err
		}, Options{Linger: 50 * time.Millisecond})
		if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, errPackLeft) {
			t.Errorf("error %v", err)
		}
	})
	close(release)
	if err := <-returned; err == nil {
		t.Error("a write after the push was over succeeded")
	}
}

// When our side breaks and the peer says nothing, Push does not wait for ever.
func TestSilentPeerAfterBrokenWrite(t *testing.T) {
	hold := make(chan struct{})
	r, w := pipePeer(t, func(in, out *os.File) {
		readCommands(in)
		in.Close()
		<-hold
	})
	mustReturn(t, func() {
		_, err := Push(r, w, &Advertisement{ObjectFormat: SHA1, Caps: allCaps}, setA, endless, Options{Linger: 50 * time.Millisecond})
		if err == nil || !strings.Contains(err.Error(), "send to peer: ") || !strings.Contains(err.Error(), "pipe") {
			t.Errorf("error %v", err)
		}
	})
	close(hold)
}

var errMade = errors.New("missing blob")

func TestPackFails(t *testing.T) {
	for name, pack := range map[string]func(io.Writer) error{
		"at once":     func(io.Writer) error { return errMade },
		"in between":  func(w io.Writer) error { w.Write(fakePack(3000)); return errMade },
		"writes none": func(io.Writer) error { return nil },
		"short":       writes(fakePack(31)),
		"not a pack":  writes([]byte("usage: git pack-objects, and so on and on and on")),
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan []byte, 1)
			r, w := pipePeer(t, func(in, out *os.File) {
				readCommands(in)
				b, _ := io.ReadAll(in)
				got <- b
				io.WriteString(out, band(1, pkt("unpack early EOF\n")+flushPkt)+flushPkt)
				out.Close()
			})
			mustReturn(t, func() {
				_, err := Push(r, w, &Advertisement{ObjectFormat: SHA1, Caps: allCaps}, setA, pack, Options{})
				if !errors.Is(err, errMade) && !errors.Is(err, errNoPack) {
					t.Errorf("error %v", err)
				}
				if name == "in between" {
					if n := len(<-got); n > 3000-heldBack {
						t.Errorf("%d of 3000 bytes reached the peer", n)
					}
				} else if n := len(<-got); n != 0 {
					t.Errorf("%d bytes reached the peer", n)
				}
			})
		})
	}
}

func TestPackGateKeepsTheEnd(t *testing.T) {
	want := make([]byte, 1000)
	for i := range want {
		want[i] = byte(i)
	}
	copy(want, packMagic)
	for _, size := range []int{1, 3, 31, 32, 33, 100, 999, 1000} {
		var out bytes.Buffer
		buf := bufio.NewWriterSize(&out, 16)
		g := &packGate{w: buf}
		for rest := want; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			if n, err := g.Write(rest[:min(size, len(rest))]); err != nil || n != min(size, len(rest)) {
				t.Fatal(n, err)
			}
			buf.Flush()
			if got, most := out.Len(), len(want)-len(rest)+min(size, len(rest))-heldBack; got > max(0, most) {
				t.Fatalf("writes of %d: %d bytes passed, at most %d may", size, got, most)
			}
		}
		if err := g.finish(); err != nil || !bytes.Equal(out.Bytes(), want) {
			t.Errorf("writes of %d: pack changed (%v)", size, err)
		}
	}
}

// Peers without side-band send the report bare.
func TestNoSideband(t *testing.T) {
	r, w := pipePeer(t, func(in, out *os.File) {
		readCommands(in)
		io.WriteString(out, pkt("unpack ok\n")+pkt("ok refs/heads/a")+flushPkt)
	})
	rep, err := Push(r, w, &Advertisement{ObjectFormat: SHA1, Caps: Caps{"report-status"}}, setA, writes(fakePack(100)), Options{})
	if err != nil || len(rep.Refs) != 1 || rep.Refs["refs/heads/a"] != "" {
		t.Errorf("%+v, %v", rep, err)
	}
}

// The report is whole but the connection breaks while the peer's post-receive
// hook runs: an error, with all that is known.
func TestCutAfterReport(t *testing.T) {
	r, w := pipePeer(t, func(in, out *os.File) {
		readCommands(in)
		io.CopyN(io.Discard, in, 100)
		io.WriteString(out, strings.TrimSuffix(okReport("refs/heads/a"), flushPkt))
		out.Close()
	})
	rep, err := Push(r, w, &Advertisement{ObjectFormat: SHA1, Caps: allCaps}, setA, writes(fakePack(100)), Options{})
	if result, ok := rep.Refs["refs/heads/a"]; !ok || result != "" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%+v, %v", rep, err)
	}
}
