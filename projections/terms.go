package projections

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// terms are what a key may do, where, from where and how often. Each part is shared,
// and so is the combination, which never changes: 48 bytes. What its roles give is not
// in it, nor what the definition makes of its scopes: so neither a role nor a
// definition that changes touches any of them (P4).
type terms struct {
	scopes    *scopeSet // its own; nil = none
	role      *role     // nil = none, or several
	roles     *roleSet  // two or more
	resources *resources
	allow     *allowlist
	limit     *limit
}

// given returns what roles give, by their current definitions; nil for nothing.
func (t *terms) given() *scopeSet {
	switch {
	case t.role != nil:
		return t.role.gives.Load()
	case t.roles != nil:
		return t.roles.give.Load()
	}
	return nil
}

// grant returns scopes and roles as they were given to the key.
func (t *terms) grant() (g events.Grant) {
	if t.scopes != nil {
		g.Scopes = t.scopes.names
	}
	switch {
	case t.role != nil:
		g.Roles = []events.RoleID{t.role.id}
	case t.roles != nil:
		for _, r := range t.roles.list {
			g.Roles = append(g.Roles, r.id)
		}
	}
	return g
}

// scopeSet is a set of scopes of one keyspace, not empty.
type scopeSet struct {
	space *Keyspace
	names []string // as they were given; nil for what several roles give together
	bits  bitset   // by the keyspace's numbers of scopes
	n     uint32   // its number in the pool

	asked atomic.Pointer[effective] // the last that was asked for
}

// effective is what a set came to, together with another, for one type of key under
// one version of the definition.
type effective struct {
	version uint64
	keyType uint32
	with    *scopeSet
	names   []string
}

// bitset is a set of small numbers.
type bitset []uint64

func (b *bitset) add(i uint32) {
	for int(i/64) >= len(*b) {
		*b = append(*b, 0)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bitset) has(i uint32) bool { return int(i/64) < len(b) && b[i/64]>>(i%64)&1 == 1 }

func (b bitset) meets(c bitset) bool {
	for i := range min(len(b), len(c)) {
		if b[i]&c[i] != 0 {
			return true
		}
	}
	return false
}

// meets reports whether the set, which may be nil, and c have a scope in common.
func (s *scopeSet) meets(c bitset) bool { return s != nil && s.bits.meets(c) }

// role is one role of one tenant. It stays once somebody named it.
type role struct {
	id    events.RoleID
	whole *Tenant
	gives atomic.Pointer[scopeSet] // nil while it is not defined, and when it is deleted

	// Owned by the writer.
	in      *[]*roleSet // that it is part of
	chain   events.Chain
	deleted bool
}

// state returns what the events of the role add up to, without what a view does not
// keep.
func (r *role) state() *events.Role {
	s := &events.Role{Chain: r.chain, Keyspace: r.whole.space.ID, Tenant: r.whole.ID, ID: r.id, Deleted: r.deleted}
	if g := r.gives.Load(); g != nil {
		s.Scopes = g.names
	}
	return s
}

// roleSet is two or more roles of one tenant that keys hold together.
type roleSet struct {
	list []*role
	give atomic.Pointer[scopeSet]
	n    uint32
}

func (s *roleSet) sum() uint64 {
	h := make([]byte, 0, 128)
	for _, r := range s.list {
		h = binary.LittleEndian.AppendUint64(h, maphash.Comparable(poolSeed, r))
	}
	return maphash.Bytes(poolSeed, h)
}

// unite works out what the roles give together.
func (s *roleSet) unite() {
	var u *scopeSet
	for _, r := range s.list {
		if g := r.gives.Load(); g != nil {
			if u == nil {
				u = &scopeSet{space: g.space}
			}
			for i := range g.bits {
				if i == len(u.bits) {
					u.bits = append(u.bits, 0)
				}
				u.bits[i] |= g.bits[i]
			}
		}
	}
	s.give.Store(u)
}

// resources is a restriction, sorted, not empty.
type resources struct {
	list []events.Resource
	n    uint32
}

func (r *resources) sum() uint64 {
	var h maphash.Hash
	h.SetSeed(poolSeed)
	for i := range r.list {
		h.WriteString(r.list[i].Kind)
		h.WriteByte(0)
		h.WriteString(r.list[i].ID)
		h.WriteByte(0)
	}
	return h.Sum64()
}

// own returns a copy that holds on to nothing but its own few bytes.
func (r *resources) own() *resources {
	var b strings.Builder
	for i := range r.list {
		b.WriteString(r.list[i].Kind)
		b.WriteString(r.list[i].ID)
	}
	text, list := b.String(), make([]events.Resource, len(r.list))
	for i := range r.list {
		k := len(r.list[i].Kind)
		end := k + len(r.list[i].ID)
		list[i], text = events.Resource{Kind: text[:k], ID: text[k:end]}, text[end:]
	}
	return &resources{list: list}
}

// allowlist is a list of networks, sorted, not empty, compiled when it is long.
type allowlist struct {
	list  []netip.Prefix
	table *bart.Lite // nil for a few
	n     uint32
}

// fewPrefixes is where a routing table begins to beat comparing one by one.
const fewPrefixes = 4

func newAllowlist(list []netip.Prefix) *allowlist {
	a := &allowlist{list: list}
	if len(list) > fewPrefixes {
		a.table = new(bart.Lite)
		for _, p := range list {
			a.table.Insert(p)
		}
	}
	return a
}

func (l *allowlist) sum() uint64 {
	h := make([]byte, 0, 128)
	for _, p := range l.list {
		h, _ = p.AppendBinary(h) // never fails
	}
	return maphash.Bytes(poolSeed, h)
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

// limit is a limit of keys.
type limit struct {
	keyspace.Limit
	n uint32
}

// shared are the pools of what keys share.
type shared struct {
	terms     *pool[terms]
	scopeSets *pool[scopeSet]
	roleSets  *pool[roleSet]
	resources *pool[resources]
	allows    *pool[allowlist]
	limits    *pool[limit]
}

func newShared() shared {
	return shared{
		terms: newValues[terms](),
		scopeSets: newPool(func(s *scopeSet) uint64 {
			var h maphash.Hash
			h.SetSeed(poolSeed)
			h.WriteString(string(s.space.ID))
			for _, n := range s.names {
				h.WriteByte(0)
				h.WriteString(n)
			}
			return h.Sum64()
		}, func(a, b *scopeSet) bool { return a.space == b.space && slices.Equal(a.names, b.names) }),
		roleSets:  newPool((*roleSet).sum, func(a, b *roleSet) bool { return slices.Equal(a.list, b.list) }),
		resources: newPool((*resources).sum, func(a, b *resources) bool { return slices.Equal(a.list, b.list) }),
		allows:    newPool((*allowlist).sum, func(a, b *allowlist) bool { return slices.Equal(a.list, b.list) }),
		limits: newPool(func(l *limit) uint64 { return maphash.Comparable(poolSeed, l.Limit) },
			func(a, b *limit) bool { return a.Limit == b.Limit }),
	}
}

// The functions below return the shared value of what is given, nil for nothing. Until
// a terms holds it, it has no user.

func (v *Keys) scopeSet(space *Keyspace, names []string) *scopeSet {
	if len(names) == 0 {
		return nil
	}
	like := &scopeSet{space: space, names: names}
	if n, ok := v.scopeSets.find(like); ok {
		return v.scopeSets.get(n)
	}
	own := &scopeSet{space: space, names: make([]string, len(names))}
	for i, name := range names {
		n := space.scopes.hold(name)
		own.names[i] = n.name
		own.bits.add(n.number)
	}
	own.n = v.scopeSets.add(own)
	return own
}

// dropScopes takes back one use of the set, which may be nil.
func (s *shared) dropScopes(set *scopeSet) {
	if set != nil && s.scopeSets.drop(set.n) {
		for _, name := range set.names {
			set.space.scopes.drop(name)
		}
	}
}

func (v *Keys) roleSet(list []*role) *roleSet {
	like := &roleSet{list: list}
	if n, ok := v.roleSets.find(like); ok {
		return v.roleSets.get(n)
	}
	like.n = v.roleSets.add(like)
	for _, r := range list {
		if r.in == nil {
			r.in = new([]*roleSet)
		}
		*r.in = append(*r.in, like)
	}
	like.unite()
	return like
}

func (v *Keys) resourceList(list []events.Resource) *resources {
	if len(list) == 0 {
		return nil
	}
	like := &resources{list: list}
	if n, ok := v.resources.find(like); ok {
		return v.resources.get(n)
	}
	own := like.own()
	own.n = v.resources.add(own)
	return own
}

func (v *Keys) allowlist(list []netip.Prefix) *allowlist {
	if len(list) == 0 {
		return nil
	}
	if n, ok := v.allows.find(&allowlist{list: list}); ok {
		return v.allows.get(n)
	}
	own := newAllowlist(slices.Clone(list))
	own.n = v.allows.add(own)
	return own
}

func (v *Keys) limit(l *keyspace.Limit) *limit {
	if l == nil {
		return nil
	}
	like := &limit{Limit: *l}
	if n, ok := v.limits.find(like); ok {
		return v.limits.get(n)
	}
	like.Plan = strings.Clone(l.Plan)
	like.n = v.limits.add(like)
	return like
}

// take returns the number of the combination, which counts as one user of its parts.
// The caller holds it.
func (s *shared) take(t *terms) uint32 {
	if n, ok := s.terms.find(t); ok {
		return n
	}
	own := *t
	if t.scopes != nil {
		s.scopeSets.hold(t.scopes.n)
	}
	if t.roles != nil {
		s.roleSets.hold(t.roles.n)
	}
	if t.resources != nil {
		s.resources.hold(t.resources.n)
	}
	if t.allow != nil {
		s.allows.hold(t.allow.n)
	}
	if t.limit != nil {
		s.limits.hold(t.limit.n)
	}
	return s.terms.add(&own)
}

// release takes back one use of the combination.
func (s *shared) release(n uint32) {
	t := s.terms.get(n)
	if !s.terms.drop(n) {
		return
	}
	s.dropScopes(t.scopes)
	if t.roles != nil && s.roleSets.drop(t.roles.n) {
		for _, r := range t.roles.list {
			*r.in = slices.DeleteFunc(*r.in, func(in *roleSet) bool { return in == t.roles })
		}
	}
	if t.resources != nil {
		s.resources.drop(t.resources.n)
	}
	if t.allow != nil {
		s.allows.drop(t.allow.n)
	}
	if t.limit != nil {
		s.limits.drop(t.limit.n)
	}
}
