package projections

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
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

// picture is a view at one position. Everything in it is immutable.
type picture struct {
	past    history
	memory  memory
	spaces  []spacePicture
	tenants []tenantPicture // that have events
	roles   []rolePicture
	keys    []*Key // owners of their digest first, so that they own it again (P6)
	owners  int    // how many of the keys own their digest
}

type tenantPicture struct {
	space *Keyspace
	id    events.TenantID
	state *events.Tenant
}

type rolePicture struct {
	roleRef
	*events.Role
}

type spacePicture struct {
	*Keyspace
	state  events.Keyspace
	formal bool
}

// picture stops the fold for as long as it takes to copy one pointer per key
// (some ms for a million) and readers not at all.
func (v *Keys) picture() *picture {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := &picture{past: v.past, memory: v.memory.clone(), keys: make([]*Key, 0, v.Len())}
	add := func(s *Keyspace) {
		p.spaces = append(p.spaces, spacePicture{s, s.state, s.formal.Load()})
	}
	for _, s := range *v.spaces.Load() {
		add(s)
	}
	for _, s := range v.undefined {
		add(s)
	}
	for space, tenants := range v.tenants {
		for id, t := range tenants {
			if t.state != nil {
				p.tenants = append(p.tenants, tenantPicture{space, id, t.state})
			}
		}
	}
	for ref, r := range v.roles {
		p.roles = append(p.roles, rolePicture{ref, r})
	}
	for k := range v.digests.all {
		p.keys = append(p.keys, k)
	}
	p.owners = len(p.keys)
	if len(p.keys) < v.Len() {
		for k := range v.ids.all {
			if v.Lookup(k.Digest).ID != k.ID {
				p.keys = append(p.keys, k)
			}
		}
	}
	return p
}

// inOrder puts what the picture holds into an order of its own content (P10), but for
// the keys that own their digest: sortShard does.
func (p *picture) inOrder() {
	slices.SortFunc(p.spaces, func(a, b spacePicture) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(p.tenants, func(a, b tenantPicture) int {
		return cmp.Or(cmp.Compare(a.space.ID, b.space.ID), cmp.Compare(a.id, b.id))
	})
	slices.SortFunc(p.roles, func(a, b rolePicture) int { return a.compare(b.roleRef) })
	slices.SortFunc(p.keys[p.owners:], byShard)
}

// sortShard puts the first of the keys, those of one shard of the table, in order, and
// returns how many they are: so few fit into the processor's caches.
func sortShard(keys []*Key) int {
	n, first := 1, shardOf(hashDigest(&keys[0].Digest))
	for n < len(keys) && shardOf(hashDigest(&keys[n].Digest)) == first {
		n++
	}
	slices.SortFunc(keys[:n], byShard)
	return n
}

func (r roleRef) compare(s roleRef) int {
	return cmp.Or(cmp.Compare(r.space, s.space), cmp.Compare(r.tenant, s.tenant), cmp.Compare(r.role, s.role))
}

// byShard orders keys as the table's shards are ordered, so that a view loads them
// in the order in which it stores them.
func byShard(a, b *Key) int {
	if c := cmp.Compare(hashDigest(&a.Digest), hashDigest(&b.Digest)); c != 0 {
		return c
	}
	return cmp.Or(bytes.Compare(a.Digest[:], b.Digest[:]), bytes.Compare(a.ID[:], b.ID[:]))
}

// Snapshot writes the view as of its position to w and returns the position. It
// may be called while the view is followed and read. Save and Load keep snapshots
// in files.
func (v *Keys) Snapshot(w io.Writer, log events.LogID) (events.Seq, error) {
	return v.picture().write(w, log)
}

// Export writes what Snapshot does for another process: without the recent heads, of
// which a view knows those that it met. So the bytes depend on nothing but the events up
// to the position (P10).
func (v *Keys) Export(w io.Writer, log events.LogID) (events.Seq, error) {
	p := v.picture()
	p.memory.recent = nil
	return p.write(w, log)
}

func (p *picture) write(w io.Writer, log events.LogID) (events.Seq, error) {
	p.inOrder()
	e := newKeysEncoder(w)
	e.header(keysMagic, log, p.past, len(p.keys))
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
	classes   numbers[*Class]
	grants    numbers[*grant]
	resources numbers[*resources]
	allows    numbers[*allowlist]
	limits    numbers[*keyspace.Limit]
	terms     numbers[*terms]
}

func newKeysEncoder(w io.Writer) *keysEncoder {
	return &keysEncoder{
		encoder: newEncoder(w),
		spaces:  numbers[*Keyspace]{}, classes: numbers[*Class]{}, grants: numbers[*grant]{}, resources: numbers[*resources]{},
		allows: numbers[*allowlist]{}, limits: numbers[*keyspace.Limit]{}, terms: numbers[*terms]{},
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
		e.text(string(r.space))
		e.text(string(r.tenant))
		e.text(string(r.role))
		e.chain(r.Chain)
		e.bool(r.Deleted)
		e.texts(r.Scopes)
		e.flush()
	}
	for i, next := 0, 0; i < len(p.keys); i++ {
		if i == next && i < p.owners {
			next += sortShard(p.keys[i:p.owners])
		}
		e.key(p.keys[i])
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

func (e *keysEncoder) key(k *Key) {
	class, terms := e.class(k.Class), e.combination(k.terms)
	e.byte(recKey)
	e.bool(k.turned)
	e.bytes(k.ID[:])
	e.bytes(k.Digest[:])
	e.int(int64(k.ExpiresAt))
	e.uint(uint64(k.rev))
	e.bytes(k.head[:])
	e.uint(class)
	e.uint(terms)
	e.flush()
}

func (e *keysEncoder) class(c *Class) uint64 {
	n, isNew := e.classes.number(c)
	if isNew {
		space, _ := e.spaces.number(c.Space)
		e.byte(recClass)
		e.uint(space)
		e.text(string(c.Tenant))
		e.text(c.KeyType)
		e.text(c.Environment)
		e.text(string(c.Status))
		e.flush()
	}
	return n
}

func (e *keysEncoder) combination(t *terms) uint64 {
	n, isNew := e.terms.number(t)
	if isNew {
		grant, resources, allow, limit := e.grant(t.grant), e.resourceList(t.resources), e.allowlist(t.allow), e.limit(t.limit)
		e.byte(recTerms)
		e.uint(grant)
		e.uint(resources)
		e.uint(allow)
		e.uint(limit)
		e.flush()
	}
	return n
}

func (e *keysEncoder) grant(g *grant) uint64 {
	n, isNew := e.grants.number(g)
	if isNew {
		space, _ := e.spaces.number(g.space)
		e.byte(recGrant)
		e.uint(space)
		e.text(string(g.tenant))
		e.text(g.keyType)
		e.texts(g.given.Scopes)
		e.uint(uint64(len(g.given.Roles)))
		for _, r := range g.given.Roles {
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

func (e *keysEncoder) limit(l *keyspace.Limit) uint64 {
	n, isNew := e.limits.number(l)
	if isNew {
		e.byte(recLimit)
		e.limitFields(l)
		e.flush()
	}
	return n
}
