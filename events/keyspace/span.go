package keyspace

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Span is a length of time as people write it: a Go duration that may start
// with days, as "30d", "720h" or "1d12h". In a list of choices "never" stands
// for no end.
type Span string

// Never is the choice of no expiry.
const Never Span = "never"

// MaxSpan is the longest span: 100 years of 365 days.
const MaxSpan = 100 * 365 * 24 * time.Hour

// ParseSpan reads a span of 0 to MaxSpan, without a sign; "never" is not one.
func ParseSpan(s string) (time.Duration, error) {
	if strings.ContainsAny(s, "+-") {
		return 0, errSpan
	}
	var days int64
	rest := s
	if n, after, ok := strings.Cut(s, "d"); ok {
		var err error
		if days, err = strconv.ParseInt(n, 10, 32); err != nil {
			return 0, errSpan
		}
		rest = after
	}
	var d time.Duration
	if rest != "" || rest == s {
		var err error
		if d, err = time.ParseDuration(rest); err != nil {
			return 0, errSpan
		}
	}
	if d > MaxSpan || days > int64(MaxSpan/(24*time.Hour)) {
		return 0, errSpan
	}
	if d += time.Duration(days) * 24 * time.Hour; d > MaxSpan {
		return 0, errSpan
	}
	return d, nil
}

var errSpan = fmt.Errorf("want a duration of at most 100 years, as 90s, 720h or 30d")

// Duration returns the length, 0 for "", "never" and what ParseSpan refuses.
func (s Span) Duration() time.Duration {
	d, err := ParseSpan(string(s))
	if err != nil {
		return 0
	}
	return d
}
