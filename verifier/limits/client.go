package limits

import (
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
)

// Limit is one of the limits of a request.
type Limit struct {
	ID
	Numbers // as the node's view has them
}

// Standing is where the whole bucket stands, as far as the node knows: as of its last
// answer, less what it has spent since and more what has come back by time.
type Standing struct {
	Numbers
	Remaining int64 // whole tokens that nobody has spent
	Reset     int64 // seconds until the bucket is full again, rounded up
	Local     bool  // this node decided by itself

	// Until is when the lease of the tokens that were taken is over: they were taken in
	// time if it is not, once Take has returned. 0 = no lease was used.
	Until      time.Duration
	RetryAfter int64 // seconds until the request that was refused is worth another try, rounded up; 0 = it was not refused, or always will be

	Told <-chan struct{} // closed when the allocator has answered, or does not; nil unless Asking
}

// Outcome is what became of a request.
type Outcome int

// The outcomes.
const (
	Allowed Outcome = iota // the tokens are taken
	Refused                // the allocator has said that there are none
	Away                   // the allocator does not answer
	Asking                 // it was asked just now: wait for Standing.Told, and take again
)

// Client is a node's side: what it holds of each bucket. It is safe for concurrent use. It
// asks nobody before the first Take, and nothing about a bucket that nobody uses.
//
// Every instant is the time since the node's start as the node measures it for its lease:
// never less than what has passed.
type Client struct {
	instance events.InstanceID
	away     atomic.Bool
	shards   [64]shard
	seed     maphash.Seed

	mu     sync.Mutex
	kick   chan struct{} // of capacity 1: an ask is due
	urgent []*lease      // that want an ask now; guarded by mu

	// Of the one that asks.
	number uint64
	flight *flight
	active []*lease      // that may hold tokens, or have something to say
	next   time.Duration // before then nothing is asked
	swept  time.Duration
	forgot time.Duration
	counts counts
}

type shard struct {
	mu     sync.RWMutex
	leases map[ID]*lease // guarded by mu
}

// counts are of the client's life.
type counts struct{ asks, lost, waits, turned atomic.Uint64 }

// NewClient returns the side of one run of a node.
func NewClient(instance events.InstanceID) *Client {
	c := &Client{instance: instance, kick: make(chan struct{}, 1), seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].leases = map[ID]*lease{}
	}
	return c
}

func (c *Client) shard(id *ID) *shard {
	if !id.Key.IsZero() {
		return &c.shards[id.Key[len(id.Key)-1]%64]
	}
	return &c.shards[maphash.String(c.seed, string(id.Tenant))%64]
}

func (c *Client) lease(l *Limit) *lease {
	s := c.shard(&l.ID)
	s.mu.RLock()
	found := s.leases[l.ID]
	s.mu.RUnlock()
	if found != nil {
		return found
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if found = s.leases[l.ID]; found == nil {
		found = &lease{id: l.ID, numbers: l.Numbers}
		s.leases[l.ID] = found
	}
	return found
}

// Detach says that no allocator will ever answer: the client does not run.
func (c *Client) Detach() { c.away.Store(true) }

// Take takes cost tokens from the bucket of key, and from that of tenant, if the node
// holds them of both; either may be nil. It returns where the tighter one stands and
// whether that is the tenant's. With cost 0 it only says that, and asks nobody. With local
// a request is decided by what the node knows while the allocator is away.
func (c *Client) Take(key, tenant *Limit, now time.Duration, cost int64, local bool) (s Standing, ofTenant bool, o Outcome) {
	var leases [2]*lease
	n := c.lock(&leases, [2]*Limit{key, tenant}, now)
	o, locally := c.take(leases[:n], now, cost, local)
	var until time.Duration
	var longest int64
	for i, l := range leases[:n] {
		t := l.standing(cost, o)
		wait := t.RetryAfter
		if cost > l.numbers.Burst { // for ever
			wait = math.MaxInt64
		}
		if i == 0 || wait > longest || wait == longest && t.Remaining < s.Remaining {
			s, ofTenant, longest = t, l.id.Key.IsZero(), wait
		}
	}
	for _, l := range leases[:n] {
		if o == Allowed && !locally && cost > 0 && (until == 0 || l.ends < until) {
			until = l.ends
		}
		if o == Asking && l.tokens < cost && s.Told == nil {
			if l.told == nil {
				l.told = make(chan struct{})
			}
			s.Told = l.told
		}
		if l.due(now) && !l.queued && !c.away.Load() {
			l.queued = true
			c.hurry(l)
		}
		l.mu.Unlock()
	}
	s.Local, s.Until = locally, until
	return s, ofTenant, o
}

// lock locks the leases of the limits, in this order, which prevents deadlock, and brings
// them to now.
func (c *Client) lock(leases *[2]*lease, limits [2]*Limit, now time.Duration) (n int) {
	for _, l := range limits {
		if l != nil {
			leases[n] = c.lease(l)
			n++
		}
	}
	gone := false
	for _, l := range leases[:n] {
		l.mu.Lock()
		gone = gone || l.gone
	}
	if gone { // forgotten meanwhile: there must not be two of one bucket
		for _, l := range leases[:n] {
			l.mu.Unlock()
		}
		return c.lock(leases, limits, now)
	}
	i := 0
	for _, limit := range limits {
		if limit == nil {
			continue
		}
		l := leases[i]
		if i++; now-l.sent > Life || l.of == 0 { // the answer is old: what the view says is newer
			l.numbers = limit.Numbers
		}
		if now >= l.ends {
			l.tokens = 0
		}
		l.advance(now)
	}
	return n
}

func (c *Client) take(leases []*lease, now time.Duration, cost int64, local bool) (o Outcome, locally bool) {
	away := c.away.Load()
	local = local && away
	if cost == 0 {
		return Allowed, local
	}
	short, refused := false, false
	for _, l := range leases {
		l.used = now
		if cost > l.numbers.Burst { // it never will be allowed
			short, refused = true, true
			continue
		}
		l.asked += cost
		if l.tokens >= cost {
			continue
		}
		short = true
		switch {
		case away:
		case now < l.refuse:
			refused = true
		default:
			l.waiting += cost
		}
		l.need = least(l.need, cost)
	}
	switch {
	case !short:
		for _, l := range leases {
			l.tokens -= cost
			l.spend(cost)
		}
		return Allowed, false
	case refused:
		return Refused, local
	case !away:
		return Asking, false
	case !local:
		return Away, false
	case takeLocally(leases, cost):
		return Allowed, true
	}
	return Refused, true
}

// least returns the lesser of two numbers of tokens of which 0 is none.
func least(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// takeLocally decides by what the node knows of the whole bucket.
func takeLocally(leases []*lease, cost int64) bool {
	for _, l := range leases {
		if l.owed+cost*perToken > l.numbers.full() {
			return false
		}
	}
	for _, l := range leases {
		l.tokens = max(l.tokens-cost, 0)
		l.spend(cost)
	}
	return true
}

// hurry has the lease asked about now.
func (c *Client) hurry(l *lease) {
	c.mu.Lock()
	c.urgent = append(c.urgent, l)
	c.mu.Unlock()
	select {
	case c.kick <- struct{}{}:
	default:
	}
}
