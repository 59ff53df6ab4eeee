package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"mirror-shell/internal/metrics"
)

// startHTTP serves the metrics where [http] is configured. The channel is closed when the server has
// ended; a failure of it ends everything, as with startSSH.
func (c *command) startHTTP(ctx context.Context, fail context.CancelCauseFunc, m *metrics.Metrics, log *slog.Logger) (<-chan struct{}, error) {
	ended := make(chan struct{})
	if c.server.HTTP.Listen == "" {
		close(ended)
		return ended, nil
	}
	l, err := net.Listen("tcp", c.server.HTTP.Listen)
	if err != nil {
		return nil, fmt.Errorf("http.listen: %w", err)
	}
	server := &http.Server{
		Handler: m.Handler(), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	log.Info("http server listens", "address", l.Addr())
	go func() {
		defer close(ended)
		stop := context.AfterFunc(ctx, func() { server.Close() })
		defer stop()
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fail(fmt.Errorf("http server: %w", err))
		}
	}()
	return ended, nil
}
