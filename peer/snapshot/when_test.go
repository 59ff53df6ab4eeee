package snapshot

import (
	"strings"
	"testing"
	"time"
	_ "time/tzdata"
)

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 5e6, time.UTC)
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ text, want string }{
		{"now", "2026-11-22T10:00:00.005Z"},
		{"2h ago", "2026-11-22T08:00:00.005Z"},
		{"2 hours ago", "2026-11-22T08:00:00.005Z"},
		{"90 minutes ago", "2026-11-22T08:30:00.005Z"},
		{"1h30m ago", "2026-11-22T08:30:00.005Z"},
		{"5s ago", "2026-11-22T09:59:55.005Z"},
		{"1 second ago", "2026-11-22T09:59:59.005Z"},
		{"3 days ago", "2026-11-19T10:00:00.005Z"},
		{"60d ago", "2026-09-23T09:00:00.005Z"}, // 11 o'clock, before the clocks went back
		{"1 week ago", "2026-11-15T10:00:00.005Z"},
		{"1 month ago", "2026-10-22T09:00:00.005Z"},
		{"2 years ago", "2024-11-22T10:00:00.005Z"},
		{"2026-11-22", "2026-11-22T22:59:59.999Z"},
		{"2026-10-25", "2026-10-25T22:59:59.999Z"}, // 25 hours
		{" 2026-11-22 03:55 ", "2026-11-22T02:55:59.999Z"},
		{"2026-11-22 3:55", "2026-11-22T02:55:59.999Z"},
		{"2026-11-22T03:55", "2026-11-22T02:55:59.999Z"},
		{"2026-11-22 03:55:57", "2026-11-22T02:55:57.999Z"},
		{"2026-11-22 03:55:57.1", "2026-11-22T02:55:57.100Z"},
		{"2026-11-22 03:55:57.123456789", "2026-11-22T02:55:57.123Z"},
		{"2026-11-22T03:55:57Z", "2026-11-22T03:55:57.999Z"},
		{"2026-11-22T03:55:57.123Z", "2026-11-22T03:55:57.123Z"},
		{"2026-11-22T03:55:57+02:00", "2026-11-22T01:55:57.999Z"},
		{"2026-11-22 03:55:57Z", "2026-11-22T03:55:57.999Z"},
		{"2026-11-22T03:55:57.000-05:00", "2026-11-22T08:55:57.000Z"},
		{"20261122T035557.123Z", "2026-11-22T03:55:57.123Z"},
		// As snapshots lists them.
		{"2026-11-22 03:55:57.123 UTC", "2026-11-22T03:55:57.123Z"},
		{"2026-11-22 04:55:57.123 CET", "2026-11-22T03:55:57.123Z"},
		{"2026-08-22 04:55 CEST", "2026-08-22T02:55:59.999Z"},
		{"2026-10-25 02:30 CEST", "2026-10-25T00:30:59.999Z"}, // the hour comes twice
		{"2026-10-25 02:30 CET", "2026-10-25T01:30:59.999Z"},
		{"2026-11-22 03:55:57 GMT", "2026-11-22T03:55:57.999Z"},
		{"2026-11-22 03:55:57 +0200", "2026-11-22T01:55:57.999Z"},
		{"2026-03-29 02:30 +01:00", "2026-03-29T01:30:59.999Z"}, // no clock is put forward there
	}
	for _, tt := range tests {
		got, err := ParseTime(tt.text, now, berlin)
		if err != nil || got.Format("2006-01-02T15:04:05.000Z07:00") != tt.want {
			t.Errorf("%q = %v, %v; want %s", tt.text, got, err, tt.want)
		}
	}
	for text, says := range map[string]string{
		"":                       "write",
		"yesterday":              "3 days ago",
		"ago":                    "write",
		"3 fortnights ago":       "weeks",
		"5m ago":                 "minutes or months",
		"-3 days ago":            "weeks",
		"9999999 days ago":       "weeks",
		"999999 days ago":        "1970",
		"1h1x ago":               "weeks",
		"2026-13-01":             "no such month",
		"2026-02-30":             "no such day",
		"2026-11-22 25:00":       "no such hour",
		"2026-11-22 10:61":       "no such minute",
		"2026-11-22 10:00 CEST":  "the zone CEST is not this server's at that time",
		"2026-11-22 10:00 EST":   "\"UTC\" or \"+01:00\"",
		"2026-11-22 25:00 UTC":   "no such hour",
		"2026-11-22 10:00 +9900": "the zone",
		"2026-11-22 10:00 Paris": "follows the date",
		"2026-03-29 02:30":       "put forward",
		"1969-12-31":             "1970",
		"2300-01-01":             "2286",
		"22.11.2026":             "2026-11-22",
		"20261122T035557Z":       "20261122T035557.123Z",
		strings.Repeat("9", 999): "write",
	} {
		if got, err := ParseTime(text, now, berlin); err == nil || !strings.Contains(err.Error(), says) || len(err.Error()) > 400 {
			t.Errorf("%.60q = %v, %v; want an error that says %q", text, got, err, says)
		}
	}
	if got, err := ParseTime("2026-11-22", now, nil); err != nil || got.Hour() != 23 {
		t.Errorf("without a zone: %v, %v", got, err)
	}
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"now", "2h ago", "1h30m ago", "2026-11-22", "2026-11-22 03:55", "2026-11-22T03:55:57.123+01:00", "20261122T035557.123Z", "2026-03-29T02:30", "999999 years ago"} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	loc, err := time.LoadLocation("America/Sao_Paulo")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTime(s, now, loc)
		if err != nil {
			return
		}
		// What a name can say, which reads as the same moment.
		again, err := ParseTime(got.Format(timeLayout), now, loc)
		if err != nil || !again.Equal(got) || len(countdown(got)) != 13 {
			t.Errorf("%q = %v, which reads as %v, %v", s, got, again, err)
		}
	})
}
