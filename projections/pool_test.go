package projections

import (
	"reflect"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
)

// checkPools recounts who uses which shared value.
func checkPools(t rapid.TB, v *Keys) {
	t.Helper()
	digests, owners := map[events.Digest]bool{}, 0
	for n := range shardCount {
		v.digests.shard(n, func(uint32) { owners++ })
	}
	keys := map[uint32]int{}
	for slot := range v.records.n {
		w := v.at(slot)
		digests[w.digest] = true
		keys[termsOf(w.state)]++
	}
	equal(t, "owners of digests", owners, len(digests))
	equal(t, "keys and those that own their digest", int(v.records.n), owners+len(v.doubles))
	sameUse(t, "terms", v.terms, keys)
	sets, roleSets, lists, allows, limits := map[uint32]int{}, map[uint32]int{}, map[uint32]int{}, map[uint32]int{}, map[uint32]int{}
	users := map[*roleSet]bool{}
	for _, c := range v.terms.all {
		if c.scopes != nil {
			sets[c.scopes.n]++
		}
		if c.roles != nil {
			roleSets[c.roles.n]++
			users[c.roles] = true
		}
		if c.resources != nil {
			lists[c.resources.n]++
		}
		if c.allow != nil {
			allows[c.allow.n]++
		}
		if c.limit != nil {
			limits[c.limit.n]++
		}
	}
	for i := range v.roles.n {
		r := v.roles.at(i)
		if g := r.gives.Load(); g != nil {
			sets[g.n]++
		}
		if r.in == nil {
			continue
		}
		for _, in := range *r.in {
			if !users[in] {
				t.Fatalf("role %s still knows a set of roles that nobody uses", r.id)
			}
		}
	}
	for _, s := range *v.spaces.Load() {
		scopes, types := map[string]uint32{}, map[string]uint32{}
		for i := range s.Definition().Scopes {
			scopes[s.Definition().Scopes[i].Name]++
		}
		for i := range s.Definition().KeyTypes {
			types[s.Definition().KeyTypes[i].Name]++
		}
		for ref := range v.kindsBy {
			if ref.space == s {
				types[ref.keyType]++
			}
		}
		for _, set := range v.scopeSets.all {
			if set.space == s {
				for _, name := range set.names {
					scopes[name]++
				}
			}
		}
		sameNames(t, "scopes", s.scopes, scopes)
		sameNames(t, "types", s.types, types)
	}
	sameUse(t, "sets of scopes", v.scopeSets, sets)
	sameUse(t, "sets of roles", v.roleSets, roleSets)
	sameUse(t, "resources", v.resources, lists)
	sameUse(t, "allowlists", v.allows, allows)
	sameUse(t, "limits", v.limits, limits)
}

func sameUse[V any](t rapid.TB, what string, p *pool[V], want map[uint32]int) {
	t.Helper()
	got := map[uint32]int{}
	for i := range p.all {
		got[i] = int(*p.uses.at(i))
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: counted %v, want %v", what, got, want)
	}
	if p.len() != len(want) {
		t.Fatalf("%s: %d, want %d", what, p.len(), len(want))
	}
}

func sameNames(t rapid.TB, what string, m numbering, want map[string]uint32) {
	t.Helper()
	got, numbers := map[string]uint32{}, map[uint32]bool{}
	for name, n := range m.names {
		got[name], numbers[n.number] = n.uses, true
	}
	for _, n := range m.free {
		numbers[n] = true
	}
	equal(t, what, got, want)
	equal(t, "numbers of "+what, len(numbers), len(m.names)+len(m.free))
}
