package limits

import (
	"slices"
	"time"
)

// flight is the ask that awaits its answer.
type flight struct {
	number uint64
	sent   time.Duration
	leases []*lease
	asked  []askBucket // of each
}

// sweepEvery is how often the client looks for leases that are worth an ask though no
// request says so.
const sweepEvery = 10 * time.Millisecond

// ask returns the ask that is due at now, nil if there is none. Until heard or lost was
// called there is none.
func (c *Client) ask(now time.Duration) *ask {
	if c.flight != nil || now < c.next {
		return nil
	}
	c.mu.Lock()
	due := c.urgent
	c.urgent = nil
	c.mu.Unlock()
	if now-c.swept >= sweepEvery {
		c.swept = now
		due = c.sweep(now, due)
	}
	if len(due) > maxBuckets {
		for _, l := range due[maxBuckets:] {
			c.hurry(l)
		}
		due = due[:maxBuckets]
	}
	if len(due) == 0 && !c.away.Load() {
		return nil
	}
	c.number++
	c.next = now + pace
	q := &ask{Instance: c.instance, Number: c.number, Buckets: make([]askBucket, len(due))}
	f := &flight{number: c.number, sent: now, leases: due, asked: q.Buckets}
	for i, l := range due {
		var active bool
		if q.Buckets[i], active = l.ask(now); !active {
			c.active = append(c.active, l)
		}
	}
	c.flight = f
	c.counts.asks.Add(1)
	return q
}

// sweep adds the active leases that are due.
func (c *Client) sweep(now time.Duration, due []*lease) []*lease {
	keep := c.active[:0]
	for _, l := range c.active {
		l.mu.Lock()
		if now >= l.ends {
			l.tokens = 0
		}
		if !l.queued && l.due(now) {
			l.queued = true
			due = append(due, l)
		}
		l.active = l.queued || l.tokens > 0 || l.spent > 0 || l.need > 0 || now-l.used < idle
		if l.active {
			keep = append(keep, l)
		}
		l.mu.Unlock()
	}
	clear(c.active[len(keep):])
	c.active = keep
	if now-c.forgot >= Life {
		c.forgot = now
		c.forget(now)
	}
	return due
}

// forget drops the leases that nobody has used for a while. While no allocator answers,
// what a bucket owes is known here alone: until it is full again it stays.
func (c *Client) forget(now time.Duration) {
	away := c.away.Load()
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for id, l := range s.leases {
			l.mu.Lock()
			if l.gone = !l.queued && !l.active && now-l.used > forget; l.gone && away {
				l.advance(now)
				l.gone = l.owed == 0
			}
			if l.gone {
				delete(s.leases, id)
			}
			l.mu.Unlock()
		}
		s.mu.Unlock()
	}
}

// heard takes an answer at now, and reports whether it is the one that is awaited.
func (c *Client) heard(a *answer, now time.Duration) bool {
	f := c.flight
	if f == nil || a.Instance != c.instance || a.Number != f.number {
		return false
	}
	if a.Waits {
		c.next = now + waitShort*time.Millisecond
		c.away.Store(true)
		c.tellAll()
		return true
	}
	if len(a.Buckets) != len(f.leases) {
		return false
	}
	c.flight = nil
	c.away.Store(false)
	for i, l := range f.leases {
		l.heard(&a.Buckets[i], &f.asked[i], f, now)
	}
	return true
}

// lost gives the ask up that is in flight: the allocator does not answer.
func (c *Client) lost() {
	c.away.Store(true)
	c.counts.lost.Add(1)
	c.tellAll()
}

// tellAll wakes every request that waits. Nothing is in flight any more.
func (c *Client) tellAll() {
	f := c.flight
	c.flight = nil
	c.mu.Lock()
	list := slices.Concat(c.active, c.urgent)
	c.mu.Unlock()
	if f != nil {
		list = append(list, f.leases...)
	}
	for _, l := range list {
		l.mu.Lock()
		l.tell()
		l.mu.Unlock()
	}
}
