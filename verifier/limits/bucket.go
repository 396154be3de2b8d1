package limits

import (
	"slices"
	"time"

	"github.com/keytrail/keytrail/events"
)

// ID names a bucket: that of a key, or of a tenant of a keyspace as a whole. A key and
// the keys that it was rotated from share one; each of their ids names it.
type ID struct {
	Key      events.KeyID      `json:"key,omitzero"`
	Keyspace events.KeyspaceID `json:"keyspace,omitzero"` // of a tenant
	Tenant   events.TenantID   `json:"tenant,omitzero"`
}

// Numbers are a limit: tokens a minute, and tokens at once.
type Numbers struct {
	PerMinute int64 `json:"per_minute"`
	Burst     int64 `json:"burst"`
}

// A token is worth perToken parts, and a bucket with n tokens a minute regains n parts
// each millisecond: nothing is rounded, and a change of the limit keeps what is owed.
const perToken = 60_000

// full returns the parts of a full bucket.
func (n Numbers) full() int64 { return n.Burst * perToken }

// refill returns what is owed after so many milliseconds, of what was owed before. Never
// more than a full bucket is owed.
func (n Numbers) refill(owed, elapsed int64) int64 {
	owed = min(owed, n.full())
	if elapsed <= 0 {
		return owed
	}
	if elapsed > owed/n.PerMinute {
		return 0
	}
	return owed - elapsed*n.PerMinute
}

// regain returns in how many milliseconds so many parts come back, rounded up.
func (n Numbers) regain(parts int64) int64 {
	if parts <= 0 {
		return 0
	}
	return (parts + n.PerMinute - 1) / n.PerMinute
}

// seconds is regain in seconds, rounded up.
func (n Numbers) seconds(parts int64) int64 { return (n.regain(parts) + 999) / 1000 }

func millis(d time.Duration) int64 { return int64(d / time.Millisecond) }

// holding is what one run of a node holds of a bucket, by one of its names.
type holding struct {
	*session
	bucket *bucket
	id     ID            // by which the node asks
	tokens int64         // the most that it may still spend
	said   int64         // of those, what it held when it asked last: the rest came with the answer
	ask    uint64        // the number of that ask
	ends   time.Duration // when the lease is over
	demand int64         // tokens a second that are asked of it
	asked  time.Duration // when it asked last
}

// bucket is the allocator's account of one bucket. What is owed is burst − (level +
// leased): what was spent and has not come back. So leasing a token owes nothing yet, and
// refill, which only pays back what is owed, stops when level + leased = burst (R2).
type bucket struct {
	root    ID           // its first name
	newest  events.KeyID // the last key of it that is known: its limit holds
	young   bool         // it began after the allocator: it was full
	numbers Numbers      // as of at
	owed    int64        // parts, at at
	at      int64        // milliseconds of the allocator's clock
	leased  int64        // sum of the holders' tokens
	holders []*holding
}

// advance brings the account to now, by the allocator's clock. It comes before anything
// that the node says is counted: what it has spent was leased until now. A now that was
// read before another one that came first brings nothing: no millisecond refills twice.
// Where the limit has changed meanwhile, nobody knows when: the lower rate counts.
func (b *bucket) advance(now time.Duration, n Numbers) {
	by := n
	if b.numbers.PerMinute > 0 {
		by.PerMinute = min(n.PerMinute, b.numbers.PerMinute)
	}
	b.numbers = n
	b.owed = by.refill(b.owed, millis(now)-b.at)
	b.at = max(b.at, millis(now))
	b.holders = slices.DeleteFunc(b.holders, func(h *holding) bool {
		if now <= h.ends {
			return false
		}
		b.owed += h.tokens * perToken // whatever was not spent is lost (R1)
		b.leased -= h.tokens
		delete(h.holdings, h.id)
		return true
	})
}

// level is how many whole tokens can be leased.
func (b *bucket) level() int64 { return (b.numbers.full()-b.owed)/perToken - b.leased }

// settle counts what the holder says of itself in the ask: what it holds, and what it gives
// back; all else of its tokens was spent.
func (b *bucket) settle(h *holding, q *askBucket) {
	had := h.tokens
	if q.Of != h.ask { // it never had the answer, and never will: what came with it is back
		had = h.said
	}
	held := min(q.Held, had)
	gone := had - held
	back := min(q.Back, gone)
	b.owed += (gone - back) * perToken
	b.leased += held - h.tokens
	h.tokens, h.said = held, held
}

// recent is how long after its last ask a node counts among those that want tokens.
const recent = 500 * time.Millisecond

// others returns how many holders want tokens now, and what all of them ask for a second.
func (b *bucket) others(now time.Duration) (nodes, demand int64) {
	for _, h := range b.holders {
		if now-h.asked < recent {
			nodes++
			demand += max(h.demand, 1)
		}
	}
	return nodes, demand
}

// lease gives the holder as many tokens as it wants, or its share of what is there: the
// part that its demand is of all demand. It gets no tokens unless they are enough for the
// request that waits.
func (b *bucket) lease(h *holding, q *askBucket, now time.Duration) (a answerBucket) {
	n, level := b.numbers, b.level()
	nodes, demand := b.others(now)
	extra := max(q.Want, q.Need) - h.tokens
	give := max(min(extra, level), 0)
	if extra > level/2 && demand > 0 {
		share := int64(float64(level) * float64(max(q.Demand, 1)) / float64(demand))
		give = max(min(give, share), min(q.Need-h.tokens, level), 0)
	}
	if h.tokens+give < q.Need {
		give = 0
	}
	h.tokens += give
	b.leased += give
	a = answerBucket{Tokens: h.tokens, Numbers: n, Owed: b.owed, Spare: max(level-give, 0) / (8 * max(nodes, 1))}
	if give < extra {
		a.Wait = b.wait(h, q, float64(max(q.Demand, 1))/float64(max(demand, 1)))
	}
	return a
}

// The bounds of how long a node waits before it asks again.
const (
	waitLeast = 2    // ms
	waitShort = 20   // ms: others give back what they do not need
	waitMost  = 1000 // ms
)

// wait returns in how many milliseconds the holder's share is worth another ask. Spent
// tokens come back by time alone; those that others hold may be back at any time.
func (b *bucket) wait(h *holding, q *askBucket, share float64) int64 {
	n := b.numbers
	need := max(q.Need-h.tokens, 1)
	least := min(waitShort, max(waitLeast, n.Burst*perToken/4/n.PerMinute))
	if missing := need*perToken - (n.full() - b.owed); missing > 0 {
		return min(max(least, n.regain(missing)), waitMost)
	}
	return min(max(least, int64(float64(n.regain(need*perToken))/share)), waitShort)
}
