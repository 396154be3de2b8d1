package keyspace_test

import (
	"math/big"
	"regexp"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events/keyspace"
)

func TestParseSpan(t *testing.T) {
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "0d": 0, "90s": 90 * time.Second, "720h": 30 * day, "30d": 30 * day, "1d12h": 36 * time.Hour, "365d": 365 * day, "007d": 7 * day,
		"1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute, ".5s": 500 * time.Millisecond, "1d1ms": day + time.Millisecond, "36500d": keyspace.MaxSpan, "876000h": keyspace.MaxSpan, "36499d24h": keyspace.MaxSpan,
	} {
		if got, err := keyspace.ParseSpan(s); err != nil || got != want || keyspace.Span(s).Duration() != want {
			t.Errorf("%q is %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "d", "never", "30", "30 d", "30D", "1.5d", "d12h", "12h1d", "1d1d", "1d12", "-1s", "+1s", "-0s", "-1d", "+1d", "-0d", "1d-1h", "1d+1h", "1d ", " 1d", "1d\n", "1_0d", "0x1d", "1e3s",
		"36501d", "36500d1ns", "876000h1ns", "2147483648d", "99999999999999999999d", "9223372036854775808ns", "1d2562047h47m16.9s", "1w", "1y", "\u0661d"} {
		if got, err := keyspace.ParseSpan(s); err == nil || keyspace.Span(s).Duration() != 0 {
			t.Errorf("%q reads as %v", s, got)
		}
	}
}

var (
	spanForm = regexp.MustCompile(`^(?:([0-9]+)d)?(0|(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|\x{b5}s|\x{3bc}s|ms|s|m|h))*)$`)
	spanPart = regexp.MustCompile(`([0-9.]+)([^0-9.]+)`)
	units    = map[string]int64{"d": 24 * 3600e9, "h": 3600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "us": 1e3, "\u00b5s": 1e3, "\u03bcs": 1e3, "ns": 1}
)

// naiveSpan reads a span by its grammar with numbers of any size: exactly, and
// cut to nanoseconds part by part.
func naiveSpan(s string) (*big.Int, bool) {
	if s == "" || !spanForm.MatchString(s) {
		return nil, false
	}
	sum := new(big.Int)
	for _, m := range spanPart.FindAllStringSubmatch(s, -1) {
		n := m[1]
		if n[0] == '.' {
			n = "0" + n
		}
		if n[len(n)-1] == '.' {
			n += "0"
		}
		x, ok := new(big.Rat).SetString(n)
		if !ok {
			return nil, false
		}
		x.Mul(x, new(big.Rat).SetInt64(units[m[2]]))
		sum.Add(sum, new(big.Int).Quo(x.Num(), x.Denom()))
	}
	return sum, sum.Cmp(big.NewInt(int64(keyspace.MaxSpan))) <= 0
}

// FuzzSpan: whatever the text, it reads as its grammar says or not at all.
func FuzzSpan(f *testing.F) {
	for _, s := range []string{"30d", "1d12h", "720h", "1.5h", ".5s", "36500d", "36500d1ns", "never", "-0d", "1d+1h", "1d0", "0", "", "1us1\u00b5s1\u03bcs", "9223372036854775807ns", "1.0000000000000000000000001s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 200 {
			return // the naive reading is slow with long numbers
		}
		got, err := keyspace.ParseSpan(s)
		want, ok := naiveSpan(s)
		if (err == nil) != ok {
			t.Fatalf("%q reads as %v, %v; by the grammar %v, %v", s, got, err, want, ok)
		}
		if ok {
			// A fraction is a float64 in time.ParseDuration: one nanosecond a part.
			diff := new(big.Int).Sub(want, big.NewInt(int64(got)))
			if diff.CmpAbs(big.NewInt(int64(len(spanPart.FindAllString(s, -1))))) > 0 {
				t.Fatalf("%q reads as %v; by the grammar %v", s, got, want)
			}
		}
		if d := keyspace.Span(s).Duration(); d != got || d < 0 || d > keyspace.MaxSpan {
			t.Fatalf("the span %q lasts %v", s, d)
		}
	})
}
