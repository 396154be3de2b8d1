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
			e.key.Store(&card{common: new(common)})
			entries = append(entries, e)
		case n == 9 && r.IntN(500) == 0:
			x.reserve(r.IntN(50_000))
		}
		e := entries[r.IntN(len(entries))]
		if named[e] {
			ref := e.key.Load().nameRef()
			x.remove(ref, e)
			delete(twin[ref], e)
		}
		if named[e] = r.IntN(4) > 0; named[e] {
			c := &card{common: &common{key: events.Key{Tenant: events.TenantID(fmt.Sprint(r.IntN(3)))}}, text: fmt.Sprint(r.IntN(2000))}
			ref := c.nameRef()
			x.add(ref, e)
			e.key.Store(c)
			if twin[ref] == nil {
				twin[ref] = map[*entry]bool{}
			}
			twin[ref][e] = true
		}
	}
	for ref, want := range twin {
		got := map[*entry]bool{}
		for e := x.first(ref.hash()); e != nil; e = e.named {
			if e.key.Load().nameRef() == ref {
				got[e] = true
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%v: found %d keys, want %d", ref, len(got), len(want))
		}
	}
}
