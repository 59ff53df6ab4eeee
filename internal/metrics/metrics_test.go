package metrics

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"mirror-shell/internal/queue"
)

type rows struct {
	all []queue.Row
	err error
}

func (r rows) Rows(context.Context, queue.Filter) ([]queue.Row, error) { return r.all, r.err }

func scrape(t *testing.T, m *Metrics) (int, string) {
	t.Helper()
	server := httptest.NewServer(m.Handler())
	defer server.Close()
	response, err := http.Get(server.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestMetrics(t *testing.T) {
	table := rows{all: []queue.Row{
		{Key: queue.Key{Repository: "ip1", Peer: "sam"}, State: queue.StateOK, LastSuccess: time.Unix(1795319757, 0)},
		{Key: queue.Key{Repository: "ip1", Peer: "vault"}, State: queue.StateFailed, Lag: 90 * time.Second},
		{Key: queue.Key{Repository: "ip2", Peer: "vault"}, State: queue.StateFailed, Lag: time.Second, PeerDownSince: time.Now().Add(-time.Hour)},
		{Key: queue.Key{Repository: "ip3", Peer: "vault"}, State: "never"},
	}}
	m := New(table, func() ([]Schedule, error) {
		return []Schedule{{"attic", time.Time{}, 0}, {"vault", time.Unix(1795319757, 0), 2 * time.Hour}}, nil
	}, "frodo", "v1")
	m.Observe(Run{Peer: "vault", Kind: "backup", Result: "ok", Took: 3 * time.Second, Sent: 4096, Phases: map[string]time.Duration{"upload": 2 * time.Second}})
	status, text := scrape(t, m)
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, text)
	}
	for _, want := range []string{
		`mirror_shell_last_success_timestamp_seconds{peer="sam",repository="ip1"} 1.795319757e+09`,
		`mirror_shell_last_success_timestamp_seconds{peer="vault",repository="ip1"} 0`,
		`mirror_shell_lag_seconds{peer="vault",repository="ip1"} 90`,
		`mirror_shell_copies{peer="vault",state="failed"} 2`,
		`mirror_shell_copies{peer="vault",state="never"} 1`,
		`mirror_shell_peer_down_seconds{peer="sam"} 0`,
		`mirror_shell_schedule_overdue_seconds{peer="attic"} 0`,
		`mirror_shell_schedule_overdue_seconds{peer="vault"} 7200`,
		`mirror_shell_schedule_last_run_timestamp_seconds{peer="attic"} 0`,
		`mirror_shell_schedule_last_run_timestamp_seconds{peer="vault"} 1.795319757e+09`,
		`mirror_shell_syncs_total{kind="backup",peer="vault",result="ok"} 1`,
		`mirror_shell_sync_seconds_total{kind="backup",peer="vault",phase="upload"} 2`,
		`mirror_shell_sent_bytes_total{kind="backup",peer="vault"} 4096`,
		`mirror_shell_info{hostname="frodo",version="v1"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, `mirror_shell_peer_down_seconds{peer="vault"} 0`+"\n") {
		t.Error("a copy that was never made takes its peer for one that can be reached")
	}
}

func none() ([]Schedule, error) { return nil, nil }

// A scrape that cannot read the table must not look like a server without copies.
func TestTableCannotBeRead(t *testing.T) {
	if status, text := scrape(t, New(rows{err: errors.New("database is locked")}, none, "frodo", "v1")); status != http.StatusInternalServerError || !strings.Contains(text, "database is locked") {
		t.Errorf("status %d: %s", status, text)
	}
}
