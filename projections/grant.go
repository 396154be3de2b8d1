package projections

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/keytrail/keytrail/events"
)

// grant is one combination of scopes and roles that keys of one type hold, with
// what it comes to by the current definitions. Keys share it: a role or keyspace
// that changes re-resolves grants, not keys (P4).
type grant struct {
	key     sum // its place in the pool
	space   *Keyspace
	tenant  events.TenantID // of its roles; "" when it has none
	keyType string
	given   events.Grant

	effective atomic.Pointer[scopes]
}

// scopes is an immutable set.
type scopes struct {
	names []string            // sorted
	set   map[string]struct{} // nil for a few
}

// fewScopes is where a map begins to beat comparing one by one.
const fewScopes = 8

func newScopes(names []string) *scopes {
	s := &scopes{names: names}
	if len(names) > fewScopes {
		s.set = make(map[string]struct{}, len(names))
		for _, n := range names {
			s.set[n] = struct{}{}
		}
	}
	return s
}

func (s *scopes) has(name string) bool {
	if s.set != nil {
		_, ok := s.set[name]
		return ok
	}
	return slices.Contains(s.names, name)
}

// resources is a shared restriction, sorted, not empty.
type resources struct {
	key  sum
	list []events.Resource
}

// allowlist is a shared list of networks, sorted, not empty, compiled when it
// is long.
type allowlist struct {
	key   sum
	list  []netip.Prefix
	table *bart.Lite // nil for a few
}

// fewPrefixes is where a routing table begins to beat comparing one by one.
const fewPrefixes = 4

func newAllowlist(key sum, list []netip.Prefix) *allowlist {
	a := &allowlist{key: key, list: list}
	if len(list) > fewPrefixes {
		a.table = new(bart.Lite)
		for _, p := range list {
			a.table.Insert(p)
		}
	}
	return a
}

func (l *allowlist) contains(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if l.table != nil {
		return l.table.Contains(a)
	}
	for _, p := range l.list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// pool keeps one copy of each value that records share, and counts its users so
// that what nobody uses any more goes. Owned by the writer.
type pool[K comparable, V any] map[K]use[V]

type use[V any] struct {
	v *V
	n int
}

// take returns the shared value for k, made by makeV if it is new.
func (p pool[K, V]) take(k K, makeV func() *V) *V {
	u, ok := p[k]
	if !ok {
		u.v = makeV()
	}
	u.n++
	p[k] = u
	return u.v
}

// drop takes back one use and reports whether it was the last.
func (p pool[K, V]) drop(k K) bool {
	u := p[k]
	if u.n--; u.n > 0 {
		p[k] = u
		return false
	}
	delete(p, k)
	return true
}
