package projections

import (
	"fmt"
	"io"

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
