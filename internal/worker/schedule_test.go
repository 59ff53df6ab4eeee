package worker

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"mirror-shell/mirrorcfg"
)

func TestDue(t *testing.T) {
	at := func(text string) time.Time {
		v, err := time.Parse("2006-01-02 15:04:05", text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	now := at("2026-11-22 03:20:00")
	for name, c := range map[string]struct {
		expression string
		last       time.Time
		want       time.Time
		slack      time.Duration
	}{
		"never yet":      {"@hourly", time.Time{}, at("2026-11-22 04:00:00"), 5 * time.Minute},
		"done":           {"@hourly", at("2026-11-22 03:01:00"), at("2026-11-22 04:00:00"), 5 * time.Minute},
		"missed":         {"@hourly", at("2026-11-22 01:30:00"), now, time.Minute},
		"daily":          {"15 3 * * *", at("2026-11-22 03:17:00"), at("2026-11-23 03:15:00"), 5 * time.Minute},
		"every minute":   {"* * * * *", at("2026-11-22 03:20:00"), at("2026-11-22 03:21:00"), 6 * time.Second},
		"clock ran back": {"@daily", at("2026-11-25 00:00:00"), at("2026-11-23 00:00:00"), 5 * time.Minute},
	} {
		got, slack, err := schedule{"vault", c.expression}.due(c.last, now)
		if err != nil || !got.Equal(c.want) || slack != c.slack {
			t.Errorf("%s: %v + %v, %v; want %v + %v", name, got, slack, err, c.want, c.slack)
		}
	}
}

// A scheduled run that fails is tried again, and not at its next time only.
func TestPersist(t *testing.T) {
	c := &command{server: &mirrorcfg.Server{Worker: mirrorcfg.Worker{RetryMax: mirrorcfg.Duration(time.Millisecond)}}}
	log := slog.New(slog.DiscardHandler)
	tries := 0
	err := c.persist(t.Context(), "vault", log, func() error {
		if tries++; tries < 4 {
			return errors.New("cannot be reached")
		}
		return nil
	})
	if err != nil || tries != 4 {
		t.Errorf("%d tries, %v", tries, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.persist(ctx, "vault", log, func() error { cancel(); return errors.New("no") }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
