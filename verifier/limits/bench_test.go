package limits

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

// BenchmarkTake: what a request costs whose tokens are in hand, beside the same without
// anything that is held together: an atomic counter.
func BenchmarkTake(b *testing.B) {
	limit := &Limit{ID{Key: events.KeyID{15: 1}}, Numbers{60_000, 1 << 40}}
	whole := &Limit{ID{Keyspace: "shop", Tenant: "acme"}, Numbers{60_000, 1 << 40}}
	filled := func() *Client {
		c := NewClient(events.InstanceID{1})
		for _, l := range []*Limit{limit, whole} {
			found := c.lease(l)
			found.tokens, found.ends, found.of, found.numbers, found.sent, found.again = 1<<50, 1<<62, 1, l.Numbers, 1, 1<<62
		}
		return c
	}
	b.Run("floor", func(b *testing.B) {
		var n atomic.Int64
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				n.Add(-1)
			}
		})
	})
	for _, tt := range []struct {
		name        string
		key, tenant *Limit
	}{{"key", limit, nil}, {"key and tenant", limit, whole}} {
		b.Run(tt.name, func(b *testing.B) {
			c := filled()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, _, o := c.Take(tt.key, tt.tenant, time.Millisecond, 1, false); o != Allowed {
						b.Error(o)
						return
					}
				}
			})
		})
	}
}

// BenchmarkServe: what an ask costs the allocator, for each bucket of it.
func BenchmarkServe(b *testing.B) {
	dir := &oneKey{id: events.KeyID{15: 1}}
	dir.limit.PerMinute, dir.limit.Burst = 60_000, 1000
	a := newAllocator(dir, 0, 0)
	a.floor = 1
	q := &ask{Instance: events.InstanceID{1}, Buckets: []askBucket{{ID: dir.id0(), Want: 10}}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		q.Number++
		q.Buckets[0].Of = q.Number - 1
		if _, ok, _ := a.serve("n1", q, time.Duration(i)*time.Millisecond); !ok {
			b.Fatal("no answer")
		}
	}
}
