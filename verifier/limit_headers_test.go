package verifier

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

func TestLimitHeaders(t *testing.T) {
	const now = events.Time(1_767_693_600_001) // one millisecond past the second
	l := Limit{Limit: 120, Remaining: 7, Reset: 113}
	for _, c := range []struct {
		rules keyspace.LimitHeaders
		limit Limit
		want  string
	}{
		{keyspace.LimitHeaders{}, l, "X-RateLimit-Limit=120 X-RateLimit-Remaining=7 X-RateLimit-Reset=113"},
		{keyspace.LimitHeaders{Style: keyspace.HeadersXRateLimit}, l, "X-RateLimit-Limit=120 X-RateLimit-Remaining=7 X-RateLimit-Reset=113"},
		{keyspace.LimitHeaders{Remaining: "X-RateLimit-Remaining", Reset: "X-RateLimit-Reset"}, l, "X-RateLimit-Remaining=7 X-RateLimit-Reset=113"},
		{keyspace.LimitHeaders{Reset: "X-Full-At", ResetAs: keyspace.ResetUnix}, l, "X-Full-At=1767693714"},
		{keyspace.LimitHeaders{Style: keyspace.HeadersIETF}, l, `RateLimit="default";r=7;t=113 RateLimit-Policy="default";q=120;w=120`},
		{keyspace.LimitHeaders{Style: keyspace.HeadersNone}, l, ""},
		{keyspace.LimitHeaders{}, Limit{}, ""},
		{keyspace.LimitHeaders{Style: keyspace.HeadersIETF}, Limit{}, ""},
	} {
		h := http.Header{}
		limitHeaders(h, &c.rules, c.limit, 60, now)
		var got []string
		for _, name := range slices.Sorted(maps.Keys(h)) {
			got = append(got, fmt.Sprintf("%s=%s", name, strings.Join(h[name], ",")))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%+v: %s, want %s", c.rules, s, c.want)
		}
		// The limit was taken away between the decision and its headers.
		h = http.Header{}
		if limitHeaders(h, &c.rules, c.limit, 0, now); len(h) != 0 {
			t.Errorf("%+v: %v for a limit that is no more", c.rules, h)
		}
	}
}
