package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"mirror-shell/internal/sendpack"
)

const zero1 = "0000000000000000000000000000000000000000"

// Whatever the peer has and whatever we know: what a plan does leaves the peer
// with our refs, except where a value is neither from us nor contained here; and
// no command touches such a value.
func TestPlanProperty(t *testing.T) {
	oid := rapid.Custom(func(t *rapid.T) string { return strings.Repeat(fmt.Sprint(rapid.IntRange(1, 5).Draw(t, "n")), 40) })
	refs := rapid.MapOf(rapid.SampledFrom([]string{"refs/heads/a", "refs/heads/b", "refs/heads/b/c", "refs/tags/d", "refs/x/e"}), oid)
	rapid.Check(t, func(t *rapid.T) {
		ours, theirs, sent := refs.Draw(t, "ours"), refs.Draw(t, "theirs"), refs.Draw(t, "sent")
		contained := rapid.MapOf(oid, rapid.Bool()).Draw(t, "contained")
		k := knowledge{
			ours:      func(ref, oid string) bool { return sent[ref] == oid },
			contained: func(oid string) bool { return contained[oid] },
		}
		p := decide(differences(ours, theirs, zero1), zero1, k)
		want, got := maps.Clone(ours), maps.Clone(theirs)
		for ref, has := range theirs {
			if has != ours[ref] && sent[ref] != has && !contained[has] {
				want[ref] = has
			}
		}
		for _, c := range p.commands {
			if old, ok := got[c.Ref]; ok != (c.Old != zero1) || ok && old != c.Old {
				t.Fatalf("%+v, but the peer has %q", c, old)
			}
			delete(got, c.Ref)
			if c.New != zero1 {
				got[c.Ref] = c.New
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("-want +got\n%s", diff)
		}
		if total := len(p.commands) + len(p.divergent); total != len(differences(ours, theirs, zero1)) {
			t.Fatalf("%d differences have become %d", len(differences(ours, theirs, zero1)), total)
		}
	})
}

func commandsFor(n int) []sendpack.Command {
	var all []sendpack.Command
	for i := range n {
		all = append(all, sendpack.Command{Ref: fmt.Sprintf("refs/heads/%05d", i), Old: zero1, New: fmt.Sprintf("%040x", i+1)})
	}
	return all
}

func TestBisection(t *testing.T) {
	for _, c := range []struct {
		bad       []int
		n, probes int
	}{
		{n: 1, bad: []int{0}, probes: 1},
		{n: 50_000, bad: []int{}, probes: 1},
		{n: 50_000, bad: []int{49_999}, probes: 20},
		{n: 50_000, bad: []int{0, 17, 18, 30_000, 30_001, 49_999}, probes: 120},
		{n: 16, bad: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, probes: 31},
	} {
		isBad := map[string]bool{}
		all := commandsFor(c.n)
		for _, i := range c.bad {
			isBad[all[i].Ref] = true
		}
		s := bisection{packable: func(part []sendpack.Command) (bool, error) {
			return !slices.ContainsFunc(part, func(c sendpack.Command) bool { return isBad[c.Ref] }), nil
		}}
		found, err := s.search(all, false)
		if err != nil || found != (len(c.bad) > 0) || len(s.bad) != len(c.bad) || s.probes > c.probes {
			t.Errorf("%d bad of %d: found %d in %d probes, want at most %d (%v)", len(c.bad), c.n, len(s.bad), s.probes, c.probes, err)
		}
		for _, ref := range s.bad {
			if !isBad[ref] {
				t.Errorf("%s is not bad", ref)
			}
		}
	}
	// All of very many: the search ends, and nothing counts as good unseen.
	s := bisection{packable: func([]sendpack.Command) (bool, error) { return false, nil }}
	if _, err := s.search(commandsFor(50_000), false); err != nil || s.probes > maxProbes || len(s.bad) != 50_000 {
		t.Errorf("all bad: %d found in %d probes, %v", len(s.bad), s.probes, err)
	}
	s = bisection{packable: func([]sendpack.Command) (bool, error) { return false, context.Canceled }}
	if _, err := s.search(commandsFor(50), false); !errors.Is(err, context.Canceled) || len(s.bad) > 0 {
		t.Errorf("cancelled: %v, %v", err, s.bad)
	}
}

func TestPulse(t *testing.T) { synctest.Test(t, testPulse) }

func testPulse(t *testing.T) {
	const limit = 60 * time.Millisecond
	ctx, p := watch(context.Background(), limit)
	defer p.stop()
	for range 10 { // a steady trickle
		time.Sleep(limit / 4)
		p.beat()
	}
	resume := p.pause()
	nested := p.pause()
	time.Sleep(4 * limit)
	resume()
	resume()
	time.Sleep(4 * limit) // the other work goes on
	if ctx.Err() != nil {
		t.Fatalf("stalled while we worked ourselves: %v", context.Cause(ctx))
	}
	nested()
	time.Sleep(limit / 4)
	if ctx.Err() != nil {
		t.Fatal("the time we worked counts")
	}
	time.Sleep(limit)
	if ctx.Err() == nil {
		t.Fatal("it does not end")
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errStalled) {
		t.Errorf("cause %v", cause)
	}
}

func TestRemoteLines(t *testing.T) {
	var out bytes.Buffer
	r := prefixed(&out)
	for _, part := range []string{"one\ntw", "o\r\n\n", "\x1b[2Jthree\n", strings.Repeat("x", 3*maxLine), strings.Repeat("y", 10) + "\nend"} {
		if n, err := r.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	r.end()
	r.end()
	want := "remote: one\nremote: two\nremote: [2Jthree\nremote: " + strings.Repeat("x", maxLine) + "\nremote: end\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
