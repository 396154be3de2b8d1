package projections

import (
	"fmt"
	"io"
	"math"
	"net/netip"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
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
	spaces    []counted[Keyspace]
	classes   []counted[Class]
	grants    []counted[grant]
	resources []counted[resources]
	allows    []counted[allowlist]
	limits    []counted[keyspace.Limit]
	terms     []counted[terms]
}

// counted is a shared value and how many users it has had so far.
type counted[V any] use[V]

// share returns value number i and counts the use; 0 is none.
func share[V any](d *keysDecoder, list []counted[V], i uint64) *V {
	if i == 0 {
		return nil
	}
	if i > uint64(len(list)) {
		d.fail(errDamaged)
		return nil
	}
	list[i-1].n++
	return list[i-1].v
}

// need is share of what there must be.
func need[V any](d *keysDecoder, list []counted[V], i uint64) *V {
	v := share(d, list, i)
	if v == nil {
		d.fail(errDamaged)
	}
	return v
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
			d.limits = append(d.limits, counted[keyspace.Limit]{v: d.limitFields()})
		case recTerms:
			d.combination()
		case recKey:
			d.key()
			if v := d.view; v.Len() == firstReserved { // growing step by step would cost a third of the load
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
	adopt(v.classes, d.classes, (*Class).ref)
	adopt(v.terms, d.terms, func(t *terms) terms { return *t })
	adopt(v.grants, d.grants, func(g *grant) sum { return g.key })
	adopt(v.resources, d.resources, func(r *resources) sum { return r.key })
	adopt(v.allows, d.allows, func(a *allowlist) sum { return a.key })
	adopt(v.limits, d.limits, func(l *keyspace.Limit) keyspace.Limit { return *l })
	for _, g := range d.grants {
		v.index(g.v)
	}
	v.past = h
	return nil
}

func adopt[K comparable, V any](p pool[K, V], list []counted[V], key func(*V) K) {
	for _, c := range list {
		p[key(c.v)] = use[V](c)
	}
}

func (d *keysDecoder) keyspace() {
	id := events.KeyspaceID(d.text())
	s := newKeyspace(id)
	s.state = d.spaceState(id)
	s.formal.Store(d.bool())
	if d.err != nil {
		return
	}
	s.rules.Store(keyspace.Compile(s.state.Definition, s.state.Retired))
	d.spaces = append(d.spaces, counted[Keyspace]{v: s})
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
	t := d.view.tenant(space, id)
	t.state = state
	t.limit.Store(state.Limit)
}

func (d *keysDecoder) role() {
	ref := roleRef{events.KeyspaceID(d.text()), events.TenantID(d.text()), events.RoleID(d.text())}
	d.view.roles[ref] = &events.Role{Keyspace: ref.space, Tenant: ref.tenant, ID: ref.role,
		Chain: d.chain(), Deleted: d.bool(), Scopes: d.texts()}
}

func (d *keysDecoder) class() {
	space := need(d, d.spaces, d.uint())
	c := &Class{events.TenantID(d.text()), d.text(), d.text(), d.status(), space, nil}
	if d.err == nil {
		c.Whole = d.view.tenant(space, c.Tenant)
	}
	d.classes = append(d.classes, counted[Class]{v: c})
}

func (d *keysDecoder) grant() {
	g := &grant{space: need(d, d.spaces, d.uint()), tenant: events.TenantID(d.text()), keyType: d.text()}
	g.given.Scopes = d.texts()
	for _, r := range d.texts() {
		g.given.Roles = append(g.given.Roles, events.RoleID(r))
	}
	if d.err == nil {
		g.key = sumGrant(g.space, g.tenant, g.keyType, g.given)
		d.grants = append(d.grants, counted[grant]{v: g})
	}
}

func (d *keysDecoder) resourceList() {
	r := new(resources)
	for range d.count(events.MaxResources) {
		if d.err != nil {
			return
		}
		r.list = append(r.list, events.Resource{Kind: d.text(), ID: d.text()})
	}
	r.key = sumResources(r.list)
	d.resources = append(d.resources, counted[resources]{v: r})
}

func (d *keysDecoder) allowlist() {
	list := make([]netip.Prefix, d.count(events.MaxAllowlist))
	for i := range list {
		if err := list[i].UnmarshalBinary(d.next(d.count(maxText))); err != nil || !list[i].IsValid() {
			d.fail(errDamaged)
			return
		}
	}
	d.allows = append(d.allows, counted[allowlist]{v: newAllowlist(sumPrefixes(list), list)})
}

func (d *keysDecoder) combination() {
	t := &terms{need(d, d.grants, d.uint()), share(d, d.resources, d.uint()), share(d, d.allows, d.uint()), share(d, d.limits, d.uint())}
	d.terms = append(d.terms, counted[terms]{v: t})
}

func (d *keysDecoder) key() {
	k := &Key{turned: d.bool()}
	copy(k.ID[:], d.next(len(k.ID)))
	copy(k.Digest[:], d.next(len(k.Digest)))
	k.ExpiresAt = d.time()
	k.rev = uint32(d.count(math.MaxUint32))
	copy(k.head[:], d.next(len(k.head)))
	k.Class = need(d, d.classes, d.uint())
	k.terms = need(d, d.terms, d.uint())
	if d.err != nil {
		return
	}
	if _, _, limited := k.Limit(k.Space.Rules()); limited {
		k.bucket.Store(new(Bucket))
	}
	d.view.put(k, nil)
}
