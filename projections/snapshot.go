package projections

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/keytrail/keytrail/events"
)

// keysMagic begins a snapshot of Keys (snapwrite.go describes the file). Its records:
//
//	m  memory of the history
//	s  keyspace    n  tenant    o  role
//	c  class       g  grant     r  resources   a  allowlist   l  limit
//	t  terms: the numbers of their parts
//	k  key; the owners of their digest first
const keysMagic = "KEYTRAIL-KEYS\n"

const (
	recKeyspace  = 's'
	recTenant    = 'n'
	recRole      = 'o'
	recClass     = 'c'
	recGrant     = 'g'
	recResources = 'r'
	recAllow     = 'a'
	recLimit     = 'l'
	recTerms     = 't'
	recKey       = 'k'
	recMemory    = 'm'
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

// Snapshot writes the view as of its position to w and returns the position. It
// may be called while the view is followed and read. Save and Load keep snapshots
// in files.
func (v *Keys) Snapshot(w io.Writer, log events.LogID) (events.Seq, error) {
	p := v.picture()
	defer p.close()
	return p.write(w, log)
}

// Export writes what Snapshot does for another process: without the recent heads, of
// which a view knows those that it met. So the bytes depend on nothing but the events up
// to the position (P10).
func (v *Keys) Export(w io.Writer, log events.LogID) (events.Seq, error) {
	p := v.picture()
	defer p.close()
	p.memory.recent = nil
	return p.write(w, log)
}

func (p *picture) write(w io.Writer, log events.LogID) (events.Seq, error) {
	p.inOrder()
	e := newKeysEncoder(w)
	e.header(keysMagic, log, p.past, int(p.keys))
	if err := e.encode(p); err != nil {
		return 0, fmt.Errorf("write snapshot: %w", err)
	}
	return p.past.at, e.end(w)
}

// numbers gives each shared value the number of its first appearance.
type numbers[V comparable] map[V]uint64

// number returns v's number, from 1 on, and whether it is new. None is 0.
func (n numbers[V]) number(v V) (uint64, bool) {
	var none V
	if v == none {
		return 0, false
	}
	i, known := n[v]
	if !known {
		i = uint64(len(n) + 1)
		n[v] = i
	}
	return i, !known
}

type keysEncoder struct {
	encoder
	spaces    numbers[*Keyspace]
	classes   numbers[class]
	grants    numbers[grant]
	resources numbers[*resources]
	allows    numbers[*allowlist]
	limits    numbers[*limit]
	terms     numbers[combination]
}

// class is what a snapshot calls that: kind, tenant and status.
type class struct {
	*Kind
	*Tenant
	status events.Status
}

// grant is what a snapshot calls that: what a key of the type was given.
type grant struct {
	space   *Keyspace
	keyType string
	scopes  *scopeSet
	role    *role
	roles   *roleSet
}

// combination is the numbers of the parts of terms.
type combination struct{ grant, resources, allow, limit uint64 }

func newKeysEncoder(w io.Writer) *keysEncoder {
	return &keysEncoder{
		encoder: newEncoder(w),
		spaces:  numbers[*Keyspace]{}, classes: numbers[class]{}, grants: numbers[grant]{}, resources: numbers[*resources]{},
		allows: numbers[*allowlist]{}, limits: numbers[*limit]{}, terms: numbers[combination]{},
	}
}

func (e *keysEncoder) encode(p *picture) error {
	e.memory(&p.memory)
	for _, s := range p.spaces {
		if err := e.keyspace(s); err != nil {
			return err
		}
	}
	for _, t := range p.tenants {
		space, _ := e.spaces.number(t.space)
		e.byte(recTenant)
		e.uint(space)
		e.text(string(t.id))
		e.tenantState(t.state)
		e.flush()
	}
	for _, r := range p.roles {
		e.byte(recRole)
		e.text(string(r.Keyspace))
		e.text(string(r.Tenant))
		e.text(string(r.ID))
		e.chain(r.Chain)
		e.bool(r.Deleted)
		e.texts(r.Scopes)
		e.flush()
	}
	var keys []whole
	for n := range shardCount {
		keys = p.shard(n, keys[:0])
		for i := range keys {
			e.key(&keys[i])
		}
	}
	for _, k := range p.others() {
		e.key(&k)
	}
	return nil
}

func (e *keysEncoder) keyspace(s spacePicture) error {
	e.spaces.number(s.Keyspace)
	e.byte(recKeyspace)
	e.text(string(s.ID))
	if err := e.spaceState(&s.state); err != nil {
		return err
	}
	e.bool(s.formal)
	e.flush()
	return nil
}

func (e *keysEncoder) key(w *whole) {
	class, terms := e.class(class{w.kind, w.tenant, w.status()}), e.combination(w)
	e.byte(recKey)
	e.bool(w.turned)
	e.bytes(w.id[:])
	e.bytes(w.digest[:])
	e.int(int64(w.expires))
	e.uint(uint64(w.rev))
	e.bytes(w.head[:])
	e.uint(class)
	e.uint(terms)
	e.flush()
}

func (e *keysEncoder) class(c class) uint64 {
	n, isNew := e.classes.number(c)
	if isNew {
		space, _ := e.spaces.number(c.Space)
		e.byte(recClass)
		e.uint(space)
		e.text(string(c.Tenant.ID))
		e.text(c.KeyType)
		e.text(c.Environment)
		e.text(string(c.status))
		e.flush()
	}
	return n
}

func (e *keysEncoder) combination(w *whole) uint64 {
	t := w.terms
	c := combination{e.grant(w), e.resourceList(t.resources), e.allowlist(t.allow), e.limit(t.limit)}
	n, isNew := e.terms.number(c)
	if isNew {
		e.byte(recTerms)
		e.uint(c.grant)
		e.uint(c.resources)
		e.uint(c.allow)
		e.uint(c.limit)
		e.flush()
	}
	return n
}

func (e *keysEncoder) grant(w *whole) uint64 {
	n, isNew := e.grants.number(grant{w.kind.Space, w.kind.KeyType, w.terms.scopes, w.terms.role, w.terms.roles})
	if isNew {
		space, _ := e.spaces.number(w.kind.Space)
		given := w.terms.grant()
		e.byte(recGrant)
		e.uint(space)
		if len(given.Roles) > 0 {
			e.text(string(w.tenant.ID))
		} else {
			e.text("") // then tenants share it
		}
		e.text(w.kind.KeyType)
		e.texts(given.Scopes)
		e.uint(uint64(len(given.Roles)))
		for _, r := range given.Roles {
			e.text(string(r))
		}
		e.flush()
	}
	return n
}

func (e *keysEncoder) resourceList(r *resources) uint64 {
	n, isNew := e.resources.number(r)
	if isNew {
		e.byte(recResources)
		e.uint(uint64(len(r.list)))
		for _, x := range r.list {
			e.text(x.Kind)
			e.text(x.ID)
		}
		e.flush()
	}
	return n
}

func (e *keysEncoder) allowlist(a *allowlist) uint64 {
	n, isNew := e.allows.number(a)
	if isNew {
		e.byte(recAllow)
		e.uint(uint64(len(a.list)))
		for _, p := range a.list {
			b, _ := p.MarshalBinary() // never fails
			e.text(string(b))
		}
		e.flush()
	}
	return n
}

func (e *keysEncoder) limit(l *limit) uint64 {
	n, isNew := e.limits.number(l)
	if isNew {
		e.byte(recLimit)
		e.limitFields(&l.Limit)
		e.flush()
	}
	return n
}
