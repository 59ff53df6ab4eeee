package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-shell/internal/inbox"
	"mirror-shell/internal/queue"
	"mirror-shell/mirrorcfg"
)

// world is a jobs table made of rows, a clock, and a server's configuration.
type world struct {
	t      *testing.T
	server *mirrorcfg.Server
	out    string // file that the command appends to
	log    bytes.Buffer

	mu    sync.Mutex
	jobs  []queue.Row
	err   error
	clock time.Time
}

func (w *world) Rows(_ context.Context, f queue.Filter) (rows []queue.Row, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, row := range w.jobs {
		if row.Want > row.Done || !f.Pending {
			rows = append(rows, row)
		}
	}
	return rows, w.err
}

func (w *world) Peers(context.Context) (peers []queue.Peer, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := map[string]bool{}
	for _, row := range w.jobs {
		if !seen[row.Peer] {
			seen[row.Peer] = true
			peers = append(peers, queue.Peer{Name: row.Peer, DownSince: row.PeerDownSince, Error: row.PeerError})
		}
	}
	return peers, w.err
}

// newWorld has a command that appends each event to a file, unless a file named broken is there.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, out: filepath.Join(dir, "told"), clock: now}
	program := filepath.Join(dir, "tell")
	script := fmt.Sprintf("#!/bin/sh\nif [ -e %q ]; then echo no mail today >&2; exit 3; fi\ncat >> %q\n", w.broken(), w.out)
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	w.server = &mirrorcfg.Server{Hostname: "frodo", StateDir: filepath.Join(dir, "state"),
		Notify: mirrorcfg.Notify{Command: []string{program}, Lag: mirrorcfg.Duration(time.Hour)}}
	if err := os.Mkdir(w.server.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) broken() string { return filepath.Join(filepath.Dir(w.out), "broken") }

func (w *world) breakCommand() {
	if err := os.WriteFile(w.broken(), nil, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) set(jobs ...queue.Row) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs = jobs
}

// process is a Notifier of a new process.
func (w *world) process() *Notifier {
	return &Notifier{Server: w.server, Table: w, Log: slog.New(slog.NewTextHandler(&w.log, nil)), Now: func() time.Time { return w.clock }}
}

func (w *world) check() {
	w.t.Helper()
	if err := w.process().Check(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// told returns what the command was told since the last call.
func (w *world) told() []Event {
	w.t.Helper()
	data, err := os.ReadFile(w.out)
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	os.Remove(w.out)
	var events []Event
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	for {
		var e Event
		if err := decoder.Decode(&e); err == io.EOF {
			return events
		} else if err != nil {
			w.t.Fatalf("told %q: %v", data, err)
		}
		events = append(events, e)
	}
}

func (w *world) want(what string) {
	w.t.Helper()
	if got := told(w.told()); got != what {
		w.t.Errorf("told %q, want %q", got, what)
	}
}

// Once per incident, though every look is that of another process.
func TestOncePerIncident(t *testing.T) {
	w := newWorld(t)
	w.set(job("ip1@sam", queue.StateDown, time.Minute))
	w.check()
	w.want("")
	w.set(job("ip1@sam", queue.StateDown, 2*time.Hour))
	w.check()
	w.want("lag sam ip1")
	for range 3 {
		w.check()
	}
	w.want("")
	w.set()
	w.check()
	w.want("well sam")
	w.check()
	w.want("")
	if _, err := os.Stat(w.process().path("incidents.json")); !os.IsNotExist(err) {
		t.Errorf("incidents.json is left behind: %v", err)
	}
}

func TestManyProcessesAtOnce(t *testing.T) {
	w := newWorld(t)
	w.set(job("ip1@sam", queue.StateHeld, 0), job("ip1@gollum", queue.StateDown, 2*time.Hour))
	var processes sync.WaitGroup
	for range 8 {
		n := w.process()
		n.Log = nil
		processes.Go(func() {
			if err := n.Check(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	processes.Wait()
	w.want("held sam ip1; lag gollum ip1")
}

func TestUndelivered(t *testing.T) {
	w := newWorld(t)
	w.breakCommand()
	w.set(job("ip1@sam", queue.StateHeld, 0))
	w.check()
	warnings := Warnings(w.server)
	if len(warnings) != 1 || !strings.Contains(warnings[0], "1 notifications could not be delivered to the command") || !strings.Contains(warnings[0], "no mail today") {
		t.Errorf("warnings %q", warnings)
	}
	if !strings.Contains(w.log.String(), "could not be delivered") {
		t.Errorf("log %s", w.log.String())
	}
	w.set() // well meanwhile: that is told after what it is about
	w.check()
	os.Remove(w.broken())
	w.check()
	w.want("") // not so soon
	w.clock = w.clock.Add(backoffBase)
	w.check()
	w.want("held sam ip1; well sam ip1")
	if warnings := Warnings(w.server); warnings != nil {
		t.Errorf("warnings %q", warnings)
	}
}

// A process that dies between telling and noting that it did tells again, with the same id.
func TestSameIDAgain(t *testing.T) {
	w := newWorld(t)
	w.breakCommand()
	w.set(job("ip1@sam", queue.StateHeld, 0))
	w.check()
	data, err := os.ReadFile(w.process().path("incidents.json"))
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(w.broken())
	w.clock = w.clock.Add(time.Minute)
	w.check()
	first := w.told()
	if err := os.WriteFile(w.process().path("incidents.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	w.check()
	second := w.told()
	if len(first) != 1 || len(second) != 1 || first[0].ID == "" || first[0].ID != second[0].ID {
		t.Errorf("told %v, then %v", first, second)
	}
}

func TestNotices(t *testing.T) {
	w := newWorld(t)
	for _, repo := range []string{"ip1", "ip2"} {
		err := inbox.PutNotice(w.server.StateDir, inbox.Notice{Kind: inbox.NoticeRescued, Repository: repo, Peer: "sam", Refs: []string{"refs/mirror/rescued/x/refs/heads/main"}})
		if err != nil {
			t.Fatal(err)
		}
	}
	w.err = errors.New("the database is down") // which does not keep them
	if err := w.process().Check(context.Background()); !errors.Is(err, w.err) {
		t.Errorf("error %v", err)
	}
	events := w.told()
	if told(events) != "rescued sam ip1; rescued sam ip2" || len(events[0].Refs) != 1 || !strings.Contains(events[0].Text, "mirror-shell rescued ip1") {
		t.Errorf("told %+v", events)
	}
	w.err = nil
	w.check()
	w.want("")
	if inbox.HasNotices(w.server.StateDir) {
		t.Error("a notice is left")
	}
}

func TestNobodyToTell(t *testing.T) {
	w := newWorld(t)
	command := w.server.Notify.Command
	w.server.Notify.Command = nil
	w.set(job("ip1@sam", queue.StateHeld, 2*time.Hour))
	w.check()
	if _, err := os.Stat(w.process().path("incidents.json")); !os.IsNotExist(err) {
		t.Errorf("incidents.json: %v", err)
	}
	lacks, err := inbox.Behind(w.server.StateDir, "ip1", nil)
	if err != nil || len(lacks) != 1 || lacks[0].Peer != "sam" { // whoever pushes is told all the same
		t.Errorf("behind: %v, %v", lacks, err)
	}
	w.server.Notify.Command = command
	w.check()
	w.want("held sam ip1")
}

func TestBrokenFile(t *testing.T) {
	w := newWorld(t)
	path := w.process().path("incidents.json")
	for _, text := range []string{"", "{", "[]", `{"version":0}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.set(job("ip1@sam", queue.StateHeld, 0))
		w.check()
		w.want("held sam ip1")
		if kept, err := os.ReadFile(path + ".bad"); err != nil || string(kept) != text {
			t.Errorf("kept %q, %v", kept, err)
		}
	}
	if !strings.Contains(w.log.String(), "the incidents are forgotten") {
		t.Errorf("log %s", w.log.String())
	}
	if err := os.WriteFile(path, []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.process().Check(context.Background()); !errors.Is(err, errNewer) {
		t.Errorf("a newer version's file: %v", err)
	}
}

// A webhook and a command do not wait for each other.
func TestWebhook(t *testing.T) {
	w := newWorld(t)
	var got []string
	status := http.StatusInternalServerError
	hook := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var e Event
		if err := json.Unmarshal(body, &e); err != nil {
			t.Error(err)
		}
		got = append(got, fmt.Sprintf("%s %s %s %s %s", r.Method, r.URL.Path, r.Header.Get("Content-Type"), r.Header.Get("Authorization"), told([]Event{e})))
		rw.WriteHeader(status)
		fmt.Fprint(rw, r.Header.Get("Authorization"), r.URL)
	}))
	defer hook.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("t0ps3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.server.Notify.Webhook, w.server.Notify.WebhookTokenFile = hook.URL+"/services/s3crethook", token
	w.set(job("ip1@sam", queue.StateHeld, 0))
	w.check()
	w.want("held sam ip1")
	if want := "POST /services/s3crethook application/json Bearer t0ps3cret held sam ip1"; len(got) != 1 || got[0] != want {
		t.Errorf("posted %q, want %q", got, want)
	}
	status = http.StatusNoContent
	w.clock = w.clock.Add(time.Minute)
	w.check()
	w.want("")
	if len(got) != 2 || Warnings(w.server) != nil {
		t.Errorf("posted %q, warnings %q", got, Warnings(w.server))
	}
	w.noSecrets()
}

// noSecrets checks what people can read.
func (w *world) noSecrets() {
	w.t.Helper()
	for _, text := range append(Warnings(w.server), w.log.String()) {
		if strings.Contains(text, "s3cret") {
			w.t.Errorf("a secret is in %q", text)
		}
	}
}

// What is not a webhook's good answer is a failure, and gives no secret away.
func TestWebhookFailures(t *testing.T) {
	slow := make(chan struct{})
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	mux := http.NewServeMux()
	mux.Handle("/redirect-s3cret", http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	mux.HandleFunc("/endless-s3cret", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/slow-s3cret", func(http.ResponseWriter, *http.Request) { <-slow })
	plain, tls := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer tls.Close()
	defer close(slow)
	gone := httptest.NewServer(mux)
	gone.Close()
	tests := []struct{ url, token, want string }{
		{plain.URL + "/redirect-s3cret", "", "answers 307"},
		{plain.URL + "/missing-s3cret", "", "answers 404"},
		{plain.URL + "/slow-s3cret", "", "deadline exceeded"},
		{tls.URL + "/redirect-s3cret", "", "certificate"},
		{gone.URL + "/s3cret", "", "refused"},
		{plain.URL + "/missing-s3cret", "two s3cret words", "does not hold one token"},
		{plain.URL + "/missing-s3cret", strings.Repeat("s3cret", 9999), "does not hold one token"},
	}
	for _, tt := range tests {
		w := newWorld(t)
		w.server.Notify.Command = nil
		w.server.Notify.Webhook = tt.url
		if tt.token != "" {
			w.server.Notify.WebhookTokenFile = filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(w.server.Notify.WebhookTokenFile, []byte(tt.token), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		limit := deliveryTimeout
		if strings.Contains(tt.url, "slow") {
			limit = 200 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		err := w.process().post(ctx, []byte("{}"))
		cancel()
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: error %v, want %q", tt.url, err, tt.want)
		}
	}
	w := newWorld(t)
	w.server.Notify.Webhook = plain.URL + "/endless-s3cret"
	if err := w.process().post(context.Background(), []byte("{}")); err != nil {
		t.Errorf("an endless answer that says 200: %v", err)
	}
}

// Who is told to stop lets the command end.
func TestStopDuringDelivery(t *testing.T) {
	w := newWorld(t)
	program := w.server.Notify.Command[0]
	if err := os.WriteFile(program, fmt.Appendf(nil, "#!/bin/sh\ntouch %q\nsleep 0.5\ncat >> %q\n", w.out+".begun", w.out), 0o700); err != nil {
		t.Fatal(err)
	}
	w.set(job("ip1@sam", queue.StateHeld, 0))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.process().Run(ctx, 0)
	}()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(w.out + ".begun"); err == nil {
			break
		}
	}
	cancel()
	<-ended
	w.want("held sam ip1")
	w.check()
	w.want("")
}

// An outcome that matters brings a look soon; others bring none.
func TestOutcome(t *testing.T) {
	w := newWorld(t)
	n := w.process()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.Run(ctx, time.Hour)
	}()
	key := queue.Key{Repository: "ip1", Peer: "sam"}
	n.Outcome(key, nil)
	n.Outcome(key, queue.ErrPeerDown)
	w.set(job("ip1@sam", queue.StateHeld, 0))
	time.Sleep(2 * settling)
	w.want("")
	n.Outcome(key, fmt.Errorf("guard: %w", queue.ErrHeld))
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if info, err := os.Stat(w.out); err == nil && info.Size() > 0 {
			break
		}
	}
	cancel()
	<-ended
	w.want("held sam ip1")
}

func TestCheckIfNeeded(t *testing.T) {
	w := newWorld(t)
	look := func(n *Notifier) {
		t.Helper()
		if err := n.CheckIfNeeded(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	look(w.process()) // nobody ever looked
	w.set(job("ip1@sam", queue.StateHeld, 0))
	look(w.process())
	w.want("")
	n := w.process()
	n.Outcome(queue.Key{Repository: "ip1", Peer: "sam"}, queue.ErrHeld)
	look(n)
	w.want("held sam ip1")
	old := time.Now().Add(-2 * every)
	if err := os.Chtimes(n.path(stampFile), old, old); err != nil {
		t.Fatal(err)
	}
	w.set()
	look(w.process())
	w.want("well sam ip1")
}

func TestTooMany(t *testing.T) {
	b := &book{}
	for i := range maxOutgoing + 5 {
		b.send(Event{ID: fmt.Sprint(i)}, []string{channelCommand})
	}
	if len(b.Outgoing) != maxOutgoing || b.Outgoing[0].Event.ID != "5" || b.dropped != 5 {
		t.Errorf("%d outgoing, first %v, %d dropped", len(b.Outgoing), b.Outgoing[0].Event, b.dropped)
	}
}
