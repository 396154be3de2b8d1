package projections

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/keytrail/keytrail/events"
)

// picture is a view at one position. Its keys stay in the view: the fold keeps those
// that it changes meanwhile as they were.
type picture struct {
	past    history
	memory  memory
	spaces  []spacePicture
	tenants []tenantPicture // that have events
	roles   []*events.Role

	view    *Keys
	keys    uint32           // of the view at that position: the first ones
	doubles []uint32         // of those
	before  map[uint32]whole // guarded by the view's lock: what was changed since
}

type tenantPicture struct {
	space *Keyspace
	id    events.TenantID
	state *events.Tenant
}

type spacePicture struct {
	*Keyspace
	state  events.Keyspace
	formal bool
}

// picture stops the fold for as long as it takes to copy what the view remembers of
// its log and what there is of roles and tenants with events, and readers not at all.
// The caller closes it.
func (v *Keys) picture() *picture {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := &picture{past: v.past, memory: v.memory.clone(), view: v, keys: v.records.n, doubles: v.doubles, before: map[uint32]whole{}}
	add := func(s *Keyspace) {
		if s.named {
			p.spaces = append(p.spaces, spacePicture{s, s.state, s.formal.Load()})
		}
	}
	for _, s := range *v.spaces.Load() {
		add(s)
	}
	for _, s := range v.undefined {
		add(s)
	}
	for i := range v.tenants.n {
		if t := v.tenants.at(i); t.state != nil {
			p.tenants = append(p.tenants, tenantPicture{t.space, t.ID, t.state})
		}
	}
	for i := range v.roles.n {
		if r := v.roles.at(i); r.chain.Rev > 0 {
			p.roles = append(p.roles, r.state())
		}
	}
	v.pictures = append(v.pictures, p)
	return p
}

func (p *picture) close() {
	p.view.mu.Lock()
	defer p.view.mu.Unlock()
	p.view.pictures = slices.DeleteFunc(p.view.pictures, func(q *picture) bool { return p == q })
}

// keep keeps a key that is about to change.
func (p *picture) keep(slot uint32, was *whole) {
	if _, kept := p.before[slot]; !kept && slot < p.keys {
		p.before[slot] = *was
	}
}

// at returns the key at the slot. The view's lock is held.
func (p *picture) at(slot uint32) whole {
	if w, ok := p.before[slot]; ok {
		return w
	}
	return p.view.at(slot)
}

// shard appends the keys of one shard of the table of digests, which own theirs, in the
// order of the content. So few fit into the processor's caches, and the fold waits for
// no more than that.
func (p *picture) shard(n int, keys []whole) []whole {
	p.view.mu.Lock()
	p.view.digests.shard(n, func(slot uint32) {
		if slot < p.keys {
			keys = append(keys, p.at(slot))
		}
	})
	p.view.mu.Unlock()
	slices.SortFunc(keys, byShard)
	return keys
}

// others returns the keys that do not own their digest.
func (p *picture) others() (keys []whole) {
	p.view.mu.Lock()
	for _, slot := range p.doubles {
		keys = append(keys, p.at(slot))
	}
	p.view.mu.Unlock()
	slices.SortFunc(keys, byShard)
	return keys
}

// inOrder puts what the picture holds into an order of its own content (P10), but for
// the keys.
func (p *picture) inOrder() {
	slices.SortFunc(p.spaces, func(a, b spacePicture) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(p.tenants, func(a, b tenantPicture) int {
		return cmp.Or(cmp.Compare(a.space.ID, b.space.ID), cmp.Compare(a.id, b.id))
	})
	slices.SortFunc(p.roles, func(a, b *events.Role) int {
		return roleRef{a.Keyspace, a.Tenant, a.ID}.compare(roleRef{b.Keyspace, b.Tenant, b.ID})
	})
}

func (r roleRef) compare(s roleRef) int {
	return cmp.Or(cmp.Compare(r.space, s.space), cmp.Compare(r.tenant, s.tenant), cmp.Compare(r.role, s.role))
}

// byShard orders keys as the table's shards are ordered, so that a view loads them
// in the order in which it stores them.
func byShard(a, b whole) int {
	if c := cmp.Compare(words(&a.digest)[0], words(&b.digest)[0]); c != 0 {
		return c
	}
	return cmp.Or(bytes.Compare(a.digest[:], b.digest[:]), bytes.Compare(a.id[:], b.id[:]))
}
