// Package metrics tells a monitoring system how every copy stands, in Prometheus's text format.
//
// Two kinds of figures are served. What the jobs table knows (when a copy was last equal, how far it
// is behind, its state) is read from the table at each scrape, so that it is right after a restart, and also when another
// process did the work. What happened in this process (runs, bytes, how long each phase took) is counted from
// its start on.
//
//	mirror_shell_last_success_timestamp_seconds{repository,peer}   unix time when the copy was last found or made equal
//	mirror_shell_lag_seconds{repository,peer}                      age of the oldest change it lacks; 0 when equal
//	mirror_shell_copies{peer,state}                                how many copies are in each state
//	mirror_shell_peer_down_seconds{peer}                           for how long the peer cannot be reached; 0: it can
//	mirror_shell_schedule_overdue_seconds{peer}                    how long ago a scheduled backup should have been made; 0: none was missed
//	mirror_shell_schedule_last_run_timestamp_seconds{peer}         unix time when the last scheduled run began; 0: none yet
//	mirror_shell_syncs_total{peer,kind,result}                     runs, by result: ok, failed, held, down, dropped
//	mirror_shell_sync_seconds_total{peer,kind,phase}               time spent, by phase; the phase "all" is the whole run
//	mirror_shell_sent_bytes_total{peer,kind}                       bytes sent to the peer
//
// The one to raise an alarm on is the first: an alarm on errors is silent when nothing runs at all.
package metrics

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"mirror-shell/internal/queue"
)

// Table is where the state of the copies is read from: a *queue.Queue.
type Table interface {
	Rows(context.Context, queue.Filter) ([]queue.Row, error)
}

// Schedule is how the schedule of one peer is kept.
type Schedule struct {
	Peer    string
	LastRun time.Time     // zero: none yet
	Overdue time.Duration // since the first run that was missed; 0: none was
}

// Run is one ended sync of one copy.
type Run struct {
	Peer, Kind string // kind: "ssh", "backup"
	Result     string // "ok", "failed", "held", "down" or "dropped"
	Took       time.Duration
	Phases     map[string]time.Duration
	Sent       int64 // bytes
}

// Metrics counts runs and serves everything. Its methods may be called by any number of goroutines.
type Metrics struct {
	registry *prometheus.Registry
	syncs    *prometheus.CounterVec
	seconds  *prometheus.CounterVec
	sent     *prometheus.CounterVec
}

// New returns the metrics of a server, whose table they read, and how its schedules are kept.
// Version is the program's.
func New(table Table, schedules func() ([]Schedule, error), hostname, version string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		syncs:    counter("mirror_shell_syncs_total", "Runs that ended, by result.", "peer", "kind", "result"),
		seconds:  counter("mirror_shell_sync_seconds_total", "Time spent in runs, by phase; phase all is the whole run.", "peer", "kind", "phase"),
		sent:     counter("mirror_shell_sent_bytes_total", "Bytes sent to the peer.", "peer", "kind"),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mirror_shell_info", Help: "Always 1; tells hostname and version.",
		ConstLabels: prometheus.Labels{"hostname": hostname, "version": version},
	})
	info.Set(1)
	m.registry.MustRegister(m.syncs, m.seconds, m.sent, info, &tableCollector{table, schedules})
	return m
}

// Observe counts a run.
func (m *Metrics) Observe(r Run) {
	m.syncs.WithLabelValues(r.Peer, r.Kind, r.Result).Inc()
	m.seconds.WithLabelValues(r.Peer, r.Kind, "all").Add(r.Took.Seconds())
	for phase, took := range r.Phases {
		m.seconds.WithLabelValues(r.Peer, r.Kind, phase).Add(took.Seconds())
	}
	m.sent.WithLabelValues(r.Peer, r.Kind).Add(float64(r.Sent))
}

// Handler serves /metrics; a table that cannot be read is status 500, and never an empty answer.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.HTTPErrorOnError, MaxRequestsInFlight: 2, Timeout: scrapeTimeout,
	}))
	return mux
}

// scrapeTimeout bounds one scrape; Prometheus gives up after ten seconds by default.
const scrapeTimeout = 10 * time.Second

// tableCollector reads the jobs table at each scrape.
type tableCollector struct {
	table     Table
	schedules func() ([]Schedule, error)
}

var (
	copyLabels  = []string{"repository", "peer"}
	lastSuccess = prometheus.NewDesc("mirror_shell_last_success_timestamp_seconds", "Unix time when the copy was last found or made equal; 0: never.", copyLabels, nil)
	lag         = prometheus.NewDesc("mirror_shell_lag_seconds", "Age of the oldest change that the copy lacks; 0 when equal.", copyLabels, nil)
	copies      = prometheus.NewDesc("mirror_shell_copies", "Number of copies in a state.", []string{"peer", "state"}, nil)
	overdue     = prometheus.NewDesc("mirror_shell_schedule_overdue_seconds", "How long ago a scheduled backup should have been made; 0: none was missed.", []string{"peer"}, nil)
	lastRun     = prometheus.NewDesc("mirror_shell_schedule_last_run_timestamp_seconds", "Unix time when the last scheduled run began; 0: none yet.", []string{"peer"}, nil)
	peerDown    = prometheus.NewDesc("mirror_shell_peer_down_seconds", "For how long the peer cannot be reached; 0: it can.", []string{"peer"}, nil)
)

// Describe implements prometheus.Collector.
func (c *tableCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{lastSuccess, lag, copies, overdue, lastRun, peerDown} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (c *tableCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	rows, err := c.table.Rows(ctx, queue.Filter{})
	if err != nil {
		out <- prometheus.NewInvalidMetric(lastSuccess, err)
		return
	}
	schedules, err := c.schedules()
	if err != nil {
		out <- prometheus.NewInvalidMetric(overdue, err)
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	type state struct {
		peer  string
		state queue.State
	}
	counts, down := map[state]int{}, map[string]time.Duration{}
	for _, row := range rows {
		gauge(lastSuccess, unix(row.LastSuccess), row.Repository, row.Peer)
		gauge(lag, row.Lag.Seconds(), row.Repository, row.Peer)
		counts[state{row.Peer, row.State}]++
		down[row.Peer] = max(0, down[row.Peer]) // not every row knows of the peer
		if !row.PeerDownSince.IsZero() {
			down[row.Peer] = max(0, time.Since(row.PeerDownSince))
		}
	}
	for s, n := range counts {
		gauge(copies, float64(n), s.peer, string(s.state))
	}
	for _, s := range schedules {
		gauge(overdue, s.Overdue.Seconds(), s.Peer)
		gauge(lastRun, unix(s.LastRun), s.Peer)
	}
	for peer, since := range down {
		gauge(peerDown, since.Seconds(), peer)
	}
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
