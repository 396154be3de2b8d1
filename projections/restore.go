package projections

import (
	"fmt"
	"io"
	"math"
	"net/netip"

	"github.com/keytrail/keytrail/events"
)

// LoadKeys reads what Snapshot wrote of the same log. It refuses, with a
// sentence, what is no snapshot, of another version or another log, cut short,
// or altered in any bit. Whether the log still holds the position is the
// caller's to check, as Load does.
func LoadKeys(r io.Reader, log events.LogID) (*Keys, error) {
	d := &keysDecoder{decoder: newDecoder(r), view: NewKeys()}
	if err := d.decode(log); err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return d.view, nil
}

type keysDecoder struct {
	decoder
	view      *Keys
	spaces    []*Keyspace
	classes   []loadedClass
	grants    []terms // of which only the grant is set
	resources []*resources
	allows    []*allowlist
	limits    []*limit
	terms     []uint32 // their numbers in the view
}

type loadedClass struct {
	kind, tenant uint32
	status       uint8
}

// share returns value number i, the zero value for 0.
func share[V any](d *keysDecoder, list []V, i uint64) (v V) {
	switch {
	case i == 0:
	case i > uint64(len(list)):
		d.fail(errDamaged)
	default:
		v = list[i-1]
	}
	return v
}

// need is share of what there must be.
func need[V any](d *keysDecoder, list []V, i uint64) V {
	if i == 0 {
		d.fail(errDamaged)
	}
	return share(d, list, i)
}

func (d *keysDecoder) decode(log events.LogID) error {
	h, keys, err := d.header(keysMagic, "keys", log)
	if err != nil {
		return err
	}
	for d.err == nil {
		switch tag := d.byte(); tag {
		case recMemory:
			d.view.memory = d.memory(h.at)
		case recKeyspace:
			d.keyspace()
		case recTenant:
			d.tenant()
		case recRole:
			d.role()
		case recClass:
			d.class()
		case recGrant:
			d.grant()
		case recResources:
			d.resourceList()
		case recAllow:
			d.allowlist()
		case recLimit:
			d.limits = append(d.limits, d.view.limit(d.limitFields()))
		case recTerms:
			d.combination()
		case recKey:
			d.key()
			if v := d.view; v.Len() == firstReserved { // growing step by step would cost a third of the load
				v.records.reserve(int(min(keys, mostReserved)) - firstReserved)
				v.digests.reserve(int(min(keys, mostReserved)))
				v.ids.reserve(int(min(keys, mostReserved)))
			}
		case recEnd:
			return d.finish(h, keys)
		default:
			d.fail(errDamaged)
		}
	}
	return d.err
}

// finish checks the sum and completes the view.
func (d *keysDecoder) finish(h history, keys uint64) error {
	if err := d.sum(); err != nil {
		return err
	}
	v := d.view
	if uint64(v.Len()) != keys || !v.memory.of(&h) {
		return errDamaged
	}
	v.past = h
	return nil
}

func (d *keysDecoder) keyspace() {
	id := events.KeyspaceID(d.text())
	s := newKeyspace(id)
	s.state = d.spaceState(id)
	s.formal.Store(d.bool())
	if d.err != nil {
		return
	}
	s.named = true
	s.rule(s.compile(uint64(s.state.Seq)))
	d.spaces = append(d.spaces, s)
	if s.state.Exists() {
		d.view.publish(s)
	} else {
		d.view.undefined[id] = s
	}
}

func (d *keysDecoder) tenant() {
	space, id := need(d, d.spaces, d.uint()), events.TenantID(d.text())
	state := d.tenantState("", id)
	if d.err != nil {
		return
	}
	state.Keyspace = space.ID
	t := d.view.tenants.at(d.view.tenant(space, id))
	t.state = state
	t.limit.Store(state.Limit)
}

func (d *keysDecoder) role() {
	space, tenant, id := events.KeyspaceID(d.text()), events.TenantID(d.text()), events.RoleID(d.text())
	chain, deleted, scopes := d.chain(), d.bool(), d.texts()
	if d.err != nil {
		return
	}
	v := d.view
	s := v.space(space)
	r := v.role(v.tenants.at(v.tenant(s, tenant)), id)
	r.chain, r.deleted = chain, deleted
	v.give(r, v.scopeSet(s, scopes))
}

func (d *keysDecoder) class() {
	space := need(d, d.spaces, d.uint())
	tenant, keyType, environment, status := events.TenantID(d.text()), d.text(), d.text(), d.status()
	if d.err == nil {
		d.classes = append(d.classes, loadedClass{d.view.kind(space, keyType, environment), d.view.tenant(space, tenant), statusNumber(status)})
	}
}

func (d *keysDecoder) grant() {
	space, tenant := need(d, d.spaces, d.uint()), events.TenantID(d.text())
	d.text() // the type: the key's class has it
	given := events.Grant{Scopes: d.texts()}
	for _, r := range d.texts() {
		given.Roles = append(given.Roles, events.RoleID(r))
	}
	if d.err != nil {
		return
	}
	whole := &Tenant{space: space}
	if len(given.Roles) > 0 {
		whole = d.view.tenants.at(d.view.tenant(space, tenant))
	}
	var t terms
	d.view.grant(&t, whole, given)
	d.grants = append(d.grants, t)
}

func (d *keysDecoder) resourceList() {
	var list []events.Resource
	for range d.count(events.MaxResources) {
		if d.err != nil {
			return
		}
		list = append(list, events.Resource{Kind: d.text(), ID: d.text()})
	}
	if len(list) == 0 {
		d.fail(errDamaged) // it would admit nothing, and no list everything
		return
	}
	d.resources = append(d.resources, d.view.resourceList(list))
}

func (d *keysDecoder) allowlist() {
	list := make([]netip.Prefix, d.count(events.MaxAllowlist))
	for i := range list {
		if err := list[i].UnmarshalBinary(d.next(d.count(maxText))); err != nil || !list[i].IsValid() {
			d.fail(errDamaged)
			return
		}
	}
	if len(list) == 0 {
		d.fail(errDamaged)
		return
	}
	d.allows = append(d.allows, d.view.allowlist(list))
}

func (d *keysDecoder) combination() {
	t := need(d, d.grants, d.uint())
	t.resources, t.allow, t.limit = share(d, d.resources, d.uint()), share(d, d.allows, d.uint()), share(d, d.limits, d.uint())
	if d.err == nil {
		d.terms = append(d.terms, d.view.take(&t))
	}
}

func (d *keysDecoder) key() {
	w := rest{turned: d.bool()}
	var id events.KeyID
	var digest events.Digest
	copy(id[:], d.next(len(id)))
	copy(digest[:], d.next(len(digest)))
	expires := d.time()
	w.rev = uint32(d.count(math.MaxUint32))
	copy(w.head[:], d.next(len(w.head)))
	class := need(d, d.classes, d.uint())
	terms := need(d, d.terms, d.uint())
	if d.err == nil {
		d.view.put(id, digest, class.kind, class.tenant, expires, newState(terms, 0, class.status), w)
	}
}
