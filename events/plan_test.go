package events_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// TestNoNameOfAPlanFreesOfALimit: whatever definitions a keyspace has had, a plan
// has its numbers, then the last that it had; one that never was admits nothing,
// whatever the defaults of keys and tenants are.
func TestNoNameOfAPlanFreesOfALimit(t *testing.T) {
	names := []string{"free", "pro", "gold", "none"} // the last is never defined
	rapid.Check(t, func(rt *rapid.T) {
		var ks events.Keyspace
		last := map[string][2]int64{"none": {1, 0}}
		for _, name := range names {
			last[name] = last["none"]
		}
		for range rapid.IntRange(1, 6).Draw(rt, "definitions") {
			d := keyspace.Definition{}
			d.Plans, d.Limit, d.TenantLimit = nil, nil, nil
			for _, name := range names[:3] {
				if rapid.Bool().Draw(rt, name) {
					p := keyspace.Plan{Name: name, PerMinute: rapid.Int64Range(1, 1e9).Draw(rt, "per minute"), Burst: rapid.Int64Range(1, 1e9).Draw(rt, "burst")}
					d.Plans = append(d.Plans, p)
					last[name] = [2]int64{p.PerMinute, p.Burst}
				}
			}
			if rapid.Bool().Draw(rt, "defaults") {
				d.Limit, d.TenantLimit = &keyspace.Limit{PerMinute: 7, Burst: 7}, &keyspace.Limit{PerMinute: 8, Burst: 8}
			}
			r := events.Recorded{Event: events.Event{Aggregate: events.KeyspaceAggregate("shop"), Rev: ks.Rev + 1, Prev: ks.Head, Data: &events.KeyspaceDefined{Definition: d}}, Seq: ks.Seq + 1}
			var err error
			if ks, err = ks.Next(&r); err != nil {
				rt.Fatal(err)
			}
			for name, want := range last {
				own := &keyspace.Limit{Plan: name}
				for what, l := range map[string]*keyspace.Limit{"key": d.KeyLimit(own), "tenant": d.WholeLimit(own)} {
					if perMinute, burst, ok := ks.Resolve(l); !ok || [2]int64{perMinute, burst} != want {
						rt.Fatalf("the %s's plan %s resolves to %d, %d, %v; want %v", what, name, perMinute, burst, ok, want)
					}
				}
			}
		}
	})
}
