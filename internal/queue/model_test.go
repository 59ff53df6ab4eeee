package queue

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"mirror-shell/internal/inbox"
)

// The model knows changes, not generations: which were made, and which of them each run covers.

type modelChange struct {
	at     int64
	origin inbox.Origin
}

type modelRun struct {
	c       *claim
	key     Key
	covers  int // of the job's missing changes, the first so many
	expires int64
	probe   bool
}

type modelJob struct {
	missing []modelChange // on the peer
	runAt   int64
	attempt int
	state   State
	began   int64
	run     *modelRun // the latest, until it is settled

	changed     int64 // when the newest change was recorded
	digest      string
	note        string
	lastSuccess int64
}

type modelPeer struct {
	paused                       bool
	downSince, lastDown, retryAt int64
	attempt                      int
}

// machine drives two handles of one table, as two processes would, beside the model.
type machine struct {
	clock  *fakeClock
	qs     []*Queue
	jobs   map[Key]*modelJob
	peers  map[string]*modelPeer
	runs   []*modelRun // open ones
	stale  []*modelRun // whose lease passed to somebody else
	policy policy
}

const modelLease = 30_000

func (m *machine) now() int64 { return m.clock.now().UnixMilli() }

func (m *machine) live(r *modelRun) bool { return r != nil && r.expires > m.now() }

func (m *machine) down(p *modelPeer) bool { return p.downSince > 0 }

func (m *machine) backoff(n int) int64 {
	d := m.policy.base.Milliseconds()
	for range n - 1 {
		d = min(2*d, m.policy.cap.Milliseconds())
	}
	return d / 2 * 3 / 2 // the tests' jitter is one half
}

func (m *machine) eligible(k Key, lim limits) bool {
	j, p := m.jobs[k], m.peers[k.Peer]
	if len(j.missing) == 0 || m.live(j.run) || p.paused || j.runAt > m.now() {
		return false
	}
	running, probing := 0, false
	for _, r := range m.runs {
		if r.key.Peer == k.Peer && m.live(r) {
			running++
			probing = probing || r.probe
		}
	}
	if m.down(p) {
		return !probing && p.retryAt <= m.now()
	}
	return !lim.probesOnly && running < lim.perPeer
}

func (m *machine) anyQueue(t *rapid.T) *Queue { return rapid.SampledFrom(m.qs).Draw(t, "process") }

var (
	modelRepositories = rapid.SampledFrom([]string{"r1", "r2"})
	modelPeers        = rapid.SampledFrom([]string{"sam", "gollum"})
)

func modelKey(t *rapid.T) Key {
	return Key{modelRepositories.Draw(t, "repository"), modelPeers.Draw(t, "peer")}
}

func (m *machine) peer(name string) *modelPeer {
	if m.peers[name] == nil {
		m.peers[name] = &modelPeer{}
	}
	return m.peers[name]
}

func (m *machine) changed(k Key, origin inbox.Origin, at int64) {
	m.peer(k.Peer)
	j := m.jobs[k]
	if j == nil {
		j = &modelJob{}
		m.jobs[k] = j
	}
	if len(j.missing) == 0 {
		j.runAt = m.now()
	}
	j.runAt = min(j.runAt, m.now())
	j.missing = append(j.missing, modelChange{at, origin})
	j.changed = m.now()
}

func (m *machine) Enqueue(t *rapid.T) {
	var changes []Change
	for range rapid.IntRange(1, 3).Draw(t, "n") {
		at := m.now() - rapid.Int64Range(-5, 20_000).Draw(t, "age")
		k := modelKey(t)
		if len(m.runs) > 0 && rapid.Bool().Draw(t, "during a run") {
			k = rapid.SampledFrom(m.runs).Draw(t, "run").key
		}
		c := Change{k, rapid.SampledFrom([]inbox.Origin{inbox.OriginList, inbox.OriginExplicit}).Draw(t, "origin"), fromMillis(at)}
		changes = append(changes, c)
		m.changed(c.Key, c.Origin, min(at, m.now()))
	}
	if _, err := m.anyQueue(t).Enqueue(context.Background(), changes); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) begin(t *rapid.T, k Key, c *claim) *modelRun {
	j := m.jobs[k]
	if m.live(j.run) {
		t.Fatalf("overlap: %s was claimed under a live lease", k)
	}
	if j.run != nil {
		m.runs = slices.DeleteFunc(m.runs, func(r *modelRun) bool { return r == j.run })
		m.stale = append(m.stale, j.run)
	}
	r := &modelRun{c: c, key: k, covers: len(j.missing), expires: m.now() + modelLease, probe: m.down(m.peers[k.Peer])}
	if c.Probe != r.probe {
		t.Fatalf("%s: probe is %v", k, c.Probe)
	}
	j.run, j.began = r, m.now()
	m.runs = append(m.runs, r)
	return r
}

func (m *machine) Claim(t *rapid.T) {
	lim := limits{perPeer: rapid.IntRange(1, 3).Draw(t, "per peer"), probesOnly: rapid.IntRange(0, 4).Draw(t, "probes only") == 0}
	var best int64 = -1
	for k, j := range m.jobs {
		if m.eligible(k, lim) && (best < 0 || j.runAt < best) {
			best = j.runAt
		}
	}
	q := m.anyQueue(t)
	due, err := q.due(context.Background(), lim)
	if err != nil || due != (best >= 0) {
		t.Fatalf("due %v, %v; the model says %v", due, err, best >= 0)
	}
	c, err := q.claim(context.Background(), lim)
	if err != nil {
		t.Fatal(err)
	}
	if c == nil {
		if best >= 0 {
			t.Fatalf("nothing claimed, though something is due since %d", best)
		}
		return
	}
	if !m.eligible(c.Key, lim) {
		t.Fatalf("claimed %s, which is not eligible", c.Key)
	}
	if j := m.jobs[c.Key]; j.runAt != best || c.Attempt != j.attempt {
		t.Fatalf("claimed %s due since %d with attempt %d, before one due since %d; model %+v", c.Key, j.runAt, c.Attempt, best, j)
	}
	m.begin(t, c.Key, c)
}

var modelResults = map[string]error{
	"ok": nil, "failed": errors.New("x"), "down": ErrPeerDown, "held": ErrHeld, "dropped": ErrDropped, "stopped": context.Canceled,
}

func drawResult(t *rapid.T) (string, error) {
	name := rapid.SampledFrom([]string{"ok", "ok", "failed", "down", "held", "dropped", "stopped"}).Draw(t, "result")
	return name, modelResults[name]
}

func (m *machine) Settle(t *rapid.T) {
	if len(m.runs) == 0 {
		t.Skip()
	}
	r := rapid.SampledFrom(m.runs).Draw(t, "run")
	name, err := drawResult(t)
	current, serr := m.anyQueue(t).settle(context.Background(), r.c, judge(Result{}, err, name == "stopped"))
	if serr != nil || !current { // also after its lease, as long as nobody else took over
		t.Fatalf("settle: %v, %v", current, serr)
	}
	m.ended(r, name)
}

func (m *machine) ended(r *modelRun, result string) {
	j, p, now := m.jobs[r.key], m.peers[r.key.Peer], m.now()
	j.run = nil
	m.runs = slices.DeleteFunc(m.runs, func(o *modelRun) bool { return o == r })
	more := len(j.missing) > r.covers
	switch result {
	case "stopped":
	case "ok", "dropped":
		j.missing = j.missing[r.covers:]
		j.attempt, j.state = 0, State(result)
		if result == "ok" {
			p.downSince, p.attempt, p.retryAt = 0, 0, 0
			j.digest, j.note, j.lastSuccess = "", "", now
		}
	case "failed":
		j.attempt++
		j.state, j.runAt = StateFailed, now+m.backoff(j.attempt)
	case "held":
		j.state, j.runAt = StateHeld, now+m.policy.cap.Milliseconds()
	case "down":
		j.state = StateDown
		p.lastDown = now
		if !m.down(p) || r.probe {
			if !m.down(p) {
				p.downSince, p.attempt = now, 0
			}
			p.attempt++
			p.retryAt = now + m.backoff(p.attempt)
		}
	}
	if more && result != "stopped" {
		j.runAt = min(j.runAt, now)
	}
}

func (m *machine) SettleStale(t *rapid.T) {
	if len(m.stale) == 0 {
		t.Skip()
	}
	r := rapid.SampledFrom(m.stale).Draw(t, "run")
	_, err := drawResult(t)
	current, serr := m.anyQueue(t).settle(context.Background(), r.c, judge(Result{}, err, false))
	if serr != nil || current {
		t.Fatalf("a former owner's result was taken: %v, %v", current, serr)
	}
}

func (m *machine) Renew(t *rapid.T) {
	all := slices.Concat(m.runs, m.stale)
	if len(all) == 0 {
		t.Skip()
	}
	r := rapid.SampledFrom(all).Draw(t, "run")
	ours, err := m.anyQueue(t).renew(context.Background(), r.c)
	if want := slices.Contains(m.runs, r); err != nil || ours != want {
		t.Fatalf("renew: %v, %v, want %v", ours, err, want)
	}
	if ours {
		r.expires = m.now() + modelLease
	}
}

func (m *machine) RunNow(t *rapid.T) {
	k := modelKey(t)
	if j := m.jobs[k]; j != nil && m.live(j.run) {
		t.Skip()
	}
	m.changed(k, inbox.OriginExplicit, m.now())
	name, err := drawResult(t)
	if name == "stopped" {
		name, err = "ok", nil // needs a context of its own: see TestRunNowInterrupted
	}
	_, got := m.anyQueue(t).RunNow(context.Background(), k, inbox.OriginExplicit, func(_ context.Context, job Job) (Result, error) {
		m.begin(t, k, &claim{Job: job})
		return Result{}, err
	})
	if got != err {
		t.Fatalf("run now: %v, want %v", got, err)
	}
	m.ended(m.jobs[k].run, name)
}

func (m *machine) PassTime(t *rapid.T) {
	m.clock.add(rapid.SampledFrom([]time.Duration{time.Millisecond, 400 * time.Millisecond, 3 * time.Second,
		modelLease * time.Millisecond, time.Hour}).Draw(t, "time"))
}

func (m *machine) PausePeer(t *rapid.T) {
	name := modelPeers.Draw(t, "peer")
	if err := m.anyQueue(t).Pause(context.Background(), name); err != nil {
		t.Fatal(err)
	}
	m.peer(name).paused = true
}

func (m *machine) ResumePeer(t *rapid.T) {
	name := modelPeers.Draw(t, "peer")
	if err := m.anyQueue(t).Resume(context.Background(), name); err != nil {
		t.Fatal(err)
	}
	p := m.peer(name)
	p.paused, p.retryAt = false, 0
}

func (m *machine) Forget(t *rapid.T) {
	repository := modelRepositories.Draw(t, "repository")
	running, known := false, 0
	for k, j := range m.jobs {
		if k.Repository == repository {
			known++
			running = running || m.live(j.run)
		}
	}
	n, err := m.anyQueue(t).Forget(context.Background(), repository)
	if running {
		if !errors.Is(err, ErrRunning) {
			t.Fatalf("forgot a running job: %v", err)
		}
		return
	}
	if err != nil || n != known {
		t.Fatalf("forgot %d of %d, %v", n, known, err)
	}
	for k, j := range m.jobs {
		if k.Repository == repository {
			if j.run != nil {
				m.runs = slices.DeleteFunc(m.runs, func(r *modelRun) bool { return r == j.run })
				m.stale = append(m.stale, j.run)
			}
			delete(m.jobs, k)
		}
	}
}

func (m *machine) Verified(t *rapid.T) {
	since := m.now() - rapid.SampledFrom([]int64{-5000, -1, 0, 1, 400, 3000, 3600_000}).Draw(t, "age")
	var copies []Verification
	want := 0
	for range rapid.IntRange(1, 4).Draw(t, "n") {
		v := Verification{
			Key: modelKey(t), Digest: rapid.SampledFrom([]string{"", "d1", "d2"}).Draw(t, "digest"),
			Note: rapid.SampledFrom([]string{"", "n"}).Draw(t, "note"), ExactNote: rapid.Bool().Draw(t, "exact"),
		}
		if slices.ContainsFunc(copies, func(other Verification) bool { return other.Key == v.Key }) {
			continue
		}
		copies = append(copies, v)
		p := m.peer(v.Peer)
		p.downSince, p.attempt, p.retryAt = 0, 0, 0
		if m.verify(v, min(since, m.now())) {
			want++
		}
	}
	n, err := m.anyQueue(t).Verified(context.Background(), copies, fromMillis(since))
	if err != nil || n != want {
		t.Fatalf("verified: %d, %v, want %d", n, err, want)
	}
}

// verify reports whether a job was satisfied.
func (m *machine) verify(v Verification, since int64) (satisfied bool) {
	j := m.jobs[v.Key]
	if j == nil {
		j = &modelJob{}
		m.jobs[v.Key] = j
	}
	if m.live(j.run) || j.changed >= since {
		return false
	}
	satisfied = len(j.missing) > 0
	if !satisfied && j.state == StateOK && j.digest == v.Digest && (v.Note == "" && !v.ExactNote || v.Note == j.note) && m.now()-j.lastSuccess < 600_000 {
		return false
	}
	if satisfied && j.run != nil {
		m.runs = slices.DeleteFunc(m.runs, func(r *modelRun) bool { return r == j.run })
		m.stale = append(m.stale, j.run)
		j.run = nil
	}
	j.missing, j.attempt, j.state, j.digest, j.note, j.lastSuccess = nil, 0, StateOK, v.Digest, v.Note, m.now()
	return satisfied
}

// underRace is set where the race detector is on.
var underRace bool

func TestStateMachine(t *testing.T) { onBothInTurn(t, testStateMachine) }

func testStateMachine(t *testing.T) {
	// Few long rounds rather than many short ones: what goes wrong needs a history. Flags given by hand count.
	checks := fmt.Sprint(fewer(t, 60, 6))
	if underRace { // ten times slower, and there is nothing to race with here
		checks = fmt.Sprint(fewer(t, 3, 2))
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.steps": "120"} {
		if f := flag.Lookup(name); f.Value.String() == f.DefValue {
			defer f.Value.Set(f.DefValue)
			_ = f.Value.Set(value)
		}
	}
	dir := t.TempDir()
	address := databaseURL(t, dir)
	round := 0
	onServer := onPostgres(t)
	rapid.Check(t, func(t *rapid.T) {
		round++
		m := &machine{clock: newFakeClock(), jobs: map[Key]*modelJob{}, peers: map[string]*modelPeer{},
			policy: policy{base: time.Second, cap: 15 * time.Minute}}
		for range 2 {
			q, err := Open(context.Background(), Options{StateDir: dir, URL: address, Server: fmt.Sprint("frodo", round), Now: m.clock.now})
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			if !onServer { // thousands of transactions, no power cut
				if _, err := q.db.Exec("PRAGMA synchronous = OFF"); err != nil {
					t.Fatal(err)
				}
			}
			q.random = func() float64 { return 0.5 }
			m.qs = append(m.qs, q)
		}
		t.Repeat(map[string]func(*rapid.T){
			"": m.Check, "enqueue": m.Enqueue, "claim": m.Claim, "claim again": m.Claim, "settle": m.Settle, "settle stale": m.SettleStale,
			"renew": m.Renew, "run now": m.RunNow, "time": m.PassTime, "pause": m.PausePeer, "resume": m.ResumePeer, "forget": m.Forget,
			"verified": m.Verified,
		})
		m.finish(t)
	})
}
