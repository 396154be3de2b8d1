package projections

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/keytrail/keytrail/events"
)

// TestNames enters, renames and removes keys at random, past several growths and a
// reservation, and finds under each name just those that a map of sets holds.
func TestNames(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x, twin := new(names), map[nameRef]map[*entry]bool{}
	named := map[*entry]bool{}
	var entries []*entry
	for range 20_000 {
		switch n := r.IntN(10); {
		case n < 5 || len(entries) == 0:
			e := new(entry)
			e.key.Store(new(events.Key))
			entries = append(entries, e)
		case n == 9 && r.IntN(500) == 0:
			x.reserve(r.IntN(50_000))
		}
		e := entries[r.IntN(len(entries))]
		k := e.key.Load()
		if named[e] {
			x.remove(k, e)
			delete(twin[refOf(k)], e)
		}
		if named[e] = r.IntN(4) > 0; named[e] {
			k = &events.Key{Tenant: events.TenantID(fmt.Sprint(r.IntN(3))), Label: events.Label{Name: fmt.Sprint(r.IntN(2000))}}
			x.add(k, e)
			e.key.Store(k)
			if twin[refOf(k)] == nil {
				twin[refOf(k)] = map[*entry]bool{}
			}
			twin[refOf(k)][e] = true
		}
	}
	for ref, want := range twin {
		got := map[*entry]bool{}
		for e := x.first(ref.hash()); e != nil; e = e.named {
			if refOf(e.key.Load()) == ref {
				got[e] = true
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%v: found %d keys, want %d", ref, len(got), len(want))
		}
	}
}
