package events

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/keytrail/keytrail/events/input"
)

// Time is an instant in milliseconds since the Unix epoch, UTC (E6). The zero
// Time means "none": no expiry, not yet. Its text form is RFC 3339 with exactly
// three decimals, "2026-01-06T10:00:00.000Z".
type Time int64

const timeLayout = "2006-01-02T15:04:05.000Z"

// maxTime is the last instant that the text form can hold (year 9999).
var maxTime = Time(time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC).UnixMilli())

// At truncates t to its millisecond.
func At(t time.Time) Time { return Time(t.UnixMilli()) }

// Std returns the instant as a time.Time in UTC.
func (t Time) Std() time.Time { return time.UnixMilli(int64(t)).UTC() }

// IsZero reports whether t is unset.
func (t Time) IsZero() bool { return t == 0 }

// Add returns t+d, truncated to the millisecond.
func (t Time) Add(d time.Duration) Time { return t + Time(d.Milliseconds()) }

// String returns the text form, or "" for the zero Time.
func (t Time) String() string {
	if t == 0 {
		return ""
	}
	return t.Std().Format(timeLayout)
}

// ParseTime reads exactly what String prints.
func ParseTime(s string) (Time, error) {
	p, err := time.Parse(timeLayout, s)
	if err != nil {
		return 0, fmt.Errorf("time %s: want RFC 3339 in UTC with three decimals, as 2026-01-06T10:00:00.000Z", input.Echo(s))
	}
	t := At(p)
	if t.String() != s {
		return 0, fmt.Errorf("time %s: want RFC 3339 in UTC with three decimals, as 2026-01-06T10:00:00.000Z", input.Echo(s))
	}
	return t, t.Validate()
}

// ParseTimeLenient reads any RFC 3339 instant that a person may type, also with
// "t" and "z" in lower case, and truncates it to the millisecond. Endpoints use
// it; the codec does not. The error repeats nothing of s.
func ParseTimeLenient(s string) (Time, error) {
	if !instant.MatchString(s) {
		if shifted.MatchString(s) {
			return 0, errors.New("want '+' before the offset, not a space: in a URL's query a '+' is read as a space, write it as %2B or use Z")
		}
		return 0, errInstant
	}
	p, err := time.Parse(time.RFC3339Nano, strings.ToUpper(s))
	if err != nil {
		return 0, errInstant
	}
	t := At(p)
	if err := t.Validate(); err != nil {
		return 0, err
	}
	return t, nil
}

// instant is the grammar of RFC 3339, section 5.6. time.Parse bounds the numbers,
// but takes more forms: an hour of one digit, a comma before the fraction, an
// offset of 24:60. shifted is an instant that has lost its '+' in a query.
var (
	instant    = regexp.MustCompile(`^` + localInstant + `([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`)
	shifted    = regexp.MustCompile(`^` + localInstant + ` \d\d:\d\d$`)
	errInstant = errors.New("want an RFC 3339 instant, as 2026-01-06T10:00:00Z or 2026-01-06T12:00:00+02:00")
)

const localInstant = `\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?`

// Validate reports whether the instant is after 1970 and before the year 10000.
func (t Time) Validate() error {
	if t <= 0 || t > maxTime {
		return fmt.Errorf("time: want an instant after 1970 and before the year 10000")
	}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (t Time) MarshalText() ([]byte, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return []byte(t.String()), nil
}

// UnmarshalText is as strict as ParseTime.
func (t *Time) UnmarshalText(b []byte) (err error) {
	*t, err = ParseTime(string(b))
	return err
}
