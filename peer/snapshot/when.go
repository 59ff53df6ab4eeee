package snapshot

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"mirror-shell/internal/lazyregexp"
)

// ParseTime reads a moment as people write it, to find the snapshot of then with [Vault.At]:
//
//	now
//	2h ago · 90 minutes ago · 3 days ago · 1 week ago · 2 months ago
//	2026-11-22 · 2026-11-22 03:55 · 2026-11-22 03:55:57 · 2026-11-22 03:55:57.123
//	2026-11-22 03:55:57.123 UTC · 2026-11-22 03:55 +0100      (or the zone's name that loc has then, as lists show it)
//	2026-11-22T03:55:57Z · 2026-11-22T03:55:57.123+01:00      (RFC 3339)
//	20261122T035557.123Z                                      (as in the names of snapshots)
//
// What is written less exactly than to the millisecond stands for its last one: the state of a day is that of its
// end, and the time that a list shows in whole seconds finds the snapshot that it shows. A
// time without a zone is one of loc (nil: UTC). Errors say what can be written. Results are UTC, in
// whole milliseconds, from 1970 to what a name can hold, in the year 2286.
func ParseTime(text string, now time.Time, loc *time.Location) (time.Time, error) {
	if loc == nil {
		loc = time.UTC
	}
	text = strings.TrimSpace(text)
	t, err := parseTime(text, now, loc)
	if err != nil {
		return time.Time{}, fmt.Errorf("time %.60q: %w", text, err)
	}
	t = t.UTC().Truncate(time.Millisecond)
	if t.Before(time.UnixMilli(0)) || t.After(time.UnixMilli(lastMilli)) {
		return time.Time{}, fmt.Errorf("time %.60q: there are snapshots from 1970 to 2286 only", text)
	}
	return t, nil
}

var (
	agoPattern  = lazyregexp.New(`^([0-9]{1,6}) ?([a-z]+) ago$`)
	looksLike   = lazyregexp.New(`^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}|$)`)
	zonePattern = lazyregexp.New(`^([0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}[0-9:.]*) ?([A-Z]{1,5}|[+-][0-9]{2}:?[0-9]{2})$`)
	durationAgo = lazyregexp.New(`^([0-9hms.]+) ago$`)
)

// timeLayouts are tried in order, with the time that each leaves open.
var timeLayouts = []struct {
	layout string
	zone   bool // it says a zone itself
	open   func(time.Time) time.Time
}{
	{timeLayout, true, nil},
	{"2006-01-02T15:04:05.000Z07:00", true, nil},
	{time.RFC3339Nano, true, fill(time.Second)}, // reads any number of digits
	{"2006-01-02 15:04:05.999999999Z07:00", true, fill(time.Second)},
	{"2006-01-02T15:04Z07:00", true, fill(time.Minute)},
	{"2006-01-02 15:04:05.999999999", false, fill(time.Second)},
	{"2006-01-02T15:04:05.999999999", false, fill(time.Second)},
	{"2006-01-02 15:04", false, fill(time.Minute)},
	{"2006-01-02T15:04", false, fill(time.Minute)},
}

func fill(unit time.Duration) func(time.Time) time.Time {
	return func(t time.Time) time.Time { return t.Add(unit - time.Millisecond) }
}

func parseTime(text string, now time.Time, loc *time.Location) (time.Time, error) {
	if text == "now" {
		return now, nil
	}
	if strings.HasSuffix(text, " ago") {
		return parseAgo(text, now, loc)
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		// Not a millisecond before the next midnight: there are places where clocks skip it.
		return time.Date(day.Year(), day.Month(), day.Day(), 23, 59, 59, 999e6, loc), nil
	}
	if m := zonePattern.FindStringSubmatch(text); m != nil {
		return parseZone(m[1], m[2], now, loc)
	}
	_, wrong := time.Parse(time.DateOnly, text)
	for _, l := range timeLayouts {
		in := loc
		if l.zone {
			in = time.UTC
		}
		t, err := time.ParseInLocation(l.layout, text, in)
		if err != nil {
			if rangeOf(err) != "" {
				wrong = err
			}
			continue
		}
		if !l.zone && skipped(t, l.layout, text) {
			return time.Time{}, fmt.Errorf("clocks were put forward over it in %s: it did not exist", loc)
		}
		if l.open != nil && !strings.Contains(text, ".") {
			t = l.open(t)
		}
		return t, nil
	}
	switch {
	case rangeOf(wrong) != "" && looksLike.MatchString(text):
		return time.Time{}, fmt.Errorf("there is no such %s", rangeOf(wrong))
	case looksLike.MatchString(text):
		return time.Time{}, fmt.Errorf("what follows the date cannot be read: write \"2026-11-22 03:55\", \"2026-11-22 03:55:57\" or \"2026-11-22T03:55:57Z\"")
	}
	return time.Time{}, fmt.Errorf("write \"2026-11-22\", \"2026-11-22 03:55\", \"2026-11-22T03:55:57Z\", \"20261122T035557.123Z\" or \"3 days ago\"")
}

// parseZone reads a moment without a zone and the zone that was written after it.
func parseZone(moment, zone string, now time.Time, loc *time.Location) (time.Time, error) {
	if offset, err := time.Parse("-0700", strings.ReplaceAll(zone, ":", "")); err == nil {
		_, seconds := offset.Zone()
		return parseTime(moment, now, time.FixedZone(zone, seconds))
	}
	if zone == "UTC" || zone == "GMT" || zone == "Z" {
		return parseTime(moment, now, time.UTC)
	}
	t, err := parseTime(moment, now, loc)
	if err != nil {
		return time.Time{}, err
	}
	// The hour before winter comes twice, and the name tells which is meant.
	for _, same := range []time.Time{t, t.Add(-time.Hour), t.Add(time.Hour)} {
		name, _ := same.In(loc).Zone()
		if name == zone && same.In(loc).Format(time.DateTime) == t.In(loc).Format(time.DateTime) {
			return same, nil
		}
	}
	return time.Time{}, fmt.Errorf("the zone %s is not this server's at that time, and others are known by their offset only: write \"UTC\" or \"+01:00\"", zone)
}

// rangeOf is what of a time is out of range, or "".
func rangeOf(err error) string {
	for _, part := range []string{"month", "day", "hour", "minute", "second"} {
		if strings.Contains(err.Error(), part+" out of range") {
			return part
		}
	}
	return ""
}

// skipped reports whether a time, read from a text, is in the hour that a clock skips when it is put forward: it was
// read as another one.
func skipped(t time.Time, layout, text string) bool {
	said, err := time.Parse(layout, text)
	return err != nil || said.Format(time.DateTime) != t.Format(time.DateTime)
}

func parseAgo(text string, now time.Time, loc *time.Location) (time.Time, error) {
	bad := fmt.Errorf("write a number and seconds, minutes, hours, days, weeks, months or years, such as \"3 days ago\" or \"2h ago\"")
	m := agoPattern.FindStringSubmatch(text)
	if m == nil {
		if d := durationAgo.FindStringSubmatch(text); d != nil { // 1h30m ago
			if length, err := time.ParseDuration(d[1]); err == nil {
				return now.Add(-length), nil
			}
		}
		return time.Time{}, bad
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return time.Time{}, bad
	}
	now = now.In(loc) // for days with 23 or 25 hours
	switch strings.TrimSuffix(m[2], "s") {
	case "", "sec", "second": // "5s" lost its s
		return now.Add(-time.Duration(n) * time.Second), nil
	case "min", "minute":
		return now.Add(-time.Duration(n) * time.Minute), nil
	case "h", "hour":
		return now.Add(-time.Duration(n) * time.Hour), nil
	case "d", "day":
		return now.AddDate(0, 0, -n), nil
	case "w", "week":
		return now.AddDate(0, 0, -7*n), nil
	case "month":
		return now.AddDate(0, -n, 0), nil
	case "year":
		return now.AddDate(-n, 0, 0), nil
	case "m":
		return time.Time{}, fmt.Errorf("\"m\" may be minutes or months: write one of the words")
	}
	return time.Time{}, bad
}
