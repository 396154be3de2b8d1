package events_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

func TestParseTimeLenient(t *testing.T) {
	const at = "2026-01-06T10:00:00.000Z"
	for s, want := range map[string]string{
		"2026-01-06T10:00:00Z":           at,
		"2026-01-06t10:00:00z":           at,
		"2026-01-06T12:00:00+02:00":      at,
		"2026-01-06t09:30:00.0009-00:30": at,
		"2026-01-06T10:00:00.5Z":         "2026-01-06T10:00:00.500Z",
		"2026-01-06T10:00:00-00:00":      at,
	} {
		if got, err := events.ParseTimeLenient(s); err != nil || got.String() != want {
			t.Errorf("%q reads as %v, %v; want %s", s, got, err, want)
		}
	}
	for s, hint := range map[string]string{
		"":                            "want an RFC 3339 instant",
		"2026-01-06T1:02:00Z":         "want an RFC 3339 instant",
		"2026-01-06T10:00:00,5Z":      "want an RFC 3339 instant",
		"2026-01-06T10:00:00.Z":       "want an RFC 3339 instant",
		"2026-01-06 10:00:00Z":        "want an RFC 3339 instant",
		"2026-01-06T10:00Z":           "want an RFC 3339 instant",
		"2026-01-06T10:00:00":         "want an RFC 3339 instant",
		"2026-01-06T10:00:00+0200":    "want an RFC 3339 instant",
		"2026-01-06T10:00:00+24:00":   "want an RFC 3339 instant",
		"2026-01-06T10:00:00+02:60":   "want an RFC 3339 instant",
		"2026-02-30T10:00:00Z":        "want an RFC 3339 instant",
		"2026-01-06":                  "want an RFC 3339 instant",
		"2026-01-06T12:00:00 02:00":   "%2B",
		"2026-01-06t12:00:00.5 02:00": "%2B",
		" 02:00":                      "want an RFC 3339 instant",
		"1970-01-01T00:00:00Z":        "after 1970",
	} {
		if got, err := events.ParseTimeLenient(s); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q reads as %v, %v; want an error with %q", s, got, err, hint)
		}
	}
}

// FuzzParseTimeLenient: what is read says the same to an independent reader, and
// only a form of RFC 3339 is read.
func FuzzParseTimeLenient(f *testing.F) {
	for _, s := range []string{"", "2026-01-06T10:00:00Z", "2026-01-06t12:00:00.5+02:00", "2026-01-06T1:02:00Z", "2026-01-06T10:00:00,5Z", "2026-01-06T12:00:00 02:00", "z", "2026-01-06t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := events.ParseTimeLenient(s)
		if err != nil {
			return
		}
		upper := strings.ToUpper(s)
		want, perr := time.Parse(time.RFC3339Nano, upper)
		if perr != nil || got != events.At(want) {
			t.Fatalf("%q reads as %v, want %v, %v", s, got, want, perr)
		}
		date, clock, _ := strings.Cut(upper, "T")
		clock, fraction, _ := strings.Cut(clock, ".")
		if fraction == "" {
			fraction, clock = "0"+clock[8:], clock[:8]
		}
		digits := strings.TrimLeft(fraction, "0123456789")
		if len(date) != 10 || len(clock) != 8 || digits != "Z" && len(digits) != len("+02:00") {
			t.Errorf("%q is read, which RFC 3339 has no form for", s)
		}
	})
}
