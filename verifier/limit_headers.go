package verifier

import (
	"net/http"
	"strconv"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// limitHeaders says in h where the limit stands, in the headers that the keyspace
// names. A decision that no limit was asked about says nothing.
//
// The ietf style is that of draft-ietf-httpapi-ratelimit-headers-10: the policy's
// quota q is what a full bucket holds, its window w the seconds in which an empty
// one fills; r is what remains and t the seconds until it is full again.
func limitHeaders(h http.Header, rules *keyspace.LimitHeaders, l Limit, perMinute int64, now events.Time) {
	if l.Limit == 0 || perMinute == 0 { // the latter: it was taken away after the decision
		return
	}
	values := make([]string, 0, 3)
	set := func(name string, value int64) {
		if name != "" {
			values = append(values, strconv.FormatInt(value, 10))
			h[name] = values[len(values)-1 : len(values) : len(values)] // in the keyspace's own spelling
		}
	}
	if rules.Style == keyspace.HeadersIETF {
		b := strconv.AppendInt([]byte(`"default";q=`), l.Limit, 10)
		b = strconv.AppendInt(append(b, ";w="...), seconds(l.Limit*perToken, perMinute), 10)
		h["RateLimit-Policy"] = []string{string(b)}
		b = strconv.AppendInt([]byte(`"default";r=`), l.Remaining, 10)
		b = strconv.AppendInt(append(b, ";t="...), l.Reset, 10)
		h["RateLimit"] = []string{string(b)}
		return
	}
	limit, remaining, reset := rules.Names()
	set(limit, l.Limit)
	set(remaining, l.Remaining)
	if rules.ResetAs == keyspace.ResetUnix {
		// The second in which the bucket is full for certain.
		set(reset, (int64(now)+999)/1000+l.Reset)
	} else {
		set(reset, l.Reset)
	}
}
